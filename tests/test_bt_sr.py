"""BT-SR: every sequence meets another one that led to the same item."""

import jax
import numpy as np
import polars as pl

from create_jax import build, feeds
from create_jax.configs import table
from create_jax.data import packing
from create_jax.data.interactions import Interactions
from create_jax.models.create import Create

HISTORIES = [[1, 2, 3], [4, 3], [2, 5, 3, 1], [6, 7], [5, 1], [3, 2]]
USERS = np.concatenate([np.full(len(h), u) for u, h in enumerate(HISTORIES)])
ITEMS = np.concatenate(HISTORIES).astype(np.int32)
LOG = Interactions(
    USERS.astype(np.int32),
    ITEMS,
    np.arange(len(ITEMS)),
    pl.Series([str(u) for u in range(6)]),
    pl.Series([str(i) for i in range(1, 8)]),
)


def partners(seed):
    sequences = packing.training_sequences(LOG, 2)
    views = packing.same_target(LOG, sequences, 2, np.random.default_rng(seed))
    return sequences, views


def test_a_partner_leads_to_the_same_item_from_another_history():
    met = set()
    for seed in range(60):
        sequences, views = partners(seed)
        np.testing.assert_array_equal(ITEMS[views.end], ITEMS[sequences.end])
        for n, (begin, end) in enumerate(zip(views.begin, views.end, strict=True)):
            assert 0 < end - begin <= 2  # never empty, at most max_len
            assert (USERS[begin:end] == USERS[end]).all()
            met.add((n, int(end)))
    # Item 3 ends users 0 and 1 and comes in user 2; item 7 is reached by user 3 only.
    ends = [int(x) for x in sequences.end]
    third = 7  # the row of item 3 in user 2's history
    assert {e for n, e in met if n == 0} == {ends[1], third}
    assert {e for n, e in met if n == 1} == {ends[0], third}
    assert {e for n, e in met if n == 3} == {ends[3]}


def make_config():
    config = table.get_config("bt_sr")
    config.model.dim, config.seq.max_len, config.train.batch = 8, 4, 3
    config.seq.dropout = 0.0
    build.check(config)
    return config


def test_views_stay_with_their_sequences_and_reach_the_loss():
    config = make_config()
    model = build.make_model(config, 6, 7)
    (phase,) = build.make_phases(config)
    assert (phase.local, phase.w_global, phase.w_align) == (1.0, 0.0, 0.2)
    feed = feeds.Feed(config, model, phase, LOG, None, None, 1)
    batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))
    np.testing.assert_array_equal(batch.views.weights, batch.sequences.weights)
    flat = [x.items.reshape(-1) for x in (batch.sequences, batch.views)]
    targets = batch.sequences.targets.reshape(-1)
    for b in np.flatnonzero(batch.views.weights):
        item = targets[batch.sequences.last[b]]
        last = flat[1][batch.views.last[b]]
        # Somewhere in the log the view's last item is followed by the target.
        follows = (ITEMS[:-1] == last) & (ITEMS[1:] == item) & (USERS[:-1] == USERS[1:])
        assert follows.any()

    def loss(params):
        key = jax.random.key(0)
        return Create.loss(model, phase, params, batch, (), key)

    params = jax.jit(lambda: model.init(0))()
    (value, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert set(parts) == {"local", "align"} and np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_view_that_does_not_fit_is_left_out():
    plan = packing.Plan(*(np.zeros((1, 1, 2), np.int64) for _ in range(4)))
    plan.index[0, 0] = [0, 1]
    layout = packing.Layout(steps=1, shards=1, sequences=2, rows=1, length=5)
    packed = packing.pack_along(plan, np.array([2, 4]), layout)
    np.testing.assert_array_equal(packed.index[0, 0], [-1, 1])  # the longer one stays
