"""Losses as pure functions of arrays.

Every loss but the scalable cross-entropy is *global*: with an `axis_name`, sums, counts
and moments are summed over the mapped axis before they are divided, so each device
returns the loss of the whole batch, and the mean over devices of its gradients is the
gradient of that loss. Averaging losses of parts of a batch would be wrong for Barlow
Twins and for uneven token counts.
"""

from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from create_jax import tables
from create_jax.parallel import ALL, MODEL
from create_jax.tables import look_up

AT_ONCE = 2**24  # numbers of a loss over pairs, of rows or with samples: 64 MB


def global_sum(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over the devices of `axis_name`; the identity without one."""
    return x if axis_name is None else lax.psum(x, axis_name)


def global_sums(arrays: tuple, axis_name: str | None) -> tuple:
    """`global_sum` of several arrays, in one message between several devices: each
    message costs its latency, however small it is."""
    if axis_name is None or lax.axis_size(axis_name) == 1:
        return tuple(global_sum(x, axis_name) for x in arrays)
    ends = np.cumsum([x.size for x in arrays])[:-1]
    whole = lax.psum(jnp.concatenate([x.ravel() for x in arrays]), axis_name)
    parts = zip(jnp.split(whole, ends), arrays, strict=True)
    return tuple(part.reshape(x.shape).astype(x.dtype) for part, x in parts)


def gather_rows(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of all devices, one device after the other."""
    return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)


def row_numbers(n: int, axis_name: str | None) -> jax.Array:
    """[n] places of a device's own n rows among those of `gather_rows`."""
    start = 0 if axis_name is None else lax.axis_index(axis_name) * n
    return start + jnp.arange(n)


def weighted_mean(values, weights, axis_name=None):
    """sum(values * weights) / sum(weights) over all devices; 0 without any weight."""
    sums = jnp.sum(values * weights), jnp.sum(weights)
    total, weight = global_sums(sums, axis_name)
    return total / jnp.maximum(weight, 1e-12)


def map_rows(values_of, rows, width: int):
    """values_of(*rows) of arrays with M rows, in parts where M * width numbers are more
    than AT_ONCE: what a part forms is formed again for its gradient, and never kept.

    Args:
      values_of: some of the rows -> arrays of as many rows.
      width: how many numbers it forms for each row.
    """
    m, most = len(rows[0]), max(1, AT_ONCE // width)
    if m <= most:
        return values_of(*rows)
    parts = -(-m // most)
    chunk = -(-m // parts)

    def cut(x):
        x = jnp.pad(x, [(0, parts * chunk - m), *[(0, 0)] * (x.ndim - 1)])
        return x.reshape(parts, chunk, *x.shape[1:])

    body = jax.checkpoint(lambda part: values_of(*part))
    values = lax.map(body, jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:m], values)


# --- next item ------------------------------------------------------------------------


def softmax_cross_entropy(
    states: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    *,
    n_items: int,
    axis_name: str | None = None,
    token_chunk: int = 512,
    item_chunk: int = 65536,
) -> jax.Array:
    """Exact full softmax over items 1..I, averaged over tokens that have a target.

    Never holds [M, I]: it streams over chunks of tokens, and of the catalogue where it
    is larger than `item_chunk`. Gradients are formed while the logits of a chunk exist.
    Chunks without any target are skipped: BERT4Rec hides a fifth of its tokens.

    Args:
      states: [M, D] outputs h; scores are h E^T without bias.
      table: [V, D] item vectors E; row 0 (padding) and rows above I are no candidates.
      targets: [M] item of each token, 0 = no loss.
      n_items: I.

    Returns:
      Scalar: mean of -log softmax(h E^T)[target].
    """
    size = len(targets)
    first = jnp.flatnonzero(targets, size=size, fill_value=size)  # then nothing
    settings = dict(mode="fill", fill_value=0, indices_are_sorted=True)
    states = jnp.take(states, first, axis=0, **settings)
    targets = jnp.take(targets, first, **settings)
    states, targets = _token_chunks(states, targets, token_chunk)
    given = n_items, item_chunk, axis_name
    total = _streamed_cross_entropy(states, table, targets, *given)
    return _over_tokens(total, targets, axis_name)


def _token_chunks(states, targets, most):
    """[C, M, D] states and [C, M] targets in equal chunks of at most about `most`,
    filled up with tokens without a target."""
    chunks = -(-len(states) // most)
    chunk = -(-len(states) // (8 * chunks)) * 8
    padding = chunks * chunk - len(states)
    states = jnp.pad(states, ((0, padding), (0, 0)))
    targets = jnp.pad(targets, (0, padding))
    return states.reshape(-1, chunk, states.shape[1]), targets.reshape(-1, chunk)


def _over_tokens(total, targets, axis_name):
    """A sum over tokens as the mean over those with a target, on all devices."""
    count = jnp.sum(targets > 0).astype(jnp.float32)
    total, count = global_sums((total, count), axis_name)
    return total / jnp.maximum(count, 1)


def _scan_real(body, carry, chunks):
    """`lax.scan` over tuples of arrays, the last one what says which tokens are real; a
    chunk without any is skipped, and its outputs are zeros."""

    def step(carry, chunk):
        def skip(carry, chunk):
            outputs = jax.eval_shape(body, carry, chunk)[1]
            return carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)

        return lax.cond(jnp.any(chunk[-1] > 0), body, skip, carry, chunk)

    return lax.scan(step, carry, chunks)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _streamed_cross_entropy(states, table, targets, n_items, item_chunk, axis_name):
    """Sum of losses. states [C, M, D], table [V, D], targets [C, M], 0 = none."""
    return _forward(states, table, targets, n_items, item_chunk, axis_name)[0]


def _forward(states, table, targets, n_items, item_chunk, axis_name):
    """The loss, and its gradients while the logits are at hand (three products)."""
    if tables.is_split(axis_name):
        return _forward_by_rows(states, table, targets, n_items, item_chunk)
    real = (targets > 0).astype(states.dtype)[..., None]
    if n_items <= item_chunk:
        log_sums, d_states, d_table = _softmax(states, table, real, n_items)
    else:
        found = _softmax_in_parts(states, table, real, n_items, item_chunk)
        log_sums, d_states, d_table = found
    picked = table[targets] * real
    total = jnp.sum(log_sums, where=real[..., 0] > 0) - jnp.sum(states * picked)
    return total, (d_states - picked, d_table.at[targets].add(-states * real))


def _forward_by_rows(states, table, targets, n_items, item_chunk):
    """The same for a split table: each device meets the tokens of its group with its
    own rows. The losses are summed over all devices, so a device may count a token's
    normaliser and another one the score of its target."""
    own, m = lax.axis_index(MODEL), len(states)
    states, targets = (tables.of_group(x, ALL) for x in (states, targets))
    real = (targets > 0).astype(states.dtype)[..., None]
    chunk = min(item_chunk, len(table))
    found = _softmax_in_parts(states, table, real, n_items, chunk, ALL)
    log_sums, d_states, d_table = found
    place = tables.places(table, targets)
    picked = tables.own_rows(table, targets) * real
    total = -jnp.sum(states * picked)
    own_sums, own_real = (
        lax.dynamic_slice_in_dim(x, own * m, m) for x in (log_sums, real)
    )
    total += jnp.sum(own_sums, where=own_real[..., 0] > 0)
    d_states = lax.psum_scatter(d_states - picked, MODEL, tiled=True)
    return total, (d_states, d_table.at[place].add(-states * real, mode="drop"))


def _softmax(states, table, real, n_items):
    """Log-sums [C, M], their gradients [C, M, D] and [V, D] of tokens that are real.

    The table's gradient is summed transposed: a product that contracts the second axis
    of its left side is twice as fast on CPUs.
    """
    items = table[1 : n_items + 1]

    def body(d_items, chunk):
        x, real = chunk
        logits = x @ items.T  # [M, I]
        largest = logits.max(-1, keepdims=True)
        exponentials = jnp.exp(logits - largest)
        normaliser = exponentials.sum(-1, keepdims=True)
        # softmax = exponentials / normaliser: scale the small side of each product.
        scale = real / normaliser
        d_x = (exponentials @ items) * scale
        log_sums = (jnp.log(normaliser) + largest)[:, 0]
        return d_items + (x * scale).T @ exponentials, (log_sums, d_x)

    start = jnp.zeros_like(items.T)
    d_items, (log_sums, d_states) = _scan_real(body, start, (states, real))
    d_table = jnp.zeros_like(table).at[1 : n_items + 1].set(d_items.T)
    return log_sums, d_states, d_table


def _softmax_in_parts(states, table, real, n_items, item_chunk, axis_name=None):
    """The same over chunks of the catalogue: logits are formed twice, held never.

    Each chunk meets all tokens at once, so its gradient is written once; beside it no
    second table exists. Of a split table each device has the chunks of its own rows;
    the group's sums meet once.
    """
    split = tables.is_split(axis_name)
    begin, end = (0, len(table)) if split else (1, n_items + 1)
    # A device may have no item at all, so that a largest of -inf would be nobody's.
    hidden = -1e30 if split else -jnp.inf

    def part(start):
        """Rows from `start`, and -inf for what the chunk before has had: the last one
        begins earlier, to be whole."""
        first = jnp.minimum(start, end - item_chunk)
        rows = lax.dynamic_slice_in_dim(table, first, item_chunk)
        new = first + jnp.arange(item_chunk) >= start
        if split:
            item = lax.axis_index(MODEL) * len(table) + first + jnp.arange(item_chunk)
            new &= (item >= 1) & (item <= n_items)
        return first, rows, jnp.where(new, 0.0, hidden).astype(table.dtype)

    def add_sums(carry, start):
        _, rows, bias = part(start)

        def body(_, chunk):
            x, largest, total, _ = chunk
            logits = x @ rows.T + bias
            new = jnp.maximum(largest, logits.max(-1))
            total = total * jnp.exp(largest - new)
            return None, (new, total + jnp.exp(logits - new[:, None]).sum(-1))

        return _scan_real(body, None, (states, *carry, real))[1], None

    def add_gradients(carry, start):
        d_states, d_table = carry
        first, rows, bias = part(start)

        def body(d_rows, chunk):
            x, d_x, log_sum, real = chunk
            softmax = jnp.exp(x @ rows.T + bias - log_sum[:, None]) * real
            return d_rows + x.T @ softmax, d_x + softmax @ rows

        zeros, chunks = jnp.zeros_like(rows.T), (states, d_states, log_sums, real)
        d_rows, d_states = _scan_real(body, zeros, chunks)
        d_rows = d_rows.T + lax.dynamic_slice_in_dim(d_table, first, item_chunk)
        d_table = lax.dynamic_update_slice_in_dim(d_table, d_rows, first, 0)
        return (d_states, d_table), None

    starts = jnp.arange(begin, end, item_chunk)
    lowest = jnp.full(real.shape[:2], -jnp.inf, states.dtype)
    sums = lax.scan(add_sums, (lowest, jnp.zeros_like(lowest)), starts)[0]
    if split:
        largest = lax.pmax(sums[0], MODEL)
        sums = largest, lax.psum(sums[1] * jnp.exp(sums[0] - largest), MODEL)
    log_sums = sums[0] + jnp.log(sums[1])
    zeros = jnp.zeros_like(states), jnp.zeros_like(table)
    d_states, d_table = lax.scan(add_gradients, zeros, starts)[0]
    return log_sums, d_states, d_table


def _backward(n_items, item_chunk, axis_name, residuals, cotangent):
    d_states, d_table = residuals
    return cotangent * d_states, cotangent * d_table, None


_streamed_cross_entropy.defvjp(_forward, _backward)


def all_item_ranking(
    states: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    *,
    n_items: int,
    axis_name: str | None = None,
    token_chunk: int = 512,
) -> jax.Array:
    """Mean over tokens with a target and over all items of -log s(x_target - x_item).

    MRGSRec's loss of the graph's and the fused user. Streams over chunks of tokens and
    forms their scores again for the gradient.

    Args: as of `softmax_cross_entropy`.
    """
    states, targets = _token_chunks(states, targets, token_chunk)
    table = table[1 : n_items + 1]

    @jax.checkpoint
    def body(total, part):
        x, target = part
        scores = x @ table.T
        own = jnp.take_along_axis(scores, jnp.maximum(target - 1, 0)[:, None], 1)
        losses = jax.nn.softplus(scores - own).mean(-1)
        return total + jnp.sum(jnp.where(target > 0, losses, 0)), None

    total = lax.scan(body, jnp.zeros((), states.dtype), (states, targets))[0]
    return _over_tokens(total, targets, axis_name)


def sampled_losses(
    states, table, targets, negatives, *, kind, gbce_t=0.75, n_items=0, axis_name=None
):
    """Next-item losses against sampled items instead of the catalogue.

    [M, N] scores and [G, N, D] items exist in parts of AT_ONCE.

    Args:
      states: [M, D]; table: [V, D]; targets: [M], 0 = no loss.
      negatives: [G, N] items, shared by the M / G tokens of each of G equal parts; one
        that is the token's own target does not count.
      kind: `sampled`: softmax over the target and the N (Klenitskiy and Vasilev 2023).
        `bce`: -log s(r+) - sum log(1 - s(r-)) (SASRec's own with N = 1). `gbce`: the
        same with s(r+)^beta, and the mean over the 1 + N (gSASRec, arXiv 2308.07192).
      gbce_t: t of gBCE, 0 = plain BCE, 1 = fully corrected for sampling.
      n_items: I, for gBCE's sampling rate.

    Returns:
      Scalar mean over tokens that have a target.
    """
    parts, n = negatives.shape
    beta = 1.0
    if kind == "gbce":
        rate = n / (n_items - 1)
        beta = rate * (gbce_t * (1 - 1 / rate) + 1 / rate)

    def values_of(states, targets, negatives):
        """Of some of the parts: [G, M / G, D], [G, M / G], [G, N] -> [G, M / G]."""
        positive = jnp.sum(states * look_up(table, targets, axis_name), -1)
        others = look_up(table, negatives, axis_name)
        scores = jnp.einsum("gmd,gnd->gmn", states, others)
        same = negatives[:, None, :] == targets[..., None]
        scores = jnp.where(same, -jnp.inf, scores)
        if kind == "sampled":
            logits = jnp.concatenate([positive[..., None], scores], axis=-1)
            return jax.nn.logsumexp(logits, axis=-1) - positive
        values = beta * jax.nn.softplus(-positive) + jax.nn.softplus(scores).sum(-1)
        return values / (1 + n) if kind == "gbce" else values

    m, d = states.shape
    rows = states.reshape(parts, -1, d), targets.reshape(parts, -1), negatives
    width = n * max(d * tables.parts(axis_name), m // parts)
    values = map_rows(values_of, rows, width).reshape(-1)
    return weighted_mean(values, (targets > 0).astype(states.dtype), axis_name)


def gsau(
    states, table, targets, key, *, n_items, gamma, rec, axis_name=None
) -> jax.Array:
    """The sequence part of GSAU (arXiv 2412.04276), all vectors of unit length.

    alignment(states, targets) + gamma (uniformity of both + log mean of
    exp(-2 |state - shuffled target|^2)).

    Args:
      states: [M, D]; targets: [M], 0 = no loss.
      rec: "GSAU (rec)": cross-entropy of the unit states over the raw table in place of
        their alignment.
    """
    weights = (targets > 0).astype(states.dtype)
    x, y = l2_normalise(states), look_up(table, targets, axis_name)
    if rec:
        main = softmax_cross_entropy(
            x, table, targets, n_items=n_items, axis_name=axis_name
        )
    else:
        main = mean_alignment(x, y, weights, axis_name)
    # Each real state meets the target of another: in a random order, of the next one.
    order = jnp.lexsort((jax.random.uniform(key, weights.shape), -weights))
    n_real = jnp.sum(targets > 0)
    following = order[(jnp.arange(len(order)) + 1) % jnp.maximum(n_real, 1)]
    apart = jnp.sum((x[order] - l2_normalise(y[following])) ** 2, -1)
    both = weights[order] * (n_real > 1)
    crossed = log_or_zero(weighted_mean(jnp.exp(-2 * apart), both, axis_name))
    spread = uniformity(x, weights, axis_name) + uniformity(y, weights, axis_name)
    return main + gamma * (spread + crossed)


def scalable_cross_entropy(
    states,
    table,
    targets,
    key,
    *,
    n_items: int,
    buckets: int,
    bucket_states: int,
    bucket_items: int,
    mix: bool,
    axis_name=None,
):
    """SCE (arXiv 2409.18721): softmax inside buckets of close states and items.

    Random directions pick, for each bucket, the states and the items with the largest
    projections. A state in several buckets keeps its largest loss, one in none counts
    nowhere. Equal to the full softmax where every bucket holds everything.

    Args:
      states: [M, D]; targets: [M], 0 = no loss: never selected.
      buckets, bucket_states, bucket_items: n_b, b_x, b_y.
      mix: directions are random mixtures of the states themselves (Omega^T X), so that
        buckets follow the data.
    """
    items = table[1 : n_items + 1]
    real = targets > 0
    m, d = states.shape
    still, still_items = lax.stop_gradient(states), lax.stop_gradient(items)
    shape = (m, buckets) if mix else (d, buckets)
    directions = jax.random.normal(key, shape) / d**0.25
    if mix:
        directions = (still * real[:, None]).T @ directions
    near_states = jnp.where(real, (still @ directions).T, -jnp.inf)  # [n_b, M]
    _, rows = lax.top_k(near_states, min(bucket_states, m))
    _, columns = lax.top_k((still_items @ directions).T, min(bucket_items, n_items))

    x, y = states[rows], items[columns]  # [n_b, b_x, D], [n_b, b_y, D]
    own = targets[rows]  # [n_b, b_x]
    positive = jnp.sum(x * table[own], -1)
    logits = jnp.einsum("bxd,byd->bxy", x, y)
    logits = jnp.where(columns[:, None, :] + 1 == own[..., None], -jnp.inf, logits)
    logits = jnp.concatenate([logits, positive[..., None]], axis=-1)
    values = jnp.where(own > 0, jax.nn.logsumexp(logits, axis=-1) - positive, -jnp.inf)
    largest = jnp.full(m, -jnp.inf).at[rows.reshape(-1)].max(values.reshape(-1))
    covered = largest > -jnp.inf
    kept = jnp.where(covered, largest, 0.0)
    return weighted_mean(kept, covered.astype(states.dtype), axis_name)


# A next-item loss: (states [R * T, D], table [V, D], targets [R, T], key, *, n_items,
# axis_name, its settings) -> scalar mean over the tokens with a target. `table` holds
# the items in rows 1..n_items, target 0 = none. A setting is `loss.<name>.<argument>`,
# or `loss.<argument>`.


def cross_entropy(
    states,
    table,
    targets,
    key,
    *,
    n_items,
    axis_name=None,
    token_chunk=512,
    whole_items=131072,
    item_chunk=4096,
):
    """`softmax_cross_entropy`, where a catalogue above `whole_items` is in parts."""
    return softmax_cross_entropy(
        states,
        table,
        targets.reshape(-1),
        n_items=n_items,
        axis_name=axis_name,
        token_chunk=token_chunk,
        item_chunk=n_items if n_items <= whole_items else item_chunk,
    )


def _of_samples(kind: str):
    """One of `sampled_losses` as a next-item loss."""

    def loss(
        states,
        table,
        targets,
        key,
        *,
        n_items,
        axis_name=None,
        negatives=256,
        shared_negatives=True,
        gbce_t=0.75,
    ):
        # Not by the whole step: that learns much more slowly
        # (benchmarks/parity/PARITY.md).
        parts = len(targets) if shared_negatives else targets.size
        drawn = jax.random.randint(key, (parts, negatives), 1, n_items + 1)
        own = dict(kind=kind, gbce_t=gbce_t, n_items=n_items, axis_name=axis_name)
        return sampled_losses(states, table, targets.reshape(-1), drawn, **own)

    return loss


def _flat(loss):
    """A loss of [M] targets as one of [R, T]."""

    @wraps(loss)
    def of_rows(states, table, targets, key, **settings):
        return loss(states, table, targets.reshape(-1), key, **settings)

    return of_rows


NEXT_ITEM = {
    "ce": cross_entropy,
    "sce": _flat(scalable_cross_entropy),
    "sampled": _of_samples("sampled"),
    "gbce": _of_samples("gbce"),
    "bce": _of_samples("bce"),
    "gsau": _flat(gsau),
}
# Those that need fewer `loss.negatives` than there are items.
SAMPLE_FEWER = ("gbce",)
# Those that know of tables in parts.
OF_SPLIT_TABLES = ("ce", "sampled", "gbce", "bce", "gsau")


# --- graph ----------------------------------------------------------------------------


def bpr(positive: jax.Array, negative: jax.Array, weights, *, axis_name=None):
    """Bayesian personalised ranking (Rendle et al. 2009): mean softplus(x_uj - x_ui).

    positive, negative: [P] scores of pairs (u, i) and (u, j); weights: [P].
    """
    return weighted_mean(jax.nn.softplus(negative - positive), weights, axis_name)


def mean_alignment(a, b, weights, axis_name=None):
    """Mean |a - b|^2 of unit vectors (Wang and Isola 2020): [B, D] twice -> scalar."""
    distance = jnp.sum((l2_normalise(a) - l2_normalise(b)) ** 2, -1)
    return weighted_mean(distance, weights, axis_name)


def uniformity(x, weights, axis_name=None):
    """log mean exp(-2 |x - x'|^2) over pairs of different rows, of unit length; 0 where
    there is no pair."""
    x = l2_normalise(x)

    def closeness(cosine):
        return jnp.exp(4 * cosine - 4)  # |x - x'|^2 = 2 - 2 x . x'

    return log_or_zero(mean_over_pairs(closeness, x, x, weights, axis_name))


def log_or_zero(mean):
    """log of a mean of positive values, and 0, with a finite gradient, of no values."""
    return jnp.log(jnp.where(mean > 0, mean, 1.0))


def mean_over_pairs(value_of, a, b, weights, axis_name=None):
    """Mean of value_of(a_i . b_j) over pairs of different rows, on all devices.

    Args:
      value_of: elementwise.
      a, b: [M, D]; weights: [M]. [M, M] products exist in parts of AT_ONCE.
    """
    others, real = gather_rows(b, axis_name), gather_rows(weights, axis_name)

    def of_rows(a, weights, own):
        other = jnp.arange(len(others)) != own[:, None]
        pairs = weights[:, None] * real * other
        return jnp.sum(value_of(a @ others.T) * pairs, -1), jnp.sum(pairs, -1)

    rows = a, weights, row_numbers(len(a), axis_name)
    sums, counts = map_rows(of_rows, rows, len(others))
    total, count = global_sums((jnp.sum(sums), jnp.sum(counts)), axis_name)
    return total / jnp.maximum(count, 1)


# --- alignment: two views [B, D] of the same users -> scalar --------------------------


def _standardised(views, weights, axis_name):
    """The number of real rows, and each view with zero mean and unit (biased) deviation
    of each column over them (docs/choices.md 33)."""
    count, means, variances = _moments(views, weights, axis_name)
    found = []
    for x, mean, variance in zip(views, means, variances, strict=True):
        # The root's slope at 0 is infinite: a constant column has both 0.
        varies = variance > 0
        deviation = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
        found.append((x - mean) / (deviation + 1e-5))
    return count, found


def _moments(views, weights, axis_name):
    """The number of real rows, and the mean and biased variance of each view [B, D]."""
    sums = weights.sum(), *(weights @ x for x in views)
    count, *sums = global_sums(sums, axis_name)
    count = jnp.maximum(count, 1.0)
    means = [x / count for x in sums]
    apart = zip(views, means, strict=True)
    squares = tuple(weights @ (x - mean) ** 2 for x, mean in apart)
    return count, means, [x / count for x in global_sums(squares, axis_name)]


def cross_correlation(a, b, weights, axis_name=None):
    """C_ij = 1/B sum_u za_ui zb_uj of standardised views (CREATE, eq. 2) -> [D, D]."""
    count, (a, b) = _standardised((a, b), weights, axis_name)
    a = a * weights[:, None]
    return global_sum(jnp.matmul(a.T, b, precision="highest"), axis_name) / count


def barlow_twins(
    a, b, weights, *, off_diagonal=0.05, reduce="mean_dim", axis_name=None
):
    """Makes two views agree in each dimension and differ between them.

    Zbontar et al. 2021, eq. 1; CREATE, eq. 3:
    sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2.

    Args:
      a, b: [B, D] two vectors of each user, any scale.
      weights: [B] 1 = real row, 0 = filler.
      off_diagonal: lambda.
      reduce: `mean_dim` divides by D (docs/choices.md 5), `sum` does not.
    """
    correlation = cross_correlation(a, b, weights, axis_name)
    diagonal = jnp.diagonal(correlation)
    on = jnp.sum((1 - diagonal) ** 2)
    off = jnp.sum(correlation**2) - jnp.sum(diagonal**2)
    loss = on + off_diagonal * off
    return loss / len(diagonal) if reduce == "mean_dim" else loss


def infonce(a, b, weights, *, temperature=1.0, axis_name=None):
    """Symmetric InfoNCE over 2B L2-normalised views, half the mean (MRGSRec's form).

    Each row's partner is its positive, the other 2B - 2 rows are its negatives. The
    [2B, 2B] scores exist in parts of AT_ONCE.
    """
    views = jnp.concatenate([l2_normalise(a), l2_normalise(b)])
    real = jnp.concatenate([weights, weights])
    others = jnp.concatenate(
        [
            gather_rows(l2_normalise(a), axis_name),
            gather_rows(l2_normalise(b), axis_name),
        ]
    )
    mask = jnp.tile(gather_rows(weights, axis_name), 2)
    me, n_all = row_numbers(len(a), axis_name), len(others) // 2
    own = jnp.concatenate([me, me + n_all])
    partner = jnp.concatenate([me + n_all, me])

    def values_of(views, real, own, partner):
        scores = views @ others.T / temperature  # [2n, 2B]
        allowed = (mask[None] > 0) & (jnp.arange(2 * n_all)[None] != own[:, None])
        scores = jnp.where(allowed, scores, -jnp.inf)
        # Filler rows have no partner; stay finite before their weight removes them.
        scores = jnp.where(real[:, None] > 0, scores, 0.0)
        positive = jnp.take_along_axis(scores, partner[:, None], 1)[:, 0]
        return jax.nn.logsumexp(scores, axis=-1) - positive

    values = map_rows(values_of, (views, real, own, partner), 2 * n_all)
    return weighted_mean(values, real, axis_name) / 2


def l2_normalise(x):
    """Rows of unit length; zero rows stay zero, with a finite gradient."""
    return x * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)


def vicreg(
    a, b, weights, *, similarity=25.0, variance=25.0, covariance=1.0, axis_name=None
):
    """Variance, invariance, covariance (Bardes et al. 2022, eq. 6).

    similarity * mean of (a - b)^2, over dimensions too as in the published code,
    + variance * (hinge of each column's deviation at 1, of both views)
    + covariance * (squared off-diagonal covariances / D, of both views).
    """
    d = a.shape[1]
    distance = weighted_mean(jnp.mean((a - b) ** 2, -1), weights, axis_name)
    spread, redundancy = 0.0, 0.0
    count, means, moments = _moments((a, b), weights, axis_name)
    count = jnp.maximum(count, 2.0)
    pairs = zip((a, b), means, strict=True)
    centred = [(x - mean) * weights[:, None] for x, mean in pairs]
    products = global_sums(tuple(x.T @ x for x in centred), axis_name)
    for moment, product in zip(moments, products, strict=True):
        unbiased = moment * count / (count - 1)
        spread += jnp.mean(jax.nn.relu(1 - jnp.sqrt(unbiased + 1e-4)))
        covariances = product / (count - 1)
        diagonal = jnp.diagonal(covariances)
        redundancy += (jnp.sum(covariances**2) - jnp.sum(diagonal**2)) / d
    return similarity * distance + variance * spread + covariance * redundancy


def nwj(a, b, weights, *, temperature=1.0, axis_name=None):
    """Minus a lower bound on the mutual information of the views (NWJ: Nguyen et al.
    2010; Poole et al. 2019, eq. 5): 1 + E_joint[f] - E_product[exp f].

    The critic is f(a, b) = cos(a, b) / temperature, one constant lower than the paper's
    f, so that the bound reads as written here. The product of marginals is estimated
    over all pairs of different rows.
    """
    a, b = l2_normalise(a), l2_normalise(b)
    joint = weighted_mean(jnp.sum(a * b, -1) / temperature, weights, axis_name)

    def ratio(cosine):
        return jnp.exp(cosine / temperature)

    return -(1 + joint - mean_over_pairs(ratio, a, b, weights, axis_name))


# An alignment: (a [B, D], b [B, D], weights [B], *, axis_name, its settings) -> scalar,
# of two vectors of each user; weight 0 = filler. Settings as of a next-item loss, in
# `align`.
ALIGNMENTS = {
    "barlow_twins": barlow_twins,
    "infonce": infonce,
    "vicreg": vicreg,
    "nwj": nwj,
}
# Settings that do not have the name of their argument.
RENAMED = {"barlow_twins": {"off_diagonal": "bt.lambda", "reduce": "bt.reduce"}}
