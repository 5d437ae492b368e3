"""Prints a real history and the items that a finished run ranks first, by title."""

import numpy as np

from create_jax import experiment, protocol
from create_jax.writers import say


def show(config, workdir: str, least_history: int = 5) -> None:
    """Prints one real history and the ten items ranked first for it, by title."""
    opened, fitted, _ = experiment.reopen(config, workdir)
    split, titles = opened.split, protocol.titles(config)
    holdout = split.test[config.eval.target]
    long = np.flatnonzero(holdout.end - holdout.begin >= least_history)
    one = long[:1] if len(long) else np.array([0])
    query = holdout._replace(
        users=holdout.users[one],
        begin=holdout.begin[one],
        end=holdout.end[one],
        targets=holdout.targets[holdout.offsets[one]],
        offsets=np.array([0, 1]),
    )
    top = experiment.rank(opened, fitted, query, ks=(10,), keep_lists=True).top[0]

    def name(item):
        external = split.refit.item_ids[int(item) - 1]
        return titles.get(external, external)

    history = query.log[query.begin[0] : query.end[0]]
    user = split.refit.user_ids[int(query.users[0])]
    say(f"User {user} last watched" + f" ({len(history)} in all):")
    for item in history[-least_history:]:
        say(f"      {name(item)}")
    say(f"and next (held out): {name(query.targets[0])}\n\nThe model's top ten:")
    for place, item in enumerate(top[top > 0], start=1):
        say(
            f"  {place:2d}  {name(item)}"
            + ("   <- " if item == query.targets[0] else "")
        )
