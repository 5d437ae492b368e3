"""A graph encoder: LightGCN, its users moved by a setting."""

from create_jax.models import lightgcn
from create_jax.models.lightgcn import batches, init, loss, prepare  # noqa: F401

PROPAGATES = True
NEEDS = ()
SETTINGS = {"layers": 1, "l2": 0.0, "shift": 0.5}


def encode(params, graph, settings, axis_name=None):
    vectors = lightgcn.encode(params, graph, settings, axis_name)
    return vectors._replace(users=vectors.users + settings["shift"])
