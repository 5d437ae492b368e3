"""The pure parts of a run."""

import subprocess

import pytest

from create_jax import config_file, experiment, rundir
from create_jax.configs import table
from create_jax.errors import InputError
from create_jax.steps import Phase
from create_jax.writers import write_json

WARMUP = Phase("warmup", 50, 0.0, 1.0, 0.0)
JOINT = Phase("joint", 300, 1.0, 0.1, 0.2)


@pytest.mark.parametrize(
    "phases, best, share, expected",
    [
        ([WARMUP, JOINT], 55, 1.0, [50, 5]),
        ([WARMUP, JOINT], 55, 0.9, [45, 4]),  # and not 50 of the 50 epochs of warm-up
        ([WARMUP, JOINT], 51, 0.4, [20, 1]),
        ([WARMUP._replace(epochs=1), JOINT], 2, 0.4, [1, 1]),
        ([JOINT], 10, 0.75, [8]),
        ([JOINT], 300, 1.0, [300]),
    ],
)
def test_a_refit_has_a_share_of_every_phase(phases, best, share, expected):
    short = experiment.shorten(phases, best, share)
    assert [phase.epochs for phase in short] == expected
    assert [phase.name for phase in short] == [phase.name for phase in phases]


@pytest.mark.parametrize(
    "method, old, new, differs",
    [
        ("sasrec", {"warmup.epochs": 5}, {}, ""),  # as quickstart's SASRec once had
        ("create", {"warmup.epochs": 5}, {}, "warmup.epochs was 5, is 10"),
        ("sasrec", {"split.validation": "by_time"}, {}, ""),  # the default was this
        ("sasrec", {}, {"split.validation": "none"}, "validation was 'by_time', is 'n"),
        # Leave-one-out did the same whatever it was asked for.
        (
            "sasrec",
            {"split.kind": "leave_one_out", "split.validation": "by_time"},
            {"split.kind": "leave_one_out", "split.q_val": 0.7},
            "",
        ),
    ],
)
def test_a_run_continues_under_what_does_the_same(tmp_path, method, old, new, differs):
    old, new = (config_file.make("table", one, method) for one in (old, new))
    write_json(tmp_path / "config.json", {"config": old.to_dict(), "data": ""})
    (tmp_path / "metrics.jsonl").touch()  # something was trained
    if not differs:
        rundir.refuse_other_config(tmp_path, new, rundir.FREE_TO_CHANGE)
        return
    with pytest.raises(InputError, match=differs):
        rundir.refuse_other_config(tmp_path, new, rundir.FREE_TO_CHANGE)


def test_work_without_its_config_is_nobody_s(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match="result.json and no config.json"):
        rundir.refuse_other_data(tmp_path, {"fingerprint": "0"})


RESULT = {"method": "sasrec", "protocol": {}, "valid": {}, "test": {}}


@pytest.mark.parametrize("result", [[], {}, "text", {"method": "sasrec"}, RESULT])
def test_json_that_is_no_result_is_refused(tmp_path, result):
    write_json(tmp_path / "result.json", result)
    with pytest.raises(InputError, match="no result of a run"):
        rundir.read_result(tmp_path)


def test_times_of_1970_are_named(capsys):
    config = table.get_config("mostpop")
    data = {"times": ["1970-01-04T00:00:00", "1970-12-26T00:00:00"]}
    rundir.warn_of_odd_times(config, data)
    assert "has_clock=False" in capsys.readouterr().err
    rundir.warn_of_odd_times(config, {"times": ["1970-01-04", "2017-01-01"]})
    assert not capsys.readouterr().err


def test_the_commit_is_of_this_package_and_not_of_what_is_around_it(
    tmp_path, monkeypatch
):
    def git(*words):
        own = "-c", "user.name=a", "-c", "user.email=a@b"
        subprocess.run(["git", *own, *words], cwd=tmp_path, check=True)

    place = tmp_path / "venv/create_jax/rundir.py"
    place.parent.mkdir(parents=True)
    place.touch()
    monkeypatch.setattr(rundir, "__file__", str(place))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert rundir.git_commit() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "of a project with an environment")
    assert rundir.git_commit() is None
    git("add", ".")
    git("commit", "-q", "-m", "of the package")
    assert len(rundir.git_commit()) == 40
