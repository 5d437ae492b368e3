"""A whole run on eight simulated devices: a log whose next item is always i + 1."""

import json
import os
import shlex
import shutil
from functools import cache, partial
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from create_jax import (
    build,
    curves,
    example,
    experiment,
    feeds,
    protocol,
    recommend,
    report,
    rundir,
    settings,
    train,
)
from create_jax.configs import table
from create_jax.errors import InputError
from create_jax.runs import load, per_query

N_ITEMS = 30


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """200 users walk over items in order from random starts, 12 steps each."""
    rng = np.random.default_rng(0)
    rows = ["user,item,time"]
    for user, start in enumerate(rng.integers(0, N_ITEMS, 200)):
        times = np.sort(rng.integers(0, 1000, 12)) + np.arange(12)
        items = (start + np.arange(12)) % N_ITEMS
        rows += [f"u{user},i{i},{t}" for i, t in zip(items, times, strict=True)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def make_config(log, method, **changes):
    config = table.get_config(method)
    config.data.path = str(log)
    config.model.dim = 16
    config.seq.update(max_len=12, blocks=1, dropout=0.0)
    config.graph.lightgcn.layers = 1
    config.optim.lr = 0.01
    config.train.batch = 32
    config.train.epochs = 12
    config.warmup.epochs = 2
    config.graph.batch_size = 256
    config.eval.filter_seen = False
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


@pytest.fixture(scope="module")
def created(log, tmp_path_factory):
    """(config, workdir, result) of CREATE with LightGCN: all phases, select, refit."""
    workdir = tmp_path_factory.mktemp("create")
    config = make_config(log, "create", graph__encoder="lightgcn")
    return config, workdir, experiment.train_and_evaluate(config, str(workdir))


def test_create_learns_the_walk(created):
    _, workdir, result = created
    assert jax.device_count() == 8 and result["device"].startswith("8 x")
    assert result["test"]["recall@10"] > 0.95
    assert result["test"]["ndcg@10"] > 0.8
    lines = [
        json.loads(t) for t in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["phase"] for line in lines[:3]] == ["warmup", "warmup", "joint"]
    assert {line["stage"] for line in lines} == {"select", "refit"}
    assert {"loss/local", "loss/global", "loss/align"} < lines[2].keys()
    selected = [line for line in lines if line["stage"] == "select"]
    scores = [line["valid/log_reciprocal_rank"] for line in selected[2:]]
    means = [np.mean(scores[max(0, end - 5) : end]) for end in range(1, 13)]
    best = selected[2 + int(np.argmax(means))]
    for name, value in result["valid"].items():
        assert value == best[f"valid/{name}"]
    assert result["epochs"] == best["epoch"]


def test_the_result_file_has_every_part(created):
    _, workdir, result = created
    written = json.loads((workdir / "result.json").read_text())
    assert written == json.loads(json.dumps(result))
    parts = {"dataset", "method", "seed", "protocol", "data", "valid", "test"}
    parts |= {"test_by_target", "tied_targets_share"}
    parts |= {"epochs", "seconds", "precision", "device", "versions", "git"}
    assert written.keys() == parts
    assert {"last", "first", "random", "successive"} == written["test_by_target"].keys()
    names = {
        f"{m}@{k}" for m in ("ndcg", "recall", "mrr", "coverage") for k in (10, 100)
    }
    assert written["test"].keys() == names
    assert {"q_test", "ties", "target", "filter_seen"} < written["protocol"].keys()
    assert "ndcg@10" in report.table([written])


def test_evaluate_gives_the_same_numbers_and_other_targets(created, monkeypatch):
    config, workdir, result = created
    # The stages are finished and the transformer ranks: nothing reads the graph.
    monkeypatch.delattr(feeds, "make_graph")
    again = experiment.evaluate_again(config, str(workdir))
    assert again["test_by_target"] == result["test_by_target"]
    other = config.copy_and_resolve_references()
    other.eval.target = "all"  # by which nothing could be selected, as it was
    several = experiment.evaluate_again(other, str(workdir))
    assert several["protocol"]["select_by"] == config.eval.select_by  # did select
    assert several["protocol"]["select_target"] == "last"
    assert 0 < several["test_by_target"]["all"]["recall@10"] <= 1
    assert several["test_by_target"]["last"] == result["test_by_target"]["last"]


def test_what_evaluate_keeps_is_a_run_for_the_report(created, tmp_path):
    config, workdir, result = created
    other = config.copy_and_resolve_references()
    other.eval.history = "train"
    again = experiment.evaluate_again(other, str(workdir), str(tmp_path / "cut"))
    assert json.loads((workdir / "result.json").read_text())["test"] == result["test"]
    systems = load([workdir, tmp_path / "cut"])
    found = {system.section.split(", ", 1)[1]: system for system in systems}
    assert found.keys() == {"history=full", "history=train"}
    kept = found["history=train"].results[0]["test_by_target"]
    assert kept == again["test_by_target"]
    assert kept["last"] != result["test_by_target"]["last"]
    _, values = per_query(tmp_path / "cut", "last", ["ndcg@10"])
    assert values.mean() == pytest.approx(again["test"]["ndcg@10"], abs=1e-6)
    with pytest.raises(InputError, match="eval.history was 'train', is 'full'"):
        experiment.evaluate_again(config, str(workdir), str(tmp_path / "cut"))


def test_an_example_ends_with_commands_that_work(created, capsys, monkeypatch):
    config, workdir, _ = created
    example.show(config, str(workdir))
    lines = capsys.readouterr().out.splitlines()
    heading = lines.index("Ask it about yourself, with titles of yours:")
    asked = shlex.split(lines[heading + 1].removeprefix("  python -m "))
    assert asked.pop(0) == "create_jax.recommend" and len(asked) == 4
    assert recommend.main(asked) == 0
    items = [row.split("\t")[2] for row in capsys.readouterr().out.splitlines()[1:]]
    history = {text.removeprefix("--history=") for text in asked[1:]}
    assert len(items) == 10 and len(history) == 3
    assert all(text[0] == "i" for text in history)
    served = shlex.split(lines[heading + 3])
    assert served[:2] == ["python", "-m"] and served[3] == asked[0]


def test_an_example_of_what_knows_users_only(log, tmp_path, capsys):
    config = make_config(log, "lightgcn")
    experiment.train_and_evaluate(config, str(tmp_path / "run"))
    example.show(config, str(tmp_path / "run"))
    lines = capsys.readouterr().out.splitlines()
    command = lines[lines.index("Ask it about a user:") + 1]
    asked = shlex.split(command.removeprefix("  python -m create_jax.recommend"))
    assert recommend.main(asked) == 0
    answer = capsys.readouterr()
    assert len(answer.out.splitlines()) == 11 and not answer.err


def test_an_example_of_what_cannot_serve(log, tmp_path, capsys):
    config = make_config(log, "random")
    experiment.train_and_evaluate(config, str(tmp_path / "run"))
    example.show(config, str(tmp_path / "run"))
    *_, top, _, last = capsys.readouterr().out.splitlines()
    assert top.startswith("  10  i")
    assert last.startswith("It is not exported: random draws another list")
    assert not (tmp_path / "run/model.safetensors").exists()


def test_a_run_without_its_parameters_is_not_trained_again(created, tmp_path):
    config, workdir, _ = created
    for name in ("config.json", "result.json", "metrics.jsonl"):
        shutil.copy(workdir / name, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for ask in (experiment.evaluate_again, example.show):
        with pytest.raises(InputError, match="no checkpoints"):
            ask(config, str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_evaluate_reads_and_never_trains(created, tmp_path):
    config, workdir, _ = created
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    stage = copy / "checkpoints" / "refit"
    newest = max(stage.glob("[0-9]*"), key=lambda place: int(place.name))

    def refused(reason):
        before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
        with pytest.raises(InputError, match=reason):
            experiment.evaluate_again(config, str(copy))
        after = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
        assert after == before

    (newest / "progress" / "metadata").write_bytes(b"")
    refused(f"refit/{newest.name}: the checkpoint is damaged")
    (newest / "progress" / "metadata").write_text('{"finished": false}')
    refused("is of an unfinished stage")
    shutil.rmtree(stage)
    refused("refit: found no checkpoint")


def test_of_equal_scores_the_epoch_that_is_named_is_restored(log, tmp_path):
    config = make_config(log, "lightgcn", train__epochs=3, checkpoint__seconds=0.0)
    opened = rundir.open_run(config, tmp_path)
    phases = build.make_phases(config)
    parts = opened.split.train, opened.split.valid
    alike = dict(validate=lambda *_: {config.eval.select_by: 0.5})
    fitted = train.fit(opened.run, "select", phases, *parts, **alike)
    assert fitted.progress.best_epoch == 1
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    kept = tmp_path / "checkpoints" / "select" / str(first["step"])
    saved = ocp.StandardCheckpointer().restore(kept / "state")
    jax.tree.map(np.testing.assert_array_equal, fitted.params, saved["params"])


def test_a_sequence_model_beats_the_counts(created, log, tmp_path, capsys):
    _, _, result = created
    for method in ("mostpop", "poprnd", "random"):
        config = make_config(log, method)
        other = experiment.train_and_evaluate(config, str(tmp_path / method))
        assert other["test"]["ndcg@10"] < 0.5 < result["test"]["ndcg@10"]
        # Items of equal counts are told apart by chance, and the run says so.
        share, text = other["tied_targets_share"], capsys.readouterr().out
        assert (share > 0.5) == (method == "mostpop")
        warning = f"warning: {share:.1%} of the test targets have the same score"
        assert (warning in text) == (method == "mostpop")


def test_targets_that_no_method_can_hit_are_named(capsys):
    data = dict(targets_in_history_share=0.51, valid_targets_in_history_share=0.01)
    config = table.get_config("mostpop")
    rundir.warn_of_hidden_targets(config, data)
    text = capsys.readouterr().out
    assert text.startswith("warning: 51.0% of the test targets stand in their own")
    assert "validation" not in text and "--config.eval.filter_seen=False" in text
    config.eval.filter_seen = False
    rundir.warn_of_hidden_targets(config, data)
    rundir.warn_of_hidden_targets(table.get_config(), dict.fromkeys(data, 0.01))
    assert capsys.readouterr().out == ""


@pytest.fixture
def counted(log, tmp_path):
    """A config that takes no time, and the directory of its run."""
    return make_config(log, "mostpop"), tmp_path / "run"


@pytest.fixture(scope="module")
def finished_once(log, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("counted") / "run"
    config = make_config(log, "mostpop")
    return config, workdir, experiment.train_and_evaluate(config, str(workdir))


@pytest.fixture
def finished(finished_once, tmp_path):
    """(config, workdir, result) of a run that may be changed."""
    config, workdir, result = finished_once
    shutil.copytree(workdir, tmp_path / "run")
    return config.copy_and_resolve_references(), tmp_path / "run", result


def test_one_process_at_a_time_works_in_a_directory(counted):
    config, workdir = counted
    with (
        rundir.hold(workdir),
        pytest.raises(InputError, match="another process is at work"),
    ):
        experiment.train_and_evaluate(config, str(workdir))
    assert [path.name for path in workdir.iterdir()] == ["lock"]


def test_who_began_while_another_loaded_the_data_is_refused(finished, monkeypatch):
    config, other, _ = finished
    workdir, load = other.with_name("mine"), protocol.load
    config.seed = 1

    def slow(one):
        shutil.copytree(other, workdir)
        (workdir / "result.json").rename(workdir / "metrics.jsonl")
        return load(one)

    monkeypatch.setattr(protocol, "load", slow)
    with pytest.raises(InputError, match="seed was 0, is 1"):
        experiment.train_and_evaluate(config, str(workdir))
    assert json.loads((workdir / "config.json").read_text())["config"]["seed"] == 0


def test_settings_that_change_no_number_may_change(finished, tmp_path):
    config, workdir, result = finished
    changed = config.copy_and_resolve_references()
    changed.eval.batch, changed.seeds, changed.checkpoint.seconds = 7, (0, 1), 5.0
    changed.data.path = str(shutil.copy(config.data.path, tmp_path / "moved.csv"))
    changed.data.counts = (200, 30, 2400)
    with rundir.hold(workdir):  # reading is free
        again = experiment.evaluate_again(changed, str(workdir))
    assert again["test_by_target"] == result["test_by_target"]
    experiment.train_and_evaluate(changed, str(workdir))
    sequential = make_config(config.data.path, "sasrec")
    about = json.loads((workdir / "config.json").read_text())
    about["config"] = sequential.to_dict()
    (workdir / "config.json").write_text(json.dumps(about))
    for key in ("train.chunk", "loss.token_chunk", "eval.every"):
        other = sequential.copy_and_resolve_references()
        other.update_from_flattened_dict({key: 5})
        with pytest.raises(InputError, match=f"{key} was [0-9]*, is 5"):
            experiment.train_and_evaluate(other, str(workdir))


def test_advice_can_be_followed_where_nothing_was_trained_yet(log, tmp_path):
    config = make_config(log, "svd", svd__ranks=(512,))
    with pytest.raises(InputError, match="config.svd.ranks"):
        experiment.train_and_evaluate(config, str(tmp_path))
    config.svd.ranks = (4,)
    experiment.train_and_evaluate(config, str(tmp_path))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["config"]["svd"]["ranks"] == [4]
    config.svd.ranks = (8,)
    with pytest.raises(InputError, match="svd.ranks was"):
        experiment.train_and_evaluate(config, str(tmp_path))


def test_a_run_from_before_a_setting_was_there_goes_on(finished, monkeypatch):
    config, workdir, _ = finished
    about = json.loads((workdir / "config.json").read_text())
    del about["config"]["eval"]["filter_seen"]
    (workdir / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="holds a run of another config"):
        experiment.train_and_evaluate(config, str(workdir))
    monkeypatch.setattr(settings, "OLD_DEFAULTS", {"eval.filter_seen": False})
    experiment.train_and_evaluate(config, str(workdir))
    config.eval.filter_seen = True
    with pytest.raises(InputError, match="config: eval.filter_seen was False, is True"):
        experiment.train_and_evaluate(config, str(workdir))


def test_what_may_fail_beside_a_result_costs_none(counted, monkeypatch, capsys):
    """A checkout that is not installed has no version; a picture may not be drawn."""
    config, workdir = counted
    version = metadata.version

    def uninstalled(name):
        if name == "create_jax":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    def draw(*_):
        raise RuntimeError("no font was found\nanywhere")

    monkeypatch.setattr(metadata, "version", uninstalled)
    monkeypatch.setattr(curves, "draw", draw)
    result = experiment.train_and_evaluate(config, str(workdir))
    assert (workdir / "result.json").exists()
    assert result["versions"]["create_jax"] is None
    assert result["versions"]["jax"] == jax.__version__
    told = capsys.readouterr().err
    assert "curves.png: could not be drawn (no font was found anywhere)" in told


def test_a_killed_save_pairs_no_old_result_with_new_ranks(
    finished, tmp_path, monkeypatch
):
    config, workdir, _ = finished
    kept, replace = tmp_path / "kept", os.replace
    shutil.copytree(workdir, kept)

    def killed(source, target):
        if target.name == "result.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.evaluate_again(config, str(workdir), str(kept))
    assert (kept / "ranks.npz").exists() and not (kept / "result.json").exists()
    assert not list(kept.glob("*.part"))


@pytest.mark.parametrize("method", ["lightgcn", "ultragcn"])
def test_a_graph_encoder_alone_learns(log, tmp_path, method):
    """Selected by a likelihood, which is negative and stands in no test, of all rows of
    the validation."""
    rules = dict(eval__select_by="log_likelihood", eval__select_target="successive")
    config = make_config(log, method, train__epochs=4, **rules)
    result = experiment.train_and_evaluate(config, str(tmp_path / "run"))
    assert result["method"] == method and result["valid"]["recall@10"] > 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, lines) if line["stage"] == "select"]
    losses = [line["loss"] for line in lines]
    assert losses == sorted(losses, reverse=True)
    best = max(line["valid/log_likelihood"] for line in lines)
    assert result["valid"]["log_likelihood"] == best < -1
    assert "log_likelihood" not in result["test"]
    assert result["protocol"]["select_target"] == "successive"
    asked = result["data"]["valid_queries"], result["data"]["test_queries_by_target"]
    assert asked[0] > asked[1]["last"]


def test_the_same_command_goes_on_past_the_epoch_that_it_traces(log, tmp_path, capsys):
    config = make_config(log, "sasrec", train__epochs=1, split__validation="none")
    place = str(tmp_path / "run")
    result = experiment.train_and_evaluate(config, place)
    (tmp_path / "run" / "result.json").unlink()
    again = experiment.train_and_evaluate(config, place, profile=1)
    assert again["test"] == result["test"]
    assert "no trace: fixed is past --profile=1" in capsys.readouterr().out


def test_epochs_are_those_of_what_was_tested(log, tmp_path):
    """Without a retraining that is the best one; later ones came after it."""
    changes = dict(optim__lr=1e-9, train__epochs=3, retrain__epochs="none")
    config = make_config(log, "sasrec", eval__select_mean=1, **changes)
    result = experiment.train_and_evaluate(config, str(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert result["epochs"] == 1  # none was better


def test_a_loss_that_explodes_is_named(log, tmp_path):
    config = make_config(log, "sasrec", optim__lr=1e30, split__validation="none")
    with pytest.raises(
        InputError, match="loss.* is not finite at step .* of phase joint"
    ):
        experiment.train_and_evaluate(config, str(tmp_path / "run"))


SWITCHES = [
    {"align__kind": "infonce"},
    {"align__kind": "none"},
    {"align__positions": "all"},
    {"align__stop_grad": "global", "align__l2_normalize": True},
    {"align__projector_dims": (8, 4)},
    {"align__user_source": "ego", "graph__encoder": "lightgcn"},
    {"graph__batch_source": "batch_users", "graph__encoder": "lightgcn"},
    {"item_source__output": "propagated", "graph__encoder": "lightgcn"},
    {"item_source__input": "propagated", "graph__encoder": "lightgcn"},
    {"graph__last_frac": 0.5, "graph__reduce": "sum"},
    {"graph__last_n": 3},
]


@pytest.fixture(scope="module")
def joint_loss(log):
    """(loss, squared norms of its gradients) of a joint step with changed settings."""

    @cache
    def of(**changes):
        config = make_config(log, "create", **changes)
        build.check(config)
        train = protocol.load(config)
        model = build.make_model(config, train.n_users, train.n_items)
        rows, pairs, graph = feeds.make_graph(config, model, train, shards=1)
        phase = build.make_phases(config)[-1]
        feed = feeds.Feed(config, model, phase, train, rows, pairs, shards=1)
        batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))
        params, key = model.init(seed=0), jax.random.key(0)
        loss = partial(model.loss, phase, batch=batch, graph=graph, key=key)
        (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return float(value), [float(jnp.sum(g * g)) for g in jax.tree.leaves(grads)]

    return of


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_reaches_a_step_of_its_own(joint_loss, changes):
    """Each open choice of the paper gives a joint step with a loss of another value."""
    value, norms = joint_loss(**changes)
    plain = joint_loss(graph__encoder=changes.get("graph__encoder", "ultragcn"))
    assert np.isfinite([value, *norms]).all()
    # Where a gradient stops, the loss itself stays.
    assert value != plain[0] or norms != plain[1]
