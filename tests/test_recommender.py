"""Recommendations of an artifact are those of the ranking of its run."""

from dataclasses import replace

import numpy as np
import pytest

from create_jax import artifact, baselines, build, experiment, export, rundir, train
from create_jax.configs import table
from create_jax.recommender import Recommender

K = 20
SYSTEMS = {
    "sasrec": {},
    "bert4rec": {},
    "create": {"graph.encoder": "lightgcn", "item_source.output": "propagated"},
    "lightgcn": {},
    "svd": {"svd.history": "full", "svd.ranks": (4,)},
    "mostpop": {},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """90 users of 3 to 20 of 40 items at random moments; some items come late only."""
    rng, rows = np.random.default_rng(1), ["user,item,time"]
    for user in range(90):
        times = np.sort(rng.integers(0, 1000, rng.integers(3, 20)))
        items = rng.integers(0, 40, len(times)) + np.where(times > 900, 5, 0)
        rows += [f"u{user},i{i:02},{t}" for i, t in zip(items, times, strict=True)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def make_config(log, method, **changes):
    config = table.get_config(method)
    config.data.path = str(log)
    small = {"model.dim": 8, "seq.max_len": 10, "seq.blocks": 1, "eval.ks": (10, K)}
    small |= {"eval.targets": ("last",), "split.validation": "none"}
    small |= {"eval.candidates": "train", "graph.lightgcn.layers": 1}
    small |= {"model.item_std": 1.0, "model.user_std": 1.0, "train.epochs": 1}
    config.update_from_flattened_dict(small | changes)
    return config


def untrained(config, tmp_path):
    """A run as it was opened, and its method with the parameters of the start."""
    opened = rundir.open_run(config, tmp_path)
    if config.method in baselines.FITS:
        return opened, baselines.fit(opened.run, opened.split)[0]
    rows = opened.split.refit
    model = build.make_model(config, rows.n_users, rows.n_items)

    def graph():
        return train._make_graph(opened.run, model, rows)

    params = train.parallel.place(opened.run.mesh, model.init(0))
    return opened, train._fitted(model, params, graph, train.Progress())


def same_lists(ours, theirs, scores) -> int:
    """Asserts that lists [Q, K] are the same but for neighbours whose scores differ by
    less than 1e-6; returns how many changed places."""
    swapped = 0
    for one, other, score in zip(ours, theirs, scores, strict=True):
        for place in np.flatnonzero(one != other):
            score_of = dict(zip(one.tolist(), score.tolist(), strict=True))
            last = score[-1] if np.isfinite(score[-1]) else -np.inf
            moved = abs(score_of.get(int(other[place]), last) - score[place])
            assert moved < 1e-6, (place, one, other)
            swapped += 1
    return swapped


@pytest.mark.parametrize("method", SYSTEMS)
def test_lists_are_those_of_the_ranking(log, tmp_path, method):
    config = make_config(log, method, **SYSTEMS[method])
    opened, fitted = untrained(config, tmp_path)
    made = export.make(opened, fitted, opened.split.refit)
    made = replace(made, manifest=made.manifest | {"method": method})
    artifact.write(tmp_path / "a.safetensors", made)
    recommender = Recommender(artifact.read(tmp_path / "a.safetensors"))

    holdout = opened.split.test["last"]
    lists = experiment.rank(opened, fitted, holdout, keep_lists=True).top
    histories = [
        holdout.log[begin:end]
        for begin, end in zip(holdout.begin, holdout.end, strict=True)
    ]
    if method == "lightgcn":
        names = opened.log.user_ids.gather(holdout.users).to_list()
        users = [recommender.user(name) for name in names]
        # Of a known user the training rows are hidden, not those before the target.
        known = recommender.artifact.users
        hidden = [known.seen[known.offsets[u] : known.offsets[u + 1]] for u in users]
        for query, rows in enumerate(hidden):
            assert set(rows) <= set(histories[query])
        vectors = known.vectors[users]
        allowed = recommender.allowed()
        items, scores = recommender._best(vectors, K, histories, allowed)
    else:
        items, scores = recommender.recommend(histories, K)
    assert (items > 0).any() and len(items) == holdout.n_queries > 20
    if method == "mostpop":  # of equal counts, the order is another
        counts = recommender.artifact.counts
        np.testing.assert_array_equal(counts[items], counts[lists])
        return
    assert same_lists(items, lists, scores) < 5
    never = np.flatnonzero(made.counts == 0)
    assert len(never) > 1 and not np.isin(items[items > 0], never).any()
