"""Ranking metrics against RecTools, RePlay and ranx.

python -m benchmarks.parity.metrics

All libraries get the same ranked lists. A line shows the two means and the largest
difference of a user's value. Exits with 1 if a difference is above 1e-6.
"""

import sys

import numpy as np
import pandas as pd
import ranx
from rectools import Columns
from rectools import metrics as rectools
from replay import metrics as replay

from create_jax import metrics

USERS, ITEMS, CUTOFFS, TOLERANCE = 1000, 500, (10, 100), 1e-6


def make_lists(rng):
    """All items by score, [U, I] each; few distinct scores, so ties are frequent."""
    popularity = rng.normal(size=ITEMS)
    scores = np.round(popularity + rng.normal(size=(USERS, ITEMS)), 1)
    order = np.lexsort((rng.random(scores.shape), -scores))
    return order + 1, np.take_along_axis(scores, order, 1)


def draw_targets(rng, ranked, sizes):
    """Targets from the whole lists; a tenth of the users have no hit in the top."""
    targets = []
    for user, size in enumerate(sizes):
        places = np.arange(CUTOFFS[-1] if user % 10 == 0 else 0, ITEMS)
        weights = 1 / (places + 1)
        chosen = rng.choice(places, size, replace=False, p=weights / weights.sum())
        targets.append(ranked[user, chosen])
    return targets


def ours(ranked, scores, targets):
    sizes = [len(items) for items in targets]
    flat, offsets = np.concatenate(targets), np.append(0, np.cumsum(sizes))
    found = {}
    for k in CUTOFFS:
        if max(sizes) == 1:
            found |= metrics.from_ranks(np.argmax(ranked == flat[:, None], axis=1), k)
        else:
            found |= metrics.from_lists(ranked[:, :k], flat, offsets, k)
        shown = np.zeros(ITEMS + 1, bool)
        shown[ranked[:, :k]] = True
        found[f"coverage@{k}"] = metrics.coverage(shown)
    return found


def of_rectools(ranked, scores, targets):
    # By default RecTools' NDCG divides by the gain of k hits, even with fewer targets.
    # Its coverage is a count by default. Both have a switch.
    users, depth = np.arange(USERS), CUTOFFS[-1]
    lists = pd.DataFrame(
        {
            Columns.User: np.repeat(users, depth),
            Columns.Item: ranked[:, :depth].ravel(),
            Columns.Rank: np.tile(np.arange(1, depth + 1), USERS),
        }
    )
    held = pd.DataFrame(
        {
            Columns.User: np.repeat(users, [len(items) for items in targets]),
            Columns.Item: np.concatenate(targets),
        }
    )
    found = {}
    for k in CUTOFFS:
        per_user = {
            "ndcg": rectools.NDCG(k=k, divide_by_achievable=True),
            "recall": rectools.Recall(k=k),
            "mrr": rectools.MRR(k=k),
        }
        for name, metric in per_user.items():
            found[f"{name}@{k}"] = metric.calc_per_user(lists, held).loc[users].values
        share = rectools.CatalogCoverage(k=k, normalize=True)
        found[f"coverage@{k}"] = share.calc(lists, np.arange(1, ITEMS + 1))
    return found


def of_replay(ranked, scores, targets):
    # Given dicts, RePlay keeps the order of ties; given frames, it puts the larger item
    # id first. Its coverage is a share of the training items: here, of all.
    lists = {
        user: list(zip(items.tolist(), values.tolist(), strict=True))
        for user, (items, values) in enumerate(zip(ranked, scores, strict=True))
    }
    held = {user: items.tolist() for user, items in enumerate(targets)}
    catalogue, cutoffs = {0: list(range(1, ITEMS + 1))}, list(CUTOFFS)
    found = {}
    for metric in (replay.NDCG, replay.Recall, replay.MRR):
        values = metric(cutoffs, mode=replay.PerUser())(lists, held)
        for k in CUTOFFS:
            by_user = values[f"{metric.__name__}-PerUser@{k}"]
            name = f"{metric.__name__.lower()}@{k}"
            found[name] = np.array([by_user[user] for user in range(USERS)])
    shares = replay.Coverage(cutoffs)(lists, catalogue)
    return found | {f"coverage@{k}": shares[f"Coverage@{k}"] for k in CUTOFFS}


def of_ranx(ranked, scores, targets):
    # ranx sorts by score and may reorder ties, so it gets falling scores. It has no
    # coverage.
    names = [f"{user:04d}" for user in range(USERS)]
    falling = range(ITEMS, 0, -1)
    run = {
        name: dict(zip(map(str, items), falling, strict=True))
        for name, items in zip(names, ranked, strict=True)
    }
    held = {
        name: dict.fromkeys(map(str, items), 1)
        for name, items in zip(names, targets, strict=True)
    }
    wanted = [f"{name}@{k}" for name in ("ndcg", "recall", "mrr") for k in CUTOFFS]
    return ranx.evaluate(ranx.Qrels(held), ranx.Run(run), wanted, return_mean=False)


PEERS = {"rectools": of_rectools, "replay": of_replay, "ranx": of_ranx}


def main() -> int:
    rng = np.random.default_rng(0)
    ranked, scores = make_lists(rng)
    cases = {
        "single": np.ones(USERS, int),
        "multi": rng.integers(1, 21, USERS),
    }
    print("peer      metric        targets       ours     theirs  difference")
    worst = 0.0
    for case, sizes in cases.items():
        query = ranked, scores, draw_targets(rng, ranked, sizes)
        mine = ours(*query)
        for peer, compute in PEERS.items():
            for name, theirs in compute(*query).items():
                difference = float(np.max(np.abs(mine[name] - theirs)))
                worst = max(worst, difference)
                means = f"{np.mean(mine[name]):10.6f} {np.mean(theirs):10.6f}"
                print(f"{peer:9} {name:13} {case:7} {means}  {difference:10.1e}")
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
