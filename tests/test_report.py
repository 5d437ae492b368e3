"""Reports of many runs: groups, deviations, claims, and what is written."""

import csv
import json

import numpy as np
import pytest

from create_jax import metrics, ranks, report, settings
from create_jax.claims import check_baseline, make_claims
from create_jax.errors import InputError
from create_jax.paired import detectable
from create_jax.runs import find_runs, load

QUERIES = 400
TARGETS = ("last", "first")


def make_run(
    folder,
    method,
    seed,
    ranks,
    users=None,
    ties="file",
    dataset="beauty",
    log="0123456789abcdef",
    **settings,
):
    """A finished run whose metrics follow from its ranks."""
    folder.mkdir(parents=True)
    by_target = {}
    for target in TARGETS:
        found = {}
        for k in (10, 100):
            values = metrics.from_ranks(ranks, k)
            found |= {name: float(value.mean()) for name, value in values.items()}
            found[f"coverage@{k}"] = 0.5
        by_target[target] = found
    result = {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "protocol": {
            "kind": "global_temporal",
            "q_test": 0.8,
            "target": "last",
            "ties": ties,
            "filter_seen": True,
            "cold_items": "drop",
            "ks": [10, 100],
        },
        "data": {"test_queries": QUERIES, "fingerprint": log},
        "valid": {"ndcg@10": 0.123},
        "epochs": 7 + seed,
        "test": by_target["last"],
        "test_by_target": by_target,
    }
    config = {
        "method": method,
        "seed": seed,
        "seq": {"encoder": "sasrec"},
        "graph": {"encoder": "ultragcn"},
        "align": {"kind": "barlow_twins"},
        "warmup": {"epochs": 10},
        "loss": {"w_global": 0.1, "w_bt": 0.2},
        "data": {"path": f"somewhere/{seed}"},
    }
    for key, value in settings.items():
        group, name = key.split("__")
        config[group][name] = value
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.json").write_text(json.dumps({"config": config}))
    lines = [{"epoch": e, "valid/ndcg@10": e / 100, "stage": "select"} for e in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    users = np.arange(QUERIES) if users is None else users
    arrays = dict.fromkeys(TARGETS, ranks)
    arrays |= {f"{target}_users": users for target in TARGETS}
    np.savez_compressed(folder / "ranks.npz", **arrays)


def ranks_like(seed, better=0):
    """Ranks from 0 to 199; `better` users more of a hundred have the first place."""
    rng = np.random.default_rng(seed)
    ranks = rng.integers(0, 200, QUERIES)
    ranks[rng.random(QUERIES) < better / 100] = 0
    return ranks.astype(np.int32)


@pytest.fixture
def runs(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"a/sasrec-{seed}", "sasrec", seed, ranks_like(seed))
        ranks = ranks_like(10 + seed, better=10)
        make_run(tmp_path / f"a/create-{seed}", "create", seed, ranks)
        make_run(
            *(tmp_path / f"b/short-{seed}", "create", seed, ranks_like(20 + seed)),
            warmup__epochs=0,
        )
    return tmp_path


def test_runs_of_one_system_are_a_line_and_its_label_says_what_differs(runs):
    systems = load(find_runs([str(runs / "a"), str(runs / "b")]))
    labels = [(system.label, len(system.results)) for system in systems]
    assert sorted(labels) == [
        ("create, warmup.epochs=0", 3),
        ("create, warmup.epochs=10", 3),
        ("sasrec", 3),
    ]
    (sasrec,) = [system for system in systems if system.label == "sasrec"]
    values = [100 * r["test"]["ndcg@10"] for r in sasrec.results]
    expected = f"{np.mean(values):.2f} ±{np.std(values, ddof=1):.2f}"
    assert report.percent(sasrec.results, "last", "ndcg@10") == expected
    alone = load(find_runs([str(runs / "a")]))
    assert sorted(system.label for system in alone) == ["create", "sasrec"]


def test_two_logs_of_one_name_are_two_systems(tmp_path, capsys):
    places = []
    for seed, log in enumerate(("aaaaaaaaaa", "bbbbbbbbbb")):
        places.append(tmp_path / f"{log}")
        make_run(places[-1], "svd", seed, ranks_like(seed), dataset="table", log=log)
    systems = load(places)
    labels = [(system.section, system.label) for system in systems]
    assert labels == [("table, data=aaaaaaaa", "svd"), ("table, data=bbbbbbbb", "svd")]
    assert [len(system.results) for system in systems] == [1, 1]
    # Shuffled ties are the same file, and their label says what they are.
    shuffled = dict(dataset="table", log="cccccccccc", ties="random")
    make_run(tmp_path / "c", "svd", 0, ranks_like(0), **shuffled)
    sections = {s.section for s in load([places[0], tmp_path / "c"])}
    assert sections == {"table, ties=file", "table, ties=random"}
    report.show([system.results[0] for system in systems])
    printed = capsys.readouterr().out
    assert printed.count("queries with target last") == 2 and "±" not in printed


def test_a_name_that_was_only_a_label_says_what_was_trained(tmp_path):
    """Once, methods to compare were trained with the settings of another."""
    make_run(tmp_path / "gsau", "gsau", 0, ranks_like(0), graph__encoder="ultragcn")
    (system,) = load([tmp_path / "gsau"])
    assert system.label == "gsau, graph.encoder=ultragcn, align.kind=barlow_twins"


def test_what_changes_numbers_makes_another_system(runs, monkeypatch):
    # Of a run from before the setting was there its absence says what it was.
    monkeypatch.setattr(settings, "OLD_DEFAULTS", {"loss.token_chunk": 512})
    for seed, chunk in ((7, 512), (8, 512), (7, 64), (8, 64)):
        place = runs / f"c/{chunk}-{seed}"
        changes = {"loss__token_chunk": chunk, "data__counts": [seed]}
        make_run(place, "sasrec", seed, ranks_like(seed), **changes)
    systems = load(find_runs([str(runs / "a"), str(runs / "c")]))
    labels = {system.label: len(system.results) for system in systems}
    sasrec = {"sasrec, loss.token_chunk=512": 5, "sasrec, loss.token_chunk=64": 2}
    assert labels == sasrec | {"create": 3}


def test_the_paper_stands_below_its_systems_only(runs):
    systems = load(find_runs([str(runs / "a")]))
    rows = {system.label: report.paper_row(system) for system in systems}
    assert rows["sasrec"]["ndcg@10"] == [1.87, 0.01]
    assert rows["create"]["coverage@100"] == [95.37, 1.04]
    other = systems[0]._replace(dataset="movietweetings")
    assert report.paper_row(other) is None
    (create,) = [system for system in systems if system.label == "create"]
    variant = {"align.kind": "infonce", "graph.encoder": "lightgcn"}
    changed = create._replace(settings=create.settings | variant)
    assert report.paper_row(changed) is None  # Table 4 has no Beauty
    sports = changed._replace(dataset="sports")
    assert report.paper_row(sports)["ndcg@10"] == [1.49, None]
    variant["align.kind"] = "vicreg"
    other = sports._replace(settings=create.settings | variant)
    assert report.paper_row(other) is None
    other = sports._replace(settings=create.settings | {"loss.w_bt": 0.0})
    assert report.paper_row(other)["ndcg@10"] == [1.38, None]  # without alignment
    ours = {"align.kind": "none", "loss.w_global": 0.0}
    other = sports._replace(settings=create.settings | ours)
    assert report.paper_row(other) is None
    found = report.parts(systems, [], "ndcg@10")
    assert found["main"].count("*as the paper prints it*") == 2
    assert "*1.87 ±0.01*" in found["main"] and "paper" not in found["targets"]
    both = load(find_runs([str(runs / "a"), str(runs / "b")]))
    again = report.parts(both, [], "ndcg@10")
    assert again["main"].count("*as the paper prints it*") == 2  # once of all CREATEs


def test_the_summary_has_what_others_vary_and_the_same_without_alignment(runs):
    make_run(runs / "b/none", "create", 0, ranks_like(9), align__kind="none")
    for name, ties in (("ties", "random"), ("usual", "file"), ("create", "file")):
        method = "create" if name == "create" else "sasrec"
        odd = dict(dataset="sports", ties=ties, align__kind="none")
        make_run(runs / f"c/{name}", method, 0, ranks_like(3 + len(name)), **odd)
    systems = load(find_runs([str(runs / name) for name in "bac"]))
    text = report.parts(systems, [], "ndcg@10")["summary"]
    lines = [line[2:-2].split(" | ") for line in text.splitlines()[2:]]
    found = {system.folders[0].name: system.results for system in systems}

    def cells(folder):
        names = ("ndcg@10", "recall@100")
        return [report.percent(found[folder], "last", name) for name in names]

    names = ["beauty ndcg@10", "recall@100", "sports ndcg@10", "recall@100"]
    assert lines[0] == ["system", *names]
    assert lines[2:] == [
        ["SASRec", *cells("sasrec-0"), *cells("usual")],
        [
            "*as the paper prints it*",
            *("*1.87 ±0.01*", "*13.67 ±0.08*"),
            *("*1.48 ±0.01*", "*10.94 ±0.04*"),
        ],
        ["CREATE", *cells("create-0"), "", ""],
        ["*as the paper prints it*", *("*2.15 ±0.01*", "*15.64 ±0.13*"), "", ""],
        ["CREATE without alignment", *cells("none"), *cells("create")],
        ["*as the paper prints it*", "", "", "*1.38*", ""],
    ]
    alone = load(find_runs([str(runs / "c/ties")]))
    assert "summary" not in report.parts(alone, [], "ndcg@10")


def test_claims_are_paired_and_corrected(runs):
    systems = load(find_runs([str(runs / "a"), str(runs / "b")]))
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    assert [claim.target for claim in claims] == ["last"] * 2 + ["first"] * 2
    better, same = sorted(claims[:2], key=lambda claim: -claim.difference)
    assert better.label == "create, warmup.epochs=10" and better.holm < 0.01
    assert better.low > 0 and better.low < better.difference < better.high
    assert same.p > 0.05 and same.low < 0 < same.high
    assert better.holm == min(1.0, 2 * better.p)
    with pytest.raises(InputError, match="--baseline=sasrce: no system has that label"):
        check_baseline(systems, "sasrce")
    check_baseline(systems, "create, warmup.epochs=0")
    # A label can be the baseline too; without one there is nothing to claim.
    one = make_claims(systems, ["create, warmup.epochs=0"], ["mrr@10"])
    assert {claim.baseline for claim in one} == {"create, warmup.epochs=0"}
    assert make_claims(systems, ["create"], ["ndcg@10"]) == []
    # Of several each pair is compared once.
    two = make_claims(systems, ["create, warmup.epochs=0", "sasrec"], ["mrr@10"])
    assert [(c.label, c.baseline) for c in two if c.target == "last"] == [
        ("sasrec", "create, warmup.epochs=0"),
        ("create, warmup.epochs=10", "create, warmup.epochs=0"),
        ("create, warmup.epochs=10", "sasrec"),
    ]


def test_differences_stand_beside_those_of_the_paper(runs):
    systems = load(find_runs([str(runs / "a"), str(runs / "b")]))
    claims = make_claims(systems, ["sasrec"], ["ndcg@10", "recall@10", "recall@100"])
    table = report.parts(systems, claims, "ndcg@10")["paper"]
    _, _, *rows = (line for line in table.splitlines() if line.startswith("|"))
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    # One of the variants that share the paper's line, with what it prints: 2.15 / 1.87.
    assert [(row[2], row[3]) for row in cells] == [
        ("ndcg@10", "+15.0%"),
        ("recall@100", "+14.4%"),
    ]
    claim = next(one for one in claims if one.metric == "ndcg@10")
    other = claim.difference / claim.relative  # 1% of what SASRec has
    found = [float(word) for word in cells[0][5].split(" .. ")]
    expected = claim.relative_low, claim.relative_high
    np.testing.assert_allclose(found, expected, atol=0.051)
    assert expected[0] < claim.relative < expected[1] and expected[0] > -100
    assert cells[0][4] == f"{claim.relative:+.1f}%"
    spread = claim.deviation, claim.freedom
    assert cells[0][7] == f"{detectable(*spread) / other:.1f}%"
    assert cells[0][8] == f"{detectable(*spread, 2 * 3) / other:.1f}%"  # pairs, metrics
    assert "paper" not in report.parts(systems, [], "ndcg@10")


def test_of_one_user_nothing_is_claimed(tmp_path):
    for method, place in (("sasrec", 3), ("create", 0)):
        ranks = np.full(2, place, np.int32)
        make_run(tmp_path / method, method, 0, ranks, users=np.zeros(2, int))
    claims = make_claims(load(find_runs([str(tmp_path)])), ["sasrec"], ["ndcg@10"])
    assert [claim.holm for claim in claims] == [1.0, 1.0]
    assert claims[0].difference > 50


def test_what_is_usual_is_decided_over_all_protocols(runs):
    for kind in ("none", "infonce"):
        folder = runs / f"c/{kind}"
        make_run(folder, "create", 0, ranks_like(4), align__kind=kind, ties="random")
    folder = runs / "c/create"
    make_run(folder, "create", 0, ranks_like(5), ties="random")
    systems = load(find_runs([str(runs / "a"), str(runs / "c")]))
    shuffled = [s for s in systems if s.results[0]["protocol"]["ties"] == "random"]
    assert [system.label for system in shuffled] == [
        "create",
        "create, align.kind=infonce",
        "create, align.kind=none",
    ]


def test_systems_are_named_after_their_directories(runs):
    """Each is compared with SASRec, and with what its name varies."""
    for place, (graph, kind) in {
        "create": ("ultragcn", "barlow_twins"),
        "create@align=none": ("ultragcn", "none"),
        "create@graph=lightgcn": ("lightgcn", "barlow_twins"),
        "create@graph=lightgcn,align=none": ("lightgcn", "none"),
    }.items():
        for seed in range(2):
            make_run(
                *(runs / f"d/{place}/seed-{seed}", "create", seed, ranks_like(seed)),
                **{"graph__encoder": graph, "align__kind": kind, "loss__w_bt": 3.0},
            )
    make_run(runs / "d/sasrec-1", "sasrec", 1, ranks_like(9))
    systems = load(find_runs([str(runs / "d")]), by_directory=True)
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    assert [(c.label, c.baseline) for c in claims if c.target == "last"] == [
        ("create", "sasrec"),
        ("create@align=none", "sasrec"),
        ("create@align=none", "create"),
        ("create@graph=lightgcn", "sasrec"),
        ("create@graph=lightgcn", "create"),
        ("create@graph=lightgcn,align=none", "sasrec"),
        ("create@graph=lightgcn,align=none", "create@graph=lightgcn"),
    ]
    (runs / "d/create@graph=lightgcn").rename(runs / "d/create@graph=other")
    systems = load(find_runs([str(runs / "d")]), by_directory=True)
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    label = "create@graph=lightgcn,align=none"
    assert [c.baseline for c in claims if (c.label, c.target) == (label, "last")] == [
        *("sasrec", "create")
    ]
    (runs / "d/sasrec-1").rename(runs / "d/create-1")
    with pytest.raises(InputError, match="2 systems that are called create"):
        load(find_runs([str(runs / "d")]), by_directory=True)
    make_run(runs / "d/other-2", "sasrec", 2, ranks_like(9))
    with pytest.raises(InputError, match="different names, create, other"):
        load(find_runs([str(runs / "d")]), by_directory=True)


def test_other_data_change_no_claim_and_tell_what_is_usual(runs):
    alone = load(find_runs([str(runs / "a")]))
    claims = make_claims(alone, ["sasrec"], ["ndcg@10"])
    others = ("sasrec", "barlow_twins"), ("create", "barlow_twins"), ("create", "none")
    for method, kind in others:
        folder, ranks = runs / f"c/{method}-{kind}", ranks_like(6)
        make_run(folder, method, 0, ranks, dataset="sports", align__kind=kind)
    systems = load(find_runs([str(runs / "a"), str(runs / "c")]))
    labels = [system.label for system in systems if system.dataset == "sports"]
    assert labels == ["sasrec", "create", "create, align.kind=none"]
    more = make_claims(systems, ["sasrec"], ["ndcg@10"])
    assert [claim for claim in more if claim.section == "beauty"] == claims


def test_variants_are_compared_with_what_they_vary(runs):
    for seed in range(2):
        folder = runs / f"c/none-{seed}"
        make_run(folder, "create", seed, ranks_like(30 + seed), align__kind="none")
    places = [str(runs / name) for name in "abc"]
    claims = make_claims(load(find_runs(places)), ["sasrec"], ["ndcg@10"])
    before = make_claims(load(find_runs(places[:2])), ["sasrec"], ["ndcg@10"])
    by_pair = {(c.target, c.label, c.baseline): c for c in claims}
    for claim in before:  # more systems change the corrected p alone
        pair = claim.target, claim.label.replace(", warmup.epochs=10", ""), "sasrec"
        now = by_pair[pair]
        assert now._replace(label="", holm=0) == claim._replace(label="", holm=0)
    assert [(claim.label, claim.baseline) for claim in claims[:5]] == [
        ("create", "sasrec"),
        ("create, warmup.epochs=0", "sasrec"),
        ("create, warmup.epochs=0", "create"),
        ("create, align.kind=none", "sasrec"),
        ("create, align.kind=none", "create"),
    ]


def test_a_table_holds_one_protocol(runs):
    make_run(runs / "c/sasrec", "sasrec", 0, ranks_like(3), ties="random")
    systems = load(find_runs([str(runs / "a"), str(runs / "c")]))
    sections = [(system.section, system.label) for system in systems]
    assert sections == [
        ("beauty", "sasrec"),
        ("beauty", "create"),
        ("beauty, ties=random", "sasrec"),
    ]
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    assert {claim.section for claim in claims} == {"beauty"}
    main = report.parts(systems, [], "ndcg@10")["main"]
    assert "ties file" in main.split("### beauty, ties=random")[0]
    assert "ties random" in main.split("### beauty, ties=random")[1]


def test_documents_are_filled_between_marks_and_nowhere_else(runs, capsys):
    page = runs / "page.md"
    page.write_text(
        "before\n<!-- report:main -->\nstale\n<!-- /report -->\nbetween\n"
        "<!-- report:differences -->\n<!-- /report -->\nafter\n"
    )
    arguments = [str(runs / "a"), f"--fill={page}"]
    assert report.main(arguments) == 0
    text = page.read_text()
    assert (
        "stale" not in text and "| sasrec | 3 |" in text and "create - sasrec" in text
    )
    assert text.startswith("before\n") and text.endswith("<!-- /report -->\nafter\n")
    assert report.main(arguments) == 0 and page.read_text() == text
    unknown = "<!-- report:a -->\n<!-- /report -->\n"
    for wrong, reason in (("\n", "found no <!--"), (unknown, "the mark report:a")):
        page.write_text(wrong)
        assert report.main(arguments) == 2 and page.read_text() == wrong
        assert reason in capsys.readouterr().err
    page.unlink()
    assert report.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {page}: No such file")


def test_packed_ranks_make_the_same_report_wherever_they_are(runs):
    def claims(*places):
        systems = load(find_runs([str(runs / place) for place in places]))
        return make_claims(systems, ["sasrec"], ["ndcg@100", "mrr@10"])

    whole, sizes = claims("a", "b"), []
    for file in sorted(runs.glob("*/*/ranks.npz")):
        sizes.append(file.stat().st_size)
        ranks.pack(file.parent, runs)
        ranks.pack(file.parent, runs)  # again: nothing to do
        with np.load(file) as packed:
            assert packed["last"].dtype == np.uint8 and packed["last"].max() == 100
        sizes[-1] /= file.stat().st_size
    assert min(sizes) > 2 and len(list(runs.glob("users-*.npz"))) == 1
    assert claims("a", "b") == whole
    for old in sorted(runs.glob("a/*")):
        method, seed = old.name.split("-")
        (runs / "c" / method).mkdir(parents=True, exist_ok=True)
        old.rename(runs / "c" / method / f"seed-{seed}")
    assert claims("c", "b") == whole
    next(runs.glob("users-*.npz")).unlink()
    with pytest.raises(
        InputError, match="its users are in users-.*npz, which is neither"
    ):
        claims("c")


def test_a_run_that_is_packed_alone_can_be_read(runs):
    file = runs / "a/create-0"
    whole = ranks.read(file, "last")
    assert ranks.main([str(file)]) == 0
    users, places = ranks.read(file, "last")
    np.testing.assert_array_equal(users, whole[0])
    np.testing.assert_array_equal(places, np.minimum(whole[1], 100))


def test_an_index_says_where_the_runs_are(runs):
    for seed in (0, 1):
        place = runs / f"a/create@align=none/seed-{seed}"
        make_run(place, "create", seed, ranks_like(seed), align__kind="none")
    page = runs / "INDEX.md"
    page.write_text("<!-- report:index -->\n<!-- /report -->\n")
    arguments = [str(runs / "a"), f"--fill={page}", f"--out={runs}"]
    assert report.main(arguments) == 0
    assert page.read_text().splitlines()[4:-2] == [
        "| [.](.) | sasrec-0, sasrec-1, sasrec-2 | beauty | sasrec |",
        "| [.](.) | create-0, create-1, create-2 | beauty | "
        "create, align.kind=barlow_twins |",
        "| [create@align=none](create@align=none) | seed-0, seed-1 | beauty | "
        "create, align.kind=none |",
    ]
    assert "directory" not in (runs / "report.md").read_text()


def test_a_packed_run_has_six_digits_of_its_epochs(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = {"epoch": 1, "loss": 0.123456789}, {"epoch": 2, "loss": 1e-9 / 3, "at": "x"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = [{"epoch": 1, "loss": 0.123457}, lines[1] | {"loss": 3.33333e-10}]
    with file.open("a") as end:
        end.write('{"epoch": 3, "lo')  # a kill
    for _ in range(2):  # the same if done again
        file.write_text(ranks.shortened(file))
        assert list(map(json.loads, file.read_text().splitlines())) == expected


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "ranks.npz"])
def test_no_run_is_packed_where_one_is_damaged(runs, name, capsys):
    whole = (runs / "a/create-0/ranks.npz").read_bytes()
    last = runs / "a/sasrec-2" / name
    last.write_bytes(last.read_bytes().replace(b"{", b"[")[:-9] + b"\n")
    assert ranks.main([str(runs / "a")]) == 2
    assert str(last) in capsys.readouterr().err
    assert (runs / "a/create-0/ranks.npz").read_bytes() == whole


@pytest.mark.parametrize("name", ["result.json", "config.json"])
@pytest.mark.parametrize("text", ["{}", "[]", "3"])
def test_a_file_of_something_else_is_named(runs, name, text, capsys):
    (runs / "a/create-1" / name).write_text(text)
    assert report.main([str(runs / "a")]) == 2
    told = capsys.readouterr().err
    assert f"create-1/{name}: is of no run of create_jax (it has no " in told


def test_a_page_keeps_its_ends_of_lines_and_is_utf8(runs, capsys):
    page = runs / "page.md"
    page.write_bytes("é\r\n<!-- report:main -->\r\n<!-- /report -->\r\n".encode())
    arguments = [str(runs / "a"), f"--fill={page}"]
    assert report.main(arguments) == 0
    text = page.read_bytes().decode()
    assert text.startswith("é\r\n<!-- report:main -->\r\n\r\n")
    assert text.count("\n") == text.count("\r\n") > 9
    page.write_bytes(b"\xe9" + page.read_bytes())
    assert report.main(arguments) == 2
    assert f"{page}: is no UTF-8" in capsys.readouterr().err


def test_a_seed_is_called_after_its_system(runs):
    make_run(runs / "c/none/seed-3", "create", 3, ranks_like(3))
    assert ranks.name_of(runs / "c/none/seed-3") == "none/seed-3"
    assert ranks.name_of(runs / "a/create-0") == "create-0"
    assert find_runs([str(runs / "c")]) == [runs / "c/none/seed-3"]
    assert ranks.main([str(runs / "c")]) == 0
    assert ranks.main([str(runs / "nowhere")]) == 2
    found = ranks.read(runs / "c/none/seed-3", "first")
    np.testing.assert_array_equal(found[0], np.arange(QUERIES))
    np.testing.assert_array_equal(found[1], np.minimum(ranks_like(3), 100))


def test_all_files_are_written(runs, capsys):
    pytest.importorskip("matplotlib")
    out = runs / "out"
    arguments = [str(runs / "a"), str(runs / "b"), f"--out={out}"]
    assert report.main(arguments) == 0
    assert (out / "report.md").read_text() == capsys.readouterr().out[:-1]
    with open(out / "report.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(TARGETS) * 8
    printed = {(r["system"], r["target"], r["metric"]): r["paper"] for r in rows}
    assert printed["sasrec", "last", "ndcg@10"] == "1.87"
    assert printed["sasrec", "first", "ndcg@10"] == ""
    seeds = (out / "report.md").read_text().split("## Seeds")[1]
    assert "| beauty | sasrec | 2 | 9 | 12.30 | " in seeds
    with open(out / "differences.csv") as file:
        claims = list(csv.DictReader(file))
    assert len(claims) == 2 * len(TARGETS) * 4
    assert {claim["baseline"] for claim in claims} == {"sasrec"}
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"beauty-curves.png", "beauty-warmup.epochs.png"}


@pytest.mark.parametrize(
    "mistake", ["empty", "twice", "users", "metric", "result", "ranks"]
)
def test_mistakes_are_one_line(runs, capsys, mistake):
    arguments = [str(runs / "a")]
    if mistake == "empty":
        (runs / "empty").mkdir()
        arguments.append(str(runs / "empty"))
    elif mistake == "twice":
        make_run(runs / "c", "sasrec", 0, ranks_like(5))
        arguments.append(str(runs / "c"))
    elif mistake == "metric":
        arguments.append("--metrics=ndcg@10,coverage@10")
    elif mistake in ("result", "ranks"):
        name = "result.json" if mistake == "result" else "ranks.npz"
        (runs / "a/create-0" / name).write_text("{")
    else:
        others = np.arange(QUERIES)[::-1]
        make_run(runs / "c", "svd", 0, ranks_like(5), users=others)
        arguments.append(str(runs / "c"))
    assert report.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    reason = dict(
        empty="found no result.json",
        twice="same seed and settings",
        users="different users",
        metric="expected some of ndcg@10,",
        result="a/create-0/result.json: cannot be read as JSON",
        ranks="a/create-0/ranks.npz: cannot be read",
    )
    assert reason[mistake] in said


def change_rules(folder, **protocol):
    file = folder / "result.json"
    result = json.loads(file.read_text())
    result["protocol"] |= protocol
    file.write_text(json.dumps(result))


@pytest.mark.parametrize(
    "rule, values",
    [("queries", (0, 500)), ("select_mean", (1, 5)), ("select_target", ("", "first"))],
)
def test_a_rule_that_one_protocol_lacks_makes_another_table(rule, values, tmp_path):
    """`as_done` leaves out a rule that adds nothing."""
    for place, value in enumerate(values):
        for better, method in enumerate(("sasrec", "create")):
            folder = tmp_path / f"{place}/{method}"
            made = ranks_like(place, better=10 * (1 + place) * better)
            make_run(folder, method, 0, made)
            change_rules(folder, validation="by_time", select_by="ndcg@10")
            change_rules(folder, **{rule: value})
    systems = load(find_runs([str(tmp_path)]))
    sections = [f"beauty, {rule}={value}" for value in values]
    assert [(system.section, system.label) for system in systems] == [
        (section, method) for section in sections for method in ("sasrec", "create")
    ]
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    for section in sections:
        sasrec, create = (
            100 * system.results[0]["test"]["ndcg@10"]
            for system in systems
            if system.section == section
        )
        for claim in (claim for claim in claims if claim.section == section):
            np.testing.assert_allclose(claim.difference, create - sasrec, rtol=1e-6)


def test_values_that_agree_in_four_digits_are_told_apart(tmp_path):
    make_run(tmp_path / "sasrec", "sasrec", 0, ranks_like(0))
    for better, weight in ((0, 0.00123451), (10, 0.00123454), (20, 0.3)):
        ranks = ranks_like(1, better=better)
        make_run(tmp_path / f"{weight}", "create", 0, ranks, loss__w_bt=weight)
    systems = load(find_runs([str(tmp_path)]))
    assert {system.label for system in systems} == {
        "sasrec",
        "create, loss.w_bt=0.00123451",
        "create, loss.w_bt=0.00123454",
        "create, loss.w_bt=0.3",
    }
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    assert len(claims) == 3 * len(TARGETS)


def test_each_protocol_has_its_own_target(runs, capsys):
    """Its own claims stand in the first tables, those about others below."""
    for method in ("sasrec", "create"):
        folder = runs / f"c/{method}"
        make_run(folder, method, 0, ranks_like(7), dataset="sports")
        change_rules(folder, target="first")
    systems = load(find_runs([str(runs / "a"), str(runs / "c")]))
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    found = report.parts(systems, claims, "ndcg@10")
    shown, others = found["differences"], found["targets"]
    of_last, of_first = shown.split("Target first, ")
    assert of_last.startswith("Target last, ")
    assert "| beauty | create" in of_last and "| sports | create" not in of_last
    assert "| sports | create" in of_first and "| beauty | create" not in of_first
    assert others.count("| beauty | create - ") == others.count("| sports | create - ")
    assert "sports" not in found["summary"]
    assert "sports" not in found["paper"]
    for method in ("sasrec", "create"):  # and where the other one was not ranked
        file = runs / f"c/{method}/result.json"
        result = json.loads(file.read_text())
        del result["test_by_target"]["last"]
        file.write_text(json.dumps(result))
    assert report.main([str(runs / "a"), str(runs / "c")]) == 0
    assert "### sports, target first" in capsys.readouterr().out


@pytest.mark.parametrize("places", ["ac", "ca"])
def test_differences_are_of_all_cut_offs(places, runs, capsys):
    for method in ("sasrec", "create"):
        folder = runs / f"c/{method}"
        make_run(folder, method, 0, ranks_like(7), dataset="sports")
        without(folder, "@100", ks=[10])
    order = [str(runs / place) for place in places]
    assert report.main(order) == 0
    heads = "| data | difference | ndcg@10 | recall@10 | ndcg@100 | recall@100 |"
    assert heads in capsys.readouterr().out
    assert report.main([*order, "--metrics=ndcg@100"]) == 0
    assert "| data | difference | ndcg@100 |" in capsys.readouterr().out


def without(folder, unwanted, **protocol):
    """Takes metrics out of a run's result."""
    file = folder / "result.json"
    result = json.loads(file.read_text())
    result["protocol"] |= protocol
    for found in (result["test"], *result["test_by_target"].values()):
        for name in [name for name in found if unwanted in name]:
            del found[name]
    file.write_text(json.dumps(result))


def test_no_claim_is_about_a_cut_off_that_a_run_was_not_tested_at(runs, capsys):
    """Packed ranks end at the largest of them: beyond it, others would be made up."""
    for method in ("sasrec", "create"):
        folder = runs / f"c/{method}"
        make_run(folder, method, 0, ranks_like(7), dataset="sports")
        without(folder, "@100", ks=[10])
        ranks.pack(folder, runs)
    systems = load(find_runs([str(runs / "a"), str(runs / "c")]))
    claims = make_claims(systems, ["sasrec"], ["ndcg@10", "ndcg@100"])
    found = {(claim.section, claim.metric) for claim in claims}
    both = {("beauty", name) for name in ("ndcg@10", "ndcg@100")}
    assert found == both | {("sports", "ndcg@10")}
    assert report.main([str(runs / "a"), str(runs / "c")]) == 0
    said = capsys.readouterr().out.splitlines()
    head = "| sports | create - sasrec | +0.00 ("
    rows = [line for line in said if line.startswith(head)]
    assert rows and all(row.endswith(" |  |  |") for row in rows)


def test_a_table_has_the_metrics_of_all_its_runs(runs):
    """`eval.metrics` adds some to a run, which may come later than others."""
    without(runs / "a/create-0", "mrr@10")
    without(runs / "a/create-1", "recall@100")
    systems = load(find_runs([str(runs / "a")]))
    text = report.markdown(report.parts(systems, [], "ndcg@10"))
    head = "| system | seeds | ndcg@10 | recall@10 | coverage@10 | ndcg@100 | cov"
    assert head in text
    assert "recall@100" not in report.comma_separated(systems).split("create", 1)[1]
    assert "recall@100" not in report.table([r for s in systems for r in s.results])


def test_runs_are_compared_by_the_targets_that_all_of_them_have(tmp_path):
    """`eval.targets` says which to rank, and a run may rank fewer."""
    rng = np.random.default_rng(9)
    for name in ("sasrec", "create"):
        make_run(tmp_path / name, name, 0, rng.integers(0, 200, QUERIES))
    short = tmp_path / "create"
    result = json.loads((short / "result.json").read_text())
    del result["test_by_target"]["first"]
    (short / "result.json").write_text(json.dumps(result))
    with np.load(short / "ranks.npz") as file:
        kept = {name: file[name] for name in file if not name.startswith("first")}
    np.savez(short / "ranks.npz", **kept)
    systems = load([tmp_path / "sasrec", short])
    claims = make_claims(systems, ["sasrec"], ["ndcg@10"])
    assert {claim.target for claim in claims} == {"last"}
    text = report.markdown(report.parts(systems, claims, "ndcg@10"))
    assert "target last" in text and "target first" not in text
    rows = list(csv.DictReader(report.comma_separated(systems).splitlines()))
    assert {row["target"] for row in rows if row["system"] == "create"} == {"last"}
    assert "first" not in report.table([system.results[0] for system in systems])
