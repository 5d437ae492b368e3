"""A loader: users who walk around a circle of items, from nothing on the disk."""

import numpy as np
import polars as pl

from create_jax.data.interactions import Interactions

SETTINGS = {"n_users": 12}


def load(path, *, k_core, drop_repeats, counts, n_users):
    users = np.repeat(np.arange(n_users), 6).astype(np.int32)
    items = (1 + (users + np.arange(len(users)) % 6) % 9).astype(np.int32)
    return Interactions(
        users,
        items,
        np.arange(len(users)),
        pl.Series([f"u{u:02}" for u in range(n_users)]),
        pl.Series([f"i{i}" for i in range(1, 10)]),
    )
