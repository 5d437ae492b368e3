"""How far a training step is from the limit of the machine.

python -m benchmarks.speed.limit [--config=beauty] [--path=FILE] [--method=sasrec]

Counts the floating point operations that a step needs, and the bytes that any
implementation must move. Measures the rates that this device attains on one large
product, one large copy and one large exponential. Prints the time at these rates beside
the time of the step. With --trace=DIR it also writes a profile of three dispatches, to
be read with xprof or Perfetto.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed.phase import prepare, repeat
from create_jax import config_file

REPEATS = 7


def seconds(run) -> float:
    """The median of some runs, after one to compile."""
    jax.block_until_ready(run())
    found = []
    for _ in range(REPEATS):
        start = time.monotonic()
        jax.block_until_ready(run())
        found.append(time.monotonic() - start)
    return float(np.median(found))


def attainable(dim: int, items: int) -> dict[str, float]:
    """Operations, bytes and exponentials a second of this device.

    The product has the shape of the softmax's, [512, I] x [I, D]. A step can reach the
    rate of this product, but not that of large square matrices. (A product with a large
    result is slower the first times, because its memory is new.)
    """
    chunk, table, large = (jnp.ones(n) for n in ((512, items), (items, dim), 1 << 26))
    product = jax.jit(lambda a, b: a @ b)
    add, exp = jax.jit(lambda x: x + 1), jax.jit(lambda x: jnp.exp(x).sum())
    return {
        "operations": 2 * 512 * dim * items / seconds(lambda: product(chunk, table)),
        "bytes": 2 * large.nbytes / seconds(lambda: add(large)),
        "exponentials": large.size / seconds(lambda: exp(large)),
    }


def needed(config, prepared) -> dict[str, float]:
    """Operations, bytes and exponentials of one step.

    The gradients of a product cost two more products. The whole softmax has three
    products, because its gradients are computed while the logits exist. In parts it has
    four, and computes each exponential twice. If items are hidden, the softmax and the
    queries of the last block count hidden items only. Bytes: Adam reads the parameter,
    two moments and the gradient, and writes the first three. A propagation gathers a
    row for each edge and direction, forward and backward. UltraGCN and the alignment
    are small beside these and are not counted.
    """
    model, feed, encoder = prepared.model, prepared.feed, config.seq
    dim, n_items = config.model.dim, model.n_items
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(prepared.state.params))
    need = {"operations": 0.0, "bytes": 7.0 * parameters, "exponentials": 0.0}
    if feed.sequences is not None:
        rows, length = feed.layout.shards * feed.layout.rows, feed.layout.length
        slots = rows * length
        hidden = model.objective == "masked"
        read = slots * model.mask_share if hidden else slots
        # Operations of a query and of a key of a block, gradients included.
        query = 6 * ((2 + 2 * encoder.feed_forward) * dim**2 + 2 * length * dim)
        key = 6 * 2 * dim**2
        queries = (encoder.blocks - 1) * slots + read
        whole = n_items <= config.loss.whole_items
        softmax = (3 if whole else 4) * 2 * read * n_items * dim
        need["operations"] += queries * query + encoder.blocks * slots * key + softmax
        attention = encoder.heads * queries * length
        need["exponentials"] += (1 if whole else 2) * read * n_items + attention
    if model.graph is not None and model.graph.PROPAGATES:
        layers = model.graph_settings["layers"]
        gathered = 2 * 2 * layers * len(prepared.pairs.users) * dim
        need["bytes"] += 4 * gathered
        need["operations"] += 2 * gathered
    return need


def report(step: float, need: dict, attained: dict) -> str:
    """Markdown: each kind of work, its time alone, and their sum beside the step's."""
    lines = [
        "| of a step | needed | attained alone, a second | alone, ms |",
        "| --- | --- | --- | --- |",
    ]
    total = 0.0
    for kind, amount in need.items():
        alone = amount / attained[kind]
        total += alone
        giga = f"{amount / 1e9:.3g} G", f"{attained[kind] / 1e9:.4g} G"
        lines.append(f"| {kind} | {' | '.join(giga)} | {1e3 * alone:.2f} |")
    lines.append(f"| sum | | | {1e3 * total:.2f} |")
    lines.append(f"| the step | | | {1e3 * step:.2f} |")
    return "\n".join([*lines, "", f"sum / step: {total / step:.0%}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--method", default="sasrec")
    parser.add_argument("--path", default="")
    parser.add_argument("--trace", default="")
    flags = parser.parse_args()
    config = config_file.load(flags.config, flags.method)
    config.data.path, config.split.validation = flags.path, "none"
    config.warmup.epochs = 0
    prepared = prepare(config)
    run = repeat(prepared)
    step = seconds(run) / prepared.feed.chunk_steps
    if flags.trace:
        with jax.profiler.trace(flags.trace):
            for _ in range(3):
                run()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {config.data.name}")
    need = needed(config, prepared)
    attained = attainable(config.model.dim, prepared.model.n_items)
    print(report(step, need, attained))


if __name__ == "__main__":
    main()
