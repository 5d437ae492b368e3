"""Studies: trials with a training that is a formula, so that they take no time."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from create_jax import cluster, config_file, methods, settings, train, tune
from create_jax.configs import table
from create_jax.errors import InputError, StorageError

optuna = pytest.importorskip("optuna", reason="the extra `tune` is not installed")


@pytest.fixture
def config(tmp_path):
    rows = [f"u{u},i{(u + t) % 9},{t}" for u in range(40) for t in range(u % 5, 16)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,item,time", *rows]))
    config = table.get_config("sasrec")
    config.data.path = str(path)
    config.tune.trials = 8
    config.tune.space = (
        ("optim.lr", "log", 1e-4, 1e-1),
        ("seq.dropout", "uniform", 0.0, 0.5),
        ("seq.blocks", "integer", 1, 4),
        ("train.batch", "choice", 64, 256, 512),
    )
    return config


def formula(config) -> float:
    """Best where dropout and blocks are small; the batch decides the rest."""
    score = 0.5 - config.seq.dropout / 4 - config.seq.blocks / 20
    return score + config.train.batch / 10_000


@pytest.fixture
def trained(monkeypatch):
    """Replaces training; the list gets (workdir's name, settings, ended early)."""
    calls = []

    def fit(run, stage, phases, log, holdout, should_end=None):
        assert stage == "select" and holdout.n_queries and len(log.users)
        best, early = formula(run.config), False
        for epoch in range(1, 16):
            early = early or should_end(epoch, best * epoch / 15)
            json.dumps(early)  # as the checkpoint does: no numpy.bool
        (run.workdir / "checkpoints").mkdir()
        one = run.config
        chosen = (one.optim.lr, one.seq.dropout, one.seq.blocks, one.train.batch)
        calls.append((run.workdir.name, chosen, early))
        progress = train.Progress(best_epoch=15, best_score=best, ended_early=early)
        return SimpleNamespace(progress=progress)

    monkeypatch.setattr(train, "fit", fit)
    return calls


def load(path: Path):
    return config_file.load(str(path))


def test_the_best_trial_becomes_a_config(config, trained, tmp_path, capsys):
    config.compare = ("mostpop",)  # of which best.py, a config of one method, has none
    path = tune.tune(config, str(tmp_path / "study"))
    assert len(trained) == 8
    start = (config.optim.lr, config.seq.dropout, config.seq.blocks, config.train.batch)
    assert trained[0][1] == start  # the config as it stands comes first
    for _, (lr, dropout, blocks, batch), _ in trained:
        assert 1e-4 <= lr <= 1e-1 and 0 <= dropout <= 0.5
        assert blocks in range(1, 5) and batch in (64, 256, 512)
    assert len({chosen for _, chosen, _ in trained}) == 8
    best = load(path)
    whole = [chosen for _, chosen, early in trained if not early]
    found = (best.optim.lr, best.seq.dropout, best.seq.blocks, best.train.batch)
    assert found in whole
    scores = []
    for chosen in whole:
        one = config.copy_and_resolve_references()
        one.seq.dropout, one.seq.blocks, one.train.batch = chosen[1:]
        scores.append(formula(one))
    assert formula(best) == max(scores)
    assert best.to_dict().keys() == config.to_dict().keys()
    assert best.compare == ()
    told = "--config.split.validation=none --config.train.epochs=15"
    assert told in path.read_text()
    assert not list((tmp_path / "study").glob("trial-*/checkpoints"))
    assert "--config=" in capsys.readouterr().out
    # Again: nothing to do. More trials: only those.
    tune.tune(config, str(tmp_path / "study"))
    assert len(trained) == 8
    config.tune.trials = 10
    tune.tune(config, str(tmp_path / "study"))
    assert [name for name, *_ in trained[8:]] == ["trial-0008", "trial-0009"]


def test_trials_are_a_table(config, trained, tmp_path, monkeypatch):
    whole, failing = tune.train.fit, 3

    def fit(run, *rest, **options):
        if run.workdir.name == f"trial-{failing:04d}":
            raise InputError("the loss is not a number")
        return whole(run, *rest, **options)

    monkeypatch.setattr(train, "fit", fit)
    path = tune.tune(config, str(tmp_path / "study"))
    with open(path.parent / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(9))
    assert float(rows[0]["seq.dropout"]) == config.seq.dropout
    states = [row["state"] for row in rows]
    assert states.pop(failing) == "fail" and set(states) == {"complete", "pruned"}
    assert rows[failing]["epoch"] == rows[failing][config.eval.select_by] == ""
    ended = [row for row in rows if row["state"] == "complete"]
    scores = [float(row[config.eval.select_by]) for row in ended]
    # The mean of the last five of fifteen epochs, of a score that rises from none.
    assert max(scores) == pytest.approx(formula(load(path)) * 13 / 15, rel=1e-5)
    assert all(row["epoch"] == "15" for row in ended)
    (path.parent / "trials.csv").unlink()  # as of a study of before
    tune.tune(config, str(tmp_path / "study"))
    assert (path.parent / "trials.csv").exists()


def test_best_says_what_was_chosen_and_config_json_the_rest(
    config, trained, tmp_path, monkeypatch
):
    config.tune.trials, config.eval.batch = 3, 77
    path = tune.tune(config, str(tmp_path / "study"))
    text = path.read_text()
    assert text.count("\n") < 22 and '"seq.dropout": ' in text and "batch" in text
    monkeypatch.chdir(path.parent)
    assert load(path) == load(path.name) and load(path).eval.batch == 77
    found = settings.flatten(load(path).to_dict())
    chosen = {key for key, *_ in config.tune.space}
    for key, value in settings.flatten(config.to_dict()).items():
        assert key in chosen or found[key] == value, key
    for key, kind in ((k, type(v)) for k, v in config.eval.items()):
        assert type(load(path).eval[key]) is kind, key  # tuples, not JSON's lists
    # A study that goes on with its log in another place: so does what it chose.
    moved = tmp_path / "moved.csv"
    moved.write_bytes(Path(config.data.path).read_bytes())
    config.data.path = str(moved)
    tune.tune(config, str(tmp_path / "study"))
    assert load(path).data.path == str(moved)
    (path.parent / "config.json").unlink()
    with pytest.raises(InputError, match="keep both files of a study together"):
        load(path)


def test_the_epochs_told_are_those_after_warm_up(config, trained, tmp_path):
    config.method, config.tune.trials, config.warmup.epochs = "create", 1, 10
    path = tune.tune(config, str(tmp_path / "study"))
    assert "after 5 joint epochs" in path.read_text()
    assert "--config.train.epochs=5\n" in path.read_text()


def test_a_warm_up_that_was_tuned_is_that_of_the_best_trial(
    config, monkeypatch, tmp_path
):
    def fit(run, *_, should_end):
        warmup = run.config.warmup.epochs
        progress = train.Progress(best_epoch=warmup + 4, best_score=warmup / 100)
        return SimpleNamespace(progress=progress)

    monkeypatch.setattr(train, "fit", fit)
    config.method, config.tune.trials, config.warmup.epochs = "create", 3, 10
    config.tune.space = (("warmup.epochs", "choice", 10, 30),)
    path = tune.tune(config, str(tmp_path / "study"))
    assert load(path).warmup.epochs == 30
    assert "--config.train.epochs=4\n" in path.read_text()


@pytest.mark.parametrize("end", [KeyboardInterrupt, cluster.Leaving])
def test_a_stopped_trial_is_continued_with_its_settings(
    config, monkeypatch, tmp_path, end
):
    calls = []

    def fit(run, *_, should_end):
        calls.append((run.workdir.name, run.config.seq.dropout))
        should_end(1, 0.1)
        if len(calls) == 3:
            raise end
        progress = train.Progress(best_epoch=1, best_score=0.1)
        return SimpleNamespace(progress=progress)

    monkeypatch.setattr(train, "fit", fit)
    config.tune.trials = 4
    with pytest.raises(end):
        tune.tune(config, str(tmp_path / "study"))
    tune.tune(config, str(tmp_path / "study"))
    assert calls[3] == calls[2] == ("trial-0002", calls[2][1])
    assert [name for name, _ in calls[3:]] == ["trial-0002", "trial-0003"]


def test_a_trial_of_another_process_is_left_to_it(config, trained, tmp_path):
    config.tune.trials = 2
    folder = tmp_path / "study"
    other = []

    def fit(run, *_, should_end):
        monkey.undo()  # while this trial is under way, another process comes
        with pytest.raises(InputError, match="no trial has ended"):
            config.tune.trials = 1
            tune.tune(config, str(folder))
        config.tune.trials = 2
        tune.tune(config, str(folder))
        other.extend(name for name, *_ in trained)
        progress = train.Progress(best_epoch=1, best_score=0.9)
        return SimpleNamespace(progress=progress)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(train, "fit", fit)
        tune.tune(config, str(folder))
    assert other == ["trial-0001"] and len(trained) == 1


def test_a_study_takes_any_seed(config, trained, tmp_path):
    config.seed, config.tune.trials = 2**32 - 1, 2
    tune.tune(config, str(tmp_path / "study"))
    assert len(trained) == 2


def test_what_a_trial_draws_follows_from_its_number(
    config, trained, tmp_path, monkeypatch
):
    """Not from when it was asked for, and by which process."""
    seeds, sampler, fit = [], optuna.samplers.TPESampler, train.fit

    def recorded(seed=None, **options):
        seeds.extend([] if seed is None else [seed])
        return sampler(seed=seed, **options)

    def stops(run, *rest, **options):
        if run.workdir.name == "trial-0001":
            raise KeyboardInterrupt
        return fit(run, *rest, **options)

    config.seed, config.tune.trials = 3, 3
    monkeypatch.setattr(optuna.samplers, "TPESampler", recorded)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "fit", stops)
        tune.tune(config, str(tmp_path / "study"))
    tune.tune(config, str(tmp_path / "study"))
    assert seeds == [3000, 3001, 3001, 3002]


def test_a_tuple_may_be_tuned(config, trained, tmp_path):
    config.method, config.tune.trials = "create", 2
    config.tune.space = (("align.projector_dims", "choice", (), (64,)),)
    for _ in range(2):  # again, from the journal
        path = tune.tune(config, str(tmp_path / "study"))
    assert load(path).align.projector_dims in ((), (64,))


def test_a_place_with_quotes_in_it_is_kept(config, trained, tmp_path):
    config.tune.trials = 1
    tune.tune(config, str(tmp_path / "study"))
    odd = tmp_path / "o'b\"rien.csv"
    odd.write_bytes(Path(config.data.path).read_bytes())
    config.data.path = str(odd)
    assert load(tune.tune(config, str(tmp_path / "study"))).data.path == str(odd)


def test_trials_without_promise_end_early(config, trained, tmp_path):
    config.tune.trials = 20
    tune.tune(config, str(tmp_path / "study"))
    assert any(early for *_, early in trained)
    assert not any(early for *_, early in trained[:5])


def test_settings_that_fail_do_not_end_a_study(config, trained, tmp_path, monkeypatch):
    config.tune.space = (("seq.heads", "choice", 1, 3),)  # of 64 dimensions
    config.tune.trials = 3
    best = load(tune.tune(config, str(tmp_path / "study")))
    assert best.seq.heads == 1

    def fails(*_, **__):
        raise InputError("the loss is not finite")

    monkeypatch.setattr(train, "fit", fails)
    with pytest.raises(InputError, match="more than 10 trials failed"):
        tune.tune(config, str(tmp_path / "other"))


def test_a_full_disk_is_no_fault_of_a_trial(config, trained, tmp_path, monkeypatch):
    config.tune.trials = 1
    full = StorageError("the checkpoint could not be saved")
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(train, "fit", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(StorageError):
            tune.tune(config, str(tmp_path / "study"))
    tune.tune(config, str(tmp_path / "study"))  # the same trial goes on
    assert [name for name, *_ in trained] == ["trial-0000"]


def test_a_trial_with_a_fault_does_not_stand_in_the_way(
    config, trained, tmp_path, monkeypatch
):
    """As of a model that the memory of the device does not hold."""
    config.tune.trials = 1
    with pytest.MonkeyPatch.context() as monkey:
        full = RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        monkey.setattr(train, "fit", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(RuntimeError, match="out of memory"):
            tune.tune(config, str(tmp_path / "study"))
    tune.tune(config, str(tmp_path / "study"))
    assert [name for name, *_ in trained] == ["trial-0001"]


def test_an_encoder_that_the_log_cannot_feed_fails_as_a_setting(
    config, trained, tmp_path
):
    config.method = "create"
    config.tune.space = (("graph.encoder", "choice", "ultragcn", "signed"),)
    config.tune.trials = 4  # the log has no ratings
    tune.tune(config, str(tmp_path / "study"))
    with open(tmp_path / "study" / "trials.csv") as file:
        states = {(row["graph.encoder"], row["state"]) for row in csv.DictReader(file)}
    assert states == {("ultragcn", "complete"), ("signed", "fail")}


@pytest.mark.parametrize(
    "entry, reason",
    [
        (("optim.speed", "log", 1e-3, 1e-2), "the name of a setting"),
        (("optim.lr", "square", 1e-3, 1e-2), "a kind out of"),
        (("optim.lr", "log", 0.0, 1e-2), "ends above 0"),
        (("optim.lr", "uniform", 1.0, 0.5), "a low and a higher end"),
        (("optim.lr", "uniform", 0.1, 0.5), "0.001 in it"),
        (("optim.lr", "uniform", "a", "b"), "the kind and numbers of a setting like"),
        (("optim", "uniform", 0.1, 0.5), "the name of a setting"),
        (("seq.blocks", "uniform", 1, 4), "the kind and numbers of a setting like 2"),
        (("seq.encoder", "log", 1, 4), "the kind and numbers of a setting like 'sas"),
        (("split.q_val", "uniform", 0.5, 0.95), "all trials of a study share"),
        (("eval.history", "choice", "full", "train"), "all trials of a study share"),
        (("seed", "integer", 0, 9), "all trials of a study share"),
        (("method", "choice", "sasrec", "gsau"), "all trials of a study share"),
        (("retrain.epochs", "choice", "best", "none"), "all trials of a study share"),
        (("loss.w_bt", "log", 0.01, 1.0), "which sasrec does not read"),
        (("train.mask", "uniform", 0.1, 0.9), "which sasrec does not read"),
        ("optim.lr", "(setting, kind, low, high)"),
    ],
)
def test_a_wrong_space_says_where(config, tmp_path, entry, reason):
    config.tune.space = (entry,)
    with pytest.raises(InputError) as caught:
        tune.tune(config, str(tmp_path / "study"))
    assert reason in str(caught.value) and "config.tune.space has" in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_what_cannot_be_tuned_is_refused(config, tmp_path):
    config.split.validation = "none"
    with pytest.raises(InputError, match="validation is 'none'"):
        tune.tune(config, str(tmp_path / "study"))
    counting = table.get_config("mostpop")
    with pytest.raises(InputError, match="nothing to tune"):
        tune.tune(counting, str(tmp_path / "study"))


def test_another_study_is_not_mixed_in(config, trained, tmp_path):
    config.tune.trials = 1
    tune.tune(config, str(tmp_path / "study"))
    config.tune.space = config.tune.space[:1]
    with pytest.raises(InputError, match="tune.space"):
        tune.tune(config, str(tmp_path / "study"))
    assert json.loads((tmp_path / "study" / "config.json").read_text())["config"]


def test_a_trial_taken_between_question_and_lock_is_the_others(
    config, trained, monkeypatch, tmp_path
):
    config.tune.trials = 3
    held, lock = [], tune._lock

    def first_is_taken(directory, number):
        if not held:
            held.append(lock(directory, number))  # by the other process, just before
            return None
        return lock(directory, number)

    monkeypatch.setattr(tune, "_lock", first_is_taken)
    tune.tune(config, str(tmp_path / "study"))
    assert [name for name, *_ in trained] == ["trial-0001", "trial-0002"]


def test_a_trial_that_ended_before_its_lock_fell_is_not_run_again(
    config, monkeypatch, tmp_path, request
):
    def stops(*_, **__):
        raise KeyboardInterrupt

    folder, lock = tmp_path / "study", tune._lock
    config.tune.trials = 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "fit", stops)
        tune.tune(config, str(folder))

    def ends_first(directory, number):
        if number == 0:  # by the process that had it, which then lets go of the lock
            file = optuna.storages.journal.JournalFileBackend(str(folder / "study.log"))
            storage = optuna.storages.JournalStorage(file)
            study = optuna.load_study(study_name="tune", storage=storage)
            study.tell(0, 0.1, skip_if_finished=True)
        return lock(directory, number)

    monkeypatch.setattr(tune, "_lock", ends_first)
    trained = request.getfixturevalue("trained")
    tune.tune(config, str(folder))
    assert [name for name, *_ in trained] == ["trial-0001"]


def test_processes_that_begin_at_once_have_one_first_trial(
    config, trained, monkeypatch, tmp_path
):
    """Whoever comes between the question and the answer waits for the lock."""
    folder, enqueue = tmp_path / "study", optuna.study.Study.enqueue_trial

    def locked(study, *arguments):
        assert tune.lock(folder / "lock") is None
        enqueue(study, *arguments)

    monkeypatch.setattr(optuna.study.Study, "enqueue_trial", locked)
    config.tune.trials = 1
    tune.tune(config, str(folder))
    assert [name for name, *_ in trained] == ["trial-0000"]


def test_what_another_dimension_turns_on_may_be_tuned(config):
    choice = ("loss.local", "choice", "ce", "bce")
    negatives = ("loss.negatives", "integer", 16, 512)
    config.tune.space = (choice, negatives)
    assert [one.key for one in tune.make_space(config)] == ["loss.local", negatives[0]]
    config.tune.space = (negatives,)
    with pytest.raises(InputError, match="loss.negatives, which sasrec does not read"):
        tune.make_space(config)


def test_the_default_space_is_that_of_the_encoders():
    def keys(method, **changes):
        config = table.get_config(method)
        config.update_from_flattened_dict(changes)
        return {one.key.split(".", 1)[1] for one in tune.make_space(config)}

    both = {"lr", "dropout", "w_global", "w_bt", "bt.lambda", "stop_grad", "epochs"}
    assert keys("create") == both  # UltraGCN's user row has one source and no layers
    lightgcn = {"graph.encoder": "lightgcn"}
    assert keys("create", **lightgcn) == both | {"user_source", "lightgcn.layers"}
    assert keys("create", **{"align.kind": "none"}) == both - {
        *("w_bt", "bt.lambda", "stop_grad"),
    }
    assert keys("sasrec") == {"lr", "dropout"} and keys("lightgcn") == {"lr"}


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_reads_the_space_of_its_config(method):
    if methods.find(method).kind != "free":
        assert tune.make_space(table.get_config(method))
