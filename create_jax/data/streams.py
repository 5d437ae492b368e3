"""Random numbers on the host: a stream for each purpose, pure in its numbers."""

import numpy as np


def stream(
    purpose: str, *numbers: int, attempt: int | None = None
) -> np.random.Generator:
    """The generator for a purpose and some numbers, for example (seed, epoch).

    purpose: up to four letters, which are read as one integer.
    """
    salt = int.from_bytes(purpose.encode(), "big")
    again = () if attempt is None else (attempt,)
    return np.random.default_rng((*numbers, salt, *again))
