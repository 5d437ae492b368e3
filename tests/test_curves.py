"""The picture and the events of a run, where their extras are installed."""

import json

import pytest

from create_jax import curves
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
    assert curves.draw(lines.path, tmp_path / "curves.png", "ndcg@10")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_lines_there_is_no_picture(tmp_path):
    assert not curves.draw(tmp_path / "none.jsonl", tmp_path / "curves.png", "ndcg@10")
    assert not (tmp_path / "curves.png").exists()


def test_numbers_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is missing")
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for line in LINES:
        lines.write(line)
    lines.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()  # where @ is no letter for a name
    assert b"select/valid/ndcg_10" in written and b"refit/loss" in written


def test_rewinding_drops_what_will_be_written_again(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for line in LINES:
        lines.write(line)
    with open(lines.path, "a") as file:
        file.write('{"stage": "refit", "epo')  # cut off by a kill
    lines.rewind(lambda line: line["stage"] != "refit")
    kept = [json.loads(text) for text in lines.path.read_text().splitlines()]
    assert kept == LINES[:2]
