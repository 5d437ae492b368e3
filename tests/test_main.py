"""The command line: bad input ends with one line and code 2, and leaves nothing."""

import gzip
import json
import os
import resource
import sys
from pathlib import Path

import jax
import pytest
from conftest import FAST

from create_jax import checkpoint, cluster, main

ROOT = Path(__file__).parent.parent
# 20 users who meet items u % 5, 6 and 7 in this order.
LOG = [
    f"{u},{i},{1000 * t + u}" for u in range(20) for t, i in enumerate((u % 5, 6, 7))
]


def in_child(folder, arguments, most_bytes):
    """The command, with the standard streams in files."""
    os.chdir(folder)
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    os.environ.pop("CREATE_JAX_DATA", None)
    # One device, and no optimization: as conftest.py.
    os.environ["XLA_FLAGS"] = FAST
    jax.config.update("jax_disable_most_optimizations", True)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["main", *arguments]
    main.run()


@pytest.fixture
def command(tmp_path, fork, monkeypatch):
    """Runs the command in an empty directory -> exit code, stdout, stderr."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments, most_bytes=0):  # of a file, as if the disk were full
        child = fork(target=in_child, args=(folder, arguments, most_bytes))
        child.start()
        child.join(60)
        texts = [Path(f"{folder}.{name}") for name in ("out", "err")]
        printed = [text.read_text() for text in texts]
        for text in texts:
            text.unlink()
        return child.exitcode, *printed

    return run


def table(path, rows=LOG, header="user,item,time"):
    Path(path).write_text("\n".join([header, *rows]) + "\n")
    return f"--config.data.path={path}"


def config(name):
    return f"--config={ROOT}/configs/{name}.py"


def write_gzip(name, data, cut=0):
    packed = gzip.compress(data)
    Path(name).write_bytes(packed[: len(packed) - cut])


def no_config():
    return []


def missing_config():
    return ["--config=configs/nothing.py"]


def missing_data():
    return [config("beauty")]


def missing_log():
    return [config("table"), "--config.data.path=nothing.csv"]


def no_path():
    return [config("table")]


def truncated_gzip():
    write_gzip("log.csv.gz", ("user,item,time\n" + "\n".join(LOG * 50)).encode(), 20)
    return [config("table"), "--config.data.path=log.csv.gz"]


def corrupt_zip():
    Path("ml-1m.zip").write_bytes(b"PK\x03\x04 and then nothing of a zip")
    return [config("ml1m"), "--config.data.path=ml-1m.zip"]


def malformed_json():
    row = {"reviewerID": "a", "asin": "b", "unixReviewTime": 1}
    lines = [json.dumps(row), json.dumps(row), '{"reviewerID": "a", "asin"']
    write_gzip("beauty.json.gz", "\n".join(lines).encode())
    return [config("beauty"), "--config.data.path=beauty.json.gz"]


def malformed_row():
    return [config("table"), table("log.csv", [*LOG, "1,2"])]


def misnamed_column():
    return [config("table"), table("log.csv", header="user,product,time")]


def bad_time():
    return [config("table"), table("log.csv", [*LOG, "1,2,yesterday"])]


def negative_time():
    return [config("table"), table("log.csv", [*LOG, "1,2,-5"])]


def future_time():
    return [config("table"), table("log.csv", [*LOG, "1,2,9999999999"])]


def empty_log():
    return [config("table"), table("log.csv", [])]


def one_user():
    return [config("table"), table("log.csv", ["1,2,3", "1,3,4", "1,4,5"])]


def one_item():
    return [config("table"), table("log.csv", ["1,2,3", "2,2,4", "3,2,5"])]


def no_query():
    rows = [f"{u},{u % 3},{u}" for u in range(20)]
    return [config("table"), table("log.csv", rows)]


def other_counts():
    rows = [
        {"reviewerID": u, "asin": i, "unixReviewTime": 1} for u in "ab" for i in "xy"
    ]
    write_gzip("beauty.json.gz", "\n".join(map(json.dumps, rows)).encode())
    return [config("beauty"), "--config.data.path=beauty.json.gz"]


def unknown_method():
    return [config("beauty") + ":transformer"]


def unknown_key():
    return [config("beauty"), "--config.seq.head=2"]


def wrong_type():
    return [config("beauty"), "--config.seq.heads=many"]


def out_of_range():
    return [config("beauty"), "--config.seq.dropout=1.5"]


def heads_do_not_divide():
    return [config("beauty"), "--config.seq.heads=7"]


def unknown_mode():
    return [config("beauty"), "--mode=fly"]


def stray_argument():
    return [config("beauty"), "train"]


def workdir_below_a_file():
    Path("file").write_text("")
    return [config("table"), table("log.csv"), "--workdir=file/run"]


def save_of_a_training():
    return [config("table"), table("log.csv"), "--save=there"]


def profile_past_the_end():
    return [config("beauty"), "--config.train.epochs=20", "--profile=31"]


def profile_of_what_nothing_trains():
    return [config("beauty") + ":mostpop", "--profile=1"]


def profile_of_no_epoch():
    return [config("beauty"), "--profile=0"]


def profile_of_a_ranking():
    return [config("beauty"), "--profile=1", "--mode=evaluate"]


def nothing_to_evaluate():
    return [config("table"), table("log.csv"), "--mode=evaluate"]


# What a user needs to read: what was found, where, what was expected or what to do.
CASES = {
    no_config: ["--config is missing"],
    missing_config: ["configs/nothing.py"],
    missing_data: ["data/amazon-beauty/reviews_Beauty_5.json.gz", "create_jax.fetch"],
    missing_log: ["nothing.csv", "check the path"],
    no_path: ["--config.data.path=FILE"],
    truncated_gzip: ["log.csv.gz"],
    corrupt_zip: ["ml-1m.zip"],
    malformed_json: ["beauty.json.gz:3"],
    malformed_row: ["log.csv:62"],
    misnamed_column: ["log.csv", "item", "product"],
    bad_time: ["log.csv:62", "yesterday"],
    negative_time: ["log.csv:62", "-5"],
    future_time: ["log.csv:62", "9999999999"],
    empty_log: ["log.csv", "empty"],
    one_user: ["log.csv", "1 user"],
    one_item: ["log.csv", "1 item"],
    no_query: ["no test query left", "split.q_test"],
    other_counts: ["2 users", "22,363 users"],
    unknown_method: ["transformer", "sasrec"],
    unknown_key: ["head", "heads"],
    wrong_type: ["many"],
    out_of_range: ["config.seq.dropout is 1.5", "below 1"],
    heads_do_not_divide: ["config.seq.heads is 7", "divisor of model.dim = 64"],
    unknown_mode: ["fly", "describe"],
    stray_argument: ["train"],
    workdir_below_a_file: ["file/run", "--workdir"],
    save_of_a_training: ["--save goes with --mode=evaluate", "--mode=train"],
    profile_past_the_end: ["--profile=31", "create trains for 30 epochs at most"],
    profile_of_what_nothing_trains: ["--profile=1", "mostpop trains for 0 epochs"],
    profile_of_no_epoch: ["--profile"],
    profile_of_a_ranking: ["--profile", "--mode=train", "evaluate"],
    nothing_to_evaluate: ["no finished run", "--mode=train"],
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_ends_with_one_line_and_code_2(case, command):
    arguments = case()
    here = Path.cwd()
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for text in CASES[case]:
        assert text in err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_a_full_disk_is_named_and_the_run_continues(command):
    run = [config("table") + ":lightgcn", table("log.csv"), "--workdir=run"]
    run += ["--config.model.dim=512", "--config.train.epochs=2"]
    run += ["--config.split.validation=none", "--config.checkpoint.seconds=0"]
    code, _, err = command(*run, most_bytes=32 * 1024)
    assert code == 2 and "Traceback" not in err, err
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and f"{Path.cwd()}/run/checkpoints" in last, err
    assert not Path("run/result.json").exists()
    code, _, err = command(*run)
    assert code == 0 and Path("run/result.json").exists(), err


def test_another_config_or_other_data_is_refused(command):
    run = [config("table") + ":random", table("log.csv"), "--workdir=run"]
    code, out, err = command(*run, "--config.seeds=0,1")
    assert code == 0 and "ndcg@10" in out and "±" in out, err
    code, _, err = command(*run, "--config.seeds=0,1", "--config.split.q_test=0.7")
    assert code == 2 and "split.q_test was 0.8, is 0.7" in err
    table("log.csv", [*LOG, "3,1,50"])
    code, out, err = command(*run, "--config.seeds=0,1,2")  # no mean over two logs
    assert (code, out) == (2, "") and "run-0 was trained on other data" in err
    assert not Path("run-2").exists()


def test_methods_to_compare_have_their_own_defaults(monkeypatch):
    given = ["--config=beauty:svd", "--config.compare=gsau,lightgcn"]
    given += ["--config.seeds=3,4", "--config.train.batch=64"]
    monkeypatch.setattr(sys, "argv", ["main", *given])
    main.parse_flags(sys.argv)
    assert main.config_for().compare == ("gsau", "lightgcn")
    found = main.runs_of(["svd", "gsau", "lightgcn"])
    runs = {main.workdir(run): run for run in found}
    names = [f"{m}-{s}" for m in ("svd", "gsau", "lightgcn") for s in (3, 4)]
    assert list(runs) == [f"runs/beauty-{name}" for name in names]
    gsau, lightgcn = runs["runs/beauty-gsau-4"], runs["runs/beauty-lightgcn-3"]
    assert (gsau.graph.encoder, gsau.loss.local) == ("lightgcn", "gsau")
    assert (gsau.method, gsau.seed, lightgcn.train.patience) == ("gsau", 4, 50)
    assert {run.train.batch for run in found} == {64}
    assert main._apart("there/", gsau) == main._apart("there", gsau) == "there-gsau-4"


def test_what_would_be_another_method_is_refused(command):
    arguments = ["--config=table", "--config.compare=gsau", "--config.loss.local=ce"]
    code, out, err = command(*arguments, table("log.csv"))
    assert (code, out) == (2, "")
    assert "config.loss.local is 'ce'; expected gsau, for gsau" in err


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_process_is_no_mistake(monkeypatch, lost):
    """Its end comes as a TimeoutError, which is an OSError, where a save was waited
    for."""
    text = "Timed out while waiting for async_write_complete barrier."
    error = TimeoutError(text) if lost else OSError(28, "no space", "file")

    def fail(_):
        raise checkpoint._cannot_save("place", error) if lost else error

    ended = []
    monkeypatch.setattr(main, "begin", list)
    monkeypatch.setattr(main, "_mute_background_threads", lambda: None)
    monkeypatch.setattr(main, "main", fail)
    monkeypatch.setattr(cluster, "listen", lambda: None)
    monkeypatch.setattr(cluster, "count", lambda: 2)
    monkeypatch.setattr(cluster, "stop", lambda *told: ended.append(told) or sys.exit())
    with pytest.raises(SystemExit):
        main.run()
    ((message, code),) = ended
    assert code == (1 if lost else 2)
    assert ("another process has ended" in message) == lost
