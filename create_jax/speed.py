"""Speed of a run, for its metrics (docs/runs.md), and traces of its dispatches.

Nothing here waits for a device: the clock is read where the loop waits for losses
anyway.
"""

import re
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from create_jax import build
from create_jax.writers import say

# Fields of metrics.jsonl about speed. They differ between any two runs.
KEYS = ("step_seconds", "tokens_per_second", "mfu", "goodput")

# Most bfloat16 FLOP/s of a device, products of dense matrices, by a pattern of JAX's
# device_kind. TPUs: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. GPUs: NVIDIA's
# data sheets, where half of what is printed "with sparsity" counts.
PEAKS = {
    r"^TPU v4$": 275e12,
    r"^TPU v5 ?(lite|e)$": 197e12,
    r"^TPU v5p?$": 459e12,
    r"^TPU v6 ?(lite|e)$": 918e12,
    r"\bA100\b": 312e12,
    r"\bH100 PCIe\b": 756e12,
    r"\bH[12]00 NVL\b": 835e12,
    r"\bH[12]00\b": 989e12,
    r"\bB200\b": 2250e12,
    r"\bL4\b": 121e12,
    r"\bL40S\b": 362e12,
}
# A trace has this many dispatches, if the epoch does.
TRACED = 2


def peak(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a kind of device; None where unknown, as of a part of one."""
    if re.search(r"\bMIG\b", device_kind):
        return None
    found = (flops for kind, flops in PEAKS.items() if re.search(kind, device_kind))
    return next(found, None)


class Work(NamedTuple):
    """Of an epoch: tokens that sequences have, and the model's FLOPs; None = neither
    is counted."""

    tokens: int | None = None
    flops: float | None = None


def count(feed, params: dict) -> Work:
    """The work of an epoch. FLOPs by formula, forward and twice that backward:

    6 d_in d_out of each dense layer for each token; 12 d of each block for each token
    and each token that it attends to; 6 d for each target and each item scored beside
    it.

    Args:
      feed: feeds.Feed of a phase.
    """
    if feed.sequences is None:
        return Work()
    config, model = feed.config, feed.model
    lengths = feed.sequences.lengths.astype(np.int64)
    tokens = int(lengths.sum())
    scored = {"ce": model.n_items}  # loss -> items scored for a target
    scored |= dict.fromkeys(("sampled", "gbce", "bce"), config.loss.negatives + 1)
    ours = type(model.encoder).__module__ in build.SEQUENCE_ENCODERS.values()
    if not ours or config.loss.local not in scored:
        return Work(tokens)
    masked = model.objective == "masked"
    seen = lengths**2 if masked else lengths * (lengths + 1) // 2
    targets = tokens * (model.mask_share if masked else 1)
    flops = 6 * _dense(params["sequence"]) * tokens
    flops += 12 * model.encoder.blocks * model.dim * int(seen.sum())
    flops += 6 * model.dim * scored[config.loss.local] * targets
    return Work(tokens, float(flops))


def _dense(params: dict) -> int:
    """Weights of the matrices of dense layers."""
    leaves = jax.tree.leaves_with_path(params)
    return sum(x.size for path, x in leaves if path[-1].key == "kernel")


@dataclass
class Clock:
    """The wall time of a stage in this process.

    epoch, stage: seconds in the steps of the last epoch, and of all since `began`.
    """

    began: float = field(default_factory=lambda: time.monotonic())
    epoch: float = 0.0
    stage: float = 0.0

    @contextmanager
    def steps(self):
        """Context for the steps of an epoch, including the making of their batches."""
        self.epoch, start = 0.0, time.monotonic()
        yield
        self.epoch += time.monotonic() - start
        self.stage += self.epoch

    @contextmanager
    def apart(self):
        """Context for work between the steps, such as a save. It is not timed."""
        start = time.monotonic()
        yield
        self.epoch -= time.monotonic() - start

    def line(self, ready, chunks: int, work: Work) -> dict[str, float]:
        """Fields of metrics.jsonl for an epoch of which `chunks` dispatches ran here.

        Args:
          ready: train.Ready.
        """
        share, seconds, found = chunks / ready.feed.chunks, self.epoch, {}
        most = peak(ready.mesh.devices.flat[0].device_kind)
        if chunks:  # none where a run goes on with a validation
            found["step_seconds"] = seconds / (chunks * ready.feed.chunk_steps)
            if work.tokens:
                found["tokens_per_second"] = share * work.tokens / seconds
            if work.flops and most:
                found["mfu"] = share * work.flops / (seconds * ready.mesh.size * most)
        found["goodput"] = self.stage / (time.monotonic() - self.began)
        return {name: float(f"{value:.4g}") for name, value in found.items()}


@contextmanager
def trace(dispatch, place: Path | None):
    """`dispatch`, whose first two calls are traced into the directory `place` by
    process 0; None = as it is.

    The trace ends when the third is called, or with the block: the loop has their
    losses by then, so that it waits no more often than without.
    """
    if place is None or jax.process_index():
        yield dispatch
        return
    calls = 0

    def traced(*arguments):
        nonlocal calls
        if calls == TRACED:
            jax.profiler.stop_trace()
        calls += 1
        return dispatch(*arguments)

    with tempfile.TemporaryDirectory() as made:  # the profiler knows no gs://
        jax.profiler.start_trace(made, create_perfetto_trace=True)
        try:
            yield traced
        finally:
            if calls <= TRACED:
                jax.profiler.stop_trace()
        for file in filter(Path.is_file, Path(made).rglob("*")):
            target = place / str(file.relative_to(made))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    say(
        f"a trace (dispatches: {min(calls, TRACED)}) is in {place}: look at it with "
        f"tensorboard --logdir {place} (pip install tensorboard xprof), or open its "
        "perfetto_trace.json.gz at https://ui.perfetto.dev"
    )
