"""The picture and the events of a run, where their extras are installed."""

import json

import pytest

from create_jax import curves
from create_jax.files import whole, write_text
from create_jax.writers import JsonLines

LINES = [
    {
        "stage": "select",
        "epoch": 1,
        "phase": "warmup",
        "loss": 0.5,
        "valid/ndcg@10": 0.0,
    },
    {
        "stage": "select",
        "epoch": 2,
        "phase": "joint",
        "loss": 7.5,
        "valid/ndcg@10": 0.1,
    },
    {"stage": "refit", "epoch": 1, "phase": "warmup", "loss": 0.4},
]


def test_the_lines_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for line in LINES:
        lines.write(line)
    assert curves.draw(lines.path, tmp_path / "curves.png", ["mrr", "ndcg@10"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_lines_there_is_no_picture(tmp_path):
    assert not curves.draw(
        tmp_path / "none.jsonl", tmp_path / "curves.png", ["mrr", "ndcg@10"]
    )
    assert not (tmp_path / "curves.png").exists()


def test_numbers_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is missing")
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for line in LINES:
        lines.write(line)
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()  # where @ is no letter for a name
    assert b"select/valid/ndcg_10" in written and b"refit/loss" in written


def test_a_disk_that_is_full_stops_a_run_and_does_not_hang_it(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is missing")
    resource = pytest.importorskip("resource", reason="no limits on this system")
    lines = JsonLines(tmp_path / "metrics.jsonl")
    record = {"stage": "s", "epoch": 1} | {f"a{n}": 0.5 for n in range(100)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="tensorboard"):
            lines.write(record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(KeyboardInterrupt), whole(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    with pytest.raises(OSError, match="file"), whole(path) as file:
        raise OSError(28, "No space left on device")  # as write() does: without a name
    with pytest.raises(OSError) as told, whole(tmp_path):
        pass
    assert told.value.filename == str(tmp_path)  # not that of the part of it
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_rewinding_drops_what_will_be_written_again(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for line in LINES:
        lines.write(line)
    with open(lines.path, "a") as file:
        file.write('{"stage": "refit", "epo')  # cut off by a kill
    lines.rewind(lambda line: line["stage"] != "refit")
    kept = [json.loads(text) for text in lines.path.read_text().splitlines()]
    assert kept == LINES[:2]
