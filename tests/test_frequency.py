"""Differences by group, against the rows of a log counted by hand."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_loaders import SHARED

from benchmarks import frequency
from create_jax import protocol
from create_jax.configs import table

ROOT = Path(__file__).parents[1]
LOGS = {
    "BEAUTY": SHARED / "amazon-beauty" / "reviews_Beauty_5.json.gz",
    "SPORTS": SHARED / "amazon-sports" / "reviews_Sports_and_Outdoors_5.json.gz",
    "ML1M": SHARED / "ml-1m" / "ml-1m-rebuilt.zip",
}
RUNS = ("one/seed-0", "one/seed-1", "other/seed-0")


@pytest.fixture(scope="module")
def log():
    """Rows (user, item, time): 150 users, of whom all learn early, and ask late."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(150):
        early = 4 * (2 + user % 3)  # four in five rows, before a gap of times
        for late in (0, 1):
            for _ in range(early if not late else early // 4):
                item = int(300 * rng.random() ** 3)
                rows.append((user, item, 10**6 * late + len(rows)))
    return rows


@pytest.fixture(scope="module")
def runs(log, tmp_path_factory):
    """What is read of finished runs: their config, and ranks drawn at random."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(1)
    lines = [
        "user,item,time",
        *(f"{user:03},{item},{time}" for user, item, time in log),
    ]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    config = table.get_config("sasrec")
    config.data.path = str(folder / "log.csv")
    log = protocol.load(config)
    result = protocol.describe(config, log, protocol.make_split(config, log))
    result |= {"method": "sasrec", "seed": 0, "test": {}, "test_by_target": {}}
    config = config.to_dict()
    for run in RUNS:
        (folder / run).mkdir(parents=True)
        (folder / run / "result.json").write_text(json.dumps(result))
        (folder / run / "config.json").write_text(json.dumps({"config": config}))
        ranks = rng.integers(0, 300, 150)
        np.savez(folder / run / "ranks.npz", last=ranks, last_users=np.arange(150))
    return folder


def test_groups_are_those_of_the_rows(log, runs, monkeypatch):
    monkeypatch.setattr(frequency, "FEWEST", 20)
    learned = Counter(item for _, item, time in log if time < 10**6)
    last, rows = {}, Counter()
    for user, item, _ in sorted(log, key=lambda row: row[2]):
        last[user] = item
        rows[user] += 1
    hits = []
    for run in RUNS:
        with np.load(runs / run / "ranks.npz") as file:
            hits.append(100 * (file["last"] < 100))

    expected = []
    both = (lambda user: learned[last[user]]), (lambda user: rows[user] - 1)
    for count, edges in zip(both, frequency.GROUPS.values(), strict=True):
        for first, end in zip(edges, [*edges[1:], 10**9], strict=True):
            users = [user for user in last if first <= count(user) < end]
            if len(users) >= 20:
                zero, one, other = (values[users].mean() for values in hits)
                mean = (zero + one) / 2
                name = f"{first} to {end - 1}" if end < 10**9 else f"{first} or more"
                about = f"| {name} | {len(users)} | recall@100 | {mean:.2f} | "
                expected.append(about + f"{other - mean:+.2f} (")
    printed = frequency.tables(runs, ["one", "other"], str(runs / "log.csv"))
    found = [line for line in printed.splitlines() if "recall@100" in line]
    for line, start in zip(found, expected, strict=True):
        assert line.replace("*", "").startswith(start)
    assert len(found) >= 5


def test_another_log_is_refused(runs, capsys):
    other = runs / "other.csv"
    lines = (runs / "log.csv").read_text().splitlines()
    other.write_text("\n".join(line for line in lines if line[:4] != "007,") + "\n")
    arguments = [str(runs), "one", "other"]
    assert frequency.main([*arguments, f"--path={other}"]) == 2
    assert "its test queries are others" in capsys.readouterr().err
    assert frequency.main([*arguments, "third", f"--path={runs / 'log.csv'}"]) == 2
    assert "third: found no finished run" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        frequency.main([str(runs), "one", f"--path={runs / 'log.csv'}"])
    assert "found one system, one; expected two or more" in capsys.readouterr().err


@pytest.mark.parametrize("rule, value", [("history", "train"), ("ties", "random")])
def test_runs_of_another_protocol_are_refused(rule, value, runs, tmp_path, capsys):
    """Their targets or histories are others, even if users are the same."""
    shutil.copytree(runs, tmp_path / "runs")
    file = tmp_path / "runs/other/seed-0/result.json"
    result = json.loads(file.read_text())
    assert result["protocol"][rule] != value
    result["protocol"][rule] = value
    file.write_text(json.dumps(result))
    arguments = [str(tmp_path / "runs"), "one", "other"]
    assert frequency.main([*arguments, f"--path={runs / 'log.csv'}"]) == 2
    assert "other/seed-0: its test queries are others" in capsys.readouterr().err


def test_runs_that_were_tested_at_less_are_refused(runs, tmp_path, capsys):
    """Packed, their ranks would make every miss a hit."""
    shutil.copytree(runs, tmp_path / "runs")
    for file in tmp_path.glob("**/result.json"):
        result = json.loads(file.read_text())
        result["protocol"]["ks"] = [5, 20]
        file.write_text(json.dumps(result))
    arguments = [str(tmp_path / "runs"), "one", "other"]
    assert frequency.main([*arguments, f"--path={runs / 'log.csv'}"]) == 2
    assert "its ranks are kept up to 20, and @100 was asked" in capsys.readouterr().err


@pytest.mark.services  # three logs are read
@pytest.mark.skipif(
    not all(path.exists() for path in LOGS.values()),
    reason="needs the real data in ../shared/data",
)
def test_the_printed_tables_are_those_of_the_runs(monkeypatch):
    page = ROOT / "results" / "frequency" / "README.md"
    commands = re.findall(
        r"^\{? ? ?frequency (results.*) --path=(\w+)$", page.read_text(), re.M
    )
    assert len(commands) == 11
    monkeypatch.chdir(ROOT)
    made = [
        frequency.tables(Path(place), systems, str(LOGS[log]))
        for (place, *systems), log in ((words.split(), log) for words, log in commands)
    ]
    assert "".join(made) == page.with_name("tables.md").read_text()
