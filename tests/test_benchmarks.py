"""What the harness gives to all sides, and how it reads their answers."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from benchmarks import accelerator, huge
from benchmarks import protocol as grid
from benchmarks.speed import limit, run, scaling, tables
from benchmarks.speed.sides import worker
from create_jax import experiment, protocol, report
from create_jax.configs import table
from create_jax.data import packing
from create_jax.data.interactions import Interactions


def make_log():
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 40, 600)).astype(np.int32)
    names = (
        pl.Series([str(n) for n in range(40)]),
        pl.Series([str(n) for n in range(30)]),
    )
    items = (1 + 30 * rng.random(600) ** 4).astype(np.int32)  # some are rare
    times = rng.integers(0, 1000, 600)
    order = np.lexsort((times, users))
    return Interactions(users, items[order], times[order], *names)


def test_all_sides_learn_and_are_asked_the_same_items():
    config = table.get_config("sasrec")
    config.seq.max_len, config.split.validation = 3, "none"
    split = protocol.make_split(config, make_log())
    fields, facts = run.prepare(config, split)
    data = worker.Data(**fields)
    log, holdout = split.refit, split.test["last"]

    # Items that a sequence model learns from, in the order of their ids.
    histories = [log.items[log.users == user] for user in range(log.n_users)]
    newest = [items[-4:] for items in histories if len(items) > 1]
    known = sorted(set(np.concatenate(newest).tolist()))
    assert data.n_items == facts["items"] == len(known) < 30
    assert facts["targets"] == sum(len(items) - 1 for items in newest)
    for user, items in enumerate(histories):
        expected = [known.index(i) + 1 for i in items if i in known]
        assert data.items[data.users == user].tolist() == expected

    asked = iter(range(len(data.targets)))
    for q in range(holdout.n_queries):
        history = holdout.log[holdout.begin[q] : holdout.end[q]]
        expected = [known.index(i) + 1 for i in history if i in known]
        if not expected:
            continue
        n = next(asked)
        assert data.log[data.begin[n] : data.end[n]].tolist() == expected
        target = holdout.targets[q]
        number = known.index(target) + 1 if target in known else 0
        assert data.targets[n] == number
    assert next(asked, None) is None
    query, item = worker.query_rows(data)
    assert item[query == 2].tolist() == data.log[data.begin[2] : data.end[2]].tolist()


def test_the_metric_of_all_sides_is_ndcg_at_ten():
    top = np.array([[3, 1, *range(10, 18)], [5, 2, *range(20, 28)], [0] * 10])
    found = worker.ndcg(top, np.array([1, 9, 4]))
    np.testing.assert_allclose(found, 1 / np.log2(3) / 3)
    assert worker.ndcg(top, np.array([0, 0, 0])) == 0  # an item nobody can know


def answers(seconds, tokens=1000):
    return {
        "ready": {"versions": {"a": "1"}},
        "warm": {"seconds": 9.0, "tokens": tokens},
        "first_evaluation": {"seconds": 2.0},
        "epochs": [{"seconds": s, "tokens": tokens} for s in seconds],
        "evaluations": [{"seconds": 0.5, "ndcg": 0.25}] * len(seconds),
        "memory": {"bytes": 2**31},
    }


def test_ratios_are_of_turns_and_targets_are_met_or_missed():
    found = {"ours": answers([1.0, 2.0, 1.0]), "rectools": answers([30.0, 20.0, 25.0])}
    assert tables.pairs(found, "rectools", "ours").tolist() == [30, 10, 25]
    text = tables.targets({"beauty": {"sides": found}}, {})
    assert "| >= 20 | 25 [10..30] | met |" in text
    assert (
        "evaluation over epoch, ours, beauty | <= 0.1 | 0.5 [0.5..0.5] | **missed**"
        in text
    )
    assert "| ours | 1 [1..2] | 1,000 | 0.5 [0.5..0.5] | 2.00 | 9.5 | 0.2500 | 4 |" in (
        tables.sides(found)
    )


def test_the_goal_on_an_accelerator_is_said_once_and_the_other_page_points_to_it():
    folder = Path(tables.__file__).parents[1]
    page = (folder / "speed/RESULTS.md").read_text()
    assert all("| " + " | ".join(row) + " |" in page for row in tables.OTHER_TARGETS)
    said = accelerator.beauty.__doc__
    assert said in (folder / "ACCELERATOR.md").read_text()
    goal = int(re.search(r"The goal is (\d+) seconds", said)[1])
    lines = (folder / "accelerators/h200.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if line["step"] == "beauty"]
    took = {x["what"]: x["found"]["seconds"]["train"] for x in found if "what" in x}
    assert took["sasrec"] <= goal < took["create"]  # as the pages say


def test_growth_is_from_each_size_to_the_next():
    items = [
        {"items": 10**5, "step": 0.5, "peak": 5, "base": 1, "state": 2},
        {"items": 10**6, "step": 6.0, "peak": 4 * 2**30, "base": 2**30, "state": 2**30},
    ]
    edges = [{"rows": 10**5, "step": 1.0}, {"rows": 10**6, "error": "no memory"}]
    (row,) = tables.growth({"items": items, "edges": edges})
    assert row[1:] == ["100,000", "1,000,000", "0.5 -> 6", 12.0]
    text = tables.targets({}, {"items": items})
    assert "tables and moments | <= 1 | 2 [2..2] | **missed**" in text
    assert "100,000 to 1,000,000 | <= 11 | 12 [12..12] | **missed**" in text


def test_a_synthetic_log_has_its_rows_and_popular_items():
    users, items, times = map(
        np.concatenate, zip(*scaling.pieces(50_000, 1000), strict=True)
    )
    assert len(users) == len(items) == len(times) == 50_000
    lengths = np.bincount(users)
    assert lengths[:-1].min() >= 10 and lengths.max() <= 190
    counts = np.bincount(items, minlength=1001)
    assert counts[0] == 0 and counts[1] > 5 * counts[10] > 0
    again = next(iter(scaling.pieces(50_000, 1000)))
    np.testing.assert_array_equal(again[1], items)


def test_a_missing_peer_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(run.NEEDS, "replay", ("no_such_library",))
    assert run.main(["--peers=replay", "--data=quickstart"]) == 2
    said = capsys.readouterr().out
    assert "found no no_such_library" in said and said.count("\n") == 1


def test_the_nearest_protocol_is_the_one_that_prints_the_same():
    row = {"ndcg@10": [0.52, None], "coverage@10": [14.02, None]}
    exact = {"ndcg@10": 0.00524, "coverage@10": 0.14018}
    assert grid.distance(exact, row) == 0  # within the rounding of the print
    double = {"ndcg@10": 0.0104, "coverage@10": 0.1402}
    np.testing.assert_allclose(grid.distance(double, row), (0.52 - 0.005) / 1.04)
    paper = {"Amazon Beauty": {"SVD": row}}
    found = [
        dict(dataset="beauty", method="svd", target=t, switches={"a": 1}, metrics=m)
        for t, m in (("first", double), ("last", exact))
    ]
    ranked = grid.rank_cells(found, paper)
    assert [cell["target"] for _, cell, _ in ranked] == ["last", "first"]
    assert ranked[0][2] == {"svd": 0.0}


def test_the_limit_counts_what_the_mathematics_needs():
    config = table.get_config("sasrec")
    model = SimpleNamespace(n_items=100, graph=None, objective="next")
    state = SimpleNamespace(params=np.zeros((10, 10), np.float32))
    layout = packing.Layout(steps=3, shards=1, sequences=4, rows=2, length=20)
    feed = SimpleNamespace(sequences=(), layout=layout)
    prepared = SimpleNamespace(model=model, feed=feed, state=state)
    config.model.dim, config.seq.blocks, config.seq.feed_forward = 8, 2, 1
    found = limit.needed(config, prepared)
    dense, attention = 2 * 3 * 2 * 40 * 6 * 64, 2 * 3 * 2 * 40 * 2 * 20 * 8
    assert found["operations"] == dense + attention + 6 * 40 * 100 * 8
    assert found["bytes"] == 7 * 400
    assert found["exponentials"] == 40 * 100 + 2 * 40 * 20
    # A quarter hidden: of the last block's 6 d^2 those of keys and values, 2, stay.
    model.objective, model.mask_share = "masked", 0.25
    found = limit.needed(config, prepared)
    dense, attention = dense / 2 * (1 + (2 + 4 / 4) / 6), attention / 2 * (1 + 1 / 4)
    assert found["operations"] == dense + attention + 6 * 10 * 100 * 8
    assert found["exponentials"] == 10 * 100 + 40 * 20 + 10 * 20
    text = limit.report(0.5, {"bytes": 2e9}, {"bytes": 8e9})
    assert "| sum | | | 250.00 |" in text and "sum / step: 50%" in text


def test_the_nearest_cell_of_all_data_sets_is_the_nearest_on_average():
    ranked = [
        (0.1, {"dataset": "beauty", "target": "last"}, {}),
        (0.2, {"dataset": "beauty", "target": "first"}, {}),
        (0.2, {"dataset": "sports", "target": "first"}, {}),
        (0.5, {"dataset": "sports", "target": "last"}, {}),
    ]
    (near, cell, away), far = grid.join_cells(ranked)
    assert near == 0.2 and cell == {"target": "first"}
    assert away == {"beauty": 0.2, "sports": 0.2}
    np.testing.assert_allclose(far[0], 0.3)


def test_a_finished_run_is_ranked_under_other_rules(tmp_path):
    log = make_log()
    rows = zip(log.users, log.items, log.times, strict=True)
    lines = ["user,item,time", *(f"{u},{i},{t}" for u, i, t in rows)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    config = table.get_config("mostpop")
    config.data.path = str(tmp_path / "log.csv")
    result = experiment.train_and_evaluate(config, str(tmp_path / "run"))
    found = []
    for _ in range(2):  # the second time finds all done
        grid.measure_run(tmp_path / "run", found, lambda: None)
        assert len(found) == 4 * len(grid.TARGETS)
    (own,) = [
        one
        for one in found
        if one["target"] == "last"
        and one["switches"]["eval.history"] == config.eval.history
        and one["switches"]["eval.cold_items"] == config.eval.cold_items
    ]
    assert own["metrics"] == pytest.approx(result["test"], rel=1e-7)
    assert len({one["metrics"]["mrr@100"] for one in found}) > 4


def test_trained_runs_count_once_a_data_set():
    paper = report.paper_tables()["table 2"]

    def cell(data, method, times):
        row = paper[report.PAPER_DATA[data]][report.PAPER_SYSTEMS[method]]
        metrics = {key: times * mean / 100 for key, (mean, _) in row.items()}
        switches = {name: "x" for name in grid.CELL if name != "target"}
        one = dict(run=f"{data}-{method}", dataset=data, method=method, target="last")
        return one | dict(switches=switches, metrics=metrics), row

    cells = [cell("beauty", "sasrec", 2), cell("beauty", "create", 3)]
    cells.append(cell("sports", "sasrec", 1))
    a, b, c = (grid.distance(one["metrics"], row) for one, row in cells)
    assert a == pytest.approx(1, abs=0.01) and b == pytest.approx(2, abs=0.01)
    _, text = grid._trained_together([one for one, _ in cells])
    last = text.splitlines()[-1].strip("| ").split(" | ")[-3:]
    means = [(a + b) / 2, c, ((a + b) / 2 + c) / 2]
    assert last == [f"{mean:.3f}" for mean in means]


def test_a_dispatch_is_said_to_hold_what_its_feed_gives_it():
    """958 steps of 1,024 users in dispatches of at most 8: 120 dispatches of 7."""
    chunks, chunk = packing.equal_chunks(round(981_204 / 1024), most=8)
    users = SimpleNamespace(owners=range(981_204))
    feed = SimpleNamespace(sequences=users, steps=chunks * chunk, chunk_steps=chunk)
    assert huge.of_steps(feed) == {"steps a dispatch": 7, "users a step": 1168}
