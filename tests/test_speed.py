"""What a run says of its speed: the formula, the clock, and traces."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from create_jax import build, speed, train
from create_jax.configs import common
from create_jax.data.packing import Sequences


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", None),  # another clock, not in the table
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a seventh of one
        ("cpu", None),
    ],
)
def test_the_peak_is_of_the_kind_of_device(kind, peak):
    assert speed.peak(kind) == peak


def feed_of(lengths, method="sasrec", **changes):
    config = common.get_config(method)
    config.model.dim, config.seq.blocks = 8, 3
    config.loss.update(changes)
    model = build.make_model(config, 5, 40)
    end = np.cumsum(lengths)
    items = np.ones(end[-1], np.int32)
    owners = np.arange(len(lengths), dtype=np.int32)
    sequences = Sequences(owners, items, end - lengths, end)
    return SimpleNamespace(
        config=config, model=model, sequences=sequences, chunks=4, chunk_steps=5
    )


def shapes(feed):
    return jax.eval_shape(feed.model.init, 0)


def test_the_work_of_an_epoch_is_that_of_its_formula():
    lengths, dim = np.array([3, 1, 6]), 8
    feed = feed_of(lengths)
    params = shapes(feed)
    # A block: queries, keys, values and output of attention, two feed-forward layers.
    tokens, dense, pairs = 10, 3 * 6 * dim * dim, 6 + 1 + 21
    flops = 6 * dense * tokens + 12 * 3 * dim * pairs + 6 * dim * 40 * tokens
    assert speed.count(feed, params) == (tokens, flops)
    # Both directions see all, a fifth is hidden, and feed-forward layers are wider.
    masked = feed_of(lengths, "bert4rec")
    found = speed.count(masked, shapes(masked))
    dense_of_bert = 3 * 12 * dim * dim
    bert = 6 * dense_of_bert * tokens + 12 * 3 * dim * 46 + 6 * dim * 40 * 2
    assert found == (tokens, pytest.approx(bert))
    # Of sampled losses as many as are scored; of SCE nothing is said.
    feed = feed_of(lengths, local="sampled", negatives=7)
    flops = 6 * dense * tokens + 12 * 3 * dim * pairs + 6 * dim * 8 * tokens
    assert speed.count(feed, params) == (tokens, flops)
    assert speed.count(feed_of(lengths, local="sce"), params) == (tokens, None)
    feed.sequences = None
    assert speed.count(feed, params) == (None, None)


class Loop:
    """What `run_epoch` drives, all of it counted, on a clock that only dispatches and
    saves move."""

    def __init__(self, monkeypatch, saves=()):
        self.now, self.events, self.saves = 0.0, [], list(saves)
        self.feed = feed_of(np.array([3, 1, 6]))
        self.feed.plan, self.feed.batch = (lambda epoch: None), (lambda plan, n: n)
        self.mesh = SimpleNamespace(
            size=2, devices=np.array([SimpleNamespace(device_kind="TPU v4")])
        )
        self.graph = SimpleNamespace(arrays=())
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        get = jax.device_get
        monkeypatch.setattr(jax, "device_get", lambda x: (self.seen("wait"), get(x))[1])
        monkeypatch.setattr(jax, "block_until_ready", lambda x: self.seen("wait"))
        self.clock = speed.Clock()

    def seen(self, event, seconds=0.0):
        self.events.append(event)
        self.now += seconds

    def _replace(self, dispatch):
        self.dispatch = dispatch
        return self

    def batch(self, plan, chunk):
        return self.seen("batch")

    def wishes(self, wish):
        return np.int32(wish)

    def dispatch(self, state, batch, graph, wish):
        self.seen("dispatch", 2.0)
        return state, {"loss": np.ones(5)}, wish

    def due(self):
        return bool(self.saves) and self.saves.pop(0)

    def save(self, *_):
        self.seen("save", 100.0)

    def run(self, chunk=0):
        state = SimpleNamespace(step=np.int32(0))
        progress = train.Progress(chunk=chunk)
        bar = SimpleNamespace(update=lambda n: None, n=0)
        with self.clock.steps():
            return train.run_epoch(self, state, progress, self, bar, self.clock)


def test_the_loop_waits_once_a_dispatch(monkeypatch):
    loop = Loop(monkeypatch)
    loop.run()
    # Each batch is made, and each dispatch begun, before the one before is awaited.
    begun = ["batch", "dispatch"] + 3 * ["batch", "wait", "dispatch"]
    assert loop.events == [*begun, "wait"]
    loop.clock.line(loop, 4, speed.Work(10, 1e9))
    assert loop.events == [*begun, "wait"]


def test_saves_and_validation_are_no_steps(monkeypatch):
    loop = Loop(monkeypatch, saves=[False, True])
    loop.now += 12.0  # compiling
    loop.run(chunk=1)  # goes on where it was stopped: three of four dispatches
    assert loop.events.count("save") == 1
    loop.now += 2.0  # validation
    line = loop.clock.line(loop, 3, speed.Work(1000, 11e12))
    assert line == {
        "step_seconds": 6 / 15,
        "tokens_per_second": 125.0,
        "mfu": 0.75 * 11e12 / (6 * 2 * 275e12),
        "goodput": 6 / 120,
    }
    assert tuple(line) == speed.KEYS
    loop.run()
    assert loop.clock.line(loop, 4, speed.Work())["goodput"] == round(14 / 128, 4)
    assert loop.clock.line(loop, 0, speed.Work(1000, 11e12)).keys() == {"goodput"}


def test_a_trace_has_two_dispatches_and_ends_between_two(tmp_path, monkeypatch, capsys):
    told, stop = [], jax.profiler.stop_trace
    monkeypatch.setattr(
        jax.profiler, "stop_trace", lambda: (told.append("end"), stop())
    )
    add = jax.jit(lambda x: x + 1)
    with speed.trace(add, tmp_path / "profile") as dispatch:
        for n in range(3):
            dispatch(jnp.float32(n)).block_until_ready()
            told.append(n)
    assert told == [0, 1, "end", 2]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f": 2) is in {tmp_path / 'profile'}" in said
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
    # One that fails does not leave the profiler running.
    with pytest.raises(ZeroDivisionError), speed.trace(add, tmp_path / "two"):
        raise ZeroDivisionError
    with speed.trace(add, None) as dispatch:
        assert dispatch is add
