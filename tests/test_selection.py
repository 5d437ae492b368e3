"""The study of selection rules: its arithmetic, and a run of two epochs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import each_epoch, selection
from benchmarks.each_epoch import Curves
from benchmarks.selection import Rule
from create_jax import train
from create_jax.cluster import Leaving


def test_a_mean_is_of_an_epoch_and_those_before_it():
    values = np.array([1.0, 2.0, 6.0, 0.0, 3.0])
    assert (selection.averaged(values, 1) == values).all()
    np.testing.assert_allclose(selection.averaged(values, 3), [1, 1.5, 3, 8 / 3, 3])


def trained(values, patience, mean=1):
    """(the best epoch's place, epochs) of a training whose score is that."""
    rules = train.Stopping(len(values), 0, 1, patience, "mrr", mean)
    progress = train.Progress()
    while not progress.finished:
        found = {"mrr": values[progress.epoch]}
        progress = train.after_epoch(progress, rules, progress.epoch, found, False)
    return progress.best_epoch - 1, progress.epoch


def test_the_first_greatest_is_chosen_and_patience_is_that_of_training():
    values = np.array([-3.0, -1.0, -2.0, -2.0, -0.5, -0.5, -4.0])
    assert selection.chosen(values) == (4, 7)
    for patience in (1, 2, 3, 9):
        assert selection.chosen(values, patience) == trained(values, patience)
    assert selection.chosen(values, 2) == (1, 4)


def test_means_are_compared_as_in_training():
    values = np.random.default_rng(0).normal(size=40)
    for mean, patience in ((1, 10), (3, 5), (5, 40)):
        found = selection.chosen(selection.averaged(values, mean), patience)
        assert found == trained(values, patience, mean)


def test_regret_and_its_deviation_by_hand():
    assert selection.regret(np.array([0.1, 0.4, 0.3]), 2) == pytest.approx(0.1)
    # Squares of 2 and 8 inside the groups, of one and two free differences.
    spread = selection.deviation([[1.0, 3.0], [5.0, 5.0, 8.0 - 1.0]])
    assert spread == pytest.approx(np.sqrt((2 + 8 / 3) / 3))
    assert np.isnan(selection.deviation([[1.0], [2.0]]))


def test_noise_is_what_a_smooth_curve_lacks():
    smooth = np.linspace(1.0, 5.0, 4000)
    drawn = np.random.default_rng(0).normal(0, 0.1, 4000)
    assert selection.noise(smooth) == pytest.approx((0, 0), abs=1e-12)
    deviation, share = selection.noise(smooth + drawn)
    assert deviation == pytest.approx(0.1, rel=0.03)
    # The means go from 1 to 5, and by their own noise, 0.1 / sqrt(7), a little farther.
    assert 0.1 / 4.3 < share < 0.1 / 4
    assert np.isnan(selection.noise(smooth[:6])).all()


def test_pairs_in_the_same_order():
    found = selection.same_order([(2, 9), (4, 1)], [(5, 8), (3, 2)])
    # 2, 9 against 5, 8: won, lost; 3, 2: won, lost. 4, 1 against 5, 8: won twice; 3, 2:
    # lost, won.
    assert found == (1, 4)


def made_up(method, seed, valid, test):
    """A run whose metrics are all alike."""
    curves = {
        f"{part}/{target}/{metric}": np.array(values)
        for part, values in (("valid", valid), ("test", test))
        for target in selection.TARGETS
        for metric in selection.METRICS
    }
    return Curves("toys", method, seed, curves)


STUDIES = [
    made_up("sasrec", 0, [0.1, 0.3, 0.2], [0.10, 0.18, 0.20]),
    made_up("create", 0, [0.1, 0.2, 0.4], [0.10, 0.19, 0.25]),
    made_up("create", 1, [0.3, 0.2, 0.1], [0.15, 0.19, 0.24]),
]


HEADS = "All data", "Regret", "Order of two systems", "Patience"


def test_tables_of_made_up_curves():
    """Of ndcg@10 raw the second epoch of SASRec is chosen, 0.18 of 0.20; the last of
    CREATE's first run; the first of its second, 0.15 of 0.24."""
    rule = Rule("ndcg@10", "last", 1)
    assert [selection.chosen(rule.of(one))[0] for one in STUDIES] == [1, 2, 0]
    text = selection.tables(STUDIES)
    summary, regrets, orders, patiences = (
        text.split(f"## {head}\n")[1].split("\n\n##")[0] for head in HEADS
    )
    lost = [10, 0, 37.5]
    spread = np.sqrt(((0 - 18.75) ** 2 * 2) / 1)
    line = f"| ndcg@10 | last | 1 | {np.mean(lost):.2f} ± {spread:.2f} | 37.50 "
    assert line + "| +0.00 (0 of 0) | 2 |" in summary
    assert "one drawn at random of" in summary
    mean, best = np.mean([2, 0, 9]), np.mean([20, 25, 24])
    cell = f"| {mean:.3f} ± {np.std([0, 9], ddof=1):.3f} ({100 * mean / best:.1f}%)"
    assert f"| ndcg@10 | last | 1 {cell}" in regrets
    assert "| the last epoch |  |  | 0.000 ± 0.000 (0.0%)" in regrets
    # CREATE is better by the best epochs; its second run is worse where it was chosen,
    # and looks as good as SASRec on validation, which is not better.
    assert "| ndcg@10 | last | 1 | 1 of 2 | 1 of 2 |" in orders
    assert f"| ndcg@10 | last | 1 | {np.mean(lost):.2f} (3 to 3)" in patiences


def test_a_rule_is_compared_with_the_usual_one_run_by_run():
    """Here recall@10 of `last` chooses the last epoch of each run, which is best."""
    rising = {"valid/last/recall@10": np.array([0.1, 0.2, 0.3])}
    studies = [one._replace(curves=one.curves | rising) for one in STUDIES]
    summary = selection.tables(studies).split("## All data")[1].split("\n##")[0]
    assert (
        "| recall@10 | last | 1 | 0.00 ± 0.00 | 0.00 | -15.83 (2 of 2) | 3 |" in summary
    )


def test_the_default_is_compared_with_an_interval():
    """Here it chooses the last epochs, which are best; the usual one loses 10, 0 and
    37.5%."""
    rising = {"valid/last/log_reciprocal_rank": np.array([-3.0, -2.0, -1.0])}
    studies = [one._replace(curves=one.curves | rising) for one in STUDIES]
    table = selection.tables(studies).split("### The default")[1].split("\n##")[0]
    lost = np.array([10, 0, 37.5])
    edge = 4.302653 * lost.std(ddof=1) / np.sqrt(3)  # t of two degrees of freedom
    low, high = -lost.mean() - edge, -lost.mean() + edge
    bounds = f"({low:+.2f} .. {high:+.2f})"
    assert f"| all | none | 0.00 | 15.83 | -15.83 {bounds} |" in table


def test_refits_by_hand():
    """The second of three epochs is chosen; six of ten rows are trained on, so that
    it is the first, scaled."""
    study = STUDIES[0]._replace(about={"config": {"split": {"q_val": 0.6}}})
    truth = [0.15, 0.24, 0.25]
    refit = made_up("sasrec", 0, [0], truth)
    refit = refit._replace(about={"refit": True})
    others = [one._replace(data="others") for one in STUDIES[1:]]
    text = selection.tables(selection.merged([study, refit, *STUDIES[1:], *others]))
    assert "Of sasrec 0." in text
    cells = [f"{100 - 100 * x / 0.25:.2f} ± 0.00" for x in (0.18, 0.24, 0.15)]
    assert f"| ndcg@10 | last | 1 | {' | '.join(cells)} |" in text
    # The regret above is of the refit as well.
    assert f"| ndcg@10 | last | 1 | {(4 + 0 + 37.5) / 3:.2f} ±" in text
    assert "| toys | sasrec | 0 | 0 |" in text and "| toys | create |" not in text
    assert "| others | create | 0, 1 |  |" in text
    assert "### Refit" not in selection.tables(selection.merged(STUDIES))


def test_a_refit_trains_on_the_rows_of_validation_too(tmp_path, monkeypatch):
    given = {}

    def keep(config, facts, log, holdouts, file, **rules):
        given[facts["refit"]] = log, facts, holdouts, file.name

    monkeypatch.setattr(each_epoch, "run", keep)
    config = selection.make_config("quickstart", "sasrec", 3, epochs=2)
    for refit in (False, True):
        selection.run(config, tmp_path, 300, refit)
    (less, facts, both, _), (more, of_refit, test, name) = given[False], given[True]
    assert name == "movietweetings-sasrec-refit-3.jsonl"
    assert facts["data"] == of_refit["data"]
    assert more.n_rows == facts["data"]["train_interactions"]
    assert less.n_rows == pytest.approx(config.split.q_val * more.n_rows, abs=2)
    assert set(test) == {"test/last", "test/successive"} < set(both)
    for key, holdout in test.items():
        np.testing.assert_array_equal(holdout.targets, both[key].targets)


def test_the_printed_tables_are_those_of_the_files():
    place = Path(__file__).parents[1] / "results/selection"
    runs = [each_epoch.read(file) for file in sorted(place.glob("*.jsonl"))]
    tables = selection.tables(selection.merged(runs))
    assert tables == (place / "tables.md").read_text()
    said = set(re.findall(r"\d+\.\d+", (place / "README.md").read_text()))
    assert said and said <= set(re.findall(r"\d+\.\d+", tables))


def test_an_empty_directory_is_one_line(tmp_path, capsys):
    assert selection.main(["table", str(tmp_path)]) == 2
    assert "found no *.jsonl" in capsys.readouterr().err


@pytest.mark.services  # 23 seconds
def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """CREATE on the quick-start data with one epoch of warm-up and two joint ones."""
    config = selection.make_config("quickstart", "create", 0, epochs=2)
    config.warmup.epochs, config.model.dim, config.seq.max_len = 1, 8, 10
    config.seq.blocks = 1
    rankings, of = [], each_epoch._ranker

    def stops_once(*given):
        rank = of(*given)

        def counted(params, graph):
            rankings.append(1)
            if len(rankings) == 2:
                raise Leaving
            return rank(params, graph)

        return counted

    monkeypatch.setattr(each_epoch, "_ranker", stops_once)
    with pytest.raises(Leaving):
        selection.run(config, tmp_path, queries=300)
    file = selection.run(config, tmp_path, queries=300)
    assert len(rankings) == 3  # that of the second joint epoch twice
    about, *lines = map(json.loads, file.read_text().splitlines())
    assert [line["epoch"] for line in lines] == [1, 2]
    study = each_epoch.read(file)
    assert (study.data, study.method, study.seed) == ("movietweetings", "create", 0)
    assert set(about["queries"].values()) == {300}
    # The rows after the cut of the config are not there, nor what they alone name.
    assert about["data"]["interactions"] < 0.81 * 68_055
    assert about["data"]["items"] < 2_414
    for name, values in study.curves.items():
        assert len(set(values)) == 2 and np.isfinite(values).all(), name
        assert (values < 0).all() == ("log" in name)
    selection.run(config, tmp_path, queries=300)
    assert "finished" in capsys.readouterr().out
    assert len(rankings) == 3
    selection.table(tmp_path)
    assert "movietweetings" in capsys.readouterr().out
    assert (tmp_path / "movietweetings.png").exists()
    assert (tmp_path / "regrets.png").exists()
