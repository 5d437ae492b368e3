"""PureSVD against numpy.linalg.svd of the dense matrix, and its run."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from create_jax import baselines, evaluate, experiment, parallel, protocol
from create_jax.configs import table
from create_jax.data.splits import Holdout
from create_jax.models import svd
from create_jax.rundir import Run

# Column 0 is padding, item 4 was never taken; singular values are well apart.
MATRIX = np.array(
    [
        [0, 1, 1, 0, 0, 1],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0, 1],
        [0, 0, 0, 0, 0, 1],
    ]
)
PAIRS = tuple(np.nonzero(MATRIX))


def dense_factors(matrix, rank, power=1.0):
    counts = matrix.sum(0)
    scaled = matrix * np.maximum(counts, 1.0) ** ((power - 1) / 2)
    return np.linalg.svd(scaled)[2][:rank].T


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_item_factors_are_the_right_singular_vectors(rank, power):
    """Vectors are known up to their sign: V V^T is compared."""
    found = svd.item_factors(*PAIRS, *MATRIX.shape, rank, power)
    expected = dense_factors(MATRIX, rank, power)
    assert found.shape == (6, rank)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert np.abs(found[[0, 4]]).max() < 1e-6  # no such rows: nothing to recommend


def test_column_scaling_weakens_popular_items():
    shares = [
        np.linalg.norm(svd.item_factors(*PAIRS, *MATRIX.shape, 1, power)[1])
        for power in (1.0, 0.5, 0.0)
    ]
    assert shares[0] > shares[1] > shares[2]


def test_a_smaller_rank_is_the_first_columns_of_a_larger_one():
    """Largest first, which the choice of a rank relies on; and repeatable."""
    large = svd.item_factors(*PAIRS, *MATRIX.shape, 4)
    small = svd.item_factors(*PAIRS, *MATRIX.shape, 2)
    signs = np.sign((large[:, :2] * small).sum(0))
    np.testing.assert_allclose(large[:, :2], small * signs, atol=1e-5)
    again = svd.item_factors(*PAIRS, *MATRIX.shape, 4)
    np.testing.assert_array_equal(large, again)


def test_user_vectors_are_the_rows_on_the_factors():
    factors = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    found = svd.user_vectors(*PAIRS, len(MATRIX), factors)
    np.testing.assert_allclose(found, MATRIX @ factors, rtol=1e-5, atol=1e-6)


# Histories of two, four and one item; one item comes twice and counts once.
HISTORIES, QUERY_USERS, NEXT = ([1, 2], [5, 3, 5, 2], [4]), [6, 0, 3], [3, 4, 1]
FACTORS = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
USERS = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)


@pytest.mark.parametrize("fold_in", [True, False])
def test_a_query_is_its_whole_history_or_its_training_row(fold_in):
    sizes = [len(history) for history in HISTORIES]
    end = np.cumsum(sizes)
    holdout = Holdout(
        users=np.array(QUERY_USERS, np.int32),
        log=np.concatenate(HISTORIES).astype(np.int32),
        begin=end - sizes,
        end=end,
        targets=np.array(NEXT, np.int32),
        offsets=np.arange(4),
        candidates=np.arange(6) > 0,
    )
    devices = jax.devices()[:2]
    axes = dict(axis_types=(AxisType.Auto,), devices=devices)
    mesh = jax.make_mesh((2,), ("data",), **axes)
    # Two slots hold two items, but the whole history counts.
    evaluator = evaluate.Evaluator(
        *(holdout, baselines.factor_scores(fold_in=fold_in), mesh),
        **dict(ks=[5], max_len=2, batch=4, keep_lists=True),
        **dict(filter_seen=False, whole=True),
    )
    ranking = evaluator.run({"items": FACTORS, "users": USERS}, ())
    counts = [np.bincount(history, minlength=6) for history in HISTORIES]
    rows = np.minimum(counts, 1)
    users = rows @ FACTORS if fold_in else USERS[QUERY_USERS]
    scores = (users @ FACTORS.T)[:, 1:]
    order = 1 + np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(ranking.top, order)
    places = [
        np.flatnonzero(row == item)[0] for row, item in zip(order, NEXT, strict=True)
    ]
    np.testing.assert_array_equal(ranking.ranks, places)


# --- a run ----------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    """Users of three tastes over twelve items: three directions matter."""
    rng = np.random.default_rng(10)
    rows = ["user,item,time"]
    for user in range(80):
        liked = 4 * (user % 3) + np.arange(4)
        chance = np.where(np.isin(np.arange(12), liked), 1.0, 0.1)
        items = rng.choice(12, 5, replace=False, p=chance / chance.sum())
        times = np.sort(rng.choice(1000, 5, replace=False))
        rows += [f"u{user},i{i:02d},{t}" for i, t in zip(items, times, strict=True)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    config = table.get_config("svd")
    config.data.path = str(path)
    config.svd.ranks = (1, 3, 6, 512)
    config.eval.update(ks=(2,), select_by="ndcg@2", filter_seen=False)
    return config


def dense_ndcg(train, holdout, rank):
    """NDCG@2 of r_u V V^T, every candidate sorted."""
    matrix = np.zeros((train.n_users, train.n_items + 1))
    matrix[train.users, train.items] = 1
    factors = dense_factors(matrix, rank)
    scores = np.where(holdout.candidates, matrix @ factors @ factors.T, -np.inf)
    gains = []
    for user, target in zip(holdout.users, holdout.targets, strict=True):
        place = np.flatnonzero(np.argsort(-scores[user]) == target)[0]
        gains.append(1 / np.log2(place + 2) if place < 2 else 0)
    return np.mean(gains)


def test_the_rank_is_chosen_by_validation_and_the_factors_are_refit(config, tmp_path):
    result = experiment.train_and_evaluate(config, str(tmp_path / "run"))
    split = protocol.make_split(config, protocol.load(config))
    valid = {k: dense_ndcg(split.train, split.valid, k) for k in (1, 3, 6)}
    best = max(valid, key=valid.get)
    assert best == 3  # neither the first nor the last; 512 is above the 12 items
    assert result["valid"]["rank"] == best
    assert result["valid"]["ndcg@2"] == pytest.approx(valid[best])
    test = dense_ndcg(split.refit, split.test["last"], best)
    assert result["test"]["ndcg@2"] == pytest.approx(test)
    assert test != pytest.approx(dense_ndcg(split.train, split.test["last"], best))


def test_an_evaluation_keeps_the_rank_and_what_chose_it(config, tmp_path, monkeypatch):
    result = experiment.train_and_evaluate(config, str(tmp_path / "run"))
    monkeypatch.delattr(baselines, "_validate")
    config.eval.update(ks=(12,), select_by="recall@12", target="first")
    opened, fitted, chosen = experiment.reopen(config, str(tmp_path / "run"))
    assert chosen.best_metrics == result["valid"] and result["valid"]["rank"] == 3
    assert fitted.params["items"].shape == (13, 3)
    assert opened.facts["protocol"]["select_by"] == "ndcg@2"


def test_the_rank_is_chosen_by_a_metric_without_a_cut(config):
    config.eval.select_by = "log_reciprocal_rank"
    split = protocol.make_split(config, protocol.load(config))
    found = baselines.fit(Run(config, None, parallel.make_mesh(), None), split)[1]
    assert found.best_metrics["rank"] == 3
    assert -np.log(12) < found.best_metrics["log_reciprocal_rank"] < 0
