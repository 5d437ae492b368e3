raise RuntimeError("broken\non two lines")
