"""Sampled losses and SCE against loops in NumPy, whole and split over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from create_jax.configs.common import get_config

from create_jax import build, losses
from create_jax.data.packing import Batch
from create_jax.models.create import Create

ITEMS, D = 9, 4
TARGETS = np.array([3, 0, 9, 1, 1, 0, 7])
STATES, TABLE = (  # row 10 of the table is no item
    np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for seed, shape in ((0, (7, D)), (1, (ITEMS + 2, D)))
)
# Each is the target of some token; item 5 was drawn twice and counts twice.
SHARED = np.array([[3, 5, 1, 5]])
OWN = np.array(
    [[3, 3, 3], [2, 4, 6], [9, 8, 8], [2, 1, 1], [4, 5, 6], [1, 2, 3], [8] * 3]
)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# --- sampled items --------------------------------------------------------------------


def loss_by_loop(targets, negatives, kind, t):
    """docs/models.md#sampled-losses: by token and negative, in float64."""
    states, table, values = STATES.astype(float), TABLE.astype(float), []
    for m in np.flatnonzero(targets):
        drawn = negatives[m * len(negatives) // len(states)]
        good = states[m] @ table[targets[m]]
        bad = [states[m] @ table[n] for n in drawn if n != targets[m]]
        if kind == "sampled":
            values.append(-np.log(np.exp(good) / np.exp([good, *bad]).sum()))
            continue
        a = len(drawn) / (ITEMS - 1)
        power = a * (t * (1 - 1 / a) + 1 / a) if kind == "gbce" else 1
        value = -np.log(sigmoid(good) ** power)
        value -= sum(np.log(1 - sigmoid(score)) for score in bad)
        values.append(value / (1 + len(drawn)) if kind == "gbce" else value)
    return np.mean(values)


@pytest.mark.parametrize("negatives", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("kind", ["sampled", "bce", "gbce"])
def test_sampled_losses_are_the_loops(kind, negatives):
    loss = partial(losses.sampled_losses, kind=kind, gbce_t=0.6, n_items=ITEMS)
    with_slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, slopes = with_slopes(STATES, TABLE, TARGETS, negatives)
    close(value, loss_by_loop(TARGETS, negatives, kind, 0.6))
    assert all(np.isfinite(slope).all() for slope in slopes)
    assert not slopes[0][TARGETS == 0].any()
    value, slopes = with_slopes(STATES, TABLE, 0 * TARGETS, negatives)
    assert value == 0 and not slopes[1].any()  # nothing to learn


def test_parts_have_negatives_of_their_own():
    loss = partial(losses.sampled_losses, kind="sampled")
    apart = [loss(STATES, TABLE, TARGETS, own[None]) for own in OWN[1:3]]
    twice = np.tile(STATES, (2, 1)), TABLE, np.tile(TARGETS, 2)
    close(loss(*twice, OWN[1:3]), np.mean(apart), 1e-6)


@pytest.mark.parametrize("t, power", [(0, 1.0), (0.5, 0.625), (1, 0.25)])
def test_gbce_weakens_the_positive_by_the_sampling_rate(t, power):
    """Two of eight other items: a = 1/4. Both draws are the target, so that only the
    positive is left, with the score 0 and so the loss log 2."""
    value = losses.sampled_losses(
        *(np.zeros((1, D)), TABLE, np.array([6]), np.array([[6, 6]])),
        kind="gbce",
        gbce_t=t,
        n_items=ITEMS,
    )
    close(value, power * np.log(2) / 3, 1e-6)


@pytest.mark.parametrize(
    "t, negatives",
    [(0.0, SHARED), (1.0, np.arange(1, 9)[None])],
    ids=["t_0", "all_items"],
)
def test_gbce_is_the_mean_of_bce_terms_where_nothing_needs_correction(t, negatives):
    loss = partial(losses.sampled_losses, STATES, TABLE, TARGETS, negatives)
    plain = loss(kind="bce") / (1 + negatives.shape[1])
    close(loss(kind="gbce", gbce_t=t, n_items=ITEMS), plain, 1e-6)


# Three, one and no target on the three devices.
SPLIT_TARGETS = np.array([[3, 9, 1], [0, 7, 0], [0, 0, 0]])
SPLIT_STATES = np.random.default_rng(2).normal(size=(3, 3, D)).astype(np.float32)


def over_devices(loss, in_axes):
    """On each device, value and gradient by the table of loss(table, own parts)."""
    on_one = jax.value_and_grad(partial(loss, axis_name="data"))
    return jax.jit(jax.vmap(on_one, in_axes=in_axes, axis_name="data"))


@pytest.mark.parametrize("kind", ["sampled", "gbce"])
def test_sampled_losses_split_over_devices_are_the_unsplit_ones(kind):
    def loss(table, states, targets, axis_name=None):
        return losses.sampled_losses(
            *(states, table, targets, SHARED),
            **dict(kind=kind, n_items=ITEMS, axis_name=axis_name),
        )

    flat = SPLIT_STATES.reshape(9, D), SPLIT_TARGETS.ravel()
    value, slope = jax.jit(jax.value_and_grad(loss))(TABLE, *flat)
    split = over_devices(loss, (None, 0, 0))(TABLE, SPLIT_STATES, SPLIT_TARGETS)
    close(split[0], np.full(3, value), 1e-6)
    close(split[1].mean(0), slope, 1e-6)


# --- SCE ------------------------------------------------------------------------------


def sce_by_loop(states, table, targets, key, buckets, n_states, n_items, mix):
    """docs/models.md#sce: each covered token's largest (loss, bucket's other items),
    and how many different losses each had."""
    states, table = states.astype(float), table.astype(float)
    shape = (len(targets), buckets) if mix else (D, buckets)
    directions = np.asarray(jax.random.normal(key, shape), float) / D**0.25
    real = np.flatnonzero(targets)
    if mix:
        directions = states[real].T @ directions[real]
    found = {m: {} for m in real}
    for direction in directions.T:
        order = np.argsort(-(states[real] @ direction))
        columns = 1 + np.argsort(-(table[1 : ITEMS + 1] @ direction))[:n_items]
        for m in real[order[:n_states]]:
            others = tuple(sorted(set(columns.tolist()) - {targets[m]}))
            logits = states[m] @ table[[targets[m], *others]].T
            found[m][np.log(np.exp(logits).sum()) - logits[0]] = others
    largest = {m: max(own.items()) for m, own in found.items() if own}
    return largest, [len(own) for own in found.values()]


def slopes_by_hand(states, table, targets, largest):
    """Gradients of the mean loss, the chosen items taken as given."""
    d_states, d_table = np.zeros(states.shape), np.zeros(table.shape)
    for m, (_, others) in largest.items():
        items = np.array([targets[m], *others])
        share = np.exp(states[m] @ table[items].T)
        share /= share.sum()
        share[0] -= 1
        d_states[m] = share @ table[items] / len(largest)
        d_table[items] += np.outer(share, states[m]) / len(largest)
    return d_states, d_table


def compiled_sce(**settings):
    loss = partial(losses.scalable_cross_entropy, n_items=ITEMS, **settings)
    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def mean_loss(largest):
    return np.mean([value for value, _ in largest.values()])


@pytest.mark.parametrize("mix", [True, False])
def test_sce_is_the_full_softmax_where_buckets_hold_everything(mix):
    sce = compiled_sce(buckets=3, bucket_states=7, bucket_items=9, mix=mix)
    value, slopes = sce(STATES, TABLE, TARGETS, jax.random.key(0))
    everything = {}
    for m in np.flatnonzero(TARGETS):
        logits = STATES[m] @ TABLE[1 : ITEMS + 1].T
        loss = np.log(np.exp(logits).sum()) - logits[TARGETS[m] - 1]
        everything[m] = loss, [i for i in range(1, ITEMS + 1) if i != TARGETS[m]]
    close(value, mean_loss(everything))
    expected = slopes_by_hand(STATES, TABLE, TARGETS, everything)
    close(slopes[0], expected[0])
    close(slopes[1], expected[1])


@pytest.mark.parametrize("mix", [True, False])
def test_sce_counts_the_largest_loss_of_a_covered_state_and_no_other(mix):
    """And gradients pass through the logits only, not through the choice."""
    sce = compiled_sce(buckets=3, bucket_states=2, bucket_items=4, mix=mix)
    several = uncovered = 0
    for seed in range(6):
        key = jax.random.key(seed)
        value, slopes = sce(STATES, TABLE, TARGETS, key)
        largest, counts = sce_by_loop(STATES, TABLE, TARGETS, key, 3, 2, 4, mix)
        close(value, mean_loss(largest))
        expected = slopes_by_hand(STATES, TABLE, TARGETS, largest)
        close(slopes[0], expected[0])
        close(slopes[1], expected[1])
        several += max(counts) > 1
        uncovered += min(counts) == 0
    assert several and uncovered  # both cases were met


@pytest.mark.parametrize("mix", [True, False])
def test_sce_never_selects_what_has_no_target(mix):
    """Tokens without a target would win every bucket by their size."""
    sce = compiled_sce(buckets=4, bucket_states=2, bucket_items=3, mix=mix)
    loud = np.where(TARGETS[:, None] == 0, 1e3, STATES).astype(np.float32)
    loud_table = TABLE.copy()
    loud_table[[0, ITEMS + 1]] = 1e3  # padding and what is no item
    value, slopes = sce(loud, loud_table, TARGETS, jax.random.key(0))
    expected, plain = sce(STATES, TABLE, TARGETS, jax.random.key(0))
    close(value, expected, 1e-6)
    close(slopes[0], plain[0], 1e-6)
    assert value > 0 and not slopes[0][TARGETS == 0].any()
    assert not slopes[1][np.array([0, ITEMS + 1])].any()


@pytest.mark.parametrize("mix", [True, False])
def test_sce_split_over_devices_is_the_mean_over_all_covered_states(mix):
    def loss(table, states, targets, key, axis_name=None):
        return losses.scalable_cross_entropy(
            *(states, table, targets, key),
            **dict(n_items=ITEMS, buckets=1, bucket_states=2, bucket_items=4),
            **dict(mix=mix, axis_name=axis_name),
        )

    keys = jax.random.split(jax.random.key(0), 3)
    run = over_devices(loss, (None, 0, 0, 0))
    values, slopes = run(TABLE, SPLIT_STATES, SPLIT_TARGETS, keys)
    parts = list(zip(SPLIT_STATES, SPLIT_TARGETS, keys, strict=True))
    largest = [sce_by_loop(x, TABLE, y, key, 1, 2, 4, mix)[0] for x, y, key in parts]
    sizes = [len(part) for part in largest]
    assert sizes == [2, 1, 0]
    total = sum(value for part in largest for value, _ in part.values())
    close(values, np.full(3, total / 3))
    expected = sum(
        len(part) / 3 * slopes_by_hand(x, TABLE, y, part)[1]
        for (x, y, _), part in zip(parts, largest, strict=True)
        if part
    )
    close(slopes.mean(0), expected)


# --- from the config ------------------------------------------------------------------


def test_every_kind_of_loss_is_reached_from_the_config():
    """Each by its switches is a loss of its own; the last two are the exact one."""
    shape = (1, 7)
    targets = jnp.array(TARGETS[None])
    batch = Batch(np.ones(shape), targets, *[np.zeros(shape)] * 2, [0], [6], [1])
    models = []
    for own in (
        *(dict(local=kind, negatives=3) for kind in ("sampled", "bce", "gbce")),
        dict(local="sampled", negatives=3, shared_negatives=False),
        dict(local="gbce", negatives=3, gbce_t=0.1),
        dict(local="sce", sce=dict(buckets=2, bucket_states=3, bucket_items=3)),
        dict(local="sce", sce=dict(buckets=2, bucket_states=7, bucket_items=9)),
        dict(local="ce"),
    ):
        config = get_config("sasrec")
        config.model.dim = D
        config.loss.update(own)
        models.append(build.make_model(config, 2, ITEMS))

    @jax.jit
    def run(states, table, key):
        return [Create.local_loss(m, states, table, batch, key) for m in models]

    found = np.array(run(STATES, TABLE, jax.random.key(0)))
    assert np.isfinite(found).all()
    close(found[-2], found[-1])
    assert len(set(found[:-1].round(5).tolist())) == len(models) - 1
