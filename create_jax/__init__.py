"""CREATE (arXiv 2602.23471): sequence and graph encoders on one item table, in JAX."""
