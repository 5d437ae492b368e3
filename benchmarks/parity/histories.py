"""Real histories and the layers that public models share, for the scripts here."""

import jax.numpy as jnp
import numpy as np
import torch

from create_jax.data import movietweetings

LENGTH, QUERIES = 50, 256


def load():
    """MovieTweetings 100K, 5-core."""
    return movietweetings.load(k_core=5)


def recent(log, n: int) -> np.ndarray:
    """[R] bool: the last n rows of each user."""
    ends = np.cumsum(np.bincount(log.users))
    return ends[log.users] - np.arange(len(log.users)) <= n


def draw(log, seed: int = 0, length: int = LENGTH) -> list[np.ndarray]:
    """The last items of random users, oldest first."""
    users = np.random.default_rng(seed).choice(log.n_users, QUERIES, replace=False)
    starts = np.searchsorted(log.users, np.arange(log.n_users + 1))
    return [log.items[starts[u] : starts[u + 1]][-length:] for u in users]


def pad(histories, side: str, length: int = LENGTH) -> np.ndarray:
    """[Q, length] items, 0 = nothing."""
    rows = np.zeros((len(histories), length), np.int32)
    for row, items in zip(rows, histories, strict=True):
        start = 0 if side == "right" else length - len(items)
        row[start : start + len(items)] = items
    return rows


def encode(encoder, params, table, rows, positions):
    """States of the filled slots [N, D], row by row."""
    segments = (rows > 0).astype(np.int32)
    states = encoder.apply({"params": params}, table[rows], positions, segments, False)
    return np.asarray(states)[rows > 0]


# --- torch layers as Linen parameters -------------------------------------------------


def array(tensor: torch.Tensor):
    return jnp.asarray(tensor.detach().numpy())


def norm(layer) -> dict:
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def dense(layer) -> dict:
    kernel = {"kernel": array(layer.weight).T}
    return kernel if layer.bias is None else kernel | {"bias": array(layer.bias)}


def attention(heads: int, query, key, value, output) -> dict:
    """Of (weight, bias) pairs as torch has them: [out, in], heads side by side."""
    params = {}
    for name, (weight, bias) in {"query": query, "key": key, "value": value}.items():
        params[name] = {
            "kernel": array(weight).T.reshape(weight.shape[1], heads, -1),
            "bias": array(bias).reshape(heads, -1),
        }
    weight, bias = output
    kernel = array(weight).T.reshape(heads, -1, weight.shape[0])
    return params | {"output": {"kernel": kernel, "bias": array(bias)}}
