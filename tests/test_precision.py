"""float32 means float32: TPUs and recent NVIDIA cards round products otherwise."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from create_jax.configs.common import get_config
from test_steps import JOINT, LOG, make_config, prepare

from create_jax import build, evaluate, optim, parallel, steps
from create_jax.data.splits import Holdout
from create_jax.models.alignment import Alignment
from create_jax.models.graph_encoder import Vectors
from create_jax.models.transformer import random_words


def precisions(lowered) -> set[str]:
    """Of all products in a lowered program."""
    text = lowered.as_text()
    found = re.findall(r"dot_general[^\n]*?precision = \[(\w+), (\w+)\]", text)
    assert len(found) == text.count("stablehlo.dot_general")
    return {name for pair in found for name in pair}


@pytest.mark.parametrize("value, name", [("highest", "HIGHEST"), ("high", "HIGH")])
def test_a_step_has_the_precision_of_the_config(value, name):
    config = make_config(**{"model.precision": value})
    alone = JOINT._replace(w_align=0.0)
    assert precisions(lower_step(config, alone)) == {name}


def test_alignment_has_the_highest_precision_whatever_the_config_says():
    for kind in ("barlow_twins", "infonce", "vicreg", "nwj"):
        config = make_config(**{"model.precision": "default", "align.kind": kind})
        assert precisions(lower_step(config)) == {"DEFAULT", "HIGHEST"}


def test_projectors_and_the_disinterest_of_an_alignment_have_it_too():
    config = get_config().align
    config.projector_dims = (4,)
    align = Alignment.from_config(config)
    params = align.init(jax.random.key(0), 8) | {"user_table": np.ones((3, 8))}
    batch = SimpleNamespace(last=np.arange(3), users=np.arange(3), weights=np.ones(3))

    def loss(params, states):
        vectors = Vectors(states, states, averse_users=states)
        with jax.default_matmul_precision("default"):
            return align.with_graph(params, states, vectors, batch)

    lowered = jax.jit(jax.grad(loss)).lower(params, np.ones((3, 8), np.float32))
    assert precisions(lowered) == {"HIGHEST"}


def lower_step(config, phase=JOINT):
    model, feed, graph = prepare(config, phase, 1)
    tx = optim.make(**config.optim.to_dict())
    batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))
    step = partial(steps.train_step, model, phase, tx, 0, None)
    return jax.jit(step).lower(steps.init(model, tx, 0), batch, graph)


def test_ranking_has_the_highest_precision():
    config = make_config("sasrec", **{"model.precision": "default"})
    mesh = parallel.make_mesh()
    n = LOG.n_users
    ends = np.searchsorted(LOG.users, np.arange(n), side="right")
    holdout = Holdout(
        users=np.arange(n, dtype=np.int32),
        log=LOG.items,
        begin=np.searchsorted(LOG.users, np.arange(n)),
        end=ends,
        targets=LOG.items[ends - 1],
        offsets=np.arange(n + 1),
        candidates=np.arange(LOG.n_items + 1) > 0,
    )
    model = build.make_model(config, n, LOG.n_items)
    params = model.init(0)
    score = evaluate.model_scores(model, mesh, by_graph=False)
    evaluator = evaluate.make_evaluator(config, holdout, score, mesh)
    assert precisions(evaluator.lower(params, ())) == {"HIGHEST"}


def test_the_devices_own_generator_drops_as_large_a_share():
    words = random_words(jax.random.key(0, impl="rbg"), (200, 200))
    assert words.dtype == jnp.uint32
    assert abs(np.mean(np.asarray(words) < 0.3 * 2**32) - 0.3) < 0.01
