"""One program on every device.

A step is written for one device, against an axis name, and compiled here as
`jit(shard_map(step))`, which is what `jax.pmap` itself has become; a test runs the same
step under the literal `jax.pmap`. Losses are global (losses.py), gradients are averaged
over devices: that form is exact under pmap, shard_map and vmap alike.
"""

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from create_jax.errors import bad_setting

DATA, MODEL = "data", "model"
ALL = DATA, MODEL


def make_mesh(model: int = 1) -> Mesh:
    """All devices of all processes along one axis, `data`, or along two: groups of
    `model` devices that follow each other share the rows of tables (tables.py).

    Raises:
      InputError: the devices are no multiple of `model`.
    """
    devices = jax.device_count()
    if model == 1:
        return jax.make_mesh((devices,), (DATA,), axis_types=(AxisType.Auto,))
    if devices % model:
        raise bad_setting("mesh.model", model, f"a divisor of the {devices} devices")
    shape, types = (devices // model, model), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, ALL, axis_types=types)


def batch_axes(mesh: Mesh):
    """The name, or names, of the axes that a batch is split over: all of a mesh."""
    return ALL if MODEL in mesh.axis_names else DATA


def parts_of_tables(mesh: Mesh) -> int:
    """M, how many devices share the rows of a table."""
    return mesh.shape.get(MODEL, 1)


def compile_step(
    step: Callable, mesh: Mesh, in_specs, out_specs, donate: tuple[int, ...] = ()
):
    """Compiles a per-device function for all devices of `mesh`."""
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


def shardings(mesh: Mesh, specs):
    """A tree of PartitionSpecs as shardings of a mesh."""
    is_spec = dict(is_leaf=lambda x: isinstance(x, P))
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, **is_spec)


def own_shards(mesh: Mesh) -> np.ndarray | None:
    """The numbers of the shards, one a device, that lie in this process; None = all."""
    if jax.process_count() == 1:
        return None
    owners = [device.process_index for device in mesh.devices.flat]
    return np.flatnonzero(np.array(owners) == jax.process_index())


def place_own(mesh: Mesh, tree, spec: P):
    """Rows of this process's own shards, one shard after the other, onto its devices.

    Args:
      spec: of all arrays, split along one axis over all devices.
    """
    own, axis = own_shards(mesh), len(spec) - 1
    if own is None:
        return place(mesh, tree, spec)

    def put(x):
        rows = x.shape[axis] // len(own)
        shape = (*x.shape[:axis], rows * mesh.size, *x.shape[axis + 1 :])

        def part(index):
            at = np.searchsorted(own, index[axis].start // rows) * rows
            return x[(*index[:axis], slice(at, at + rows))]

        return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), part)

    return jax.tree.map(put, tree)


def wishes(mesh: Mesh) -> Callable[[int], jax.Array]:
    """wish -> [devices] int32, what this process wishes on each of its own. The others
    may wish something else; a compiled program returns the maximum."""
    sharding = NamedSharding(mesh, P(mesh.axis_names))

    @cache
    def made(wish: int):
        one = np.array([wish], np.int32)
        return jax.make_array_from_callback((mesh.size,), sharding, lambda _: one)

    return made


def bytes_a_device(mesh: Mesh, tree, specs) -> int:
    """What arrays on the host would take of each device, if placed by these specs."""

    def size(x, spec):
        shape = NamedSharding(mesh, spec).shard_shape(np.shape(x))
        return int(np.prod(shape, dtype=np.int64)) * np.asarray(x).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, tree, specs)))


def memory(mesh: Mesh) -> int | None:
    """Bytes that a device has for arrays; None where it does not say, as a CPU."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")


def whole(mesh: Mesh, tree):
    """Begins to bring arrays of the mesh to every process; `jax.device_get` of what
    comes back waits for them."""
    if jax.process_count() == 1:
        return tree
    return jax.jit(_as_it_is, out_shardings=NamedSharding(mesh, P()))(tree)


def _as_it_is(tree):  # one function: JAX compiles it once for each form of a tree
    return tree


def place(mesh: Mesh, tree, specs=None):
    """Host arrays, the same in every process, onto the devices.

    Args:
      specs: one PartitionSpec for all arrays (None: everywhere), or a tree of them.
    """

    def put(x, spec):
        sharding = NamedSharding(mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    if specs is None or isinstance(specs, P):
        return jax.tree.map(lambda x: put(x, specs or P()), tree)
    return jax.tree.map(put, tree, specs)
