"""The command: one question on the terminal, a whole log into Parquet."""

import json
import os
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from create_jax import artifact, bulk, recommend
from create_jax.artifact import Artifact, Texts, Users
from create_jax.configs import table
from create_jax.data import container
from create_jax.errors import InputError
from create_jax.files import alone, whole
from create_jax.recommender import Explanation, Recommender

NAMES = ["b01", "b02", "b03", "b04", "b05", "b06", "b07"]
TITLES = ["Alien", "Up, Up and Away", "Twins", "Twins", "Heat", "", "Never seen"]


def manifest(**changes) -> dict:
    config = json.loads(json.dumps(table.get_config("svd").to_dict()))
    about = {"method": "svd", "query": "sum", "needs": "history", "config": config}
    about |= {"protocol": {"filter_seen": True}, "data": {"fingerprint": "f"}}
    return about | changes


def make(**changes) -> Artifact:
    """Seven items, the last never trained; svd, so that no program is compiled."""
    items = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    made = Artifact(
        manifest=manifest(),
        items=items,
        ids=Texts.of(["", *NAMES]),
        titles=Texts.of(["", *TITLES]),
        counts=np.array([0, 5, 4, 3, 2, 7, 1, 0]),
    )
    return replace(made, **changes)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    artifact.write(path, make())
    return path


@pytest.fixture
def ask(model, capsys):
    """Options -> (exit code, rows of the table, what stderr says)."""

    def run(*options, file=model):
        code = recommend.main([str(file), *map(str, options)])
        out, err = capsys.readouterr()
        return code, [line.split("\t") for line in out.splitlines()], err

    return run


def expected(history, k, allowed=NAMES[:6]) -> list[str]:
    """Ids by falling score, computed here."""
    made = make()
    codes = [NAMES.index(name) + 1 for name in history]
    scores = made.items @ made.items[sorted(set(codes))].sum(0)
    left = [n for n in allowed if n not in history]
    return sorted(left, key=lambda n: -scores[NAMES.index(n) + 1])[:k]


# --- one question ---------------------------------------------------------------------


def test_a_history_by_ids_and_titles(ask):
    wanted = expected(["b01", "b05"], 3)
    code, rows, err = ask("--history=b01,b05", "--k=3")
    assert (code, err) == (0, "") and rows[0] == ["rank", "score", "id", "title"]
    assert [row[2] for row in rows[1:]] == wanted
    assert [row[3] for row in rows[1:]] == [TITLES[NAMES.index(n)] for n in wanted]
    for options in (
        ("--history=Alien", "--history=Heat"),
        ("--history=Alien,heat",),
        ("--history=ALIEN", "--history=b05", "--history="),
    ):
        assert ask(*options, "--k=3")[1] == rows
    _, rows, _ = ask("--history=Up, Up and Away", "--history=b01,b05", "--k=9")
    assert [row[2] for row in rows[1:]] == expected(["b01", "b02", "b05"], 9)
    assert len(rows) == 4  # fewer than k are left


def test_a_title_in_any_letters_is_found_among_many_like_it():
    titles = [*(f"It, part {n}" for n in range(300)), "It", "Amélie"]
    made = make(
        items=np.ones((1 + len(titles), 3), np.float32),
        ids=Texts.of(["", *(f"b{n}" for n in range(len(titles)))]),
        titles=Texts.of(["", *titles]),
        counts=np.array([0, *[9] * 300, 1, 1]),
    )
    recommender = Recommender(made)
    assert recommender.code("it") == 301 and recommender.code("amelie") == 302
    with pytest.raises(InputError, match="nearest: 'Amélie'$"):
        recommender.code("ameli")


def test_of_items_of_one_title_that_which_was_trained_is_meant():
    titles = Texts.of(["", *TITLES[:6], "Heat"])
    assert Recommender(make(titles=titles)).code("Heat") == 5
    assert Recommender(make(titles=titles)).code("heat") == 5


@pytest.mark.parametrize(
    "flag", ["--format=xml", "--time_unit=h", "--encoding=base64", "--encoding=no"]
)
def test_a_form_that_no_log_has_is_refused_before_anything(ask, log, tmp_path, flag):
    with pytest.raises(SystemExit, match="2"):
        ask(f"--log={log}", f"--out={tmp_path / 'recs'}", flag)
    assert not (tmp_path / "recs").exists()


def test_advice_on_a_log_names_the_flags_of_this_command(ask, tmp_path):
    log = tmp_path / "log.csv"
    log.write_bytes("user,item,time\n\xe9,b01,5\n".encode("latin-1"))
    options = f"--log={log}", f"--out={tmp_path / 'recs'}"
    assert "perhaps --encoding=latin-1" in ask(*options)[2]
    assert "error: --item_column is 'item'" in ask(*options, "--header=false")[2]


def test_a_reader_that_leaves_early_is_no_error(model):
    command = f"{sys.executable} -m create_jax.recommend {model} --history=b01 --k=1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        capture_output=True,
        text=True,
    )
    assert not done.stderr


def test_what_was_seen_may_come_again(ask):
    _, rows, _ = ask("--history=b01,b05", "--hide_history=false")
    assert {"b01", "b05"} < {row[2] for row in rows} and len(rows) == 7


def test_lists_of_what_may_come(ask, tmp_path):
    few, file = tmp_path / "few.txt", tmp_path / "many.txt"
    few.write_text("b02\n\nb03\nb04\nb07\nnew\n")
    _, rows, err = ask("--history=b01", f"--allow={few}")
    assert [row[2] for row in rows[1:]] == expected(["b01"], 9, ["b02", "b03", "b04"])
    assert "1 of 5 ids are not the model's, 'new' for one" in err
    file.write_text("b02\n")
    _, rows, _ = ask("--history=b01", f"--allow={few}", f"--exclude={file}")
    assert [row[2] for row in rows[1:]] == expected(["b01"], 9, ["b03", "b04"])
    file.write_text("\n".join(NAMES))
    code, _, err = ask("--history=b01", f"--allow={few}", f"--exclude={file}")
    assert code == 2 and "leave none" in err
    file.write_text("b07\n")  # never trained
    assert "leave none" in ask("--history=b01", f"--allow={file}")[2]
    assert "one id a line" in ask("--history=b01", f"--allow={tmp_path}")[2]
    for rule in ("--allow=", "--exclude="):  # as of a variable that is not set
        code, _, err = ask("--history=b01", rule)
        assert code == 2 and "a file without a name: " in err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "found no question; expected one of"),
        (["--history=b01", "--similar=b02"], "--history and --similar; expected one"),
        (["--history=b01", "--k=0"], "k is 0; expected a whole number from 1 to 1000"),
        (["--history=b01", "--k=1001"], "k is 1001"),
        (["--history=Aliem"], "no item has the id or title 'Aliem'; nearest: 'Alien'"),
        (["--history=b01,Aliem"], "'Aliem'; nearest: 'Alien'"),
        (["--history=Up, Up and Awey"], "'Up, Up and Awey'; nearest: 'Up, Up and Away"),
        (["--history=Twins"], "title of 2 items, 'b03', 'b04'; name one by its id"),
        (["--similar=Twins"], "title of 2 items"),
        (["--similar=b07"], "'b07' was never trained"),
        (["--user=u1"], "svd reads a history and knows no users"),
        (["--history=b01", "--out=x"], "--out goes with --log"),
        (["--log=x"], "--out goes with --log alone"),
        (["--log=nowhere.csv", "--out=x"], "nowhere.csv: No such file"),
        (["--log=x", "--out=x", "--part=2/2"], "--part is '2/2'; expected I/N"),
    ],
)
def test_a_mistake_is_one_line(ask, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, rows, err = ask(*options)
    assert code == 2 and not rows and message in err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 500


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "--similar=b01 --exclude=x",
            "--exclude has no effect with --similar; it goes",
        ),
        ("--similar=b01 --allow=x", "--allow has no effect with --similar"),
        ("--similar=b01 --vectors", "--vectors has no effect with --similar"),
        ("--similar=b01 --hide_history=true", "--hide_history has no effect with"),
        ("--similar=b01 --hide_history=false", "--hide_history has no effect with"),
        ("--similar=b01 --explain", "it goes with --history or with --user and --log:"),
        ("--user=u1 --explain", "--explain has no effect with --user; it goes with"),
        ("--log=x --out=x --explain", "--explain has no effect with --log; it goes"),
        ("--log=x --user=u1 --part=0/2", "--part has no effect with --user and --log"),
        ("--history=b01 --part=0/2", "--part has no effect with --history; it goes"),
        ("--history=b01 --format=csv", "--format has no effect with --history"),
        ("--similar=b01 --loader=table", "--loader has no effect with --similar"),
        ("--history=b01 --header=false", "--header has no effect with --history"),
        ("--history=b01 --vectors --k=3", "--k has no effect with --vectors"),
        ("--history=b01 --vectors --explain", "--explain has no effect with --vectors"),
        ("--log=x --out=x --vectors --allow=x", "--allow has no effect with --vectors"),
        (
            "--log=x --out=x --loader=movielens --time_unit=s",
            "--time_unit has no effect with --loader=movielens; it goes with",
        ),
    ],
)
def test_a_flag_without_effect_is_refused(ask, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, rows, err = ask(*options.split())
    assert code == 2 and not rows and message in err and "leave" in err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 500
    assert not Path("x").exists()


def test_a_damaged_file_is_one_line(ask, tmp_path, model):
    model.write_bytes(model.read_bytes()[:-3])
    code, _, err = ask("--history=b01")
    assert code == 2 and "cut off" in err and err.count("\n") == 1
    assert "check the path" in ask("--history=b01", file=tmp_path / "none")[2]


def test_an_empty_out_is_not_the_directory_one_is_in(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(Path().rglob("*"))
    code, _, err = ask("--log=log.csv", "--out=")
    assert code == 2 and "--out is empty" in err and sorted(Path().rglob("*")) == before


def test_without_a_known_history_come_the_most_popular(ask):
    for options in (["--history="], ["--history=b07"]):
        code, rows, err = ask(*options, "--k=3")
        assert code == 0 and [row[2] for row in rows[1:]] == ["b05", "b01", "b02"]
        assert "no known history: the most popular" in err


def test_similar_items_are_those_of_the_highest_cosine(ask):
    table = make().items[1:7]
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    order = np.argsort(-(table @ table[0]))[1:]
    code, rows, _ = ask("--similar=Alien")
    assert [row[2] for row in rows[1:]] == [NAMES[place] for place in order]
    assert float(rows[1][1]) == pytest.approx(table[order[0]] @ table[0], abs=1e-4)


def test_vectors_are_printed(ask):
    _, rows, _ = ask("--history=b01,b05", "--vectors")
    table = make().items
    np.testing.assert_allclose(json.loads(rows[0][0]), table[1] + table[5], rtol=1e-6)


def test_leave_one_out_is_true_of_the_model(ask):
    """Of PureSVD a history item gives just its inner product with the item."""
    recommender = Recommender(make())
    table, history = make().items, [1, 5, 2]
    found = recommender.explain(history, 3)
    np.testing.assert_allclose(
        found.score - found.scores, table[history] @ table[3], rtol=1e-5
    )
    for place, rank in enumerate(found.ranks):
        scores = table @ table[[h for h in history if h != history[place]]].sum(0)
        assert rank == 1 + (scores[[3, 4, 6]] > scores[3]).sum()
    again = recommender.explain([1, 5, 2, 1], 3)  # a set, for PureSVD
    np.testing.assert_array_equal(again.history, [1, 5, 2])
    np.testing.assert_array_equal(again.scores, found.scores)
    single = recommender.explain([1], 3)
    assert np.isnan(single.scores[0]) and single.ranks[0] == 0
    with pytest.raises(InputError, match="no known history"):
        recommender.explain([7], 3)
    _, rows, _ = ask("--history=b01,b05,b02", "--explain", "--k=2")
    lines = [row[0] for row in rows if "without" in row[0]]
    falls = [float(re.search(r"score ([-+.\d]+)", line)[1]) for line in lines]
    assert falls and max(falls) < 0
    assert "by Alien alone" in ask("--history=b01", "--explain", "--k=1")[1][2][0]


def test_an_item_that_comes_again_explains_once():
    scores, ranks = np.array([0.5, 0.2, 0.5, 0.9]), np.array([3, 4, 3, 2])
    one = Explanation(1.0, 1, np.array([1, 5, 1, 2]), scores, ranks)
    lines = [line.split(":")[0].strip() for line in recommend._because(make(), one)]
    assert lines == ["without Heat", "without Alien", "without Up, Up and Away"]


def test_a_list_that_is_the_same_for_all_is_explained_by_nothing(ask, tmp_path):
    path = tmp_path / "counts.safetensors"
    about = manifest(method="mostpop", query="constant")
    items = np.arange(8, dtype=np.float32)[:, None]
    artifact.write(path, make(manifest=about, items=items))
    _, rows, _ = ask("--history=b01", "--explain", "--k=2", file=path)
    assert {row[0].strip() for row in rows[2::2]} == {
        "no item of the history raises it"
    }


def test_ranks_of_an_explanation_are_those_of_the_list(ask, tmp_path):
    best = expected(["b01", "b05"], 6)
    (tmp_path / "best").write_text(best[0])
    _, rows, _ = ask("--history=b01,b05", "--explain", f"--exclude={tmp_path}/best")
    ranks = [re.search(r"(\d)(?:$| ->)", row[0]) for row in rows[1:]]
    assert [int(found[1]) for found in ranks if found] == [1, 1, 1, 2, 3]


def test_names_with_tabs_and_line_ends_stay_in_their_cells(tmp_path, ask):
    path, titles = tmp_path / "odd.safetensors", ["A\tB", "C\nD", "\x1b[1m", *"EFGH"]
    artifact.write(path, make(titles=Texts.of(["", *titles])))
    _, rows, _ = ask("--history=b05", file=path)
    assert {row[3] for row in rows[1:4]} <= {"A\\tB", "C\\nD", "\\x1b[1m", "E", "G"}
    assert {len(row) for row in rows} == {4} and len(rows) == 6


def test_a_list_of_ids_by_windows(tmp_path, ask):
    (tmp_path / "ids").write_bytes("\ufeffb01\r\nb02 \r\n".encode())
    _, rows, err = ask("--history=b05", f"--exclude={tmp_path / 'ids'}")
    assert err == "" and {row[2] for row in rows[1:]} == {"b03", "b04", "b06"}
    path = tmp_path / "odd.safetensors"
    artifact.write(path, make(ids=Texts.of(["", " a", "b\x85c", *"defgh"])))
    (tmp_path / "ids").write_bytes(" a\nb\x85c\n".encode())
    _, rows, err = ask("--history=g", f"--exclude={tmp_path / 'ids'}", file=path)
    assert err == "" and {row[2] for row in rows[1:]} == {"d", "e", "f"}


def test_a_terminal_gets_columns(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert recommend.main([str(model), "--history=b01", "--k=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.index(line.split()[2]) for line in lines] == [lines[0].index("id")] * 3


def known_users() -> Artifact:
    rng = np.random.default_rng(3)
    users = Users(
        Texts.of(["user1", "user2"]),
        rng.normal(size=(2, 3)).astype(np.float32),
        np.array([0, 1, 3]),
        np.array([1, 2, 3], np.int32),
    )
    about = manifest(method="lightgcn", query="user", needs="known user")
    return make(manifest=about, users=users)


def test_a_known_user_is_asked_for_by_id(tmp_path, ask):
    made, path = known_users(), tmp_path / "users.safetensors"
    artifact.write(path, made)
    _, rows, _ = ask("--user=user2", file=path)
    scores = made.items @ made.users.vectors[1]
    left = sorted((1, 4, 5, 6), key=lambda code: -scores[code])
    assert [row[2] for row in rows[1:]] == [NAMES[code - 1] for code in left]
    assert "nearest: 'user" in ask("--user=user3", file=path)[2]
    assert "the most popular" in ask("--history=b01", file=path)[2]
    assert "no known history" in ask("--history=b01", "--explain", file=path)[2]
    code, rows, err = ask("--user=user2", "--log=x", file=path)
    assert code == 2 and "--log has no effect with --user of lightgcn" in err


# --- a whole log ----------------------------------------------------------------------


@pytest.fixture
def log(tmp_path) -> Path:
    """60 users with up to 6 rows, out of order, with repeats and unknown items."""
    rng, rows = np.random.default_rng(5), []
    for user in range(60):
        for _ in range(rng.integers(1, 7)):
            item = rng.choice([*NAMES, "new"])
            rows.append((f"user {user}", item, int(rng.integers(1e9, 1.1e9))))
    rows = [rows[place] for place in rng.permutation(len(rows))]
    rows.append(("only new", "new", 10**9))
    path = tmp_path / "log.parquet"
    pl.DataFrame(rows, ["user", "item", "time"], orient="row").write_parquet(path)
    return path


def by_user(out: Path) -> dict[str, list]:
    """(rank, item, score) of each user; a user stands in one place only."""
    frame = pl.concat([pl.read_parquet(p) for p in sorted(out.glob("part-*.parquet"))])
    assert frame.columns == ["user", "rank", "item", "score"]
    assert len(frame["user"].rle()) == frame["user"].n_unique()
    return {
        user: list(zip(some["rank"], some["item"], some["score"], strict=True))
        for (user,), some in frame.group_by("user", maintain_order=True)
    }


def test_a_log_gets_the_lists_of_its_histories(ask, log, tmp_path):
    out = tmp_path / "recs"
    code, rows, err = ask(f"--log={log}", f"--out={out}", "--k=3")
    assert code == 0 and "61 users in 1 parts, k 3" in rows[0][0]
    assert "7 of them have no item that it knows: the most popular" in err
    assert sorted(p.name for p in out.iterdir()) == [
        *("job.json", "manifest.json", "part-00000.parquet")
    ]
    found, frame = by_user(out), pl.read_parquet(log).sort("time")
    assert len(found) == 61
    recommender = Recommender(artifact.read(tmp_path / "model.safetensors"))
    for user, lists in found.items():
        items = frame.filter(pl.col("user") == user)["item"]
        history = [NAMES.index(i) + 1 for i in items if i in NAMES]
        codes, scores = (x[0] for x in recommender.recommend([history], 3))
        left = codes > 0
        assert [item for _, item, _ in lists] == [NAMES[c - 1] for c in codes[left]]
        assert [rank for rank, _, _ in lists] == [1, 2, 3][: left.sum()]
        np.testing.assert_allclose([s for *_, s in lists], scores[left], rtol=1e-6)
    about = json.loads((out / "manifest.json").read_text())
    assert about["users"] == 61 and about["k"] == 3 and about["method"] == "svd"
    assert about["model"] == recommender.artifact.hash
    new = frame.sort("user", "time").filter(pl.col("item") == "new")
    again = (new["user"] == new["user"].shift()).sum()
    assert len(new) - again <= about["rows_of_unknown_items"] <= len(new)
    _, rows, _ = ask(f"--log={log}", "--user=user 7", "--k=3")
    assert [row[2] for row in rows[1:]] == [item for _, item, _ in found["user 7"]]
    assert "no row of user 'nobody'" in ask(f"--log={log}", "--user=nobody")[2]


def test_parts_of_several_processes_and_after_a_kill(ask, log, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "PART_ROWS", 40)
    whole, out = tmp_path / "whole", tmp_path / "recs"
    ask(f"--log={log}", f"--out={whole}")
    assert len(list(whole.glob("*.parquet"))) > 4
    _, rows, _ = ask(f"--log={log}", f"--out={out}", "--part=0/2")
    assert "manifest.json comes with the last" in rows[0][0]
    half = {p.name for p in out.glob("*.parquet")}
    assert half == {f"part-{n:05}.parquet" for n in range(0, 9, 2)} & half
    times = {name: (out / name).stat().st_mtime_ns for name in half}

    # The second is killed while it writes a part, and leaves no half of it.
    def killed(self, users, items, scores):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bulk._Writer, "lists", killed)
        assert ask(f"--log={log}", f"--out={out}", "--part=1/2")[0] == 130
    assert {p.name for p in out.glob("*.parquet*")} == half
    (out / ".rows-left").mkdir()  # as a harder kill leaves them
    (out / "part-00001.parquet.1.part").touch()
    assert ask(f"--log={log}", f"--out={out}", "--part=1/2")[0] == 0
    assert by_user(out) == by_user(whole)
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}
    assert {name: (out / name).stat().st_mtime_ns for name in half} == times
    one, other = (json.loads((d / "manifest.json").read_text()) for d in (out, whole))
    assert one == other


def test_shares_that_overlap_write_each_part_once(log, tmp_path, monkeypatch):
    """Who has an old share goes on beside one who has all, and ends last."""
    recommender, out = Recommender(make()), tmp_path / "recs"
    blocks = [pl.read_parquet(log).with_columns(pl.col("time").cast(pl.Datetime("ns")))]
    job = bulk.Job("m", "l", "", 3, "", "", True, True, False, 6)
    rules = {"exclude": (), "allow": None}
    write, parts = bulk.write, []

    def first(*arguments):
        write(*arguments)
        parts.append(arguments[0])
        if len(parts) == 1:  # another begins and ends meanwhile
            assert bulk.run(recommender, blocks, job, out, **rules)
            assert list(out.glob(".rows-*"))  # those of who goes on

    monkeypatch.setattr(bulk, "write", first)
    assert bulk.run(recommender, blocks, job, out, mine=(0, 2), **rules)
    assert len(parts) == len(set(parts)) == 6
    found = json.loads((out / "manifest.json").read_text())
    assert found["users"] == len(by_user(out)) == 61
    assert not list(out.glob(".*"))


def test_a_log_that_was_prepared_is_refused(ask, tmp_path):
    """Its items are codes, which may be ids as well."""
    folder = tmp_path / "prepared"
    for name in ("rows", "users", "items"):
        (folder / name).mkdir(parents=True)
    for log in (folder, folder / "rows"):
        code, _, err = ask(f"--log={log}", f"--out={tmp_path / 'recs'}")
        assert code == 2 and "name the log that it was made of" in err
        assert err.count("\n") == 1 and not (tmp_path / "recs").exists()


def test_lists_may_lie_beside_their_log(ask, log, tmp_path):
    """Their manifest does not make it a prepared one."""
    for _ in range(2):
        assert ask(f"--log={log}", f"--out={log.parent}")[0] == 0
    assert (log.parent / "manifest.json").exists()


def test_rows_that_a_killed_process_left_go_first(ask, log, tmp_path):
    out = tmp_path / "recs"
    (out / ".rows-0-of-1").mkdir(parents=True)
    (out / ".rows-0-of-1" / "0.arrow").write_bytes(b"half")
    assert ask(f"--log={log}", f"--out={out}")[0] == 0
    assert sorted(os.listdir(out)) == [
        "job.json",
        "manifest.json",
        "part-00000.parquet",
    ]
    mark = out / ".share-0-of-1.lock"
    (out / "part-00000.parquet").unlink()
    with alone(mark, "free"):
        code, _, err = ask(f"--log={log}", f"--out={out}")
    assert code == 2 and "another process writes these parts" in err


def test_parts_may_be_more_than_open_files(ask, log, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "recs"
    ask(f"--log={log}", f"--out={whole}", "--k=3")
    monkeypatch.setattr(bulk, "PART_ROWS", 2)
    monkeypatch.setattr(bulk, "PIECE", 50)  # so that a part has rows of several
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 20, hard))
    try:
        code, _, err = ask(f"--log={log}", f"--out={out}", "--k=3")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert code == 0, err
    filled = [path for path in out.glob("*.parquet") if len(pl.read_parquet(path))]
    assert len(filled) > 40 and by_user(out) == by_user(whole)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_processes_of_one_number_write_one_file(tmp_path):
    """As in two containers that share a disk, both of which begin the job."""
    path = tmp_path / "job.json"
    with whole(path) as one:
        one.write(b"whole")
        with whole(path) as other:
            other.write(b"whole")
        assert path.read_bytes() == b"whole"
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == ["job.json"]


def test_a_full_disk_is_named(ask, log, tmp_path, monkeypatch):
    full = pa.OSFile("/dev/full", "wb")
    monkeypatch.setattr(pa, "OSFile", lambda *_: full)
    code, _, err = ask(f"--log={log}", f"--out={tmp_path / 'recs'}")
    assert code == 2 and re.search(r"error: \S+recs/\.rows-0-of-1: .*space", err)
    assert not (tmp_path / "recs").exists()


def test_a_wrong_log_leaves_no_job(ask, log, tmp_path, monkeypatch):
    """The right one may go to the same place; beside what others do, none goes."""
    monkeypatch.setattr(bulk, "PART_ROWS", 40)
    out, wrong = tmp_path / "recs", tmp_path / "wrong.csv"
    wrong.write_text("user,item,time\n1,b01,5\n2,b02,soon\n")
    assert ask(f"--log={wrong}", f"--out={out}")[0] == 2
    assert not out.exists()
    wrong.write_text("user,item,time\n")
    assert "the log has no row" in ask(f"--log={wrong}", f"--out={out}")[2]
    assert not out.exists()
    assert ask(f"--log={log}", f"--out={out}", "--part=0/2")[0] == 0
    there = set(os.listdir(out))
    code, _, err = ask(f"--log={wrong}", f"--out={out}")
    assert code == 2 and "another job: log was" in err and set(os.listdir(out)) == there
    other = tmp_path / "other"
    (other / ".rows-left").mkdir(parents=True)  # of a process that reads
    assert ask(f"--log={wrong}", f"--out={other}")[0] == 2
    assert set(os.listdir(other)) == {".rows-left", "job.json"}


def test_another_job_is_refused(ask, log, tmp_path):
    out = tmp_path / "recs"
    ask(f"--log={log}", f"--out={out}", "--k=3")
    code, _, err = ask(f"--log={log}", f"--out={out}", "--k=4")
    assert code == 2 and "k was 3, is 4" in err
    other = tmp_path / "other.safetensors"
    artifact.write(other, make(counts=np.arange(8)))
    assert "model was " in ask(f"--log={log}", f"--out={out}", "--k=3", file=other)[2]
    (out / "job.json").unlink()
    assert "no job.json" in ask(f"--log={log}", f"--out={out}", "--k=3")[2]


def test_of_two_jobs_that_begin_at_once_one_does(tmp_path):
    def begin(job, out):
        with bulk.marked(job, out):
            pass

    for number in range(5):
        jobs = [bulk.Job("m", "l", "", k, "", "", True, True, False, 1) for k in (3, 4)]
        with ThreadPoolExecutor() as pool:
            out = tmp_path / str(number)
            begun = [pool.submit(begin, job, out) for job in jobs]
        refused = [one.exception() for one in begun if one.exception()]
        assert len(refused) == 1 and "another job: k was" in str(refused[0])
        assert os.listdir(out) == ["job.json"]


def test_rows_without_a_user_are_refused(ask, tmp_path):
    """As in training: else they would be one user, with the longest history."""
    log, out = tmp_path / "log.csv", f"--out={tmp_path / 'recs'}"
    log.write_text("user,item,time\n1,b01,5\nnan,b02,6\nnan,b03,7\n2,b05,8\n")
    code, _, err = ask(f"--log={log}", out)
    assert code == 2 and "found no user but 'nan' in some rows" in err
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_same_log_read_in_another_way_is_another_job(ask, tmp_path):
    log, out = tmp_path / "log.csv", tmp_path / "recs"
    log.write_text("user,item,other,time\nu,b01,b04,1\nv,b02,b03,2\n")
    assert ask(f"--log={log}", f"--out={out}")[0] == 0
    code, _, err = ask(f"--log={log}", f"--out={out}", "--item_column=other")
    assert code == 2 and "form was , is --item_c" in err
    job = json.loads((out / "job.json").read_text())
    del job["form"]  # of an earlier version
    (out / "job.json").write_text(json.dumps(job))
    assert ask(f"--log={log}", f"--out={out}")[0] == 0


def test_one_user_of_a_log_has_the_history_that_its_list_is_of(
    ask, tmp_path, monkeypatch
):
    """Without repeats, whatever the blocks: times that only sort may be whole numbers
    in one and none in the next."""
    monkeypatch.setattr(container, "BLOCK", 40)
    rows = ["u,b01,1", "u,b01,2", "u,new,3", "u,b05,4", "v,b02,5", "u,b01,5.5"]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows, ""]))
    asked, own = [], Recommender.recommend

    def recommend(self, histories, *args, **rules):
        asked.extend(list(self.known(history)) for history in histories)
        return own(self, histories, *args, **rules)

    monkeypatch.setattr(Recommender, "recommend", recommend)
    options = f"--log={tmp_path / 'log.csv'}", "--has_clock=false"
    assert ask(*options, "--user=u")[0] == 0
    assert ask(*options, f"--out={tmp_path / 'recs'}")[0] == 0
    assert asked == [[1, 5, 1], [1, 5, 1], [2]]
    (tmp_path / "log.csv").write_text("user,item,time\n")
    assert "no row of user 'u'" in ask(*options, "--user=u")[2]


def test_any_log_of_the_training_s_forms(ask, log, tmp_path):
    frame = pl.read_parquet(log)
    other = tmp_path / "log.csv"
    frame.rename({"user": "who", "item": "what"}).write_csv(other, separator=";")
    ask(f"--log={log}", f"--out={tmp_path / 'a'}")
    options = ("--user_column=who", "--item_column=what", "--separator=;")
    ask(f"--log={other}", f"--out={tmp_path / 'b'}", *options)
    assert by_user(tmp_path / "a") == by_user(tmp_path / "b")
    code, _, err = ask(f"--log={other}", f"--out={tmp_path / 'c'}")
    assert code == 2 and "who" in err


def test_a_log_of_a_data_set_and_one_without_a_clock(ask, tmp_path):
    """Three forms of the same rows, of which the last one's times only sort."""
    rows = [("u1", "b02", 3), ("u1", "b05", 1), ("u2", "b01", 2), ("u1", "b05", 2)]
    forms = {
        "ratings.dat": "".join(f"{u}::{i}::5::{t}\n" for u, i, t in rows),
        "log.csv": "user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows),
        "float.csv": "user,item,time\n"
        + "".join(f"{u},{i},-{10 - t}.5\n" for u, i, t in rows),
    }
    options = {"ratings.dat": ["--loader=movielens"], "log.csv": []}
    options["float.csv"] = ["--has_clock=false"]
    (tmp_path / "ratings.dat").write_text("u1::b02::5::3\n")  # one user, one item
    one = f"--log={tmp_path / 'ratings.dat'}", "--loader=movielens", "--user=u1"
    assert ask(*one, "--k=1")[0] == 0
    found = []
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        out = tmp_path / f"{name}-lists"
        code, _, err = ask(f"--log={tmp_path / name}", f"--out={out}", *options[name])
        assert code == 0, err
        found.append(by_user(out))
    assert found[0] == found[1] == found[2] and len(found[0]["u1"]) == 4


def test_a_chunk_has_the_names_of_its_own_items(ask, log, tmp_path):
    """Of 10^6 items all names took 5 MB for each chunk of 2,048 users."""
    (tmp_path / "allow").write_text("b01\nb02\n")
    out = f"--out={tmp_path / 'recs'}"
    ask(f"--log={log}", out, f"--allow={tmp_path / 'allow'}", "--hide_history=false")
    read = pq.read_table(tmp_path / "recs" / "part-00000.parquet")
    assert read["item"].chunk(0).dictionary.to_pylist() == ["b01", "b02"]


def test_vectors_of_a_log(ask, log, tmp_path):
    out = tmp_path / "recs"
    assert (
        "them have no item that it knows: no vectors"
        in ask(f"--log={log}", f"--out={out}", "--vectors")[2]
    )
    frame = pl.read_parquet(out / "part-00000.parquet")
    assert frame.columns == ["user", "vector"] and "only new" not in frame["user"]
    items = pl.read_parquet(log).filter(pl.col("user") == frame["user"][0])["item"]
    codes = sorted({NAMES.index(i) + 1 for i in items if i in NAMES[:6]})
    wanted = make().items[codes].sum(0)
    np.testing.assert_allclose(frame["vector"][0].to_numpy(), wanted, rtol=1e-5)


def test_known_users_of_a_log_and_others(ask, tmp_path):
    path, log = tmp_path / "users.safetensors", tmp_path / "log.csv"
    artifact.write(path, known_users())
    log.write_text("user,item,time\nuser2,b05,1500000000\nu9,b05,1500000001\n")
    ask(f"--log={log}", f"--out={tmp_path / 'recs'}", "--k=6", file=path)
    found = by_user(tmp_path / "recs")
    assert {item for _, item, _ in found["user2"]} == {"b01", "b04", "b06"}
    assert [item for _, item, _ in found["u9"]] == ["b01", "b02", "b03", "b04", "b06"]


def test_nothing_of_the_training_is_imported(model):
    code = (
        "import sys; from create_jax import recommend; "
        f"assert recommend.main([{str(model)!r}, '--history=b01']) == 0; "
        "bad = {'optax', 'orbax', 'jraph', 'tensorstore', 'scipy', 'absl.app'}; "
        "ours = 'train', 'experiment', 'steps', 'build', 'losses', 'checkpoint'; "
        "bad |= {f'create_jax.{name}' for name in ours}; "
        "print(sorted(bad & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"
