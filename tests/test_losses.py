"""Losses against a second writing in NumPy, whole and split over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from create_jax import losses


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def over_devices(loss):
    """On each device, value and gradient of a loss of (parameters, two own parts)."""
    on_one = jax.value_and_grad(partial(loss, axis_name="data"))
    return jax.jit(jax.vmap(on_one, in_axes=(None, 0, 0), axis_name="data"))


# --- next item ------------------------------------------------------------------------

TOKENS, ITEMS, ROWS, D = 13, 11, 15, 4  # rows 12..14 of the table are no items
TARGETS = jnp.array([3, 0, 11, 1, 1, 0, 7, 2, 0, 11, 5, 9, 0])


def dense_cross_entropy(states, table, targets, n_items):
    """Mean of -log softmax, and its gradients, by the textbook, in float64."""
    states, table = np.asarray(states, np.float64), np.asarray(table, np.float64)
    targets = np.asarray(targets)
    logits = states @ table[1 : n_items + 1].T
    logits -= logits.max(1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    real = np.flatnonzero(targets > 0)
    loss = -np.mean(log_softmax[real, targets[real] - 1])
    slope = np.exp(log_softmax)
    slope[real, targets[real] - 1] -= 1
    slope[targets == 0] = 0
    slope /= len(real)
    d_table = np.zeros_like(table)
    d_table[1 : n_items + 1] = slope.T @ states
    return loss, slope @ table[1 : n_items + 1], d_table


@pytest.mark.parametrize(
    "token_chunk, item_chunk",
    [(256, 65536), (8, 65536), (5, 11), (5, 10), (13, 4), (1, 1), (4, 100)],
)
def test_streamed_cross_entropy_is_the_dense_one(token_chunk, item_chunk):
    states, table = 2 * normal(0, TOKENS, D), 2 * normal(1, ROWS, D)
    expected, d_states, d_table = dense_cross_entropy(states, table, TARGETS, ITEMS)
    loss = partial(
        losses.softmax_cross_entropy,
        n_items=ITEMS,
        token_chunk=token_chunk,
        item_chunk=item_chunk,
    )
    value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(states, table, TARGETS)
    close(value, expected)
    close(jax.jit(loss)(states, table, TARGETS), expected)  # the way without gradients
    close(slopes[0], d_states)
    close(slopes[1], d_table)
    assert not slopes[0][TARGETS == 0].any()
    assert not slopes[1][np.array([0, 12, 13, 14])].any()  # padding and what is no item


@pytest.mark.parametrize("item_chunk", [65536, 4])
def test_large_logits_do_not_overflow(item_chunk):
    states, table = (
        100 * normal(0, TOKENS, D),
        normal(1, ROWS, D),
    )  # logits of some hundreds
    loss = partial(losses.softmax_cross_entropy, n_items=ITEMS, item_chunk=item_chunk)
    value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(states, table, TARGETS)
    expected, d_states, d_table = dense_cross_entropy(states, table, TARGETS, ITEMS)
    close(value, expected)
    close(slopes[0], d_states, 1e-4)
    close(slopes[1], d_table, 1e-4)


def test_no_targets_is_no_loss_and_no_gradient():
    loss = partial(losses.softmax_cross_entropy, n_items=ITEMS)
    none = jnp.zeros(TOKENS, int)
    value, slope = jax.jit(jax.value_and_grad(loss))(
        normal(0, TOKENS, D), normal(1, ROWS, D), none
    )
    assert value == 0
    assert not slope.any()


@pytest.mark.parametrize("item_chunk", [65536, 4])
def test_cross_entropy_split_over_devices_is_the_unsplit_one(item_chunk):
    # 12, 0, 5 and 1 real tokens: a mean of means would be something else.
    counts, width = [12, 0, 5, 1], 12
    inputs, weights, table = normal(0, 4, width, 3), normal(1, 3, D), normal(2, ROWS, D)
    targets = np.random.default_rng(3).integers(1, ITEMS + 1, (4, width))
    targets *= np.arange(width) < np.array(counts)[:, None]
    settings = dict(n_items=ITEMS, token_chunk=5, item_chunk=item_chunk)

    def loss(parameters, inputs, targets, axis_name=None):
        states = inputs @ parameters[0]
        return losses.softmax_cross_entropy(
            states, parameters[1], targets, axis_name=axis_name, **settings
        )

    parameters = (weights, table)
    flat = inputs.reshape(-1, 3), targets.ravel()
    whole = jax.jit(jax.value_and_grad(loss))(parameters, *flat)
    split = over_devices(loss)(parameters, inputs, targets)
    states = flat[0] @ weights
    expected, _, d_table = dense_cross_entropy(states, table, flat[1], ITEMS)
    close(whole[0], expected)
    close(whole[1][1], d_table)
    close(split[0], np.full(4, whole[0]), 1e-6)  # each device knows the whole loss
    for part, slope in zip(split[1], whole[1], strict=True):
        close(part.mean(0), slope, 1e-6)


def sizes_of(jaxpr):
    """The number of elements of every array a program makes, inside loops as well."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from sizes_of(inner)


@pytest.mark.parametrize("item_chunk", [65536, 1000])
def test_logits_of_all_tokens_never_exist_at_once(item_chunk):
    tokens, items, dim = 2048, 20_000, 8
    loss = partial(
        losses.softmax_cross_entropy,
        n_items=items,
        token_chunk=64,
        item_chunk=item_chunk,
    )
    shapes = [(tokens, dim), (items + 1, dim)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    targets = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    program = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*arrays, targets)
    made = list(sizes_of(program.jaxpr))
    at_once = 64 * min(item_chunk, items)
    assert at_once in made  # the walk does reach the inside of the loops
    assert max(made) <= max(
        at_once, (items + item_chunk) * dim if item_chunk < items else 0
    )
    assert max(made) < tokens * items / 30


# --- BPR and BCE ----------------------------------------------------------------------


def test_bpr_is_the_weighted_mean_of_minus_log_sigmoid():
    positive, negative = normal(0, 5), normal(1, 5)
    weights = np.array([1, 1, 0, 1, 0], np.float32)
    expected = -np.log(1 / (1 + np.exp(-(positive - negative))))[[0, 1, 3]].mean()
    close(losses.bpr(positive, negative, weights), expected, 1e-6)
    assert np.isfinite(losses.bpr(np.array([-500.0]), np.array([500.0]), np.ones(1)))


def test_a_mean_without_weight_is_zero():
    assert losses.weighted_mean(np.ones(3), np.zeros(3)) == 0


# --- alignment ------------------------------------------------------------------------


VIEWS = normal(0, 7, 5), 0.3 * normal(1, 7, 5) + normal(0, 7, 5) + 2


def test_standardise_gives_zero_mean_and_unit_biased_deviation():
    x, weights = np.asarray(VIEWS[1]), np.array([1, 1, 1, 0, 1, 0, 1], np.float32)
    real = weights > 0
    found = np.asarray(losses._standardised((x,), weights, None)[1][0])
    close(found[real], (x[real] - x[real].mean(0)) / (x[real].std(0) + 1e-5))


def test_the_barlow_twins_gradient_is_the_finite_difference():
    with jax.enable_x64(True):
        views = [jnp.asarray(view, jnp.float64) for view in VIEWS]
        weights = jnp.array([1, 1, 1, 0, 1, 1, 1], jnp.float64)

        @jax.jit
        def loss(a, b):
            return losses.barlow_twins(a, b, weights, off_diagonal=0.3)

        slopes = jax.grad(loss, (0, 1))(*views)
        for which in (0, 1):
            numeric, step = np.zeros((7, 5)), 1e-6
            for place in np.ndindex(7, 5):
                ends = []
                for sign in (1, -1):
                    moved = list(views)
                    moved[which] = views[which].at[place].add(sign * step)
                    ends.append(float(loss(*moved)))
                numeric[place] = (ends[0] - ends[1]) / (2 * step)
            assert slopes[which].dtype == jnp.float64
            np.testing.assert_allclose(slopes[which], numeric, rtol=1e-6, atol=1e-8)
            assert np.abs(numeric).max() > 0.01


def test_views_that_agree_and_do_not_correlate_cost_nothing():
    # The two columns of +-1 are uncorrelated: C = I.
    view = 10 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    ones = np.ones(4, np.float32)
    assert losses.barlow_twins(view, 3 * view + 7, ones, off_diagonal=1.0) < 1e-9
    assert losses.barlow_twins(view, -view, ones) > 3  # C = -I costs 4 per dimension


NCE = partial(losses.infonce, temperature=0.5)

# --- losses over pairs, in parts ------------------------------------------------------


def sampled(a, b, weights, axis_name=None):
    targets = jnp.where(weights > 0, jnp.arange(len(a)) % 5 + 1, 0)
    negatives = jnp.arange(len(a) * 2).reshape(-1, 4) % 6 + 1  # of two tokens
    settings = dict(kind="sampled", axis_name=axis_name)
    return losses.sampled_losses(a, jnp.sin(b[:7]), targets, negatives, **settings)


def uniformity(a, b, weights, axis_name=None):
    return losses.uniformity(a * b, weights, axis_name)


OVER_PAIRS = {
    "infonce": NCE,
    "nwj": losses.nwj,
    "uniformity": uniformity,
    "sampled": sampled,
}
over_pairs = pytest.mark.parametrize("loss", OVER_PAIRS.values(), ids=OVER_PAIRS)


@over_pairs
def test_losses_in_parts_are_those_at_once(loss, monkeypatch):
    views = normal(0, 14, 5), normal(1, 14, 5)
    weights = np.array([1, 1, 0, 1, 1, 1, 1] * 2, np.float32)

    def slope(*arguments):  # compiled anew
        return jax.jit(jax.value_and_grad(lambda *x: loss(*x), (0, 1)))(*arguments)

    expected, slopes = slope(*views, weights)
    monkeypatch.setattr(losses, "AT_ONCE", 60)  # parts of two to four rows
    found, in_parts = slope(*views, weights)
    close(found, expected)
    for mine, other in zip(in_parts, slopes, strict=True):
        assert np.abs(other).max() > 1e-3
        close(mine, other)


@pytest.mark.parametrize("at_once", [1, 2, 6, 7, 13, 100])
def test_rows_come_back_in_their_order_however_they_are_cut(at_once, monkeypatch):
    monkeypatch.setattr(losses, "AT_ONCE", at_once)
    x, seen = np.arange(14.0).reshape(7, 2), []

    def values_of(x):
        seen.append(len(x))
        return x, x.sum(-1)

    found = losses.map_rows(values_of, (jnp.asarray(x),), width=2)
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_array_equal(found[1], x.sum(-1))
    assert max(seen) == {1: 1, 2: 1, 6: 3, 7: 3, 13: 4, 100: 7}[at_once]


def test_losses_in_parts_on_devices_are_those_of_the_whole(monkeypatch):
    inputs, heads = normal(0, 4, 8, 6), (normal(1, 6, 5), normal(2, 6, 5))
    weights = np.array([1, 1, 1, 0, 1, 1, 1, 1] * 4, np.float32)
    weights[16:24] = 0

    def total(heads, inputs, weights, axis_name=None):
        views = inputs @ heads[0], jnp.tanh(inputs @ heads[1])
        common = dict(axis_name=axis_name)
        return losses.nwj(*views, weights, **common) + NCE(*views, weights, **common)

    flat = inputs.reshape(32, 6), weights
    whole = jax.jit(jax.value_and_grad(total))(heads, *flat)
    monkeypatch.setattr(losses, "AT_ONCE", 100)  # parts of one and of three rows
    values, slopes = over_devices(total)(heads, inputs, weights.reshape(4, 8))
    close(values, np.full(4, whole[0]))
    for part, slope in zip(slopes, whole[1], strict=True):
        close(part.mean(0), slope)


@over_pairs
def test_all_pairs_never_exist_at_once(loss, monkeypatch):
    monkeypatch.setattr(losses, "AT_ONCE", 2**13)
    views = [jax.ShapeDtypeStruct((700, 16), jnp.float32)] * 2
    weights = jax.ShapeDtypeStruct((700,), jnp.float32)
    program = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*views, weights)
    assert max(sizes_of(program.jaxpr)) < 700 * 700 / 20


def test_unit_rows_have_length_one_and_zero_rows_a_finite_gradient():
    x = np.concatenate([normal(0, 2, 3), np.zeros((1, 3), np.float32)])
    close(
        losses.l2_normalise(x)[:2], x[:2] / np.linalg.norm(x[:2], axis=1)[:, None], 1e-6
    )
    assert not losses.l2_normalise(x)[2].any()
    slope = jax.grad(lambda x: losses.l2_normalise(x).sum())(x)
    assert np.isfinite(slope).all()
