"""Measures the package on an accelerator within a few minutes.

python -m benchmarks.accelerator --out=DIR [--minutes=8] [--data=DIR]
    [--steps=A,B]

Steps run until the time is up, the most important first. Each step has a time limit.
Each measurement is written to DIR/accelerator.jsonl at once, as one line, so that
nothing is lost. `python -m benchmarks.accelerator --table FILE` writes the tables of
ACCELERATOR.md from such lines. --data holds the files of Beauty, ML-1M and Gowalla, in
any folder. A step without its data or packages is skipped with a message.

Steps run one after the other in a child process. A step over its limit ends together
with that process, and the next step gets a fresh process.
"""

import argparse
import contextlib
import functools
import gzip
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from create_jax.files import write_text
from create_jax.report import markdown_table
from create_jax.settings import shown

ROOT = Path(__file__).parents[1]
FILES = {
    "beauty": "reviews_Beauty_5.json.gz",
    "ml1m": "ml-1m*.zip",
    "gowalla": "gowalla/train.txt.gz",
}


class Setup(NamedTuple):
    """data: directory of the logs, or None; out: directory for larger output;
    tiny: a small version of everything, for the test suite."""

    data: Path | None
    out: Path
    tiny: bool


class Absent(Exception):
    """Data or a package that a step needs is missing."""


class Step(NamedTuple):
    """run: Setup -> (name, measurement), one by one. seconds: the limit of the step.
    environment: of its process. alone: in a fresh process, so that the device's memory
    is free."""

    run: Callable[[Setup], Iterator[tuple[str, object]]]
    seconds: float
    environment: dict = {}
    alone: bool = False


def ways(setup: Setup, *several) -> tuple:
    """The implementations to compare; a tiny setup has only the first."""
    return several[:1] if setup.tiny else several


def file_of(setup: Setup, name: str) -> Path:
    found = sorted(setup.data.rglob(FILES[name])) if setup.data else []
    if not found:
        raise Absent(f"no {FILES[name]} under --data={setup.data}")
    return found[0]


def config_of(setup: Setup, name: str, method: str, **changes):
    """A config of `configs/`, without validation and warm-up; tiny: the quick start's
    20-core with a small model. changes: `seq__dropout=0.1` sets seq.dropout."""
    from create_jax import config_file

    file = "quickstart" if setup.tiny else name
    config = config_file.load(file, method)
    config.split.validation, config.warmup.epochs = "none", 0
    config.compare, config.example = (), False
    if setup.tiny:
        config.data.k_core, config.model.dim, config.seq.max_len = 20, 8, 12
        config.train.batch, config.train.epochs, config.train.chunk = 64, 2, 2
        config.seq.blocks = 1
    elif name != "quickstart":
        config.data.path = str(file_of(setup, name))
    flat = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(flat)
    return config


def prepared_of(config):
    """benchmarks.speed.phase.Prepared of all rows before the test."""
    from benchmarks.speed.phase import prepare

    return prepare(config)


def normal(*shape):
    return np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)


def step_seconds(prepared) -> float:
    """Median seconds of a step inside a dispatch."""
    from benchmarks.speed.limit import seconds
    from benchmarks.speed.phase import repeat

    return seconds(repeat(prepared)) / prepared.feed.chunk_steps


# --- steps ----------------------------------------------------------------------------


def versions(setup: Setup):
    """What runs here."""
    from importlib import metadata

    import jax

    device = jax.devices()[0]
    yield "device", f"{jax.device_count()} x {device.device_kind}"
    with contextlib.suppress(OSError):
        command = ["nvidia-smi", "--query-gpu=driver_version,memory.total"]
        command.append("--format=csv,noheader")
        done = subprocess.run(command, capture_output=True, text=True)
        yield "driver, memory", done.stdout.strip()
    yield "processors", os.cpu_count()
    yield "python", platform.python_version()
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "polars", "numpy")
    for name in names:
        yield name, metadata.version(name)


def whole_run(config) -> dict:
    """A run as a user starts it: seconds and metrics of its result.json."""
    from create_jax import experiment

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = experiment.train_and_evaluate(config, f"{folder}/run")
        whole = time.monotonic() - began
    test = {name: round(value, 5) for name, value in result["test"].items()}
    seconds = result["seconds"] | {"whole": round(whole, 3)}
    return {"seconds": seconds, "epochs": result["epochs"], "test": test}


def quickstart(setup: Setup):
    """Three epochs of the quick start: one of warm-up, two joint."""
    changes = dict(warmup__epochs=1, train__epochs=2)
    yield "create", whole_run(config_of(setup, "quickstart", "create", **changes))


def beauty(setup: Setup):
    """100 joint epochs on Beauty. The goal is 15 seconds of training."""
    changes = dict(train__epochs=1 if setup.tiny else 100)
    for method in ways(setup, "create", "sasrec"):
        yield method, whole_run(config_of(setup, "beauty", method, **changes))


def ml1m(setup: Setup):
    """Joint epochs on ML-1M."""
    for method, epochs in ways(setup, ("sasrec", 50), ("create", 50), ("bert4rec", 20)):
        changes = dict(train__epochs=1 if setup.tiny else epochs)
        yield method, whole_run(config_of(setup, "ml1m", method, **changes))


def equal_bits(setup: Setup):
    """Two equal dispatches from one state: the largest difference of a parameter."""
    import jax

    from create_jax import parallel

    for method, graph in ways(
        setup, ("create", "ultragcn"), ("sasrec", "none"), ("create", "lightgcn")
    ):
        changes = {} if graph == "none" else dict(graph__encoder=graph)
        prepared = prepared_of(config_of(setup, "beauty", method, **changes))
        batch = prepared.batch(prepared.feed.plan(0), 0)
        start, ends = jax.device_get(prepared.state), []
        for _ in range(2):
            state = parallel.place(prepared.mesh, start)
            state, _ = prepared.run(state, batch, prepared.graph)
            ends.append(jax.tree.leaves(jax.device_get(state.params)))
        apart = max(np.abs(a - b).max() for a, b in zip(*ends, strict=True))
        yield (
            f"{method}, graph {graph}",
            {
                "difference": float(apart),
                "steps": prepared.feed.chunk_steps,
                "seconds a step": step_seconds(prepared),
            },
        )


def relative_error(found, exact) -> float:
    """|x - x64| / |x64| over all leaves."""
    import jax

    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    square = sum(np.sum((np.float64(a) - np.float64(b)) ** 2) for a, b in pairs)
    return float(np.sqrt(square / sum(np.sum(np.float64(b) ** 2) for _, b in pairs)))


def in_double(tree):
    import jax

    def widen(x):
        x = np.asarray(x)
        return jax.numpy.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype)

    return jax.tree.map(widen, tree)


def exactness(setup: Setup):
    """Errors against float64: the softmax, and the loss and gradients of a joint step
    of CREATE (with LightGCN its propagation too)."""
    import jax

    from create_jax import losses

    items, tokens = (500, 64) if setup.tiny else (12_101, 1024)
    arguments = normal(tokens, 64), normal(items + 1, 64)
    targets = np.random.default_rng(1).integers(1, items + 1, tokens, np.int32)
    precisions = ways(setup, "highest", "high", "default")

    def softmax(states, table):
        return losses.softmax_cross_entropy(states, table, targets, n_items=items)

    gradients = jax.value_and_grad(softmax, (0, 1))
    with jax.enable_x64(True):
        exact = jax.device_get(jax.jit(gradients)(*in_double(arguments)))
    for precision in precisions:
        with jax.default_matmul_precision(precision):
            found = jax.device_get(jax.jit(gradients)(*arguments))
        yield f"softmax, {precision}", relative_error(found, exact)

    for encoder in ways(setup, "ultragcn", "lightgcn"):
        for precision in precisions:
            changes = dict(graph__encoder=encoder, model__precision=precision)
            config = config_of(setup, "beauty", "create", **changes)
            loss, arguments = joint_loss(config, prepared_of(config))
            found = jax.device_get(loss(*arguments))
            if precision == "highest":
                with jax.enable_x64(True):
                    exact = jax.device_get(loss(*in_double(arguments)))
            errors = {
                group: relative_error(found[1][group], exact[1][group])
                for group in found[1]
            }
            loss_error = relative_error(found[0], exact[0])
            yield f"{encoder}, {precision}", {"loss": loss_error, "gradients": errors}


def joint_loss(config, prepared):
    """(params, batch of one step, graph) -> (loss, gradients), and its arguments."""
    import jax

    from create_jax import build

    model, key = prepared.model, jax.random.key(0)
    (phase,) = build.make_phases(config)

    @jax.jit
    def loss(params, batch, graph):
        def of(params):
            with jax.default_matmul_precision(model.precision):
                return model.loss(phase, params, batch, graph, key)[0]

        return jax.value_and_grad(of)(params)

    stacked = prepared.feed.batch(prepared.feed.plan(0), 0)
    batch = jax.tree.map(lambda x: np.asarray(x[0]), stacked)
    return loss, jax.device_get((prepared.state.params, batch, prepared.graph))


def limits(setup: Setup):
    """A step beside the time that its operations, bytes and exponentials take alone."""
    import jax

    from benchmarks.speed import limit

    for name, method in ways(
        setup, ("beauty", "sasrec"), ("beauty", "create"), ("ml1m", "sasrec")
    ):
        config = config_of(setup, name, method)
        prepared = prepared_of(config)
        need = limit.needed(config, prepared)
        with jax.default_matmul_precision("highest"):
            attained = limit.attainable(config.model.dim, prepared.model.n_items)
        alone = {kind: need[kind] / attained[kind] for kind in need}
        yield (
            f"{method}, {name}",
            {
                "seconds a step": step_seconds(prepared),
                "alone": alone,
                "attained": attained,
            },
        )


def host(setup: Setup):
    """What an epoch costs the host: planning, filling and placing its batches."""
    import jax

    for name, method in ways(setup, ("beauty", "create"), ("ml1m", "sasrec")):
        prepared = prepared_of(config_of(setup, name, method))
        feed, times = prepared.feed, [time.monotonic()]
        plan = feed.plan(1)
        times.append(time.monotonic())
        batches = [feed.batch(plan, chunk) for chunk in range(feed.chunks)]
        times.append(time.monotonic())
        for chunk in range(feed.chunks):
            jax.block_until_ready(prepared.batch(plan, chunk))
        times.append(time.monotonic())
        planned, filled, placed = np.diff(times)
        yield (
            f"{method}, {name}",
            {
                "plan": planned,
                "fill": filled,
                "fill and place": placed,
                "bytes": sum(x.nbytes for b in batches for x in jax.tree.leaves(b)),
                "dispatches": feed.chunks,
                "steps": feed.steps,
            },
        )


def token_chunks(setup: Setup):
    """Seconds a step by tokens whose logits exist at once."""
    for name, chunk in ways(
        setup,
        ("ml1m", 512),
        ("ml1m", 4096),
        ("ml1m", 32768),
        ("beauty", 512),
        ("beauty", 4096),
    ):
        config = config_of(setup, name, "sasrec", loss__token_chunk=chunk)
        yield f"{name}, {chunk}", step_seconds(prepared_of(config))


def precision(setup: Setup):
    """Seconds a step with float32 products, TF32 and the device's fastest."""
    for value in ways(setup, "highest", "high", "default"):
        for name, method in (("beauty", "create"), ("ml1m", "sasrec")):
            config = config_of(setup, name, method, model__precision=value)
            yield f"{method}, {name}, {value}", step_seconds(prepared_of(config))


def trace(setup: Setup):
    """The kernels of two dispatches: launches, and seconds a step of the largest."""
    from benchmarks.speed.phase import repeat

    for name, method in ways(setup, ("beauty", "create"), ("ml1m", "sasrec")):
        prepared = prepared_of(config_of(setup, name, method))
        run = repeat(prepared)
        run()
        kernels, wall = traced(run, times=2)
        steps = 2 * prepared.feed.chunk_steps
        largest = sorted(kernels.items(), key=lambda item: -item[1][0])[:12]
        yield (
            f"{method}, {name}",
            {
                "seconds a step": wall / steps,
                "busy": sum(seconds for seconds, _ in kernels.values()) / steps,
                "launches": sum(count for _, count in kernels.values()) / steps,
                "kernels": {
                    kernel: seconds / steps for kernel, (seconds, _) in largest
                },
            },
        )


def traced(run: Callable, times: int) -> tuple[dict, float]:
    """kernel -> (seconds, launches) on the device's streams, and the seconds of all."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.monotonic()
            for _ in range(times):
                run()
            wall = time.monotonic() - began
        (file,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(file) as text:
            events = json.load(text)["traceEvents"]

    def named(kind, part):
        return {
            (event["pid"], event.get("tid") if kind == "thread_name" else None)
            for event in events
            if event.get("name") == kind and part in event["args"]["name"]
        }

    devices, streams = named("process_name", "/device:"), named("thread_name", "Stream")
    kernels = {}
    for event in events:
        place = event.get("pid"), event.get("tid")
        on_device = place in streams and (place[0], None) in devices
        if event.get("ph") == "X" and on_device:
            seconds, count = kernels.get(event["name"], (0.0, 0))
            kernels[event["name"]] = seconds + 1e-6 * event["dur"], count + 1
    return kernels, wall


def dropout(setup: Setup):
    """Seconds a step with our own Threefry, JAX's, the device's generator, none."""
    import jax

    from create_jax.models import transformer

    own = transformer.random_words
    for name in ways(setup, "beauty", "ml1m"):
        for way, changes in ways(
            setup,
            ("own threefry", {}),
            ("JAX's threefry", {}),
            ("rbg", dict(model__random="rbg")),
            ("none", dict(seq__dropout=0.0)),
        ):
            if way == "JAX's threefry":
                transformer.random_words = jax.random.bits
            try:
                config = config_of(setup, name, "sasrec", **changes)
                yield f"{name}, {way}", step_seconds(prepared_of(config))
            finally:
                transformer.random_words = own


def ranking(setup: Setup):
    """Seconds for all test queries by queries a step, with lists of 100."""
    from benchmarks.speed import phase
    from benchmarks.speed.limit import seconds

    for name, batch in ways(
        setup, ("beauty", 256), ("beauty", 1024), ("beauty", 4096), ("ml1m", 1024)
    ):
        config = config_of(setup, name, "sasrec", eval__batch=batch)
        yield f"{name}, {batch} queries", seconds(phase.ranking(config))


def query_blocks(setup: Setup):
    """Seconds a step on ML-1M by queries of a block of causal attention."""
    from create_jax.models import transformer

    usual = transformer.QUERY_BLOCK
    for block in ways(setup, 100, 200, 50):
        transformer.QUERY_BLOCK = block
        try:
            config = config_of(setup, "ml1m", "sasrec")
            yield f"{block}", step_seconds(prepared_of(config))
        finally:
            transformer.QUERY_BLOCK = usual


def dispatches(setup: Setup):
    """Seconds for the steps of an epoch of Beauty by the most of a dispatch: for short
    ones an epoch has fewer and larger steps."""
    for length in ways(setup, 64, 8, 1):
        config = config_of(setup, "beauty", "sasrec", train__chunk=length)
        prepared = prepared_of(config)
        yield f"{length}", step_seconds(prepared) * prepared.feed.steps


def batches(setup: Setup):
    """Seconds for 2,048 sequences of Beauty by the sequences of a step."""
    for batch in ways(setup, 128, 512, 2048):
        config = config_of(setup, "beauty", "sasrec", train__batch=batch)
        yield f"{batch}", step_seconds(prepared_of(config)) * 2048 / batch


def seeds(setup: Setup):
    """Seconds a seed and step of SASRec on Beauty where S seeds share one vmap."""
    import jax
    import jax.numpy as jnp

    from benchmarks.speed.limit import seconds
    from create_jax import build, optim
    from create_jax import steps as stepping

    config = config_of(setup, "beauty", "sasrec")
    prepared = prepared_of(config)
    model, feed = prepared.model, prepared.feed
    (phase,) = build.make_phases(config)
    tx = optim.make(**config.optim.to_dict())

    def dispatch(state, batch):
        def body(state, batch):
            return stepping.train_step(model, phase, tx, 0, None, state, batch, ())

        return jax.lax.scan(body, state, batch)

    batch = feed.batch(feed.plan(0), 0)
    for number in ways(setup, 1, 4, 16):
        states = [stepping.init(model, tx, seed) for seed in range(number)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
        several = jax.tree.map(lambda *x: jnp.stack(x), *[batch] * number)
        run = functools.partial(jax.jit(jax.vmap(dispatch)), stacked, several)
        yield f"{number}", seconds(run) / number / feed.chunk_steps


def million(setup: Setup):
    """The softmax over 10^6 items, d 64, 4,096 tokens, and its gradients, by items
    scored at once."""
    import jax

    from benchmarks.speed.limit import seconds
    from create_jax import losses

    items, tokens = (5_000, 64) if setup.tiny else (1_000_000, 4096)
    states, table = normal(tokens, 64), normal(items + 1, 64)
    targets = np.random.default_rng(1).integers(1, items + 1, tokens, np.int32)
    for precision in ways(setup, "highest", "high"):
        for chunk in ways(setup, 4096, 32768, 131072):

            def loss(states, table, chunk=chunk):
                return losses.softmax_cross_entropy(
                    states, table, targets, n_items=items, item_chunk=chunk
                )

            with jax.default_matmul_precision(precision):
                step = jax.jit(jax.value_and_grad(loss, (0, 1)))
                compiled = step.lower(states, table).compile()
            memory = compiled.memory_analysis()
            yield (
                f"{chunk}, {precision}",
                {
                    "seconds": seconds(functools.partial(compiled, states, table)),
                    "temporary bytes": getattr(memory, "temp_size_in_bytes", None),
                },
            )


def propagation(setup: Setup):
    """Three layers of LightGCN and their gradient on a graph of Gowalla's size, by
    gathers and by a sorted segment sum."""
    import jax
    import jax.numpy as jnp

    from benchmarks.speed.limit import seconds
    from create_jax.models import lightgcn
    from create_jax.models import propagation as propagating

    users, items, pairs = 29_858, 40_981, 810_128
    if setup.tiny:
        users, items, pairs = 30, 20, 300
    rng = np.random.default_rng(0)
    popular = np.exp(rng.random(pairs) * np.log(items)).astype(np.int64) % items
    edges = np.stack([rng.integers(0, users, pairs), 1 + popular])
    edges = np.unique(edges, axis=1)
    graph = lightgcn.adjacency(*edges, users, items + 1)
    n = users + items + 1
    x = normal(n, 64)
    matrix = propagating.Matrix(propagating.lay_out(graph, n), None)
    order = np.argsort(graph.receivers, kind="stable")
    sorted_edges = graph.senders[order], graph.receivers[order], graph.edges[order]

    def gathers(x, matrix):
        return propagating.product(x, matrix, None)

    def segments(x, edges):
        senders, receivers, weights = edges
        terms = weights[:, None] * x[senders]
        return jax.ops.segment_sum(terms, receivers, n, indices_are_sorted=True)

    for way, graph in ((gathers, matrix), (segments, sorted_edges)):

        def loss(x, graph, way=way):
            for _ in range(3):
                x = way(x, graph)
            return jnp.sum(x**2)

        graph = jax.tree.map(jnp.asarray, graph)
        lowered = jax.jit(jax.grad(loss)).lower(x, graph)
        began = time.monotonic()
        compiled = lowered.compile()
        yield (
            way.__name__,
            {
                "directed edges": 2 * edges.shape[1],
                "compile": time.monotonic() - began,
                "seconds": seconds(functools.partial(compiled, x, graph)),
                "gathers": lowered.as_text().count("stablehlo.gather"),
                "fusions": len(re.findall(r"= \S+ fusion\(", compiled.as_text())),
            },
        )


def candidates(setup: Setup):
    """More of benchmarks.speed.candidates: the ratio of each way to the first."""
    from benchmarks.speed.candidates import compare, low_precision, products, user_table

    for candidate in ways(setup, low_precision, products, user_table):
        for way, seconds, ratio in compare(candidate(), 3 if setup.tiny else 7):
            name = f"{candidate.__name__}, {way}"
            yield name, {"seconds": seconds, "ratio": round(ratio, 3)}


def peers(setup: Setup):
    """RecTools and RePlay on the same card, where they are installed: the page of
    benchmarks.speed.run."""
    there = [name for name in ("rectools", "replay") if importlib.util.find_spec(name)]
    if not there:
        raise Absent("neither RecTools nor RePlay is installed")
    page = setup.out / "peers.md"
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed.run",
        f"--peers={','.join(there)}",
    ]
    command += ["--data=beauty", f"--beauty={file_of(setup, 'beauty')}"]
    command += ["--repetitions=3", f"--out={page}"]
    subprocess.run(command, cwd=ROOT, check=True)
    yield "page", page.read_text()


def gowalla(setup: Setup):
    """LightGCN on Gowalla beside its published log, for as many epochs as fit."""
    folder = file_of(setup, "gowalla").parent
    command = [sys.executable, "-u", "-m", "benchmarks.parity.graphs", "lightgcn"]
    with subprocess.Popen(
        [*command, f"--data={folder}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for number, line in enumerate(process.stdout):
            yield f"line {number}", line.strip()


STEPS = {
    "versions": Step(versions, 60),
    "quickstart": Step(quickstart, 90),
    "token_chunks": Step(token_chunks, 90),
    "exactness": Step(exactness, 120),
    "ml1m": Step(ml1m, 150),
    "propagation": Step(propagation, 90),
    "precision": Step(precision, 90),
    "beauty": Step(beauty, 90),
    "equal_bits": Step(equal_bits, 120),
    "deterministic": Step(
        equal_bits, 90, {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
    ),
    "limits": Step(limits, 60),
    "trace": Step(trace, 60),
    "ranking": Step(ranking, 60),
    "batches": Step(batches, 60),
    "seeds": Step(seeds, 60),
    "query_blocks": Step(query_blocks, 60),
    "dispatches": Step(dispatches, 60),
    "million": Step(million, 60),
    "dropout": Step(dropout, 60),
    "host": Step(host, 30),
    "candidates": Step(candidates, 60),
    "peers": Step(peers, 180, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, alone=True),
    "gowalla": Step(gowalla, 120, alone=True),
}


# --- one after the other --------------------------------------------------------------


def work(setup: Setup) -> None:
    """The worker: reads names of steps from standard input. It writes a line of JSON
    for each measurement, and one for the end of each step."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what steps print goes to standard error

    def answer(**values):
        answers.write(json.dumps(values, default=float) + "\n")
        answers.flush()

    for line in sys.stdin:
        name, began = line.strip(), time.monotonic()
        ended = {"ended": "done"}
        try:
            for what, found in STEPS[name].run(setup):
                answer(step=name, what=what, found=found)
        except Absent as absent:
            ended = {"ended": "skipped", "why": str(absent)}
        except Exception as error:  # the next step may still work
            traceback.print_exc()
            ended = {"ended": "failed", "why": f"{type(error).__name__}: {error}"[:500]}
        answer(step=name, **ended, seconds=round(time.monotonic() - began, 2))


class Worker:
    """The process that runs steps of one environment."""

    def __init__(self, setup: Setup, environment: dict, cache: str):
        self.environment = environment
        command = [sys.executable, "-m", "benchmarks.accelerator", "--work"]
        command += [f"--out={setup.out}", *(["--tiny"] if setup.tiny else [])]
        command += [f"--data={setup.data}"] if setup.data else []
        flags = [os.environ.get("XLA_FLAGS"), environment.get("XLA_FLAGS")]
        own = {"XLA_FLAGS": " ".join(filter(None, flags))}
        with (setup.out / "errors.txt").open("a") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ
                | environment
                | own
                | {"JAX_COMPILATION_CACHE_DIR": cache},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # so that a step's own processes end with it
            )

    def lines(self, name: str, seconds: float) -> Iterator[dict]:
        """The output lines of the step. The last line reports a step that exceeds its
        limit, or a process that dies."""
        began, line = time.monotonic(), {}  # before the timer, which ends it later
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
        while "ended" not in line:
            text = self.process.stdout.readline()
            if text:
                line = json.loads(text)
            else:
                passed = time.monotonic() - began
                why = f"the process died with code {self.process.wait()}"
                if passed >= seconds:
                    why = f"it outlasted its {seconds:.0f} seconds"
                line = {"step": name, "ended": "killed", "why": why}
                line["seconds"] = round(passed, 2)
            yield line
        timer.cancel()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_all(setup: Setup, names, minutes: float) -> list[dict]:
    """All lines of the steps. Each is appended to accelerator.jsonl at once."""
    setup.out.mkdir(parents=True, exist_ok=True)
    end, worker, all_lines = time.monotonic() + 60 * minutes, None, []
    with (
        tempfile.TemporaryDirectory() as cache,
        (setup.out / "accelerator.jsonl").open("a") as file,
    ):
        for name in names:
            step, left = STEPS[name], end - time.monotonic()
            if left < 5:
                why = "no time was left"
                lines = [{"step": name, "ended": "skipped", "why": why, "seconds": 0}]
            else:
                fits = worker and worker.alive and not step.alone
                if worker and not (fits and worker.environment == step.environment):
                    worker.kill()
                    worker = None
                worker = worker or Worker(setup, step.environment, cache)
                lines = worker.lines(name, min(step.seconds, left))
            for line in lines:
                all_lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(json.dumps(line)[:300], flush=True)
        if worker:
            worker.kill()
    return all_lines


# --- tables ---------------------------------------------------------------------------

MARK = "<!-- measured: python -m benchmarks.accelerator --table FILE -->"


def tables(lines: list[dict]) -> str:
    """Markdown: a section a step, a row a measurement."""
    parts = []
    for name, step in STEPS.items():
        own = [line for line in lines if line["step"] == name]
        rows = [(line["what"], line["found"]) for line in own if "what" in line]
        ends = [line for line in own if "ended" in line and line["ended"] != "done"]
        if not rows:
            continue
        environment = " ".join(f"{k}={v}" for k, v in step.environment.items())
        about = " ".join(step.run.__doc__.split())
        part = [f"## {name}", "", about + (f" `{environment}`" if environment else "")]
        if all(isinstance(found, dict) for _, found in rows):
            flat = [(what, flatten(found)) for what, found in rows]
            head = list(dict.fromkeys(key for _, found in flat for key in found))
            if len(head) <= 8:
                cells = [
                    [what, *(found.get(k, "") for k in head)] for what, found in flat
                ]
                part += ["", markdown_table(["", *head], cells)]
            else:
                cells = [[w, k, v] for w, found in flat for k, v in found.items()]
                part += ["", markdown_table(["", "", ""], cells)]
        else:
            part += ["", markdown_table(["", ""], [[w, shown(f)] for w, f in rows])]
        part += [f"\nIt ended early: {line['why']}." for line in ends]
        parts.append("\n".join(part))
    return "\n\n".join(parts) + "\n"


def flatten(found: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in found.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}: ")
        else:
            flat[prefix + key] = shown(value)
    return flat


def write_page(files: list[Path], page: Path) -> None:
    """Replaces the text below MARK; the text above it is written by hand."""
    texts = [file.read_text().splitlines() for file in files]
    lines = [json.loads(line) for text in texts for line in text]
    above = (
        page.read_text().split(MARK)[0] if page.exists() else "# On accelerators\n\n"
    )
    write_text(page, f"{above}{MARK}\n\n{tables(lines)}")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="directory for what is measured")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", default=",".join(STEPS), help="default: all")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--page", type=Path, default=ROOT / "benchmarks/ACCELERATOR.md")
    parser.add_argument("--tiny", action="store_true", help="a small version of each")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.table:
        write_page(flags.table, flags.page)
        return 0
    if not flags.out:
        parser.error("--out=DIR is missing: where the measurements go")
    names = flags.steps.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"--steps has {', '.join(unknown)}; expected {', '.join(STEPS)}")
    data = flags.data.absolute() if flags.data else None
    setup = Setup(data, flags.out.absolute(), flags.tiny)
    if flags.work:
        work(setup)
        return 0
    lines = run_all(setup, names, flags.minutes)
    return int(any(line.get("ended") in ("failed", "killed") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
