"""VICReg and NWJ against a second writing in NumPy, whole and split over devices."""

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


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


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


VICREG_WEIGHTS = dict(similarity=2.0, variance=3.0, covariance=0.5)
VICREG = partial(losses.vicreg, **VICREG_WEIGHTS)
NWJ = partial(losses.nwj, temperature=0.7)
SECOND = {
    VICREG: partial(numpy_vicreg, **VICREG_WEIGHTS),
    NWJ: partial(numpy_nwj, temperature=0.7),
}
SLOPES = {loss: jax.jit(jax.value_and_grad(loss, (0, 1))) for loss in SECOND}
both = pytest.mark.parametrize("loss", [VICREG, NWJ], ids=["vicreg", "nwj"])


@both
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


@both
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


@both
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


@both
def test_the_order_of_users_is_immaterial_but_not_who_is_paired_with_whom(loss):
    order = np.array([4, 2, 6, 0, 1, 3, 5])
    expected = SLOPES[loss](*VIEWS, WEIGHTS)[0]
    moved = [view[order] for view in VIEWS]
    close(SLOPES[loss](*moved, WEIGHTS[order])[0], expected)
    mixed = SLOPES[loss](VIEWS[0], VIEWS[1][order], WEIGHTS)[0]
    assert abs(mixed - expected) > 0.01


@both
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


@both
@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_gradients_are_finite_with_a_constant_column(loss, constant):
    a, b = VIEWS[0].copy(), VIEWS[1].copy()
    a[:, 2] = b[:, 2] = constant
    value, slopes = SLOPES[loss](a, b, WEIGHTS)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)


@both
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
