"""The accelerator benchmark on a CPU, tiny; and every step lowers for GPUs and TPUs."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from create_jax.configs.common import get_config
from test_steps import LOG

from benchmarks import accelerator
from create_jax import build, feeds, methods, optim, steps

ALONE = ("peers", "gowalla")  # other programs, tested as such


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return accelerator.Setup(None, tmp_path_factory.mktemp("accelerator"), tiny=True)


@pytest.mark.services
def test_every_step_measures_something_in_a_tiny_version(setup, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    lines = accelerator.run_all(setup, accelerator.STEPS, minutes=10)
    kept = (setup.out / "accelerator.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == lines
    ends = {line["step"]: line for line in lines if "ended" in line}
    errors = (setup.out / "errors.txt").read_text()
    for name in accelerator.STEPS:
        expected = "skipped" if name in ALONE else "done"
        assert ends[name]["ended"] == expected, (ends[name], errors[-2000:])
    found = {(x["step"], x["what"]): x["found"] for x in lines if "what" in x}
    assert {name for name, _ in found} == set(accelerator.STEPS) - set(ALONE)
    assert 0 < found["exactness", "softmax, highest"] < 1e-6
    assert found["exactness", "ultragcn, highest"]["loss"] < 1e-6
    assert found["equal_bits", "create, graph ultragcn"]["difference"] == 0


def test_a_step_that_outlasts_its_limit_keeps_what_it_measured(setup, tmp_path):
    worker = accelerator.Worker(setup._replace(out=tmp_path), {}, str(tmp_path))
    lines = list(worker.lines("quickstart", seconds=0.2))
    assert lines[-1]["ended"] == "killed" and "outlasted" in lines[-1]["why"]
    assert not worker.alive


def test_the_page_keeps_what_people_wrote(tmp_path):
    page, file = tmp_path / "page.md", tmp_path / "lines.jsonl"
    page.write_text(f"# Ours\n\nA finding.\n\n{accelerator.MARK}\n\nold\n")
    lines = [
        {"step": "host", "what": "create", "found": {"plan": 0.123456, "steps": 3}},
        {"step": "host", "ended": "killed", "why": "it outlasted its 3 seconds"},
        {"step": "batches", "what": "128", "found": 2.0},
        {"step": "batches", "ended": "done", "seconds": 1.0},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert accelerator.main(["--table", str(file), f"--page={page}"]) == 0
    text = page.read_text()
    assert "A finding." in text and "old" not in text
    assert "| create | 0.1235 | 3 |" in text and "| 128 | 2 |" in text
    assert "It ended early: it outlasted its 3 seconds." in text


METHODS = [m for m in methods.METHODS if methods.find(m).kind != "free"]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method_lowers_for_gpus_and_tpus(method):
    config = get_config(method)
    small = {"model.dim": 8, "seq.blocks": 1, "seq.heads": 2, "seq.max_len": 6}
    config.update_from_flattened_dict(small | {"train.batch": 30, "train.chunk": 1})
    phase = build.make_phases(config)[-1]
    ratings = np.resize(np.float32([5, 1, 4]), len(LOG.users))
    log = LOG._replace(ratings=ratings, times=3_000_000 * LOG.times)
    model = build.make_model(config, log.n_users, log.n_items)
    rows, pairs, graph = feeds.make_graph(config, model, log, 1)
    feed = feeds.Feed(config, model, phase, log, rows, pairs, 1)
    tx = optim.make(**config.optim.to_dict())
    batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))
    step = jax.jit(partial(steps.train_step, model, phase, tx, 0, None))
    state = jax.eval_shape(lambda: steps.init(model, tx, 0))
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (state, batch, graph)
    )
    exported = jax.export.export(step, platforms=["cuda", "tpu"])(*arguments)
    assert exported.platforms == ("cuda", "tpu")
