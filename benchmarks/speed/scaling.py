"""Time and memory from 10^5 to 10^8 interactions and 10^4 to 10^6 items.

python -m benchmarks.speed.scaling [--largest=100000000] [--out=PATH]

Synthetic logs (seeded, written in pieces): items by a power law, P(rank r) ~ 1/r, users
with 10 to 190 interactions, 100 on average. Each size is loaded from Parquet, packed,
and trained for some steps in a separate process. So the peak resident memory is that of
this size alone. Three sweeps:

- log: rows from 10^5 up, 10^5 items. Seconds of loading and of packing an epoch.
- items: 10^4, 10^5, 10^6 items, full softmax, d 64, 4,096 tokens a step. Seconds a
  token and item; peak memory beside that of tables and moments.
- edges: LightGCN, 2 layers, from 10^5 edges up. Seconds a step and edge.

Writes OUT.json and OUT.png; `benchmarks.speed.run --scaling=ROWS` does the same and
puts the growth from each size to the next into its report.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.speed.sides.worker import peak_memory

ROWS_A_PIECE = 1 << 22
MEAN_LENGTH = 100


# --- synthetic logs -------------------------------------------------------------------


def pieces(rows: int, items: int):
    """(users, items, times) of whole users, piece by piece."""
    rng = np.random.default_rng(0)
    user = 0
    while rows > 0:
        lengths = rng.integers(10, 2 * MEAN_LENGTH - 9, ROWS_A_PIECE // MEAN_LENGTH)
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), rows) + 1]
        lengths[-1] -= max(lengths.sum() - rows, 0)
        n = int(lengths.sum())
        users = np.repeat(np.arange(user, user + len(lengths)), lengths)
        # exp of a uniform logarithm: the density of the rank falls as 1 / rank.
        ranks = np.exp(rng.random(n) * np.log(items)).astype(np.int64)
        times = 1_000_000_000 + rng.integers(0, 300_000_000, n)
        yield users, np.minimum(ranks, items), times
        rows, user = rows - n, user + len(lengths)


def write_log(path: Path, rows: int, items: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("user", "int32"), ("item", "int32"), ("time", "int64")])
    with pq.ParquetWriter(path, schema) as file:
        for arrays in pieces(rows, items):
            file.write_table(pa.table(list(arrays), names=schema.names).cast(schema))


# --- one size, in a separate process --------------------------------------------------


def measure_log(path: str, rows: int, items: int) -> dict:
    from create_jax.data import packing, table

    start = time.monotonic()
    columns = {"user": "user", "item": "item", "time": "time"}
    log = table.load(path, columns=columns, time_unit="s")
    loaded = time.monotonic()
    sequences = packing.training_sequences(log, 50)
    settings = dict(batch=256, row_length=50, chunk=64)
    layout = packing.make_layout(sequences.lengths, **settings)
    laid_out = time.monotonic()
    plan = packing.plan_epoch(sequences.lengths, layout, 0, 0)
    tokens = 0
    for step in range(0, layout.steps, layout.chunk):
        part = packing.steps_of(plan, step, step + layout.chunk)
        batch = packing.fill(part, sequences, layout, shift=True)
        tokens += int((batch.targets > 0).sum())
    slots = layout.steps * layout.rows * layout.length
    return {
        "load": loaded - start,
        "layout": laid_out - loaded,
        "pack": time.monotonic() - laid_out,
        "tokens": tokens,
        "filled": tokens / slots,
    }


def measure_phase(method: str, log, **changes) -> dict:
    """Seconds of a step (median of three dispatches), its tokens, the state's bytes."""
    import jax

    from benchmarks.speed.phase import prepare, repeat
    from create_jax.configs import table

    config = table.get_config(method)
    shape = {"seq.max_len": 50, "train.chunk": 1}
    config.update_from_flattened_dict(shape | changes)
    prepared = prepare(config, log)
    feed, tokens = prepared.feed, 0
    if feed.sequences is not None:
        tokens = int((feed.batch(feed.plan(0), 0).sequences.targets > 0).sum())
    once, found = repeat(prepared), []
    for _ in range(4):
        start = time.monotonic()
        once()
        found.append((time.monotonic() - start) / feed.chunk_steps)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(prepared.state))
    step = float(np.median(found[1:]))  # the first one compiles
    return {"step": step, "tokens": tokens // feed.chunk_steps, "state": size}


def synthetic(rows: int, items: int):
    """The log as Interactions, without a file."""
    import polars as pl

    from create_jax.data.interactions import Interactions

    users, item, times = map(np.concatenate, zip(*pieces(rows, items), strict=True))
    order = np.lexsort((times, users))
    user_ids = pl.Series(np.arange(users[-1] + 1)).cast(pl.String)
    item_ids = pl.Series(np.arange(items)).cast(pl.String)
    return Interactions(
        users[order].astype(np.int32),
        item[order].astype(np.int32),
        times[order],
        user_ids,
        item_ids,
    )


def measure_items(path: str, rows: int, items: int) -> dict:
    changes = {"train.batch": 84, "seq.dropout": 0.0}  # about 4,096 tokens a step
    return measure_phase("sasrec", synthetic(rows, items), **changes)


def measure_edges(path: str, rows: int, items: int) -> dict:
    return measure_phase("lightgcn", synthetic(rows, items))


MEASURES = {"log": measure_log, "items": measure_items, "edges": measure_edges}


def one(sweep: str, path: str, rows: int, items: int) -> None:
    """Measures a size and prints it as JSON; `base` is the memory before."""
    import jax

    jax.devices()
    base = peak_memory()
    found = MEASURES[sweep](path, rows, items)
    found |= {"rows": rows, "items": items, "base": base, "peak": peak_memory()}
    print(json.dumps(found))


# --- the sweeps -----------------------------------------------------------------------


def sizes(largest: int) -> list[tuple[str, int, int]]:
    rows = [10**n for n in range(5, 9) if 10**n <= largest]
    sweeps = [("log", n, 10**5) for n in rows]
    sweeps += [("items", 10**6, n) for n in (10**4, 10**5, 10**6)]
    return sweeps + [("edges", n, max(n // 100, 1000)) for n in rows if n <= 10**7]


def run(sweep: str, rows: int, items: int) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.parquet"
        if sweep == "log":
            write_log(path, rows, items)
        numbers = [str(path), str(rows), str(items)]
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed.scaling",
            "--one",
            sweep,
            *numbers,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        error = done.stderr.strip()[-500:] or f"ended with code {done.returncode}"
        return {"rows": rows, "items": items, "error": error}
    return json.loads(done.stdout.splitlines()[-1])


def describe(sweep: str, found: dict) -> str:
    if "error" in found:
        return f"failed: {found['error'].splitlines()[-1]}"
    own = (found["peak"] - found["base"]) / 2**30
    text = f"peak {own:.2f} GiB above the empty process"
    if sweep == "log":
        return (
            f"load {found['load']:.1f} s, layout {found['layout']:.1f} s, "
            f"pack {found['pack']:.1f} s, {found['filled']:.1%} filled, {text}"
        )
    beyond = own - found["state"] / 2**30
    text += f", {beyond:.2f} beyond tables and moments"
    if sweep == "items":
        per = found["step"] / found["tokens"] / found["items"]
        return (
            f"{found['step']:.3f} s a step, {1e9 * per:.3f} ns a token x item, {text}"
        )
    per = found["step"] / found["rows"]
    return f"{found['step']:.3f} s a step, {1e9 * per:.1f} ns an edge, {text}"


def draw(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), layout="constrained")
    curves = {
        "log": ("rows", {"load": "load", "pack an epoch": "pack"}),
        "items": ("items", {"a step of 4,096 tokens": "step"}),
        "edges": ("rows", {"a step": "step"}),
    }
    for column, (sweep, (size, names)) in enumerate(curves.items()):
        good = [found for found in results[sweep] if "error" not in found]
        x = [found[size] for found in good]
        for label, name in names.items():
            axes[0, column].loglog(x, [f[name] for f in good], "o-", label=label)
        memory = [(f["peak"] - f["base"]) / 2**30 for f in good]
        axes[1, column].loglog(x, memory, "o-", label="peak, empty process aside")
        if sweep != "log":
            state = [f["state"] / 2**30 for f in good]
            axes[1, column].loglog(x, state, "o--", label="tables and moments")
        axes[0, column].set(title=sweep, ylabel="seconds" if not column else "")
        axes[1, column].set(
            xlabel="items" if sweep == "items" else "interactions",
            ylabel="GiB" if not column else "",
        )
        for axis in axes[:, column]:
            axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


def measure(largest: int, out: Path) -> dict:
    """All sweeps, sweep -> [size's measures], written as they come."""
    results = {sweep: [] for sweep in MEASURES}
    for sweep, rows, items in sizes(largest):
        found = run(sweep, rows, items)
        results[sweep].append(found)
        text = describe(sweep, found)
        print(f"{sweep:>5} {rows:>11,} rows {items:>9,} items: {text}", flush=True)
        out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    draw(results, out.with_suffix(".png"))
    print(f"wrote {out}.json and .png")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=float, default=1e8, help="rows")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/scaling"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        sweep, path, rows, items = flags.one
        one(sweep, path, int(rows), int(items))
    else:
        measure(int(flags.largest), flags.out)


if __name__ == "__main__":
    main()
