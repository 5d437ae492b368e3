"""One program on every device.

A step is written for one device, against an axis name, and compiled here as
`jit(shard_map(step))`, which is what `jax.pmap` itself has become; a test runs the same
step under the literal `jax.pmap`. Losses are global (losses.py), gradients are averaged
over devices: that form is exact under pmap, shard_map and vmap alike.
"""

from collections.abc import Callable

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
