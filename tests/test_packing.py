"""Packing loses no token, invents none, and does not depend on the devices."""

import tracemalloc

import numpy as np
import polars as pl
import pytest

from create_jax.data import packing
from create_jax.data.interactions import Interactions
from create_jax.data.packing import Layout, Sequences


def make_sequences(lengths, seed=0):
    """Sequences over a log in which every item occurs once, so an item names a token.

    Between two sequences lies one item that only is a target.
    """
    lengths = np.asarray(lengths)
    log = np.random.default_rng(seed).permutation(lengths.sum() + len(lengths)) + 1
    end = np.cumsum(lengths + 1) - 1
    owners = 1000 + np.arange(len(lengths), dtype=np.int32)
    return Sequences(owners, log.astype(np.int32), end - lengths, end)


def geometric(n, seed=0, longest=50):
    """Lengths as on the Amazon sets: mean 8, at most 50."""
    return np.minimum(np.random.default_rng(seed).geometric(1 / 8, n), longest)


def check_epoch(sequences, layout, plan):
    """Every claim about a batch, read back from its arrays alone."""
    batch = packing.fill(plan, sequences, layout, shift=True)
    steps, shards, width, rows, length = layout[:5]
    assert batch.items.shape == (steps, shards * rows, length)
    assert batch.users.shape == (steps, shards * width)
    tokens = np.concatenate(
        [
            sequences.log[b:e]
            for b, e in zip(sequences.begin, sequences.end, strict=True)
        ]
    )
    # Each token once, nothing else; segments, items and targets agree on what is real.
    np.testing.assert_array_equal(
        np.sort(batch.items[batch.items > 0]), np.sort(tokens)
    )
    np.testing.assert_array_equal(batch.items > 0, batch.segments > 0)
    np.testing.assert_array_equal(batch.items > 0, batch.targets > 0)
    after = np.zeros(len(sequences.log) + 2, np.int32)
    after[sequences.log[:-1]] = sequences.log[1:]
    np.testing.assert_array_equal(batch.targets, after[batch.items])

    real = batch.weights > 0
    assert set(batch.weights.ravel().tolist()) <= {0.0, 1.0}
    np.testing.assert_array_equal(np.sort(batch.users[real]), sequences.owners)
    number = {int(owner): n for n, owner in enumerate(sequences.owners)}
    found = 0
    for step in range(steps):
        for b in np.flatnonzero(real[step]):
            shard = b // width
            mine = slice(shard * rows, (shard + 1) * rows)
            row, column = divmod(int(batch.last[step, b]), length)
            n = number[int(batch.users[step, b])]
            own = sequences.log[sequences.begin[n] : sequences.end[n]]
            slots = slice(column + 1 - len(own), column + 1)
            np.testing.assert_array_equal(batch.items[step, mine][row, slots], own)
            positions = batch.positions[step, mine][row, slots]
            np.testing.assert_array_equal(positions, np.arange(len(own)))
            segments = batch.segments[step, mine][row]
            assert (segments[slots] == segments[column]).all()
            # No other sequence of the row carries this number.
            assert (segments == segments[column]).sum() == len(own)
            found += 1
    assert found == len(sequences.owners)
    for segments in batch.segments.reshape(-1, length):
        count = int((segments > 0).sum())
        assert (segments[count:] == 0).all()  # empty slots at the end
        steps_up = np.diff(segments[:count], prepend=0)
        assert ((steps_up == 0) | (steps_up == 1)).all()  # 1, 2, ... without gaps
    return batch


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_an_epoch_holds_every_token_once_with_its_next_item(shards):
    lengths = geometric(203, longest=20)
    sequences = make_sequences(lengths)
    layout = packing.make_layout(lengths, batch=40, row_length=20, shards=shards)
    assert layout.steps == 5
    for epoch in range(2):
        check_epoch(sequences, layout, packing.plan_epoch(lengths, layout, 7, epoch))


def test_a_plan_is_a_function_of_seed_and_epoch():
    lengths = geometric(100)
    layout = packing.make_layout(lengths, batch=25, row_length=50)

    def index(seed, epoch):
        return packing.plan_epoch(lengths, layout, seed, epoch).index

    np.testing.assert_array_equal(index(0, 3), index(0, 3))
    assert (index(0, 3) != index(0, 4)).any()
    assert (index(0, 3) != index(1, 3)).any()
    # Not only inside a step: other users meet.
    groups = [{frozenset(step) for step in index(0, e)[:, 0].tolist()} for e in (3, 4)]
    assert not groups[0] & groups[1]


def test_the_users_that_share_a_step_do_not_depend_on_devices():
    lengths = geometric(300)
    met = []
    for shards in (1, 2, 8):
        layout = packing.make_layout(lengths, batch=64, row_length=50, shards=shards)
        index = packing.plan_epoch(lengths, layout, 0, 1).index
        met.append([set(step[step >= 0].tolist()) for step in index])
        assert index.shape[:2] == (layout.steps, shards)
    assert met[0] == met[1] == met[2]


@pytest.mark.parametrize("shards", [2, 8])
def test_shards_share_a_step_evenly(shards):
    lengths = geometric(1000)
    layout = packing.make_layout(lengths, batch=250, row_length=50, shards=shards)
    index = packing.plan_epoch(lengths, layout, 0, 0).index
    count = (index >= 0).sum(-1)
    assert count.max() - count.min() <= 1
    tokens = np.where(index >= 0, lengths[index], 0).sum(-1).mean(0)
    # Dealt there and back: 6% between eight shards; always from the first, 11%.
    assert tokens.max() < 1.08 * tokens.mean()


def test_rows_of_realistic_lengths_are_95_percent_full():
    lengths = geometric(20_000)
    layout = packing.make_layout(lengths, batch=256, row_length=50)
    slots = layout.steps * layout.rows * layout.length
    assert lengths.sum() / slots >= 0.95
    # And the epochs after the three that chose the shape fit as well.
    for epoch in (5, 6):
        plan = packing.plan_epoch(lengths, layout, 0, epoch)
        assert (plan.index >= 0).sum() == len(lengths)


def test_steps_divide_into_equal_chunks():
    assert packing.equal_chunks(64, 64) == (1, 64)
    assert packing.equal_chunks(65, 64) == (2, 32)
    assert packing.equal_chunks(5, 2) == (3, 1)
    layout = packing.make_layout(np.full(65, 3), batch=1, row_length=3, chunk=64)
    assert (layout.steps, layout.chunk) == (64, 32)  # never more steps than sequences


# --- sequences that do not fit --------------------------------------------------------


def test_an_overflowing_sequence_moves_to_a_step_with_room():
    # Four steps of one row: whoever meets the 9 does not fit, everywhere else it would.
    lengths = np.array([9, 5, 2, 2, 2, 2, 2, 2])
    layout = Layout(steps=4, shards=1, sequences=4, rows=1, length=10)
    before = packing._deal(
        lengths, layout._replace(sequences=2), np.random.default_rng(0)
    )
    assert packing._overflows(packing.lengths_at(before, lengths), 1, 10)
    for epoch in range(5):
        plan = packing.plan_epoch(lengths, layout, 0, epoch)
        check_epoch(make_sequences(lengths), layout, plan)
        per_step = (plan.index[:, 0] >= 0).sum(-1)
        assert sorted(per_step.tolist()) == [1, 2, 2, 3]


def test_an_overflowing_sequence_moves_to_another_shard():
    lengths = np.array([9, 8, 8, 5, 2, 2, 2, 2])
    layout = Layout(steps=2, shards=2, sequences=4, rows=1, length=10)
    moved = 0
    for epoch in range(8):
        plan = packing.plan_epoch(lengths, layout, 0, epoch)
        check_epoch(make_sequences(lengths), layout, plan)
        moved += (plan.index >= 0).sum(-1).max() == 3
    assert moved == 8  # beside the 9 there is never room


def test_two_overflowing_sequences_do_not_land_on_each_other():
    # Beside each 9 is no room for a 2; beside a 5 and a 2 there is room for just one.
    lengths = np.array([9, 9, 5, 5, 2, 2, 2, 2])
    layout = Layout(steps=4, shards=1, sequences=4, rows=1, length=10)
    for epoch in range(3):
        plan = packing.plan_epoch(lengths, layout, 0, epoch)
        check_epoch(make_sequences(lengths), layout, plan)
        per_step = (plan.index[:, 0] >= 0).sum(-1)
        assert sorted(per_step.tolist()) == [1, 1, 3, 3]


def many_full(n=524, seed=67, longest=128):
    """Half of them fill a row of their own, so that steps differ by whole rows."""
    lengths = np.random.default_rng(seed).lognormal(np.log(longest), 1.0, n)
    return np.clip(lengths.astype(int), 1, longest)


def test_an_epoch_without_room_is_dealt_again():
    lengths = many_full()
    layout = packing.make_layout(lengths, batch=128, row_length=128)
    first = [next(packing._draws(0, epoch)) for epoch in range(12)]
    deals = [packing._draw_plan(lengths, layout, rng) for rng in first]
    assert [epoch for epoch, deal in enumerate(deals) if deal is None] == [8, 10, 11]
    for epoch, deal in enumerate(deals):
        plan = packing.plan_epoch(lengths, layout, 0, epoch)
        if deal is not None:  # the first deal stays what it was
            same = [np.array_equal(*pair) for pair in zip(plan, deal, strict=True)]
            assert all(same)
        else:
            check_epoch(make_sequences(lengths), layout, plan)
            again = packing.plan_epoch(lengths, layout, 0, epoch)
            np.testing.assert_array_equal(plan.index, again.index)


@pytest.mark.parametrize("shards", [1, 8])
def test_the_last_deal_of_an_epoch_always_has_room(shards):
    for seed in range(30):
        lengths = many_full(n=60 + 5 * seed, seed=seed, longest=16)
        sizes = {"batch": 32, "row_length": 16, "shards": shards}
        layout = packing.make_layout(lengths, **sizes)
        *_, last = packing._draws(seed, 7)
        assert packing._draw_plan(lengths, layout, last) is not None


def test_packing_that_cannot_work_says_so():
    layout = Layout(steps=2, shards=1, sequences=4, rows=1, length=10)
    with pytest.raises(RuntimeError, match="no room"):
        packing.plan_epoch(np.array([9, 9, 9]), layout, 0, 0)


# --- training sequences ---------------------------------------------------------------


def make_log(*histories):
    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    items = np.concatenate(histories).astype(np.int32)
    names = pl.Series([str(n) for n in range(len(histories))])
    items_named = pl.Series([str(n) for n in range(items.max())])
    times = np.arange(len(items), dtype=np.int64)
    return Interactions(users.astype(np.int32), items, times, names, items_named)


def test_long_histories_are_cut_to_their_newest_items():
    log = make_log([1, 2, 3, 4, 5, 6], [7], [8, 9], [1, 3, 5, 7])
    sequences = packing.training_sequences(log, max_len=3)
    found = {
        int(owner): log.items[begin:end].tolist()
        for owner, begin, end in zip(
            sequences.owners, sequences.begin, sequences.end, strict=True
        )
    }
    # Three inputs, and the newest item as the last target; user 1 has nothing to learn.
    assert found == {0: [3, 4, 5], 2: [8], 3: [1, 3, 5]}
    layout = packing.make_layout(sequences.lengths, batch=3, row_length=3)
    plan = packing.plan_epoch(sequences.lengths, layout, 0, 0)
    batch = packing.fill(plan, sequences, layout, shift=True)
    pairs = zip(
        batch.items.ravel().tolist(), batch.targets.ravel().tolist(), strict=True
    )
    assert sorted(pair for pair in pairs if any(pair)) == sorted(
        [(3, 4), (4, 5), (5, 6), (8, 9), (1, 3), (3, 5), (5, 7)]
    )


def test_without_a_shift_there_are_no_targets():
    sequences = make_sequences([3, 2])
    layout = packing.make_layout(sequences.lengths, batch=2, row_length=4)
    plan = packing.plan_epoch(sequences.lengths, layout, 0, 0)
    batch = packing.fill(plan, sequences, layout, shift=False)
    assert not batch.targets.any()
    assert (batch.items > 0).sum() == 5


def test_a_chunk_of_a_plan_is_a_slice_of_the_epoch():
    lengths = geometric(60)
    sequences = make_sequences(lengths)
    layout = packing.make_layout(lengths, batch=10, row_length=50, shards=2)
    plan = packing.plan_epoch(lengths, layout, 0, 0)
    whole = packing.fill(plan, sequences, layout, shift=True)
    part = packing.fill(packing.steps_of(plan, 2, 4), sequences, layout, shift=True)
    cut = type(whole)(*(field if field is None else field[2:4] for field in whole))
    for mine, expected in zip(part, cut, strict=True):
        np.testing.assert_array_equal(mine, expected)


def peak_of(work):
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("hides", [False, True])
def test_a_dispatch_costs_what_it_holds_however_many_sequences_there_are(hides):
    lengths = np.full(100_000, 2)
    sequences = make_sequences(lengths)
    hidden = np.ones(lengths.sum() + 1, bool) if hides else None
    layout = Layout(steps=1, shards=1, sequences=5, rows=1, length=10)
    plan = packing.plan_epoch(lengths[:3], layout, 0, 0)

    def fill():
        packing.fill(plan, sequences, layout, shift=not hides, hidden=hidden)

    fill()  # what is made once, is made
    assert peak_of(fill) < 10_000


@pytest.mark.parametrize("n", [0, 1, 699, 700, 701, 2100])
def test_hidden_items_are_drawn_in_parts_as_at_once(n, monkeypatch):
    monkeypatch.setattr(packing, "DRAWN", 700)
    sequences = make_sequences([n])
    rng = np.random.default_rng((3, 5, 0x68696465))
    np.testing.assert_array_equal(
        packing.hide(sequences, 0.3, seed=3, epoch=5), rng.random(n) < 0.3
    )


def test_hiding_never_holds_a_number_for_every_slot():
    sequences = make_sequences([1_000_000])
    assert peak_of(lambda: packing.hide(sequences, 0.3, 0, 0)) < 4e6  # not 8e6


@pytest.mark.parametrize("shards", [1, 2])
def test_ends_are_the_last_columns_of_a_rows_sequences(shards):
    lengths = geometric(60)
    sequences = make_sequences(lengths)
    layout = packing.make_layout(lengths, batch=10, row_length=50, shards=shards)
    plan = packing.plan_epoch(lengths, layout, 0, 0)
    assert packing.fill(plan, sequences, layout).ends is None
    layout = layout._replace(ends=int(plan.segment.max()))
    batch = packing.fill(plan, sequences, layout)
    assert batch.ends.shape == (*batch.items.shape[:2], layout.ends)
    found = 0
    for segments, ends in zip(
        batch.segments.reshape(-1, 50), batch.ends.reshape(-1, layout.ends), strict=True
    ):
        for segment in range(1, layout.ends + 1):
            columns = np.flatnonzero(segments == segment)
            assert ends[segment - 1] == (columns[-1] if len(columns) else 0)
            found += len(columns) > 0
    assert found == len(lengths) > layout.ends > 1


@pytest.mark.parametrize("n", [1500, 2999, 4100])
def test_blocks_hold_every_sequence_once_and_have_one_shape(n, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK", 700)
    monkeypatch.setattr(packing, "RUN", 50)
    sequences = make_sequences(geometric(n))
    blocks = packing.count_blocks(n)
    assert blocks > 1 and packing.count_blocks(700) == 1
    shape = dict(batch=64, row_length=50, shards=2, chunk=4)
    layout = packing.make_block_layout(sequences, blocks, **shape)
    drawn = []
    for epoch in range(2):
        found = []
        for block in range(blocks):
            index = packing.draw_block(n, blocks, 3, epoch, block)
            part = sequences.some(index)
            plan = packing.plan_epoch(part.lengths, layout, 3, epoch, block)
            assert plan.index.shape == (layout.steps, 2, layout.sequences)
            assert packing.fill(plan, part, layout).items.shape == (
                *(layout.steps, 2 * layout.rows, 50),
            )
            found += index[plan.index[plan.index >= 0]].tolist()
        assert sorted(found) == list(range(n))
        drawn.append(found)
    assert drawn[0] != drawn[1]
    alone = packing.draw_block(n, blocks, 3, 1, blocks - 1)  # whatever was drawn before
    assert set(alone) == set(drawn[1][-len(alone) :])


def test_a_block_above_its_layout_leaves_out_what_finds_no_room():
    """The shapes are of other blocks: with users in the order of their activity, one of
    hundreds has more tokens than slots."""
    lengths = geometric(500)
    layout = packing.make_layout(lengths, batch=64, row_length=50, shards=2)
    more = np.append(lengths[:460], np.full(40, 20))
    plan = packing.plan_epoch(more, layout, 3, 1, 2)
    kept = np.unique(plan.index[plan.index >= 0])
    assert 0.9 * len(more) < len(kept) < len(more)
    index = np.where(plan.index < 0, -1, np.searchsorted(kept, plan.index))
    batch = check_epoch(make_sequences(more[kept]), layout, plan._replace(index=index))
    assert (batch.items > 0).mean() > 0.99
    again = packing.plan_epoch(more, layout, 3, 1, 2)
    np.testing.assert_array_equal(plan.index, again.index)
    with pytest.raises(RuntimeError, match="no room"):
        packing.plan_epoch(more, layout, 3, 1)


def test_one_block_is_the_plan_of_all():
    """The rows that are read together: neighbours stay so."""
    index = packing.draw_block(5000, 1, 0, 0, 0)
    assert index.tolist() == list(range(5000))
    index = packing.draw_block(5000, 2, 0, 0, 0)
    assert (np.diff(index) == 1).mean() > 0.99
