"""Recommendations of an artifact are those of the ranking of its run."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from create_jax import (
    artifact,
    baselines,
    build,
    experiment,
    export,
    methods,
    optim,
    rundir,
    steps,
    train,
)
from create_jax.configs import table
from create_jax.errors import InputError
from create_jax.recommender import Recommender

K = 20
PROPAGATED = {"graph.encoder": "lightgcn", "item_source.output": "propagated"}
SYSTEMS = [
    ("bert4rec", {}),
    ("create", PROPAGATED),  # of SASRec
    ("lightgcn", {"mesh.model": 2}),  # tables in parts of rows
    ("svd", {"svd.history": "full", "svd.ranks": (4,)}),
    ("mostpop", {}),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """90 users of 3 to 20 of 40 items at random moments; some items come late only."""
    rng, rows = np.random.default_rng(1), ["user,item,time"]
    for user in range(90):
        times = np.sort(rng.integers(0, 1000, rng.integers(3, 20)))
        items = rng.integers(0, 40, len(times)) + np.where(times > 900, 5, 0)
        rows += [f"u{user},i{i:02},{t}" for i, t in zip(items, times, strict=True)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def make_config(log, method, **changes):
    config = table.get_config(method)
    config.data.path = str(log)
    small = {"model.dim": 8, "seq.max_len": 10, "seq.blocks": 1, "eval.ks": (10, K)}
    small |= {"eval.targets": ("last",), "split.validation": "none"}
    small |= {"eval.candidates": "train", "graph.lightgcn.layers": 1}
    small |= {"model.item_std": 1.0, "model.user_std": 1.0, "train.epochs": 1}
    config.update_from_flattened_dict(small | changes)
    return config


def untrained(config, tmp_path):
    """A run as it was opened, and its method with the parameters of the start."""
    opened = rundir.open_run(config, tmp_path)
    if config.method in baselines.FITS:
        return opened, baselines.fit(opened.run, opened.split)[0]
    rows = opened.split.refit
    model = build.make_model(config, rows.n_users, rows.n_items)

    def graph():
        return train._make_graph(opened.run, model, rows)

    tx, mesh = optim.make(**config.optim.to_dict()), opened.run.mesh
    params = steps.start(model, tx, 0, mesh).params
    return opened, train._fitted(opened.run, model, params, graph, train.Progress())


def same_lists(ours, theirs, scores) -> int:
    """Asserts that lists [Q, K] are the same but for neighbours whose scores differ by
    less than 1e-6; returns how many changed places."""
    swapped = 0
    for one, other, score in zip(ours, theirs, scores, strict=True):
        for place in np.flatnonzero(one != other):
            score_of = dict(zip(one.tolist(), score.tolist(), strict=True))
            last = score[-1] if np.isfinite(score[-1]) else -np.inf
            moved = abs(score_of.get(int(other[place]), last) - score[place])
            assert moved < 1e-6, (place, one, other)
            swapped += 1
    return swapped


@pytest.mark.parametrize("method, changes", SYSTEMS, ids=lambda x: str(x)[:20])
def test_lists_are_those_of_the_ranking(log, tmp_path, method, changes):
    config = make_config(log, method, **changes)
    opened, fitted = untrained(config, tmp_path)
    made = export.make(opened, fitted, opened.split.refit)
    made = replace(made, manifest=made.manifest | {"method": method})
    artifact.write(tmp_path / "a.safetensors", made)
    recommender = Recommender(artifact.read(tmp_path / "a.safetensors"))

    holdout = opened.split.test["last"]
    lists = experiment.rank(opened, fitted, holdout, keep_lists=True).top
    histories = [
        holdout.log[begin:end]
        for begin, end in zip(holdout.begin, holdout.end, strict=True)
    ]
    if method == "lightgcn":
        names = opened.log.user_ids.gather(holdout.users).to_list()
        users = [recommender.user(name) for name in names]
        # Of a known user the training rows are hidden, not those before the target.
        known = recommender.artifact.users
        hidden = [known.seen[known.offsets[u] : known.offsets[u + 1]] for u in users]
        for query, rows in enumerate(hidden):
            assert set(rows) <= set(histories[query])
        vectors = known.vectors[users]
        allowed = recommender.allowed()
        items, scores = recommender._best(vectors, K, histories, allowed)
    else:
        items, scores = recommender.recommend(histories, K)
    assert (items > 0).any() and len(items) == holdout.n_queries > 20
    if method == "mostpop":  # of equal counts, the order is another
        counts = recommender.artifact.counts
        np.testing.assert_array_equal(counts[items], counts[lists])
        return
    assert same_lists(items, lists, scores) < 5
    never = np.flatnonzero(made.counts == 0)
    assert len(never) > 1 and not np.isin(items[items > 0], never).any()


@pytest.fixture(scope="module")
def trained(log, tmp_path_factory):
    """(config, workdir) of a finished run with an encoder from outside."""
    place = tmp_path_factory.mktemp("run")
    config = make_config(log, "create", **{"graph.encoder": "none"})
    with config.unlocked():
        config.seq.encoder = "plugins.average"
        config.seq.average = {"scale": 2.0}
    titles = place / "titles.csv"
    titles.write_text('id,title\ni01,One\ni02,"Two, or More"\nelse,Else\n')
    config.data.table.titles = str(titles)
    experiment.train_and_evaluate(config, str(place / "run"))
    return config, place / "run"


def stages(workdir) -> list[str]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["stage"] for line in lines]


@pytest.mark.parametrize(
    "method, retrain, learnt",
    [
        ("sasrec", "best", ("refit", "up to the cut, as tested")),
        ("sasrec", "none", ("train", "up to the validation, as tested")),
        ("svd", "none", ("refit", "up to the cut, as tested")),
    ],
)
def test_a_manifest_says_which_rows_were_learnt_from(log, method, retrain, learnt):
    config = make_config(log, method, **{"retrain.epochs": retrain})
    split = SimpleNamespace(train="train", valid="valid", refit="refit")
    opened = SimpleNamespace(run=SimpleNamespace(config=config), split=split)
    assert export.tested_rows(opened) == learnt


def test_a_final_fit_is_on_all_rows_and_changes_no_result(trained, tmp_path):
    config, workdir = trained
    config = config.copy_and_resolve_references()
    before = (workdir / "result.json").read_text()
    out = tmp_path / "tested.safetensors"
    export.export(config, str(workdir), str(out))
    tested = artifact.read(out)
    assert tested.manifest["data"]["rows"] == "up to the cut, as tested"
    assert len(np.flatnonzero(tested.counts == 0)) > 1
    with pytest.raises(InputError, match="found a directory; name a file"):
        export.export(config, str(workdir), str(tmp_path))

    config.final.fit = "all"
    with pytest.raises(InputError, match="no final fit; add it with --mode=train"):
        export.export(config, str(workdir), str(out))
    # Killed before its first checkpoint.
    (workdir / "checkpoints/final/0.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(InputError, match="no final fit; add it with --mode=train"):
        export.export(config, str(workdir), str(out))
    config.final.fit = "none"
    assert export.export(config, str(workdir), str(out)) == tested.hash
    config.final.fit = "all"
    result = experiment.train_and_evaluate(config, str(workdir))
    assert stages(workdir) == ["fixed", "final"]
    experiment.train_and_evaluate(config, str(workdir))
    assert stages(workdir) == ["fixed", "final"]
    assert (workdir / "result.json").read_text() == before

    digest = export.export(config, str(workdir), str(out))
    found = artifact.read(out)
    assert found.hash == digest != tested.hash
    assert export.export(config, str(workdir), str(tmp_path / "again.st")) == digest
    about, data = found.manifest, found.manifest["data"]
    assert (data["rows"], data["interactions"]) == ("all", found.counts.sum())
    assert found.counts.sum() > tested.counts.sum()
    assert data["items"] == data["trained_items"] == len(found.ids) - 1
    assert data["fingerprint"] == result["data"]["fingerprint"]
    assert data["last_seen"].startswith("1970-01-01T00:16:") and not data["parent"]
    assert about["metrics"] == json.loads(before)["test_by_target"]
    assert about["protocol"] == json.loads(before)["protocol"]
    assert (about["method"], about["needs"]) == ("create", "history")
    data = about["config"]["data"]
    assert data["path"] == data["table"]["titles"] == ""  # places on this machine
    assert list(found.titles)[:4] == ["", "", "One", "Two, or More"]


def test_an_encoder_of_somebody_runs_from_its_module_or_trusted(
    trained, tmp_path, monkeypatch
):
    config, workdir = trained
    out = tmp_path / "model.safetensors"
    export.export(config, str(workdir), str(out))
    found = artifact.read(out)
    ours = Recommender(found)
    golden = found.manifest["golden"]
    items, scores = ours.recommend([golden["history"]], 10)
    assert items[0].tolist() == golden["items"]
    np.testing.assert_allclose(scores[0], golden["scores"], rtol=1e-6)

    trusted = Recommender(found, trust=True)
    histories = [[1], [2, 3, 4], list(range(1, 15)), []] * 9  # more than a few
    asked = ours.vectors(histories)
    np.testing.assert_allclose(trusted.vectors(histories), asked, atol=1e-6)
    for few in (histories[:1], histories[:5]):
        np.testing.assert_allclose(ours.vectors(few), asked[: len(few)], atol=1e-6)
    ours.warm_up()

    about = dict(found.manifest)
    about["encoder"] = about["encoder"] | {"module": "no.one"}
    with pytest.raises(InputError, match="no.one cannot be made.*add --trust"):
        Recommender(replace(found, manifest=about))
    other = Recommender(replace(found, manifest=about), trust=True)
    np.testing.assert_allclose(other.vectors(histories), asked, atol=1e-6)
    with pytest.raises(InputError, match="no exported program; bring its module"):
        Recommender(replace(found, manifest=about, program=None))
    with pytest.raises(InputError, match="exported program cannot be read"):
        Recommender(replace(found, manifest=about, program=b"no"), trust=True)


def test_without_flatbuffers_there_is_no_program(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    config, workdir = trained
    export.export(config, str(workdir), str(tmp_path / "model.safetensors"))
    assert "no exported program" in capsys.readouterr().out
    assert artifact.read(tmp_path / "model.safetensors").program is None


@pytest.mark.parametrize(
    "method, reason",
    [
        ("random", "draws another list for each query"),
        ("poprnd", "draws another list for each query"),
        ("mrgsrec", "a user's row and its history together"),
        ("selfgnn", "a user's row and its history together"),
    ],
)
def test_a_method_that_cannot_serve_says_why(log, tmp_path, method, reason):
    config = make_config(log, method)
    with pytest.raises(InputError, match=f"{method} cannot be exported.*{reason}"):
        export.export(config, str(tmp_path), str(tmp_path / "a.safetensors"))
    assert not list(tmp_path.iterdir())


def test_the_export_alone_fits_counts_on_all_rows(log, tmp_path, monkeypatch):
    """They leave no checkpoint: what training fitted would be lost."""
    fits, fit = [], baselines.fit
    monkeypatch.setattr(baselines, "fit", lambda *x: fits.append(x) or fit(*x))
    config = make_config(log, "mostpop")
    config.final.fit = "all"
    for times in (1, 1):  # a finished run fits nothing
        experiment.train_and_evaluate(config, str(tmp_path / "run"))
        assert len(fits) == times
    export.export(config, str(tmp_path / "run"), str(tmp_path / "a.safetensors"))
    made = artifact.read(tmp_path / "a.safetensors")
    assert made.manifest["data"]["rows"] == "all" and made.counts[1:].all()


def test_every_other_method_serves(log):
    refused = {"random", "poprnd", "mrgsrec", "selfgnn"}
    for method in methods.METHODS.keys() - refused:
        assert not export.unservable(make_config(log, method)), method
