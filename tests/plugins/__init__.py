"""One of every sort that a config may name, made outside the package."""
