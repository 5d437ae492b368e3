"""Several implementations of the same computation, timed in turns.

python -m benchmarks.speed.candidates [NAME ...] [--rounds=7]

The first of each is that of the package. Data: the quick start's, and arrays of
the size of Amazon Beauty. `NOTES.md` has the predictions and the decisions.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import sparse

from benchmarks.speed import phase
from create_jax import build, losses, optim
from create_jax import steps as stepping
from create_jax.configs import quickstart
from create_jax.data import packing
from create_jax.models import lightgcn, propagation

USERS, ITEMS, PAIRS, DIM = 22_363, 12_101, 150_000, 64  # of Beauty's training part


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(0, 0.02, shape), jnp.float32)


# --- one candidate each: name -> a call that does it once -----------------------------


def token_chunk() -> dict:
    """Tokens whose logits exist at once: 1,024 tokens on Beauty's catalogue."""
    return _softmax(ITEMS, 1024, [dict(token_chunk=n) for n in (512, 64, 128, 256)])


def item_chunk() -> dict:
    """Items scored at once of a catalogue of 200,000: 1,024 tokens."""
    sizes = (4096, 1024, 2048, 8192, 32768, 200_000)
    return _softmax(200_000, 1024, [dict(item_chunk=n) for n in sizes])


def _softmax(items, tokens, choices):
    states, table = normal(tokens, DIM), normal(items + 1, DIM)
    targets = jnp.asarray(np.random.default_rng(1).integers(1, items + 1, tokens))
    found = {}
    for choice in choices:
        chunks = dict(token_chunk=512, item_chunk=items) | choice
        loss = partial(losses.softmax_cross_entropy, n_items=items, **chunks)
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        name = "{} {:,}".format(*next(iter(choice.items())))
        found[name] = partial(step, states, table, targets)
    return found


def low_precision() -> dict:
    """Logits of a chunk from float32 or from bfloat16 vectors, summed in float32."""
    states, table = normal(256, DIM), normal(ITEMS, DIM)

    def sums(states, table):
        logits = jnp.matmul(states, table.T, preferred_element_type=jnp.float32)
        return jax.nn.logsumexp(logits, -1)

    half = [x.astype(jnp.bfloat16) for x in (states, table)]
    run = jax.jit(sums)
    return {"float32": partial(run, states, table), "bfloat16": partial(run, *half)}


def scan_length() -> dict:
    """Most steps of one dispatch: an epoch of SASRec on the quick start."""
    return {f"chunk {n}": _epoch(**{"train.chunk": n}) for n in (64, 1, 8)}


def quick_start(**changes):
    config = quickstart.get_config("sasrec")
    config.update_from_flattened_dict({"split.validation": "none"} | changes)
    return config


def _epoch(**changes):
    prepared = phase.prepare(quick_start(**changes))
    feed, state = prepared.feed, prepared.state

    def once():
        nonlocal state
        plan, losses = feed.plan(0), None
        for chunk in range(feed.chunks):
            batch = prepared.batch(plan, chunk)
            state, losses = prepared.run(state, batch, prepared.graph)
        return losses

    return once


def seeds() -> dict:
    """Four seeds: one after the other, or all in one vmap. Two steps of SASRec."""
    config = quick_start()
    prepared = phase.prepare(config)
    model, feed = prepared.model, prepared.feed
    (joint,) = build.make_phases(config)
    tx = optim.make(**config.optim.to_dict())
    batches = [feed.batch(feed.plan(epoch), 0) for epoch in range(4)]
    batches = [jax.tree.map(lambda x: jnp.asarray(x[:2]), batch) for batch in batches]
    states = [stepping.init(model, tx, seed) for seed in range(4)]

    def two_steps(state, batch):
        def body(state, batch):
            return stepping.train_step(model, joint, tx, 0, None, state, batch, ())

        return jax.lax.scan(body, state, batch)

    one, many = jax.jit(two_steps), jax.jit(jax.vmap(two_steps))
    stacked = [
        jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (states, batches)
    ]

    def in_turn():
        return [one(*each) for each in zip(states, batches, strict=True)]

    return {"in turn": in_turn, "vmap": partial(many, *stacked)}


def user_table() -> dict:
    """Adam on a user table after 2,048 pairs: all rows, or only those (lazy Adam)."""
    table = normal(USERS, DIM)
    rows = jnp.asarray(np.random.default_rng(0).integers(0, USERS, 2048))
    gradient, tx = normal(2048, DIM), optax.adam(1e-3)
    state = tx.init(table)

    @jax.jit
    def dense(table, state, gradient):
        whole = jnp.zeros_like(table).at[rows].add(gradient)
        changes, state = tx.update(whole, state)
        return table + changes, state

    @jax.jit
    def sparse_rows(table, state, gradient):
        unique = jnp.unique(rows, size=len(rows), fill_value=USERS)
        place = jnp.searchsorted(unique, rows)
        summed = jnp.zeros_like(gradient).at[place].add(gradient)
        mu, nu = (m.at[unique].get(mode="clip") for m in (state[0].mu, state[0].nu))
        part = (state[0]._replace(mu=mu, nu=nu), *state[1:])
        changes, part = tx.update(summed, part)
        mu = state[0].mu.at[unique].set(part[0].mu, mode="drop")
        nu = state[0].nu.at[unique].set(part[0].nu, mode="drop")
        state = (part[0]._replace(mu=mu, nu=nu), *state[1:])
        return table.at[unique].add(changes, mode="drop"), state

    arguments = table, state, gradient
    return {
        "dense": partial(dense, *arguments),
        "rows": partial(sparse_rows, *arguments),
    }


def products() -> dict:
    """One product with Beauty's adjacency, items by popularity, d 64."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, USERS, PAIRS)
    items = 1 + np.exp(rng.random(PAIRS) * np.log(ITEMS)).astype(np.int64) % ITEMS
    users, items = np.unique(np.stack([users, items]), axis=1)
    graph = lightgcn.adjacency(users, items, USERS, ITEMS + 1)
    n = USERS + ITEMS + 1
    x = normal(n, DIM)
    order = np.argsort(graph.receivers, kind="stable")
    senders, receivers, weights = (
        jnp.asarray(values[order])
        for values in (graph.senders, graph.receivers, graph.edges)
    )
    matrix = propagation.Matrix(propagation.lay_out(graph, n), None)
    places = jnp.stack([receivers, senders], 1)
    coordinates = sparse.BCOO(
        (weights, places), shape=(n, n), indices_sorted=True, unique_indices=True
    )

    @jax.jit
    def segments(x):
        terms = weights[:, None] * x[senders]
        return jax.ops.segment_sum(terms, receivers, n, indices_are_sorted=True)

    gathers = jax.jit(lambda x, m: propagation.product(x, m, None))
    return {
        "gathers": partial(gathers, x, jax.tree.map(jnp.asarray, matrix)),
        "sorted segment sum": partial(segments, x),
        "BCOO": partial(jax.jit(lambda m, x: m @ x), coordinates, x),
    }


def cache() -> dict:
    """2,000,000 rows of 64 floats gathered and summed in eights, from tables of as many
    rows as LightGCN has in `benchmarks.speed.scaling` at 10^7, 10^6 and 10^5 edges."""
    gather = jax.jit(lambda table, index: table[index].sum(1))
    draw = np.random.default_rng(0).integers
    return {
        f"{rows:,} rows": partial(
            gather, normal(rows, DIM), jnp.asarray(draw(0, rows, (250_000, 8)))
        )
        for rows in (200_000, 20_000, 2_000)
    }


def evaluation() -> dict:
    """Ranks alone, as validation asks, or with lists of 100, as the test does."""
    config = quickstart.get_config("sasrec")
    ways = {"ranks": False, "ranks and lists": True}
    return {name: phase.ranking(config, lists=lists) for name, lists in ways.items()}


CANDIDATES = (
    *(token_chunk, item_chunk, low_precision, scan_length, seeds),
    *(user_table, products, cache, evaluation),
)


# --- turns ----------------------------------------------------------------------------


def compare(ways: dict, rounds: int) -> list[tuple[str, float, float]]:
    """(way, median seconds, median over rounds of its time over the first's)."""
    for once in ways.values():
        jax.block_until_ready(once())
    times = np.empty((rounds, len(ways)))
    for number in range(rounds):
        for place, once in enumerate(ways.values()):
            start = time.monotonic()
            jax.block_until_ready(once())
            times[number, place] = time.monotonic() - start
    ratios = np.median(times / times[:, :1], axis=0)
    return list(zip(ways, np.median(times, axis=0), ratios, strict=True))


def packing_density() -> str:
    """Filled slots of an epoch, histories as short as Amazon's."""
    lengths = np.minimum(1 + np.random.default_rng(0).geometric(1 / 7, USERS), 50)
    shares = []
    for batch in (64, 128, 256, 512):
        layout = packing.make_layout(lengths, batch=batch, row_length=50, chunk=64)
        slots = layout.steps * layout.rows * layout.length
        shares.append(f"batch {batch} {lengths.sum() / slots:.1%}")
    return "filled slots: " + ", ".join(shares)


def main() -> None:
    by_name = {candidate.__name__: candidate for candidate in CANDIDATES}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(by_name))
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    for name in flags.names:
        if name not in by_name:
            parser.error(f"{name!r} is none of {', '.join(by_name)}")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {packing_density()}")
    for name in flags.names or by_name:
        print(f"\n{name}: {by_name[name].__doc__}")
        for way, middle, ratio in compare(by_name[name](), flags.rounds):
            print(f"{way:>24} {1e3 * middle:10.2f} ms  {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
