"""Tables that are split by rows over the mesh axis `model`.

Every device stays a shard of the batch. Functions here take the `axis_name` that a
batch is split over; where that is `parallel.ALL`, a table is one device's part: of M
devices that differ in `model` only, a group, number m has the rows from m V / M on.
Rows of zeros fill V up to a multiple of M (`padded`). With any other `axis_name` a
table is whole, and each function is what it is of a whole table.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from create_jax.parallel import ALL, DATA, MODEL


def is_split(axis_name) -> bool:
    """Whether tables are in parts."""
    return axis_name == ALL


def parts(axis_name) -> int:
    """M, over how many devices the rows of a table are split."""
    return lax.axis_size(MODEL) if is_split(axis_name) else 1


def copies_over(axis_name):
    """The axes whose devices have the same rows of a table."""
    return DATA if is_split(axis_name) else axis_name


def look_up(table: jax.Array, ids: jax.Array, axis_name=None) -> jax.Array:
    """table[ids] for any ids [...] of this device -> [..., D]: the group tells each
    other what it wants, and each hands out what it has."""
    return look_ups((table, ids), axis_name=axis_name)[0]


def look_ups(*wanted: tuple[jax.Array, jax.Array], axis_name=None) -> list[jax.Array]:
    """`look_up` of several (table, ids), in one message each way for a kind of number:
    each message costs its latency."""
    if not is_split(axis_name):
        return [table[ids] for table, ids in wanted]
    asked = lax.all_gather(jnp.concatenate([ids.ravel() for _, ids in wanted]), MODEL)
    ends = np.cumsum([ids.size for _, ids in wanted])[:-1]
    parts = jnp.split(asked, ends, axis=1)
    rows = [
        own_rows(table, part) for (table, _), part in zip(wanted, parts, strict=True)
    ]
    found = [None] * len(wanted)
    for kind in dict.fromkeys(x.dtype for x in rows):
        at = [n for n, x in enumerate(rows) if x.dtype == kind]
        flat = [rows[n].reshape(len(asked), -1) for n in at]
        sums = lax.psum_scatter(jnp.concatenate(flat, axis=1), MODEL)
        ends = np.cumsum([x.shape[1] for x in flat])[:-1]
        for n, own in zip(at, jnp.split(sums, ends), strict=True):
            table, ids = wanted[n]
            found[n] = own.reshape(*ids.shape, *table.shape[1:])
    return found


def own_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a split table that this device has, zeros for those of others."""
    place = places(table, ids)
    return jnp.take(table, place, axis=0, mode="fill", fill_value=0)


def places(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Where rows stand in this device's part; behind it = in the part of another."""
    place = ids - lax.axis_index(MODEL) * len(table)
    return jnp.where((place >= 0) & (place < len(table)), place, len(table))


def of_group(x: jax.Array, axis_name) -> jax.Array:
    """The rows [M n, ...] of a group's devices, one device after the other."""
    return lax.all_gather(x, MODEL, tiled=True) if is_split(axis_name) else x


def group_sum(x: jax.Array, axis_name) -> jax.Array:
    """The sum over all rows of what is a sum over this device's rows."""
    return lax.psum(x, MODEL) if is_split(axis_name) else x


def columns(table: jax.Array, axis_name) -> jax.Array:
    """[V / M, D] -> all rows of some columns [V, D / M], for products from the left."""
    if not is_split(axis_name):
        return table
    return lax.all_to_all(table, MODEL, 1, 0, tiled=True)


def rows(table: jax.Array, axis_name) -> jax.Array:
    """[V, D / M] -> [V / M, D], what `columns` undoes."""
    if not is_split(axis_name):
        return table
    return lax.all_to_all(table, MODEL, 0, 1, tiled=True)


def padded(x, parts: int):
    """An array whose rows are filled up with zeros to a multiple of `parts`."""
    missing = -len(x) % parts
    if not missing:
        return x
    pad = jnp.pad if isinstance(x, jax.Array) else np.pad
    return pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)])
