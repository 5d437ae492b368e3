"""Sequences of many lengths into rows of one length, without padding between them.

Average histories have 7-9 items on the Amazon sets, so a [users, 50] batch would be
84% padding. Here several users share a row; `segments` keeps them apart.

The order of an epoch is a pure function of (seed, epoch), and which users share a step
does not depend on the number of devices.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from create_jax.data.interactions import Interactions
from create_jax.data.streams import stream

DRAWN = 2**18  # float64 numbers drawn at once
BLOCK = 2**20  # sequences that are planned at once, about
RUN = 2**10  # neighbours in the log that share a block: their rows are read together


@dataclass(frozen=True, eq=False)
class Sequences:
    """n slices of one log: `log[begin[i]:end[i]]`, oldest first.

    owners: [n] int32, the user (training) or the query (evaluation) of each slice.
    mask: id of the special item that follows each slice, 0 = none follows.
    room: the maximum of slots; a slice that fills them has no special item.
    """

    owners: np.ndarray
    log: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    mask: int = 0
    room: int = np.iinfo(np.int32).max

    @cached_property
    def lengths(self) -> np.ndarray:
        """[n] slots of each, its special item included."""
        sizes = self.end - self.begin
        return sizes + ((self.mask > 0) & (sizes < self.room))

    @cached_property
    def first(self) -> np.ndarray:
        """[n] the first slot of each, where all sequences follow one another."""
        return np.cumsum(self.lengths) - self.lengths

    def some(self, index: np.ndarray) -> "Sequences":
        """Those of some numbers, in order."""
        owners, begin, end = (x[index] for x in (self.owners, self.begin, self.end))
        return replace(self, owners=owners, begin=begin, end=end)


class Batch(NamedTuple):
    """Packed rows, [S, ...] when stacked for S steps. R rows of T slots, B sequences.

    With D shards the first axis after S holds them one after the other (R = D rows per
    shard), and `last` counts inside its own shard. `ends` is None where every state is
    read.
    """

    items: np.ndarray  # [R, T] input item, 0 = empty slot
    targets: np.ndarray  # [R, T] next or hidden item, 0 = no loss here
    positions: np.ndarray  # [R, T] index inside its own sequence
    segments: np.ndarray  # [R, T] 1, 2, ... per sequence in the row, 0 = empty
    users: np.ndarray  # [B] owner of each sequence
    last: np.ndarray  # [B] flat index over [R, T] of its last position
    weights: np.ndarray  # [B] 1 = real, 0 = filler
    ends: np.ndarray | None = None  # [R, M] last column of segments 1..M, 0 = none


class Layout(NamedTuple):
    """The fixed shapes of an epoch: S steps, D shards, B sequences and R rows of T
    slots in each shard of each step; `chunk` steps make a dispatch. `ends`: most
    sequences in a row, where only their ends are read; 0 = all is."""

    steps: int
    shards: int
    sequences: int
    rows: int
    length: int
    chunk: int = 1
    ends: int = 0


class Plan(NamedTuple):
    """Where each sequence goes: all arrays [S, D, B]; index -1 = no sequence."""

    index: np.ndarray
    row: np.ndarray
    column: np.ndarray
    segment: np.ndarray


def training_sequences(
    train: Interactions, max_len: int, mask: int = 0, *, hides: bool = False
) -> Sequences:
    """The newest items of each user with two or more, in at most `max_len` slots.

    Args:
      mask: the last slot is this special item; 0 = there is none.
      hides: the targets will be items hidden inside the slice. A slice may then fill
        all slots and leave none to the special item, so that all positions are trained.
        Otherwise the slice leaves out the newest item, which is only a target (`fill`
        shifts by one).
    """
    begin, end = train.spans()
    counts = end - begin
    users = np.flatnonzero(counts >= 2)
    items = counts[users] - (not hides)
    end = end[users] - (not hides)
    begin = end - np.minimum(items, max_len - (mask > 0 and not hides))
    owners = users.astype(np.int32)
    return Sequences(owners, train.items, begin, end, mask, room=max_len)


def hide(
    sequences: Sequences, probability: float, seed: int, epoch: int, *block: int
) -> np.ndarray:
    """[slots of all sequences] bool: which items BERT4Rec hides in an epoch."""
    rng = stream("hide", seed, epoch, *block)
    hidden = np.empty(sequences.lengths.sum(), bool)
    for part in np.split(hidden, range(DRAWN, len(hidden), DRAWN)):
        part[:] = rng.random(len(part)) < probability
    return hidden


def same_target(train: Interactions, sequences: Sequences, max_len: int, rng):
    """For each sequence another history that led to the same item (BT-SR's pairs).

    Drawn uniformly from all rows of the log with that item and a history before them; a
    sequence with the only history before its target is paired with itself.

    Args:
      sequences: training sequences without a mask; `log[end]` is the last target.
    """
    counts = np.bincount(train.users, minlength=train.n_users)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # first row of the row's user
    rows = np.flatnonzero(np.arange(len(first)) > first)
    rows = rows[np.argsort(train.items[rows], kind="stable")]
    items = np.arange(train.n_items + 2)
    start = np.searchsorted(train.items[rows], items)
    target = train.items[sequences.end]
    choices = np.diff(start)[target]
    place = np.empty(len(first), np.int64)
    place[rows] = np.arange(len(rows))
    own = place[sequences.end] - start[target]
    drawn = rng.integers(0, np.maximum(choices - 1, 1))
    drawn = np.where(choices > 1, drawn + (drawn >= own), own)
    end = rows[start[target] + drawn]
    return replace(sequences, begin=np.maximum(first[end], end - max_len), end=end)


def pack_along(plan: Plan, lengths: np.ndarray, layout: Layout) -> Plan:
    """Packs other sequences of the same numbers into the same shards, each at the place
    b of its namesake; one that does not fit is left out."""
    sizes = lengths_at(plan.index, lengths)
    order = np.argsort(-sizes, axis=-1, kind="stable")
    packed = _pack(np.take_along_axis(sizes, order, -1), layout)
    back = np.argsort(order, axis=-1)
    row, column, segment = (np.take_along_axis(x, back, -1) for x in packed)
    return Plan(np.where(row >= 0, plan.index, -1), row, column, segment)


def rows_along(plan: Plan, lengths: np.ndarray, row_length: int) -> int:
    """Rows that `pack_along` needs to leave nothing out."""
    return _rows_needed(-np.sort(-lengths_at(plan.index, lengths), axis=-1), row_length)


def make_layout(
    lengths: np.ndarray, *, batch: int, row_length: int, shards: int = 1, chunk: int = 1
) -> Layout:
    """Shapes for about `batch` sequences a step, full to a few percent.

    Args:
      lengths: [n] tokens of each sequence, none above `row_length`.
      batch: sequences a step, over all shards.
      row_length: T.
      shards: D, devices that share a step.
      chunk: most steps of one dispatch.
    """
    chunks, chunk = equal_chunks(max(1, round(len(lengths) / batch)), chunk)
    steps = chunks * chunk
    sequences = -(-len(lengths) // (steps * shards))
    layout = Layout(steps, shards, sequences, 1, row_length, chunk)
    # The number of rows that three epochs would need. Batches are dealt by length, so
    # another epoch rarely needs more; `plan_epoch` then moves a sequence elsewhere, or
    # deals again.
    need = 1
    for epoch in range(3):
        index = _deal(lengths, layout, np.random.default_rng((0, epoch)))
        need = max(need, _rows_needed(lengths_at(index, lengths), row_length))
    return layout._replace(rows=need, sequences=sequences + 2)


def count_blocks(n: int) -> int:
    """Blocks of about BLOCK of n sequences."""
    return max(1, round(n / BLOCK))


def draw_block(n: int, blocks: int, seed: int, epoch: int, number: int) -> np.ndarray:
    """The numbers of the sequences of a block of an epoch, in order: runs of RUN
    neighbours, dealt to the blocks at random."""
    runs = stream("runs", seed, epoch).permutation(-(-n // RUN))
    begin = np.sort(np.array_split(runs, blocks)[number]) * RUN
    index = (begin[:, None] + np.arange(RUN)).ravel()
    return index[index < n]


def make_block_layout(sequences: Sequences, blocks: int, **shape) -> Layout:
    """The shapes of any block of any epoch, as `make_layout` chooses them for three.

    Blocks are alike, as each is of many runs. A block more needs little more room: one
    row and 2% are spare, and `plan_epoch` deals again, or leaves a few sequences out.
    """
    n = len(sequences.owners)
    first = [draw_block(n, blocks, 0, 0, block) for block in range(min(blocks, 3))]
    most = max(len(index) for index in first) + RUN
    made = [make_layout(sequences.lengths[index], **shape) for index in first]
    steps, shards = made[0].steps, made[0].shards
    rows = max(layout.rows for layout in made)
    return made[0]._replace(
        rows=rows + 1 + rows // 50, sequences=-(-most // (steps * shards)) + 2
    )


def equal_chunks(steps: int, most: int) -> tuple[int, int]:
    """(chunks, steps of each): about `steps` in all and at most `most` in a chunk, so
    that all dispatches of an epoch have one shape."""
    chunks = -(-steps // most)
    return chunks, steps // chunks


def plan_epoch(
    lengths: np.ndarray, layout: Layout, seed: int, epoch: int, *block: int
) -> Plan:
    """Deals all sequences into steps and packs each; pure in (seed, epoch, block).

    Dealing: sequences are sorted by length (ties at random), cut into strata of S, and
    each stratum is spread over the S steps at random. So any two sequences may share
    a step, all steps have nearly the same number of tokens, and rows fill up. A deal
    that finds no room is dealt again.

    A block may have more tokens than those that its layout is of, where neighbours in
    the log have like lengths. Then it leaves out what finds no room, for this epoch.
    """
    slots = layout.steps * layout.shards * layout.rows * layout.length
    for rng in _draws(seed, epoch, *block) if lengths.sum() <= slots else ():
        plan = _draw_plan(lengths, layout, rng)
        if plan is not None:
            return plan
    if block:
        rng = stream("pack", seed, epoch, *block)
        return _draw_plan(lengths, layout, rng, leaves_out=True)
    raise RuntimeError("packing found no room; please report this with the log")


def _draws(*numbers: int):
    """Generators for the attempts of an epoch. The last is the first deal by which
    `make_layout` chose the rows: there is room for it."""
    yield stream("pack", *numbers)
    for attempt in range(1, 30):
        yield stream("pack", *numbers, attempt=attempt)
    yield np.random.default_rng((0, 0))


def _draw_plan(lengths, layout, rng, leaves_out=False) -> Plan | None:
    """The plan of one deal. None where a sequence has no room in any step, unless it
    `leaves_out` such sequences."""
    index = _deal(lengths, layout._replace(sequences=layout.sequences - 2), rng)
    spare = np.full((*index.shape[:2], 2), -1, index.dtype)
    index = np.concatenate([index, spare], axis=2)
    row, column, segment = _pack(lengths_at(index, lengths), layout)
    plan = Plan(index, row, column, segment)
    return plan if _move_overflow(plan, lengths, layout, leaves_out) else None


def _deal(lengths, layout, rng):
    """[S, D, B] sequence numbers, longest first inside each shard, -1 = none."""
    steps, shards, sequences = layout[:3]
    n = len(lengths)
    order = rng.permutation(n)
    order = order[np.argsort(-lengths[order], kind="stable")]
    strata = np.full((-(-n // steps), steps), -1, np.int64)
    strata.reshape(-1)[:n] = order
    dealt = rng.permuted(strata, axis=1).T  # [S, n / S], the same for any D
    padded = np.full((steps, sequences * shards), -1, np.int64)
    padded[:, : dealt.shape[1]] = dealt
    hands = padded.reshape(steps, sequences, shards)
    hands[:, 1::2] = hands[:, 1::2, ::-1]  # there and back: no shard is favoured
    return hands.transpose(0, 2, 1).copy()


def lengths_at(index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The length of each numbered sequence, 0 where the number is -1."""
    return np.where(index >= 0, lengths[index], 0)


def count_within(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... inside each of several consecutive groups."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _rows_needed(lengths, row_length):
    """The fewest rows into which best-fit packing fits every shard of every step."""
    low = max(1, -(-int(lengths.sum(-1).max()) // row_length))
    high = low + 1
    while _overflows(lengths, high, row_length):
        high += max(1, high // 16)

    def fits(rows):
        return not _overflows(lengths, rows, row_length)

    return bisect_left(range(high), True, lo=low, key=fits)


def _overflows(lengths, rows, row_length):
    layout = Layout(*lengths.shape, rows, row_length)
    return bool((_pack(lengths, layout)[0] < 0).any())


def _pack(lengths, layout):
    """Best fit, all shards of all steps side by side.

    Args:
      lengths: [S, D, B], longest first; 0 = no sequence.

    Returns:
      row, column, segment: [S, D, B]; row -1 = did not fit.
    """
    steps, shards, sequences = lengths.shape
    bins = np.arange(steps * shards)
    lengths = lengths.reshape(-1, sequences)
    free = np.full((len(bins), layout.rows), layout.length)
    members = np.zeros((len(bins), layout.rows), np.int64)
    row, column, segment = (np.zeros_like(lengths) for _ in range(3))
    for b in range(sequences):
        size = lengths[:, b]
        best = np.where(free >= size[:, None], free, layout.length + 1).argmin(1)
        fits = free[bins, best] >= size
        row[:, b] = np.where(fits, best, -1)
        column[:, b] = layout.length - free[bins, best]
        placed = fits & (size > 0)
        members[bins, best] += placed
        segment[:, b] = members[bins, best]
        free[bins, best] -= np.where(placed, size, 0)
    shape = (steps, shards, sequences)
    return row.reshape(shape), column.reshape(shape), segment.reshape(shape)


def _move_overflow(plan, lengths, layout, leaves_out) -> bool:
    """Moves sequences that did not fit to a shard with room, in place. Where one finds
    none it is left out, or the answer is False."""
    if (plan.row >= 0).all():
        return True
    used = np.zeros((layout.steps, layout.shards, layout.rows), np.int64)
    members = np.zeros_like(used)
    s, d, b = np.nonzero((plan.index >= 0) & (plan.row >= 0))
    at = (s, d, plan.row[s, d, b])
    np.add.at(used, at, lengths[plan.index[s, d, b]])
    np.add.at(members, at, 1)
    too_long = layout.length + 1  # for any room that is left
    for s, d, b in np.argwhere(plan.row < 0):
        index = plan.index[s, d, b]
        plan.index[s, d, b], plan.row[s, d, b] = -1, 0
        if lengths[index] >= too_long:
            continue
        room = used + lengths[index] <= layout.length
        room &= (plan.index < 0).any(-1)[..., None]
        if not room.any() and not leaves_out:
            return False
        if not room.any():
            too_long = lengths[index]
            continue
        to_s, to_d, to_row = np.argwhere(room)[0]
        to_b = np.flatnonzero(plan.index[to_s, to_d] < 0)[0]
        members[to_s, to_d, to_row] += 1
        to = (to_s, to_d, to_b)
        plan.index[to], plan.row[to] = index, to_row
        plan.column[to] = used[to_s, to_d, to_row]
        plan.segment[to] = members[to_s, to_d, to_row]
        used[to_s, to_d, to_row] += lengths[index]
    return True


def fill(
    plan: Plan,
    sequences: Sequences,
    layout: Layout,
    *,
    shift: bool = False,
    hidden: np.ndarray | None = None,
) -> Batch:
    """The arrays of the steps and shards in `plan` (a part: `steps_of`).

    Args:
      shift: the target of a slot is the item after it in the log; a special slot at
        the end has none.
      hidden: from `hide`: those items are targets. They stay in `items`, from where the
        model takes them out; a [MASK] is never a target.
      Without either there are no targets.
    """
    steps, shards, width = plan.index.shape
    rows, length = layout.rows, layout.length
    real = plan.index >= 0
    index = plan.index[real]
    size = sequences.lengths[index]
    bin_number = np.arange(steps * shards).reshape(steps, shards, 1)
    start = ((bin_number * rows + plan.row) * length + plan.column)[real]

    within = count_within(size)
    to = np.repeat(start, size) + within
    source = np.repeat(sequences.begin[index], size) + within
    ends = start + size - 1
    items = np.take(sequences.log, source, mode="clip")
    targets = np.zeros_like(items)
    if shift:
        targets = np.take(sequences.log, source + 1, mode="clip")
    elif hidden is not None:
        chosen = hidden[np.repeat(sequences.first[index], size) + within]
        targets[chosen] = items[chosen]
    followed = size > sequences.end[index] - sequences.begin[index]
    special = np.cumsum(size)[followed] - 1
    items[special], targets[special] = sequences.mask, 0

    def slots(values):
        out = np.zeros(steps * shards * rows * length, np.int32)
        out[to] = values
        return out.reshape(steps, shards * rows, length)

    def per_sequence(values, dtype=np.int32):
        out = np.zeros((steps, shards, width), dtype)
        out[real] = values
        return out.reshape(steps, shards * width)

    ends_in_rows = None
    if layout.ends:
        ends_in_rows = np.zeros((steps * shards * rows, layout.ends), np.int32)
        to_end = (start // length, plan.segment[real] - 1)
        ends_in_rows[to_end] = ends % length
        ends_in_rows = ends_in_rows.reshape(steps, shards * rows, layout.ends)

    return Batch(
        items=slots(items),
        targets=slots(targets),
        positions=slots(within),
        segments=slots(np.repeat(plan.segment[real], size)),
        users=per_sequence(sequences.owners[index]),
        last=per_sequence(ends % (rows * length)),
        weights=per_sequence(1.0, np.float32),
        ends=ends_in_rows,
    )


def steps_of(plan: Plan, start: int, stop: int, own: np.ndarray | None = None) -> Plan:
    """The part of a plan that belongs to steps start..stop-1, and to the shards `own`;
    None = all."""
    if own is None:
        return Plan(*(field[start:stop] for field in plan))
    return Plan(*(field[start:stop, own] for field in plan))
