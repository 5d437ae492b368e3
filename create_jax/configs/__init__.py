"""A checkout's `configs/` by the name of an installed one, `create_jax.configs`."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
