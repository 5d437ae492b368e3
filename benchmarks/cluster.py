"""What a mesh of several devices holds and sends, asked of compiled programs.

python -m benchmarks.cluster memory
python -m benchmarks.cluster messages
python -m benchmarks.cluster processes

Eight devices are simulated on CPUs; of the first two nothing is run.
`memory`: bytes of a device for the item table, Adam's moments and the gradient of a
step of SASRec, by M (`mesh.model`), beside what they are on paper. `messages`: how many
collectives a joint step of CREATE launches, and what they carry. `processes`: peak
memory of each of two processes with a device each, which make SASRec's first state and
save it, with whole tables and with split ones.
"""

import argparse
import math
import os
import re
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import outputs

DEVICES, D = 8, 64
SENT = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    "collective-permute",
)
BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def config_of(method, parts, **changes):
    from create_jax.configs import common

    config = common.get_config(method)
    config.update_from_flattened_dict({"mesh.model": parts} | changes)
    return config


def make_log(users: int, items: int):
    """Twenty random items of each user."""
    import numpy as np
    import polars as pl

    from create_jax.data.interactions import Interactions

    rng = np.random.default_rng(0)
    return Interactions(
        np.repeat(np.arange(users, dtype=np.int32), 20),
        rng.integers(1, items + 1, 20 * users).astype(np.int32),
        np.arange(20 * users),
        pl.Series([str(u) for u in range(users)]),
        pl.Series([str(i) for i in range(items)]),
    )


class Case(NamedTuple):
    """A step of the last phase of a config on a mesh.

    lowered: the step. state: shapes of its first state. tokens: slots of a device.
    others: () -> shapes of the parameters that are no tables. first_state: () -> bytes
      of a device while its tables are made.
    """

    lowered: object
    state: object
    tokens: int
    others: Callable
    first_state: Callable


def compile_step(config, log, n_items: int) -> Case:
    import jax

    from create_jax import build, cluster, feeds, optim, parallel, steps

    build.check(config)
    parts = config.mesh.model
    mesh = parallel.make_mesh(parts)
    axes = parallel.batch_axes(mesh)
    model = build.make_model(config, log.n_users, n_items)
    phase = build.make_phases(config)[-1]
    given = mesh.shape[parallel.DATA], parts
    rows, pairs, graph = feeds.make_graph(config, model, log, *given)
    feed = feeds.Feed(config, model, phase, log, rows, pairs, mesh.size)
    batch, tx = feed.batch(feed.plan(0), 0), optim.make(**config.optim.to_dict())

    def parameters():
        return steps.pad_tables(model.init(0), mesh)

    def first():
        params = parameters()
        return steps.TrainState(jax.numpy.int32(0), params, optim.init(tx, params))

    def others():
        params = jax.eval_shape(parameters)
        return {k: v for k, v in params.items() if k not in steps.TABLES}

    def first_state():
        specs = steps.group_specs(jax.eval_shape(parameters), axes)
        made = jax.jit(parameters, out_shardings=parallel.shardings(mesh, specs))
        used = made.lower().compile().memory_analysis()
        return used.temp_size_in_bytes + used.output_size_in_bytes

    step = steps.compile_phase(model, phase, tx, 0, mesh, batch, graph)
    state, wish = jax.eval_shape(first), parallel.wishes(mesh)(cluster.NOTHING)
    lowered = step.lower(state, batch, graph, wish)
    tokens = batch.sequences.items[0].size // mesh.size
    return Case(lowered, state, tokens, others, first_state)


# --- memory ---------------------------------------------------------------------------


def memory(n_items: int) -> None:
    import jax

    print(f"{n_items:,} items, d {D}, float32; MB of a device\n")
    print("| M | table and moments | step, beside them | first state | on paper |")
    print("| --- | --- | --- | --- | --- |")
    log = make_log(800, 1000)
    for parts in (1, 2, 4, 8):
        config = config_of("sasrec", parts, **{"train.chunk": 1})
        case = compile_step(config, log, n_items)
        step = case.lowered.compile().memory_analysis()
        rows = case.state.params["item_table"].shape[0] // parts
        assert rows * parts >= n_items + 1
        # All that is not the table and its moments is the transformer's.
        tables = 3 * rows * D * 4
        rest = 3 * sum(x.size * 4 for x in jax.tree.leaves(case.others()))
        assert tables <= step.argument_size_in_bytes < tables + rest + 2**20
        sizes = tables, step.temp_size_in_bytes, case.first_state(), tables * 4 // 3
        print(f"| {parts} | " + " | ".join(f"{x / 1e6:,.0f}" for x in sizes) + " |")
    print("\nTable, moments and gradient on paper, GB of a device\n")
    print("| items | M = 1 | 8 | 64 |")
    print("| --- | --- | --- | --- |")
    for items in (10**6, 10**7, 10**8):
        sizes = (f"{16 * items * D / parts / 1e9:.3g}" for parts in (1, 8, 64))
        print(f"| 10^{len(str(items)) - 1} | " + " | ".join(sizes) + " |")


# --- processes ------------------------------------------------------------------------

CHILD = "from benchmarks.cluster import one_process; one_process()"


def processes(n_items: int) -> None:
    print(f"{n_items:,} items, d {D}; MB of a process\n")
    print("| M | process | its share of state | peak, state made | peak, saved |")
    print("| --- | --- | --- | --- | --- |")
    for parts in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            texts = outputs(2, [CHILD, str(parts), str(n_items), folder])
            for rank, text in enumerate(texts):
                print(f"| {parts} | {rank} | {text.splitlines()[-1]} |", flush=True)


def one_process() -> None:
    """What one of `processes` does; the peaks are above what the libraries take."""
    import jax

    from create_jax import build, checkpoint, cluster, optim, parallel, steps

    parts, n_items, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    cluster.join()

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    mesh, config = parallel.make_mesh(parts), config_of("sasrec", parts)
    model = build.make_model(config, 100, n_items)
    tx, before = optim.make(**config.optim.to_dict()), peak()
    state = jax.block_until_ready(steps.start(model, tx, 0, mesh))
    shards = [x.addressable_shards[0].data for x in jax.tree.leaves(state)]
    sizes = [sum(x.nbytes for x in shards), peak() - before]
    kept = checkpoint.Checkpoints(folder, rows=steps.real_rows(model))
    kept.save(1, state, {"best_step": 0})
    kept.close()
    sizes.append(peak() - before)
    print(" | ".join(f"{x / 1e6:,.0f}" for x in sizes), flush=True)


# --- messages -------------------------------------------------------------------------


def messages(users: int, items: int) -> None:
    log = make_log(users, items)
    print("| method | M | lowered | launched | of them | MB a step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for method, encoder in (
        ("sasrec", ""),
        ("create", "ultragcn"),
        ("create", "lightgcn"),
    ):
        for parts in (1, 2, 4, 8):
            changes = {"train.chunk": 1}
            if encoder:
                changes["graph.encoder"] = encoder
            case = compile_step(config_of(method, parts, **changes), log, items)
            text = case.lowered.as_text()
            asked = sum(text.count(f'"stablehlo.{x.replace("-", "_")}"') for x in SENT)
            found = launched(case.lowered.compile().as_text(), parts)
            kinds = Counter(kind for kind, _ in found)
            sent = sum(size for _, size in found) / 1e6
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            name = f"{method} {encoder}".strip()
            print(
                f"| {name} | {parts} | {asked} | {len(found)} | {kinds} | {sent:.1f} |"
            )
            if method == "sasrec":
                paper = 16 * case.tokens * parts * D + 8 * (items + 1) * D / parts
                print(f"| on paper | {parts} | | | | {paper / 1e6:.1f} |", flush=True)


def launched(text: str, parts: int) -> list[tuple[str, int]]:
    """The collectives of a compiled program with the bytes that a device sends or
    receives: twice an all-reduce's, once what a gather gives and a scatter takes."""
    found = []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(SENT)})(-start)?\(", line)
        if match is None:
            continue
        size = 0
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
            size += BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
        times = {"all-reduce": 2, "reduce-scatter": parts}.get(match[2], 1)
        found.append((match[2], size * times))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("memory", "messages", "processes"))
    parser.add_argument("--items", type=int, help="default 1000000, of messages 12101")
    parser.add_argument("--users", type=int, default=2000, help="of messages")
    flags = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    if flags.what == "memory":
        memory(flags.items or 10**6)
    elif flags.what == "processes":
        processes(flags.items or 10**6)
    else:
        messages(flags.users, flags.items or 12101)


if __name__ == "__main__":
    main()
