"""GSAU's losses against NumPy, whole and split over devices, and its method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from create_jax import build, losses
from create_jax.configs import table
from create_jax.models import lightgcn

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 8, 5)).astype(np.float32)
TABLE = RNG.normal(size=(7, 5)).astype(np.float32)
WEIGHTS = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
TARGETS = np.array([3, 1, 0, 6, 1, 2, 0, 5])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_uniformity(x):
    x = unit(x.astype(np.float64))
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    return np.log(np.mean([np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs]))


def numpy_alignment(a, b):
    return np.mean(np.sum((unit(a) - unit(b)) ** 2, -1))


def test_alignment_and_uniformity_are_those_of_the_real_rows():
    real = WEIGHTS > 0
    found = losses.mean_alignment(A, B, WEIGHTS)
    np.testing.assert_allclose(found, numpy_alignment(A[real], B[real]), rtol=1e-5)
    found = losses.uniformity(jnp.asarray(A), WEIGHTS)
    np.testing.assert_allclose(found, numpy_uniformity(A[real]), rtol=1e-5)


@pytest.mark.parametrize("rec", [False, True])
def test_gsau_is_the_second_writing(rec):
    key = jax.random.key(3)
    found = losses.gsau(
        jnp.asarray(A), jnp.asarray(TABLE), TARGETS, key, n_items=6, gamma=0.1, rec=rec
    )
    real = TARGETS > 0
    drawn = np.asarray(jax.random.uniform(key, (8,)))
    order = sorted(np.flatnonzero(real), key=lambda slot: drawn[slot])
    following = np.roll(order, -1)
    states, items = A[real].astype(np.float64), TABLE[TARGETS[real]]
    if rec:
        logits = unit(states) @ TABLE[1:].T
        own = logits[np.arange(len(states)), TARGETS[real] - 1]
        main = np.mean(np.log(np.exp(logits).sum(-1)) - own)
    else:
        main = numpy_alignment(states, items)
    apart = np.sum((unit(A[order]) - unit(TABLE[TARGETS[following]])) ** 2, -1)
    crossed = np.log(np.mean(np.exp(-2 * apart)))
    spread = numpy_uniformity(states) + numpy_uniformity(items)
    np.testing.assert_allclose(found, main + 0.1 * (spread + crossed), rtol=1e-5)


@pytest.mark.parametrize("real", [0, 1, 2])
def test_a_step_with_few_targets_has_a_finite_loss(real):
    """As BERT4Rec may have with small steps. Of two targets each meets the other."""
    targets = np.where(np.arange(8) < real, TARGETS[[0]], 0)

    def loss(states, table):
        return losses.gsau(
            *(states, table, targets, jax.random.key(0)),
            **dict(n_items=6, gamma=0.1, rec=False),
        )

    found = jax.value_and_grad(loss, (0, 1))(jnp.asarray(A), jnp.asarray(TABLE))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_uniformity_of_four_devices_is_that_of_the_whole():
    def whole(x):
        return losses.uniformity(x, WEIGHTS)

    def split(x, weights):
        return losses.uniformity(x, weights, "data")

    value, slope = jax.value_and_grad(whole)(jnp.asarray(A))
    parts = A.reshape(4, 2, 5), WEIGHTS.reshape(4, 2)
    mapped = jax.vmap(jax.value_and_grad(split), axis_name="data")(*parts)
    np.testing.assert_allclose(mapped[0], np.full(4, value), rtol=1e-5)
    # Each device's slope counts its rows once for each device's loss.
    np.testing.assert_allclose(mapped[1].reshape(8, 5) / 4, slope, atol=1e-6)


def test_the_method_is_both_encoders_without_warm_up_or_twins():
    config = table.get_config("gsau")
    build.check(config)
    (phase,) = build.make_phases(config)
    assert (phase.local, phase.w_global, phase.w_align) == (1.0, 1.0, 0.0)
    model = build.make_model(config, n_users=5, n_items=7)
    assert model.graph is lightgcn and model.local.func is losses.NEXT_ITEM["gsau"]
    assert model.graph_settings["loss"] == "alignment_uniformity"
