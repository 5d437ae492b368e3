"""Logs, splits, packed batches and graphs as NumPy arrays; nothing here knows JAX."""
