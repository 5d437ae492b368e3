"""python -m benchmarks.serving.answers RUN ARTIFACT: what an artifact answers is so.

1. Its best 100 for every test query of the run are those of `--mode=evaluate
   --config.eval.candidates=train`. Neighbours whose scores differ by less than 1e-6 may
   change places, and are counted. A model of users is asked by their ids.
2. Leave one out, of a model that reads histories: for up to 1,000 test queries with
   three items or more, the history item that `explain` names for the first item of the
   list is taken out, and in its place another drawn at random; the model is asked
   again, each time alone.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from create_jax import artifact, config_file, experiment
from create_jax.recommender import Recommender

K = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("artifact")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--path", default="", help="of the data, where it has moved")
    args = parser.parse_args()
    started = json.loads((args.run / "config.json").read_text())["config"]
    config = config_file.common.get_config(started["method"])
    with config.unlocked():
        config.update(ConfigDict(started))
    config.eval.update(candidates="train", filter_seen=True)
    config.data.path = args.path or config.data.path
    opened, fitted, _ = experiment.reopen(config, str(args.run))
    recommender = Recommender(artifact.read(args.artifact))
    holdout = opened.split.test[config.eval.target]
    pairs = zip(holdout.begin, holdout.end, strict=True)
    histories = [holdout.log[begin:end] for begin, end in pairs]
    theirs = experiment.rank(opened, fitted, holdout, ks=(K,), keep_lists=True).top
    if recommender.artifact.users is None:
        found = recommender.recommend(histories, K)
        lists(recommender, recommender.vectors(histories), found, theirs)
        leave_one_out(recommender, histories, args.queries)
        return
    ids = opened.log.user_ids.gather(holdout.users)
    users = [recommender.user(name) for name in ids]
    found = recommender.recommend_users(users, K, seen=histories)
    lists(recommender, recommender.artifact.users.vectors[users], found, theirs)


def lists(recommender, vectors, found, theirs) -> None:
    items, scores = found
    different = items != theirs
    worst = 0.0
    for query in np.flatnonzero(different.any(1)):
        places = np.flatnonzero(different[query])
        rows = recommender.artifact.items[theirs[query][places]]
        other = (rows.astype(np.float64) @ vectors[query]).astype(np.float32)
        worst = max(worst, float(np.abs(other - scores[query][places]).max()))
    queries, greatest = different.any(1).sum(), np.abs(scores).max()
    print(
        f"{len(items):,} queries, {items.size:,} places: {different.sum():,} of "
        f"them in {queries:,} queries hold another item, whose score differs by "
        f"{worst:.1e} at most; the greatest score is {greatest:.3f}"
    )


def leave_one_out(recommender, histories, most: int) -> None:
    rng, falls, ranks = np.random.default_rng(0), [], []
    long = [h for h in map(recommender.known, histories) if len(np.unique(h)) >= 3]
    chosen = rng.permutation(len(long))[:most]
    for query in chosen:
        history = long[query][-recommender.max_len :]
        item = int(recommender.recommend([history], 1)[0][0, 0])
        found = recommender.explain(history, item)
        named = int(np.argmin(found.scores))
        others = np.delete(np.arange(len(history)), named)
        other = int(rng.choice(others))
        row = recommender.artifact.items[item]
        scores = [
            float(recommender.vectors([np.delete(history, place)])[0] @ row)
            for place in (named, other)
        ]
        falls.append([found.score - score for score in scores])
        ranks.append([found.ranks[named], found.ranks[other]])
    falls, ranks = np.array(falls), np.array(ranks)
    lower, fall = (falls[:, 0] > falls[:, 1]).mean(), falls.mean(0)
    rank = np.median(ranks, axis=0)
    print(
        f"{len(falls):,} queries, leave one out: without the named item the score falls"
        f" by {fall[0]:.4f} on average, to rank {rank[0]:.0f} in the median; without a "
        f"random other by {fall[1]:.4f}, to rank {rank[1]:.0f}; by more without the "
        f"named in {lower:.1%}"
    )


if __name__ == "__main__":
    main()
