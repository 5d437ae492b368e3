"""Alignments against a second writing in NumPy, whole and split over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from create_jax import losses
from create_jax.errors import InputError
from create_jax.models import alignment

USERS, D = 7, 5
WEIGHTS = np.array([1, 1, 1, 0, 1, 1, 1], np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Columns of unlike deviations: some above 1, where VICReg's hinge is off, some below.
SCALES = np.array([0.2, 0.5, 1.0, 1.5, 3.0], np.float32)
VIEWS = normal(0, USERS, D) * SCALES + 1, normal(1, USERS, D) * SCALES[::-1]


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def correlation(a, b):
    """C of batch-normalised views (biased deviation + 1e-5), in float64."""

    def standard(x):
        x = np.asarray(x, np.float64)
        return (x - x.mean(0)) / (x.std(0) + 1e-5)

    return standard(a).T @ standard(b) / len(a)


def numpy_barlow_twins(a, b, *, off_diagonal):
    """The paper's sum, over the dimensions."""
    c = correlation(a, b)
    on = ((1 - np.diag(c)) ** 2).sum()
    return (on + off_diagonal * ((c**2).sum() - (np.diag(c) ** 2).sum())) / D


def numpy_infonce(a, b, *, temperature):
    """Each of 2n unit rows finds its partner among the 2n - 1 others; halved."""
    views = np.concatenate([a, b]).astype(np.float64)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    scores, n, total = views @ views.T / temperature, len(a), 0.0
    for row in range(2 * n):
        others = [column for column in range(2 * n) if column != row]
        partner = (row + n) % (2 * n)
        total += np.log(np.exp(scores[row, others]).sum()) - scores[row, partner]
    return total / (2 * n) / 2


def numpy_vicreg(a, b, *, similarity, variance, covariance):
    """Bardes et al. 2022, eqs. 1-6, the invariance as a mean over dimensions."""
    spread = redundancy = 0.0
    for view in (a, b):
        table = np.cov(view.T)  # divided by n - 1
        spread += np.maximum(0, 1 - np.sqrt(np.diag(table) + 1e-4)).mean()
        redundancy += (table[~np.eye(D, dtype=bool)] ** 2).sum() / D
    distance = ((a - b) ** 2).mean()
    return similarity * distance + variance * spread + covariance * redundancy


def numpy_nwj(a, b, *, temperature):
    """-(1 + E_joint[f] - E_product[exp f]), f = cos / temperature, pair by pair."""
    n = len(a)
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    critic = a @ b.T / lengths / temperature
    product = [np.exp(critic[i, j]) for i in range(n) for j in range(n) if i != j]
    return -(1 + np.trace(critic) / n - np.mean(product))


LOSSES = {
    (losses.barlow_twins, numpy_barlow_twins): dict(off_diagonal=0.3),
    (losses.infonce, numpy_infonce): dict(temperature=0.5),
    (losses.vicreg, numpy_vicreg): dict(similarity=2.0, variance=3.0, covariance=0.5),
    (losses.nwj, numpy_nwj): dict(temperature=0.7),
}
SECOND = {partial(f, **own): partial(g, **own) for (f, g), own in LOSSES.items()}
SLOPES = {loss: jax.jit(jax.value_and_grad(loss, (0, 1))) for loss in SECOND}
each = pytest.mark.parametrize("loss", SECOND, ids=lambda loss: loss.func.__name__)


@each
def test_alignments_are_the_second_writing(loss):
    real = WEIGHTS > 0
    expected = SECOND[loss](*(view[real].astype(float) for view in VIEWS))
    close(SLOPES[loss](*VIEWS, WEIGHTS)[0], expected)


@pytest.mark.parametrize("part", ["similarity", "variance", "covariance"])
def test_each_weight_of_vicreg_has_its_own_term(part):
    weights = dict.fromkeys(("similarity", "variance", "covariance"), 0.0) | {part: 1.0}
    found = jax.jit(losses.vicreg)(*VIEWS, np.ones(USERS, np.float32), **weights)
    expected = numpy_vicreg(*(view.astype(float) for view in VIEWS), **weights)
    close(found, expected)
    assert expected > 0.1


@pytest.mark.parametrize("off_diagonal", [0.0, 0.05, 1.0])
def test_barlow_twins_is_the_paper_formula(off_diagonal):
    ones = np.ones(USERS, np.float32)
    expected = numpy_barlow_twins(*VIEWS, off_diagonal=off_diagonal)
    loss = partial(losses.barlow_twins, *VIEWS, ones, off_diagonal=off_diagonal)
    close(loss(reduce="sum"), D * expected)
    close(loss(), expected)  # the default divides by the five dimensions
    close(losses.cross_correlation(*VIEWS, ones), correlation(*VIEWS))


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_infonce_is_the_loop_over_pairs(temperature):
    found = losses.infonce(*VIEWS, np.ones(USERS), temperature=temperature)
    close(found, numpy_infonce(*VIEWS, temperature=temperature))


@each
def test_gradients_are_those_of_the_second_writing(loss):
    """By central differences of the NumPy writing, in float64."""
    _, slopes = SLOPES[loss](*VIEWS, WEIGHTS)
    real, step = np.flatnonzero(WEIGHTS), 1e-6
    views = [view[real].astype(float) for view in VIEWS]
    for which in (0, 1):
        numeric = np.zeros((USERS, D))
        for row, column in np.ndindex(len(real), D):
            ends = []
            for sign in (1, -1):
                moved = [view.copy() for view in views]
                moved[which][row, column] += sign * step
                ends.append(SECOND[loss](*moved))
            numeric[real[row], column] = (ends[0] - ends[1]) / (2 * step)
        close(slopes[which], numeric, 2e-5)
        assert np.abs(numeric).max() > 0.01


@each
def test_filler_rows_change_nothing(loss):
    filler = 50 * normal(9, 3, D)
    filler[0] = 0
    views = [np.concatenate([view[:2], filler, view[2:]]) for view in VIEWS]
    weights = np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 1], np.float32)
    value, slopes = SLOPES[loss](*views, weights)
    expected, plain = SLOPES[loss](*VIEWS, np.ones(USERS, np.float32))
    close(value, expected)
    for slope, without in zip(slopes, plain, strict=True):
        close(slope[weights > 0], without)
        assert not slope[weights == 0].any()


@each
def test_the_order_of_users_is_immaterial_but_not_who_is_paired_with_whom(loss):
    order = np.array([4, 2, 6, 0, 1, 3, 5])
    expected = SLOPES[loss](*VIEWS, WEIGHTS)[0]
    moved = [view[order] for view in VIEWS]
    close(SLOPES[loss](*moved, WEIGHTS[order])[0], expected)
    mixed = SLOPES[loss](VIEWS[0], VIEWS[1][order], WEIGHTS)[0]
    assert abs(mixed - expected) > 0.01


@each
def test_alignment_split_over_devices_is_the_unsplit_one(loss):
    inputs, heads = normal(0, 4, 3, 6), (normal(1, 6, D), normal(2, 6, D))
    # Three, one, none and two users on the four devices.
    weights = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]], np.float32)

    def total(heads, inputs, weights, axis_name=None):
        views = inputs @ heads[0], jnp.tanh(inputs @ heads[1])
        return loss(*views, weights, axis_name=axis_name)

    whole = jax.jit(jax.value_and_grad(total))(
        heads, inputs.reshape(12, 6), weights.ravel()
    )
    on_one = jax.value_and_grad(partial(total, axis_name="data"))
    split = jax.jit(jax.vmap(on_one, in_axes=(None, 0, 0), axis_name="data"))
    values, slopes = split(heads, inputs, weights)
    close(values, np.full(4, whole[0]))
    for part, slope in zip(slopes, whole[1], strict=True):
        assert np.abs(slope).max() > 1e-3
        close(part.mean(0), slope)


@each
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1])
def test_gradients_are_finite_with_a_constant_column(loss, constant):
    a, b = VIEWS[0].copy(), VIEWS[1].copy()
    a[:, 2] = b[:, 2] = constant
    value, slopes = SLOPES[loss](a, b, WEIGHTS)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)


@each
def test_a_single_user_no_user_and_zero_rows_give_finite_numbers(loss):
    zero = [np.zeros_like(view) for view in VIEWS]
    one = np.eye(USERS, dtype=np.float32)[3]
    for views, weights in ((VIEWS, one), (VIEWS, 0 * one), (zero, WEIGHTS)):
        value, slopes = SLOPES[loss](*views, weights)
        assert np.isfinite(value)
        assert all(np.isfinite(slope).all() for slope in slopes)


# --- NWJ bounds mutual information ----------------------------------------------------


nwj = jax.jit(losses.nwj)


def bound(a, b, temperature):
    weights = np.ones(len(a), np.float32)
    return -float(nwj(a, b, weights, temperature=temperature))


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0])
def test_independent_views_have_no_information_and_equal_ones_much(temperature):
    a, b = normal(3, 400, 8), normal(4, 400, 8)
    apart = bound(a, b, temperature)
    assert apart < 0.02
    assert bound(a, a, temperature) > max(apart, 0) + 0.5


def test_nwj_of_four_symbols_by_hand():
    """Eight users, two of each of four orthogonal symbols, equal views. cos is 1 in the
    joint, and 1 in 8 of the 56 pairs of different users, else 0."""
    symbols = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    for temperature in (0.4, 1.0):
        f = 1 / temperature
        expected = 1 + f - (8 * np.exp(f) + 48) / 56
        close(bound(symbols, 3 * symbols, temperature), expected)
    # With many users no temperature claims more than the information, log 4.
    many = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    best = max(bound(many, many, 1 / f) for f in (0.5, 1.0, np.log(4), 2.0, 3.0))
    assert 0.6 < best < np.log(4)


def test_a_function_of_another_signature_is_refused_before_training():
    with pytest.raises(InputError, match="a function of 3 arrays and axis_name"):
        alignment.find("json.dumps")
