"""Splits of a log into training rows and test queries (docs/protocol.md#split).

A held-out query is a user, a history and one or more targets. Histories are slices of
one log, so that a hundred thousand of them cost two integers each.
"""

from typing import NamedTuple

import numpy as np

from create_jax.data.interactions import Interactions, take
from create_jax.data.packing import count_within
from create_jax.data.streams import stream
from create_jax.errors import InputError

TARGETS = ("last", "first", "random", "successive", "all")
REPORTED = ("last", "first", "random", "successive")  # by default
# Validations of each kind of split; `auto` is the first.
VALIDATIONS = {
    "global_temporal": ("by_time", "last_train_item", "by_user", "none"),
    "leave_one_out": ("last_train_item", "none"),
}
# Settings of the config's `split` that not every kind reads.
READS = {"global_temporal": ("q_test", "q_val")}
NEED_CLOCK = ("global_temporal",)  # real times, not only an order
BY_USER = 1024  # users who do not train, with the validation of that name


class Holdout(NamedTuple):
    """Q ranking questions.

    users: [Q] int32.
    log: [N] items; the history of query q is `log[begin[q]:end[q]]`, oldest first.
    begin, end: [Q] int64.
    targets: [M] items; those of query q are `targets[offsets[q]:offsets[q + 1]]`.
    offsets: [Q + 1] int64.
    candidates: [I + 1] bool, the items that may be ranked.
    places: [I + 1] int32, the order of items whose scores are equal; None = by number,
      for items without names.
    """

    users: np.ndarray
    log: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray
    candidates: np.ndarray
    places: np.ndarray | None = None

    @property
    def n_queries(self) -> int:
        return len(self.users)

    def targets_of(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(targets, offsets) of some of the queries."""
        sizes = np.diff(self.offsets)[queries]
        rows = np.repeat(self.offsets[queries], sizes) + count_within(sizes)
        return self.targets[rows], np.concatenate([[0], np.cumsum(sizes)])


class Split(NamedTuple):
    """train -> select on valid; refit (train and validation rows) -> test once.

    test: one Holdout for each target rule.
    facts: counts for result files (`data` in docs/protocol.md#resultjson).
    """

    train: Interactions
    valid: Holdout | None
    refit: Interactions
    test: dict[str, Holdout]
    facts: dict


def validation_of(kind: str, validation: str) -> str:
    """The validation that `auto` stands for. A user-defined split gets `auto` as it
    is."""
    ours = validation == "auto" and kind in VALIDATIONS
    return VALIDATIONS[kind][0] if ours else validation


def known_items(log: Interactions) -> np.ndarray:
    """[I + 1] bool: the item occurs in the log. Padding does not."""
    known = np.zeros(log.n_items + 1, bool)
    known[log.items] = True
    return known


def hold_out(
    log: Interactions,
    held: np.ndarray,
    known: np.ndarray,
    *,
    target: str,
    cold_items: str = "keep_as_miss",
    candidates: str = "all",
    history: str = "full",
    places: np.ndarray | None = None,
    queries: int = 0,
    seed: int = 0,
) -> Holdout:
    """Makes queries from the held rows of each user of `log`.

    Args:
      log: training and held rows together.
      held: [R] bool, the rows that may be targets; a user's held rows come last.
      known: [I + 1] bool, items seen in training. Others never enter a history.
      target: `last | first | random` (one query a user), `successive` (each held row,
        from all before it), `all` (one query, all held rows as targets).
      cold_items: unknown targets: `drop` them before choosing, or `keep_as_miss`, which
        they are with `train` candidates, and nearly always with `all`.
      candidates: rank `train` items only, or `all`.
      history: `full` = everything before the target; `train` = no held row.
      places: see Holdout.
      queries: most users that are asked, drawn at random; 0 = all.
      seed: of that draw, and of the `random` target.
    """
    warm = known[log.items]
    before = np.concatenate(
        [[0], np.cumsum(warm)]
    )  # rows of the clean log before row r
    user_row = np.searchsorted(log.users, np.arange(log.n_users + 1))
    n_before = np.bincount(log.users[~held], minlength=log.n_users)
    n_held = np.bincount(log.users[held], minlength=log.n_users)
    first_held = user_row[:-1] + n_before
    trained = before[first_held] > before[user_row[:-1]]
    trained &= asked_users(n_before, n_held, queries, seed)

    eligible = held & trained[log.users] & (warm | (cold_items == "keep_as_miss"))
    rows = np.flatnonzero(eligible)
    users, starts, counts = np.unique(
        log.users[rows], return_index=True, return_counts=True
    )
    if target == "successive":
        chosen, offsets = rows, np.arange(len(rows) + 1)
    elif target == "all":
        chosen, offsets = rows, np.concatenate([[0], np.cumsum(counts)])
    else:
        place = {
            "first": starts,
            "last": starts + counts - 1,
            "random": starts + np.random.default_rng(seed).integers(0, counts)
            if len(counts)
            else starts,
        }[target]
        chosen, offsets = rows[place], np.arange(len(users) + 1)

    asked = chosen[offsets[:-1]]  # the history ends before this row
    query_users = log.users[asked]
    cut = asked if target != "all" and history == "full" else first_held[query_users]
    return Holdout(
        users=query_users,
        log=log.items[warm],
        begin=before[user_row[query_users]],
        end=before[cut],
        targets=log.items[chosen],
        offsets=offsets,
        candidates=known if candidates == "train" else np.arange(len(known)) > 0,
        places=places,
    )


def asked_users(
    before: np.ndarray, held: np.ndarray, queries: int, seed: int
) -> np.ndarray:
    """[U] bool: the users that may be asked, of whom a draw keeps at most `queries`.

    Args:
      before, held: [U] rows of each user before the held ones, and of these.
      queries: 0 = all.
    """
    asked = (before > 0) & (held > 0)
    users = np.flatnonzero(asked)
    if 0 < queries < len(users):
        asked[:] = False
        asked[stream("ask", seed).choice(users, queries, replace=False)] = True
    return asked


def in_history(holdout: Holdout) -> np.ndarray:
    """[M] bool: whether the target is in the history of its query."""
    begin, of = np.unique(holdout.begin, return_inverse=True)
    size = np.zeros(len(begin), np.int64)
    np.maximum.at(size, of, holdout.end - holdout.begin)
    n_ids = len(holdout.candidates)
    # Histories with the same begin are one history, read up to different lengths.
    within = count_within(size)
    items = holdout.log[np.repeat(begin, size) + within]
    keys = np.repeat(np.arange(len(begin)), size) * n_ids + items
    keys, first = np.unique(keys, return_index=True)
    query = np.repeat(np.arange(holdout.n_queries), np.diff(holdout.offsets))
    wanted = of[query] * n_ids + holdout.targets
    row = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    length = (holdout.end - holdout.begin)[query]
    return (keys[row] == wanted) & (within[first[row]] < length)


def global_temporal(
    log: Interactions,
    *,
    q_test: float,
    validation: str,
    q_val: float,
    seed: int,
    **rules,
) -> Split:
    """Cuts the log at one moment for everybody (Gusak et al. 2025, arXiv 2507.16289).

    T is the linear `q_test` quantile of all times. Rows up to T train. Unlike in
    leave-one-out, no training row is later than a query.

    Args:
      validation: one of VALIDATIONS. q_val: the quantile of `by_time`.
      rules: `target`, of validation and test, and the rest of `hold_out`; `targets`,
        rules to test beside it; `select_target`, of validation alone.
    """
    late = log.times > _quantile(log.times, q_test)
    past = take(log, ~late)
    if validation == "by_time":
        held = past.times > _quantile(past.times, q_val)
        train = take(past, ~held)
    elif validation == "last_train_item":
        train, held = _last_of(past, np.ones(past.n_users, bool))
    elif validation == "by_user":
        train, held = _without_users(past, seed)
    else:
        train, held = past, None
    return assemble(log, past, late, train, held, seed=seed, **rules)


def _quantile(times: np.ndarray, q: float) -> int:
    """The last time that is not later than the linear quantile.

    The rows later than either are the same rows. float64 has too few digits for
    nanoseconds.
    """
    place = place_of(q, len(times))
    return np.partition(times, place)[place]


def place_of(q: float, n: int) -> int:
    """The place, from 0, of that time among n sorted ones."""
    return int(round(q * (n - 1), 6))


def leave_one_out(log: Interactions, *, validation: str, **rules) -> Split:
    """The last row of each user tests, the last but one validates (unless validation is
    `none`), the rest trains.

    Users with fewer than three rows only train. This split allows comparison with the
    literature. Training rows may be later than test rows, so its metrics are no
    estimate for future data.
    """
    counts = np.bincount(log.users, minlength=log.n_users)
    check_three_rows(int(counts.max()))
    past, late = _last_of(log, counts >= 3)
    train, held = past, None
    if validation != "none":
        train, held = _last_of(past, counts >= 3)
    return assemble(log, past, late, train, held, **rules)


def check_three_rows(most: int) -> None:
    """Refuses leave-one-out where no user has three rows."""
    if most < 3:
        raise InputError(
            "leave_one_out needs a user with three rows: to train, validate and test; "
            f"found at most {most} a user: bring longer histories, lower data.k_core, "
            "keep repeats (data.drop_repeats=False) or split.kind=global_temporal"
        )


def _last_of(log, which):
    """(the log without the last row of `which` users with at least two, [R] bool which
    rows these are)."""
    counts = np.bincount(log.users, minlength=log.n_users)
    last = np.cumsum(counts) - 1
    held = np.zeros(len(log.users), bool)
    held[last[which & (counts >= 2)]] = True
    return take(log, ~held), held


def random_users(sizes: np.ndarray, seed: int) -> np.ndarray:
    """[U] bool: random users with two rows or more; BY_USER, or half of these."""
    eligible = np.flatnonzero(sizes >= 2)
    rng = stream("user", seed)
    chosen = np.zeros(len(sizes), bool)
    chosen[rng.permutation(eligible)[: min(BY_USER, len(eligible) // 2)]] = True
    return chosen


def _without_users(log, seed):
    """(the log without random users, [R] bool the last row of each)."""
    chosen = random_users(np.bincount(log.users, minlength=log.n_users), seed)
    _, held = _last_of(log, chosen)
    return take(log, ~chosen[log.users]), held


def assemble(
    log: Interactions,
    past: Interactions,
    late: np.ndarray,
    train: Interactions,
    held: np.ndarray | None,
    *,
    target: str,
    targets=REPORTED,
    select_target: str = "",
    **rules,
) -> Split:
    """The Split that tests on the `late` rows of the log and selects on the `held` ones
    of its past.

    Args:
      late: [R] bool; of each user the last ones. past: the log without them.
      train: the rows of the past that train before the selection.
      held: [P] bool, rows of the past; None = nothing is selected.
      target: of test and validation. targets: further ones to test. select_target: of
        validation, where it is another one.
      rules: of `hold_out`.
    """
    known = known_items(past)

    def validation(target):
        return hold_out(past, held, known_items(train), target=target, **rules)

    return select_and_test(
        log,
        past,
        train,
        known,
        lambda target: hold_out(log, late, known, target=target, **rules),
        None if held is None else validation,
        target=target,
        targets=targets,
        select_target=select_target,
        train_users=len(np.unique(past.users)),
        warm_users=len(np.intersect1d(past.users, log.users[late])),
        ties=int(((np.diff(log.users) == 0) & (np.diff(log.times) == 0)).sum()),
    )


def select_and_test(
    log,
    past,
    train,
    known,
    test,
    validation,
    *,
    target,
    targets,
    select_target,
    ties,
    **counts,
) -> Split:
    """The Split of a log whose parts are known.

    Args:
      log, past, train: as in `assemble`, in memory or stored.
      known: [I + 1] bool, items of the past.
      test, validation: a target rule -> Holdout; validation None = nothing is selected.
      ties: rows with the same time as the user's row before.
      counts: further facts.
    """
    tests = {name: test(name) for name in dict.fromkeys([target, *targets])}
    main, valid = tests[target], None
    if validation is not None and main.n_queries > 0:
        valid = validation(select_target or target)
    check_queries(log.n_users, main, valid)
    facts = {
        "users": log.n_users,
        "items": log.n_items,
        "interactions": log.n_rows,
        "train_interactions": past.n_rows,
        **counts,
        "test_queries": main.n_queries,
        "test_queries_by_target": {k: v.n_queries for k, v in tests.items()},
        "valid_queries": 0 if valid is None else valid.n_queries,
        "unseen_items": int((~known[1:]).sum()),
        "unseen_items_share": _share(~known[1:]),
        "ties_with_previous_share": round(ties / log.n_rows, 6),
        "targets_in_history_share": _share(in_history(main)),
        "valid_targets_in_history_share": 0.0
        if valid is None
        else _share(in_history(valid)),
    }
    return Split(train, valid, past, tests, facts)


def check_queries(n_users: int, test: Holdout, valid: Holdout | None) -> None:
    """Refuses a split that leaves nothing to ask; valid: None = nothing is selected."""
    if test.n_queries == 0:
        raise InputError(
            f"no test query left after the split: of {n_users} users none has both "
            "a training row and a later row on an item seen in training; "
            "use a longer log or, with global_temporal, lower split.q_test"
        )
    if valid is not None and valid.n_queries == 0:
        raise InputError(
            "no validation query left after the split; with by_time, lower "
            "split.q_val, or use --config.split.validation=none with a fixed "
            "--config.train.epochs"
        )


def _share(flags):
    return round(float(flags.mean()), 6)


# A split: (log, *, validation, its settings, **rules) -> Split, made with
# `assemble`. Settings are `split.<argument>`, or `split.<name>.<argument>`.
SPLITS = {"global_temporal": global_temporal, "leave_one_out": leave_one_out}
