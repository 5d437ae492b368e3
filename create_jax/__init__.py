"""CREATE (arXiv 2602.23471): sequence and graph encoders over one item table, in JAX."""
