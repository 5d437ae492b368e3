"""Prints a real history, what a finished run ranks first for it, how to ask more."""

import shlex
from pathlib import Path

import jax
import numpy as np

from create_jax import experiment, export, methods, protocol
from create_jax.files import is_remote
from create_jax.writers import say

LAST_WATCHED = 5  # items of the history that are shown


def show(config, workdir: str) -> None:
    """Prints one real history and the ten items ranked first for it, by title; exports
    the model, if it can serve, and prints the commands that ask it."""
    opened, fitted, selection = experiment.reopen(config, workdir)
    split, titles = opened.split, protocol.titles(config)
    holdout = split.test[config.eval.target]
    long = np.flatnonzero(holdout.end - holdout.begin >= LAST_WATCHED)
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
    for item in history[-LAST_WATCHED:]:
        say(f"      {name(item)}")
    say(f"and next (held out): {name(query.targets[0])}\n\nThe model's top ten:")
    for place, item in enumerate(top[top > 0], start=1):
        say(
            f"  {place:2d}  {name(item)}"
            + ("   <- " if item == query.targets[0] else "")
        )

    if is_remote(workdir) or jax.process_count() > 1:
        return
    if reason := export.unservable(config):
        say(f"\nIt is not exported: {config.method} {reason}.")
        return
    path = Path(workdir) / "model.safetensors"
    say("\nThe model in one file:")
    export.write(opened, fitted, selection, str(path))
    file, heading = shlex.quote(str(path)), "Ask it about a user"
    rows, _ = export.tested_rows(opened)
    asked = f"--user={shlex.quote(rows.user_ids[int(rows.users[0])])}"
    if methods.find(config.method).kind != "graph":  # which know users only
        counts = np.bincount(split.refit.items)
        known = [name(item) for item in np.argsort(-counts)[:20]]
        plain = [text for text in known if "'" not in text][:3]
        asked = " ".join(f"--history={shlex.quote(text)}" for text in plain)
        heading = "Ask it about yourself, with titles of yours"
    say(
        f"\n{heading}:\n"
        f"  python -m create_jax.recommend {file} {asked}\n"
        "or click, in a browser (extra `serve`):\n"
        f"  python -m create_jax.serve {file}"
    )
