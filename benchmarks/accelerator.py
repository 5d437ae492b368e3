"""Everything we want to know of an accelerator within a few minutes.

python -m benchmarks.accelerator --out=DIR [--minutes=8] [--data=DIR] [--steps=A,B]

Steps run in the order of their worth until the time is up. Each has a limit of its own,
and its line in DIR/accelerator.jsonl is written as it ends, so that nothing is lost.
`python -m benchmarks.accelerator --table FILE ...` writes ACCELERATOR.md from such
lines. --data holds the files of Beauty, ML-1M and Gowalla, in any folder; a step whose
data or packages are absent says so.

Steps run one after the other in a process of their own. A step that outlasts its limit
ends with that process, and the next one gets a fresh process.
"""

import argparse
import contextlib
import functools
import gzip
import importlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
FILES = {
    "beauty": "reviews_Beauty_5.json.gz",
    "ml1m": "ml-1m*.zip",
    "gowalla": "gowalla/train.txt.gz",
}


class Setup(NamedTuple):
    """data: where the logs lie, or None; out: for what is larger than a line of JSON;
    tiny: a small version of everything, for the test suite."""

    data: Path | None
    out: Path
    tiny: bool


class Absent(Exception):
    """What a step needs is not here."""


class Step(NamedTuple):
    """run: Setup -> what was measured. seconds: its limit. environment: of its process.
    alone: the worker ends first, so that the device's memory is free."""

    run: Callable[[Setup], dict]
    seconds: float
    environment: dict = {}
    alone: bool = False


def file_of(setup: Setup, name: str) -> Path:
    found = sorted(setup.data.rglob(FILES[name])) if setup.data else []
    if not found:
        raise Absent(f"no {FILES[name]} under --data={setup.data}")
    return found[0]


def config_of(setup: Setup, name: str, method: str, **changes):
    """A config of `configs/`, without validation and warm-up; tiny: the quick start's
    12-core with a small model. changes: `seq_dropout=0.1` sets seq.dropout."""
    file = "quickstart" if setup.tiny else name
    config = importlib.import_module(f"configs.{file}").get_config(method)
    config.split.validation, config.warmup.epochs = "none", 0
    config.compare, config.example = (), False
    if setup.tiny:
        config.data.k_core, config.model.dim, config.seq.max_len = 12, 8, 12
        config.train.batch, config.train.epochs, config.train.chunk = 256, 2, 2
    elif name != "quickstart":
        config.data.path = str(file_of(setup, name))
    flat = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(flat)
    return config


def prepared_of(config):
    """benchmarks.phase.Prepared of all rows before the test."""
    from benchmarks.phase import prepare
    from create_jax import protocol

    split = protocol.make_split(config, protocol.load(config))
    return prepare(config, split.refit)


def step_seconds(prepared) -> float:
    """Median seconds of a step inside a dispatch."""
    from benchmarks.limit import seconds
    from benchmarks.phase import repeat

    return seconds(repeat(prepared)) / prepared.feed.chunk_steps


def in_turn(ways: dict, rounds: int = 5) -> dict:
    """Ways to do the same, in turns: median seconds, and ratio to the first."""
    from benchmarks.candidates import compare

    found = {}
    for way, seconds, ratio in compare(ways, rounds):
        found[way] = {"seconds": seconds, "ratio": round(ratio, 3)}
    return found


# --- steps ----------------------------------------------------------------------------


def versions(setup: Setup) -> dict:
    """What runs here."""
    from importlib import metadata

    import jax

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "polars", "numpy")
    device = jax.devices()[0]
    found = {name: metadata.version(name) for name in names}
    with contextlib.suppress(OSError):
        command = ["nvidia-smi", "--query-gpu=driver_version,memory.total"]
        done = subprocess.run(
            [*command, "--format=csv,noheader"], capture_output=True, text=True
        )
        found["driver"] = done.stdout.strip()
    stats = device.memory_stats() or {}
    return {
        "python": platform.python_version(),
        **found,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "platform": device.platform,
        "processors": os.cpu_count(),
        "memory_bytes": stats.get("bytes_limit"),
    }


def train_and_test(config) -> dict:
    """A whole run, as a user starts it: seconds and metrics of its result.json."""
    from create_jax import experiment

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = experiment.train_and_evaluate(config, f"{folder}/run")
        whole = time.monotonic() - began
    test = {name: round(value, 5) for name, value in result["test"].items()}
    return {
        "seconds": result["seconds"] | {"whole": round(whole, 3)},
        "epochs": result["epochs"],
        "test": test,
    }


def quickstart(setup: Setup) -> dict:
    """Three epochs of the quick start: one of warm-up, two joint."""
    changes = dict(warmup__epochs=1, train__epochs=2)
    return train_and_test(config_of(setup, "quickstart", "create", **changes))


def exactness(setup: Setup) -> dict:
    """Relative errors against float64, |x - x64| / |x64|: the softmax, one product of
    a propagation, and the joint loss and gradients of a step of CREATE."""
    import jax
    import jax.numpy as jnp

    from benchmarks import candidates
    from create_jax import losses

    def error(found, exact):
        found, exact = jax.tree.leaves(found), jax.tree.leaves(exact)
        square = sum(
            np.sum((np.asarray(a, np.float64) - np.asarray(b)) ** 2)
            for a, b in zip(found, exact, strict=True)
        )
        whole = sum(np.sum(np.asarray(b, np.float64) ** 2) for b in exact)
        return float(np.sqrt(square / whole))

    def double(tree):
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree
        )

    result = {}
    items, tokens = (500, 64) if setup.tiny else (12_101, 1024)
    states, table = candidates.normal(tokens, 64), candidates.normal(items + 1, 64)
    targets = jnp.asarray(np.random.default_rng(1).integers(1, items + 1, tokens))
    softmax = functools.partial(losses.softmax_cross_entropy, n_items=items)
    for size in (items, items // 4):  # whole, and in parts
        loss = jax.value_and_grad(functools.partial(softmax, item_chunk=size), (0, 1))
        with jax.enable_x64(True):
            exact = jax.device_get(jax.jit(loss)(*double((states, table)), targets))
        for precision in ("highest", "high", "default"):
            with jax.default_matmul_precision(precision):
                found = jax.jit(loss)(states, table, targets)
            name = "whole" if size == items else "in parts"
            result[f"softmax {name}, {precision}"] = error(found, exact)

    for encoder in ("ultragcn", "lightgcn"):
        config = config_of(setup, "beauty", "create", graph__encoder=encoder)
        for precision in ("highest", "high", "default"):
            config.model.precision = precision
            prepared = prepared_of(config)
            loss, arguments = _joint_loss(config, prepared)
            found = jax.device_get(loss(*arguments))
            if precision == "highest":
                with jax.enable_x64(True):
                    exact = jax.device_get(loss(*double(arguments)))
            result[f"{encoder} loss, {precision}"] = error(found[0], exact[0])
            for group in found[1]:
                key = f"{encoder} gradient of {group}, {precision}"
                result[key] = error(found[1][group], exact[1][group])
    return result


def _joint_loss(config, prepared):
    """(params, batch of one step, graph) -> (loss, gradients), and the arguments."""
    import jax

    from create_jax import settings

    model = prepared.model
    (phase,) = settings.make_phases(config)
    key = jax.random.key(0)

    @jax.jit
    def loss(params, batch, graph):
        def of(params):
            with jax.default_matmul_precision(model.precision):
                arguments = model, phase, params, batch, graph, key, None
                return model.system.total_loss(*arguments)[0]

        return jax.value_and_grad(of)(params)

    stacked = prepared.feed.batch(prepared.feed.plan(0), 0)
    batch = jax.tree.map(lambda x: np.asarray(x[0]), stacked)
    return loss, jax.device_put((prepared.state.params, batch, prepared.graph))


def equal_bits(setup: Setup) -> dict:
    """Two equal dispatches from one state: whether all parameters have equal bits."""
    import jax

    found = {}
    ways = {
        "sasrec": {},
        "create": {},
        "create lightgcn": dict(graph__encoder="lightgcn"),
        "bert4rec": {},
    }
    for way, changes in ways.items():
        config = config_of(setup, "beauty", way.split()[0], **changes)
        prepared = prepared_of(config)
        batch = prepared.batch(prepared.feed.plan(0), 0)
        start = jax.device_get(prepared.state)
        ends = []
        for _ in range(3):
            from create_jax import parallel

            state = parallel.place(prepared.mesh, start)
            state, _ = prepared.run(state, batch, prepared.graph)
            ends.append(jax.device_get(state.params))
        apart = [
            float(np.abs(a - b).max())
            for end in ends[1:]
            for a, b in zip(
                jax.tree.leaves(ends[0]), jax.tree.leaves(end), strict=True
            )
        ]
        found[way] = {
            "equal": max(apart) == 0.0,
            "largest difference": max(apart),
            "steps": prepared.feed.chunk_steps,
            "seconds a step": step_seconds(prepared),
        }
    return found


def whole_runs(setup: Setup, name: str, epochs: int, methods) -> dict:
    """Whole runs of `epochs` joint epochs, compiling apart."""
    found = {}
    for method in methods:
        changes = {} if setup.tiny else dict(train__epochs=epochs)
        found[method] = train_and_test(config_of(setup, name, method, **changes))
    return found


def beauty(setup: Setup) -> dict:
    """100 joint epochs on Beauty. The goal is 15 seconds of training."""
    return whole_runs(setup, "beauty", 100, ("create", "sasrec"))


def ml1m(setup: Setup) -> dict:
    """50 joint epochs on ML-1M."""
    return whole_runs(setup, "ml1m", 50, ("create", "sasrec"))


def bert4rec(setup: Setup) -> dict:
    """20 epochs of BERT4Rec on ML-1M."""
    return whole_runs(setup, "ml1m", 20, ("bert4rec",))


def limits(setup: Setup) -> dict:
    """A step beside the time that its operations, bytes and exponentials take alone."""
    import jax

    from benchmarks import limit

    found = {}
    for name, method in (("beauty", "sasrec"), ("beauty", "create"), ("ml1m", "sasrec")):
        config = config_of(setup, name, method)
        prepared = prepared_of(config)
        need = limit.needed(config, prepared)
        with jax.default_matmul_precision("highest"):
            attained = limit.attainable(config.model.dim, prepared.model.n_items)
        alone = {kind: need[kind] / attained[kind] for kind in need}
        step = step_seconds(prepared)
        found[f"{method}, {name}"] = {
            "step": step,
            "alone": alone,
            "attained": attained,
            "share": sum(alone.values()) / step,
        }
    return found


def host(setup: Setup) -> dict:
    """What an epoch costs the host: planning, filling and placing its batches."""
    import jax

    found = {}
    for name, method in (("beauty", "create"), ("ml1m", "sasrec")):
        prepared = prepared_of(config_of(setup, name, method))
        feed, began = prepared.feed, time.monotonic()
        plan = feed.plan(1)
        planned = time.monotonic()
        batches = [feed.batch(plan, chunk) for chunk in range(feed.chunks)]
        filled = time.monotonic()
        for chunk in range(feed.chunks):
            jax.block_until_ready(prepared.batch(plan, chunk))
        placed = time.monotonic()
        found[f"{method}, {name}"] = {
            "plan": planned - began,
            "fill": filled - planned,
            "fill and place": placed - filled,
            "bytes": sum(x.nbytes for b in batches for x in jax.tree.leaves(b)),
            "dispatches": feed.chunks,
            "steps": feed.steps,
            "steps alone": step_seconds(prepared) * feed.steps,
        }
    return found


def precision(setup: Setup) -> dict:
    """A step with float32 products, TF32 and the device's fastest."""
    found = {}
    for name, method in (("beauty", "create"), ("ml1m", "sasrec")):
        for value in ("highest", "high", "default"):
            config = config_of(setup, name, method, model__precision=value)
            found[f"{method}, {name}, {value}"] = step_seconds(prepared_of(config))
    return found


def dropout(setup: Setup) -> dict:
    """A step with our own Threefry, JAX's, the device's generator, and no dropout."""
    import jax

    from create_jax.models import transformer

    found, own = {}, transformer.random_words
    for name in ("beauty", "ml1m"):
        for way in ("own threefry", "jax threefry", "rbg", "none"):
            changes = {"rbg": dict(model__random="rbg"), "none": dict(seq__dropout=0.0)}
            config = config_of(setup, name, "sasrec", **changes.get(way, {}))
            if way == "jax threefry":
                transformer.random_words = jax.random.bits
            try:
                found[f"{name}, {way}"] = step_seconds(prepared_of(config))
            finally:
                transformer.random_words = own
    return found


def blocks(setup: Setup) -> dict:
    """A step by chunk sizes of the softmax and blocks of causal queries."""
    from create_jax.models import transformer

    found = {}
    for chunk in (512, 2048, 8192, 32768):
        for name in ("beauty", "ml1m"):
            config = config_of(setup, name, "sasrec", loss__token_chunk=chunk)
            prepared = prepared_of(config)
            found[f"{name}, token_chunk {chunk}"] = step_seconds(prepared)
    usual = transformer.QUERY_BLOCK
    for block in (100, 200, 50):
        transformer.QUERY_BLOCK = block
        try:
            prepared = prepared_of(config_of(setup, "ml1m", "sasrec"))
            found[f"ml1m, query block {block}"] = step_seconds(prepared)
        finally:
            transformer.QUERY_BLOCK = usual
    for length in (64, 8, 1):
        config = config_of(setup, "beauty", "sasrec", train__chunk=length)
        found[f"beauty, train.chunk {length}"] = step_seconds(prepared_of(config))
    return found


def batches(setup: Setup) -> dict:
    """Seconds of 2,048 sequences by the sequences of a step: what a device could do."""
    found = {}
    for batch in (128, 256, 512, 1024, 2048):
        config = config_of(setup, "beauty", "sasrec", train__batch=batch)
        found[f"batch {batch}"] = step_seconds(prepared_of(config)) * 2048 / batch
    return found


def ranking(setup: Setup) -> dict:
    """All test queries by queries a step: ranks alone, and lists of 100."""
    import jax

    from create_jax import evaluate, parallel, protocol, settings

    found = {}
    for name in ("beauty", "ml1m"):
        for batch in (256, 1024, 4096):
            config = config_of(setup, name, "sasrec", eval__batch=batch)
            split = protocol.make_split(config, protocol.load(config))
            holdout, mesh, log = split.test["last"], parallel.make_mesh(), split.refit
            model = settings.make_model(config, log.n_users, log.n_items)
            params = parallel.place(mesh, model.system.init(model, 0))
            asker = evaluate.make_asker(config, holdout, mesh, model.mask)
            score = evaluate.model_scores(model, by_graph=False)
            for top_k in (0, 100):
                rank = evaluate.compile_ranker(
                    score, holdout.candidates, mesh, top_k=top_k, hide_seen=True
                )
                ask = functools.partial(evaluate.ask, rank, asker, params, ())
                ask()
                times = []
                for _ in range(3):
                    began = time.monotonic()
                    jax.block_until_ready(ask().ranks)
                    times.append(time.monotonic() - began)
                key = f"{name}, {batch} queries, lists of {top_k}"
                found[key] = float(np.median(times))
    return found


def candidates(setup: Setup) -> dict:
    """The questions of benchmarks.candidates, on this device."""
    from benchmarks import candidates

    names = ("item_chunk", "low_precision", "products", "user_table")
    found = {}
    for name in names[1:2] if setup.tiny else names:
        found[name] = in_turn(getattr(candidates, name)())
    return found


def seeds(setup: Setup) -> dict:
    """Seconds a seed and step of SASRec where S seeds share one vmap."""
    import jax
    import jax.numpy as jnp

    from benchmarks.limit import seconds
    from create_jax import optim, settings
    from create_jax import steps as stepping

    config = config_of(setup, "beauty", "sasrec")
    prepared = prepared_of(config)
    model, feed = prepared.model, prepared.feed
    (phase,) = settings.make_phases(config)
    tx = optim.make(**config.optim.to_dict())

    def dispatch(state, batch):
        def body(state, batch):
            return stepping.train_step(model, phase, tx, 0, None, state, batch, ())

        return jax.lax.scan(body, state, batch)

    found = {}
    batch = feed.batch(feed.plan(0), 0)
    for number in (1, 2) if setup.tiny else (1, 4, 16):
        states = [stepping.init(model, tx, seed) for seed in range(number)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
        several = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * number), batch)
        run = jax.jit(jax.vmap(dispatch))
        whole = seconds(functools.partial(run, stacked, several))
        found[f"{number} seeds"] = whole / number / feed.chunk_steps
    return found


def million(setup: Setup) -> dict:
    """The softmax over 10^6 items, d 64, and its gradients: seconds and memory."""
    import jax
    import jax.numpy as jnp

    from benchmarks.candidates import normal
    from benchmarks.limit import seconds
    from create_jax import losses

    items, tokens = (5_000, 64) if setup.tiny else (1_000_000, 4096)
    states, table = normal(tokens, 64), normal(items + 1, 64)
    targets = jnp.asarray(np.random.default_rng(1).integers(1, items + 1, tokens))
    found = {}
    for precision in ("highest", "high"):
        for chunk in (4096, 32768, 131072):
            loss = functools.partial(
                *(losses.softmax_cross_entropy,),
                n_items=items,
                item_chunk=min(chunk, items),
            )
            with jax.default_matmul_precision(precision):
                step = jax.jit(jax.value_and_grad(loss, (0, 1)))
                compiled = step.lower(states, table, targets).compile()
            memory = compiled.memory_analysis()
            found[f"item_chunk {chunk}, {precision}"] = {
                "seconds": seconds(lambda run=compiled: run(states, table, targets)),
                "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
            }
    return found


def propagation(setup: Setup) -> dict:
    """LightGCN's product on a graph of Gowalla's size: seconds, and what it compiles
    to."""
    import jax
    import jax.numpy as jnp

    from benchmarks.candidates import normal
    from benchmarks.limit import seconds
    from create_jax.models import lightgcn
    from create_jax.models import propagation as propagating

    users, items, pairs = (
        (300, 200, 3_000) if setup.tiny else (29_858, 40_981, 810_128)
    )
    rng = np.random.default_rng(0)
    popular = np.exp(rng.random(pairs) * np.log(items)).astype(np.int64) % items
    edges = np.stack([rng.integers(0, users, pairs), 1 + popular])
    edges = np.unique(edges, axis=1)
    graph = lightgcn.adjacency(*edges, users, items + 1)
    n, x = users + items + 1, normal(users + items + 1, 64)
    matrix = propagating.Matrix(propagating.lay_out(graph, n), None)
    matrix = jax.tree.map(jnp.asarray, matrix)
    order = np.argsort(graph.receivers, kind="stable")
    senders, receivers, weights = (
        jnp.asarray(values[order])
        for values in (graph.senders, graph.receivers, graph.edges)
    )

    def gathers(x, matrix):
        return propagating.product(x, matrix, None)

    def segments(x, matrix):
        terms = weights[:, None] * x[senders]
        return jax.ops.segment_sum(terms, receivers, n, indices_are_sorted=True)

    found = {"edges": 2 * edges.shape[1]}
    for way in (gathers, segments):
        for layers in (1, 3):

            def run(x, matrix, way=way, layers=layers):
                for _ in range(layers):
                    x = way(x, matrix)
                return x

            def step(x, matrix, run=run):
                return jax.grad(lambda x: jnp.sum(run(x, matrix) ** 2))(x)

            lowered = jax.jit(step).lower(x, matrix)
            began = time.monotonic()
            compiled = lowered.compile()
            text = compiled.as_text()
            found[f"{way.__name__}, {layers} layers and gradient"] = {
                "compile": time.monotonic() - began,
                "seconds": seconds(lambda run=compiled: run(x, matrix)),
                "gathers": len(re.findall(r"stablehlo\.\"?gather", lowered.as_text())),
                "fusions": len(re.findall(r"= \S+ fusion\(", text)),
            }
    return found


def trace(setup: Setup) -> dict:
    """The kernels of two dispatches of CREATE on Beauty and of SASRec on ML-1M, by
    share of the device's time."""
    import jax

    from benchmarks.phase import repeat

    found = {}
    for name, method in (("beauty", "create"), ("ml1m", "sasrec")):
        prepared = prepared_of(config_of(setup, name, method))
        run = repeat(prepared)
        run()
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                began = time.monotonic()
                run(), run()
                wall = time.monotonic() - began
            files = sorted(Path(folder).rglob("*.trace.json.gz"))
            kernels = _kernels(json.loads(gzip.open(files[-1]).read())) if files else {}
        steps = 2 * prepared.feed.chunk_steps
        total = sum(seconds for seconds, _ in kernels.values())
        largest = sorted(kernels.items(), key=lambda item: -item[1][0])[:25]
        found[f"{method}, {name}"] = {
            "wall a step": wall / steps,
            "kernels a step": sum(count for _, count in kernels.values()) / steps,
            "busy a step": total / steps,
            "kernels": {k: [s / steps, n / steps] for k, (s, n) in largest},
        }
    return found


def _kernels(trace: dict) -> dict:
    """name -> (seconds, launches) of what ran on the streams of a device."""
    devices, streams = set(), set()
    for event in trace["traceEvents"]:
        if event.get("ph") == "M" and event["name"] == "process_name":
            if "/device:" in event["args"]["name"]:
                devices.add(event["pid"])
        if event.get("ph") == "M" and event["name"] == "thread_name":
            if "Stream" in event["args"]["name"]:
                streams.add((event["pid"], event["tid"]))
    time_of, count = Counter(), Counter()
    for event in trace["traceEvents"]:
        place = event.get("pid"), event.get("tid")
        if event.get("ph") == "X" and place in streams and place[0] in devices:
            time_of[event["name"]] += 1e-6 * event["dur"]
            count[event["name"]] += 1
    return {name: (time_of[name], count[name]) for name in time_of}


def peers(setup: Setup) -> dict:
    """RecTools and RePlay on the same card, where they are installed."""
    known = {"rectools": "rectools", "replay": "replay"}
    there = [peer for peer, name in known.items() if importlib.util.find_spec(name)]
    if not there or setup.tiny:
        raise Absent("neither RecTools nor RePlay is installed")
    out = setup.out / "peers"
    out.mkdir(exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.run", f"--peers={','.join(there)}"),
            *("--data=beauty", f"--beauty={file_of(setup, 'beauty')}"),
            *("--repetitions=3", f"--out={out / 'peers.md'}"),
        ],
        cwd=ROOT,
        check=True,
    )
    return {"page": (out / "peers.md").read_text()}


def gowalla(setup: Setup) -> dict:
    """LightGCN on Gowalla beside its published log, for as many epochs as fit."""
    if setup.tiny:
        raise Absent("too large for a tiny version")
    folder = file_of(setup, "gowalla").parent
    command = ["benchmarks.parity.graphs", "lightgcn", f"--data={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(STEPS["gowalla"].seconds - 15, process.kill)
    timer.start()
    lines = process.stdout.read().splitlines()
    timer.cancel()
    return {"log": lines}


STEPS = {
    "versions": Step(versions, 60),
    "quickstart": Step(quickstart, 90),
    "equal_bits": Step(equal_bits, 90),
    "exactness": Step(exactness, 120),
    "beauty": Step(beauty, 120),
    "limits": Step(limits, 60),
    "host": Step(host, 60),
    "ml1m": Step(ml1m, 120),
    "trace": Step(trace, 60),
    "precision": Step(precision, 60),
    "dropout": Step(dropout, 60),
    "ranking": Step(ranking, 60),
    "blocks": Step(blocks, 90),
    "batches": Step(batches, 60),
    "seeds": Step(seeds, 60),
    "million": Step(million, 60),
    "propagation": Step(propagation, 90),
    "deterministic": Step(
        equal_bits, 90, {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    ),
    "candidates": Step(candidates, 60),
    "bert4rec": Step(bert4rec, 90),
    "peers": Step(peers, 180, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, alone=True),
    "gowalla": Step(gowalla, 120, alone=True),
}


# --- one after the other --------------------------------------------------------------


def work(setup: Setup) -> None:
    """The worker: a line of JSON for each name of a step on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what steps print goes to standard error
    for line in sys.stdin:
        began = time.monotonic()
        try:
            found = {"found": STEPS[line.strip()].run(setup)}
        except Absent as absent:
            found = {"absent": str(absent)}
        except Exception as error:  # the next step may work
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        seconds = round(time.monotonic() - began, 2)
        answers.write(json.dumps({"seconds": seconds, **found}) + "\n")
        answers.flush()


class Worker:
    """The process that runs steps, of one environment."""

    def __init__(self, setup: Setup, environment: dict, cache: str):
        self.environment = environment
        command = [sys.executable, "-m", "benchmarks.accelerator", "--work"]
        command += [f"--out={setup.out}", *(["--tiny"] if setup.tiny else [])]
        command += [f"--data={setup.data}"] if setup.data else []
        inherited = os.environ.get("XLA_FLAGS", "")
        flags = f"{inherited} {environment.get('XLA_FLAGS', '')}".strip()
        own = {**environment, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": cache}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(setup.out / "errors.txt").open("a"),
            text=True,
        )

    def run(self, name: str, seconds: float) -> dict:
        """The step's line; one that says so where it outlasts its limit or dies."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        why = f"outlasted {seconds:.0f} s" if late else f"ended with code {code}"
        return {"seconds": seconds, "error": why}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def run_all(setup: Setup, names, minutes: float) -> list[dict]:
    """The lines of the steps, each also appended to accelerator.jsonl as it ends."""
    setup.out.mkdir(parents=True, exist_ok=True)
    end, worker, lines = time.monotonic() + 60 * minutes, None, []
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            step, left = STEPS[name], end - time.monotonic()
            if left < 5:
                lines.append({"step": name, "absent": "no time was left"})
            else:
                if worker and (
                    step.alone
                    or worker.environment != step.environment
                    or worker.process.poll() is not None
                ):
                    worker.close()
                    worker = None
                worker = worker or Worker(setup, step.environment, cache)
                found = worker.run(name, min(step.seconds, left))
                lines.append({"step": name, **found})
            with open(setup.out / "accelerator.jsonl", "a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1])[:600], flush=True)
        if worker:
            worker.close()
    return lines


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", default=",".join(STEPS), help="default: all")
    parser.add_argument("--tiny", action="store_true", help="for the test suite")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    data = flags.data.absolute() if flags.data else None
    setup = Setup(data, flags.out.absolute(), flags.tiny)
    names = flags.steps.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"--steps has {', '.join(unknown)}; expected {', '.join(STEPS)}")
    if flags.work:
        work(setup)
        return 0
    lines = run_all(setup, names, flags.minutes)
    return int(any("error" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
