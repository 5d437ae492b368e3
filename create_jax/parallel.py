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

DATA = "data"


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), (DATA,), axis_types=(AxisType.Auto,))


def compile_step(
    step: Callable, mesh: Mesh, in_specs, out_specs, donate: tuple[int, ...] = ()
):
    """Compiles a per-device function for all devices of `mesh`."""
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


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
