"""Encoders as Linen modules and pure functions; `create.py` puts them together."""
