"""What trains, what is asked, and that the one never sees the other."""

import numpy as np
import polars as pl
import pytest

from create_jax.data import splits
from create_jax.data.interactions import Interactions, shuffle_ties
from create_jax.data.splits import (
    TARGETS,
    global_temporal,
    in_history,
    known_items,
    leave_one_out,
)
from create_jax.errors import InputError


def make_log(rows, n_users, n_items):
    """A log of (user, item, time), sorted by user and time."""
    rows = sorted(rows, key=lambda row: (row[0], row[2]))
    users, items, times = np.array(rows).T
    return Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        times.astype(np.int64),
        pl.Series([f"u{u}" for u in range(n_users)]),
        pl.Series([f"i{i}" for i in range(1, n_items + 1)]),
    )


# Times are 1..12, so q = 0.5 cuts at 6.5 and items 1..4 are seen in training.
# User 0 meets item 5, unseen in training, before and after its only askable target.
# User 2 has no training row; user 3 has nothing after the cut.
LOG = make_log(
    [
        *[(0, 1, 1), (0, 2, 3), (0, 5, 7), (0, 3, 9), (0, 5, 12)],
        *[(1, 3, 2), (1, 2, 4), (1, 1, 8), (1, 4, 10)],
        (2, 1, 11),
        *[(3, 2, 5), (3, 4, 6)],
    ],
    n_users=4,
    n_items=5,
)


def temporal(log=LOG, **changes):
    settings = dict(q_test=0.5, validation="none", q_val=0.5, target="last", seed=0)
    settings |= dict(cold_items="drop", candidates="train")
    return global_temporal(log, **(settings | changes))


def questions(holdout):
    """[(user, history, targets)] in the order of the queries."""
    return [
        (
            int(user),
            holdout.log[begin:end].tolist(),
            holdout.targets[start:stop].tolist(),
        )
        for user, begin, end, start, stop in zip(
            holdout.users,
            holdout.begin,
            holdout.end,
            holdout.offsets[:-1],
            holdout.offsets[1:],
            strict=True,
        )
    ]


def triples(log):
    return list(zip(*map(np.ndarray.tolist, log[:3]), strict=True))


# --- the cut --------------------------------------------------------------------------


def test_a_row_at_the_very_moment_of_the_cut_trains():
    log = make_log([(0, 1, 0), (0, 2, 1), (0, 1, 2), (0, 2, 3), (1, 1, 4)], 2, 2)
    split = temporal(log, q_test=0.5)  # T = 2
    assert split.refit.times.tolist() == [0, 1, 2]


def test_the_quantile_is_linear():
    log = make_log([(0, 1, 0), (0, 2, 1), (0, 1, 2), (0, 2, 3), (1, 1, 4)], 2, 2)
    # Place 2.8 of 0..4: T = 2.8; the nearest or the higher row would let time 3 train.
    assert temporal(log, q_test=0.7).refit.times.tolist() == [0, 1, 2]
    # Place 3.0: T = 3, so time 3 trains and nobody warm is left to be asked.
    with pytest.raises(InputError, match="no test query"):
        temporal(log, q_test=0.75)


@pytest.mark.parametrize("q", [0.5, 0.8, 0.57, 0.999])
@pytest.mark.parametrize("n", [2, 101, 1234])
def test_rows_later_than_the_quantile_are_found_exactly(n, q):
    """As by np.quantile, also where float64 has no digit for the last of the time."""
    times = 1_500_000_000 + np.random.default_rng(n).integers(0, n, n)
    late = times > np.quantile(times, q)
    for start, unit in ((0, 1), (10**18, 1), (1, 10**9)):
        exact = start + unit * times
        assert ((exact > splits._quantile(exact, q)) == late).all()


def test_training_rows_are_those_up_to_the_cut():
    split = temporal()
    assert triples(split.refit) == [
        *[(0, 1, 1), (0, 2, 3)],
        *[(1, 3, 2), (1, 2, 4)],
        *[(3, 2, 5), (3, 4, 6)],
    ]
    assert (split.refit.n_users, split.refit.n_items) == (4, 5)  # ids stay


def test_facts_count_by_hand():
    facts = temporal().facts
    assert facts["warm_users"] == 2  # users 0 and 1
    assert facts["train_users"] == 3
    assert facts["train_interactions"] == 6
    assert facts["test_queries"] == 2
    assert facts["test_queries_by_target"]["successive"] == 3
    assert facts["unseen_items"] == 1
    assert facts["unseen_items_share"] == 0.2
    assert facts["valid_queries"] == 0


def test_a_cut_after_everything_is_a_clear_error():
    with pytest.raises(InputError, match=r"no test query.*split\.q_test"):
        temporal(q_test=1.0)


# --- targets and histories ------------------------------------------------------------

LAST = [(0, [1, 2], [3]), (1, [3, 2, 1], [4])]
FIRST = [(0, [1, 2], [3]), (1, [3, 2], [1])]
SUCCESSIVE = [(0, [1, 2], [3]), (1, [3, 2], [1]), (1, [3, 2, 1], [4])]
ALL = [(0, [1, 2], [3]), (1, [3, 2], [1, 4])]


@pytest.mark.parametrize(
    "target, expected",
    [("last", LAST), ("first", FIRST), ("successive", SUCCESSIVE), ("all", ALL)],
)
def test_warm_users_are_asked_for_items_seen_in_training(target, expected):
    # Item 5 is dropped before the choice: it is neither a target nor in a history.
    assert questions(temporal(target=target).test[target]) == expected


@pytest.mark.parametrize(
    "target, expected",
    [
        ("last", [(0, [1, 2, 3], [5]), (1, [3, 2, 1], [4])]),
        ("first", [(0, [1, 2], [5]), (1, [3, 2], [1])]),
        (
            "successive",
            [(0, [1, 2], [5]), (0, [1, 2], [3]), (0, [1, 2, 3], [5]), *SUCCESSIVE[1:]],
        ),
        ("all", [(0, [1, 2], [5, 3, 5]), (1, [3, 2], [1, 4])]),
    ],
)
def test_unseen_targets_may_stay_as_misses(target, expected):
    split = temporal(target=target, cold_items="keep_as_miss")
    assert questions(split.test[target]) == expected
    assert not split.test[target].candidates[5]  # so it cannot be ranked


@pytest.mark.parametrize("target", ["last", "first", "successive", "all"])
def test_a_train_history_ends_at_the_cut(target):
    asked = questions(temporal(target=target, history="train").test[target])
    full = questions(temporal(target=target).test[target])
    assert [(user, targets) for user, _, targets in asked] == [
        (user, targets) for user, _, targets in full
    ]
    at_cut = {0: [1, 2], 1: [3, 2]}
    assert all(history == at_cut[user] for user, history, _ in asked)


def test_random_targets_are_seeded_and_are_rows_after_the_cut():
    rows = [(u, i, u + 20 * i) for u in range(20) for i in range(1, 11)]
    # Items 1..5 of everybody lie before the cut; five more users make 6..10 known.
    early = [(20 + n, 6 + n, n) for n in range(5)]
    log = make_log(rows + early, 25, 10)
    asked = [
        temporal(log, target="random", seed=seed).test["random"] for seed in (0, 0, 1)
    ]
    first, again, other = (holdout.targets.tolist() for holdout in asked)
    assert first == again
    assert first != other
    assert len(set(first)) > 2  # not always the same place
    for user, history, (target,) in questions(asked[0]):
        assert user < 20 and 6 <= target <= 10
        assert history == list(range(1, target))  # everything before it, nothing after


def test_every_target_rule_is_there_beside_the_main_one():
    split = temporal(target="all")
    assert list(split.test) == ["all", "last", "first", "random", "successive"]
    assert questions(split.test["last"]) == LAST
    assert questions(split.test["successive"]) == SUCCESSIVE


@pytest.mark.parametrize("targets", [(), ("first",), ("last", "all")])
def test_only_the_rules_that_are_asked_for_are_tested(targets):
    split = temporal(targets=targets)
    assert list(split.test) == list(dict.fromkeys(["last", *targets]))
    assert split.facts["test_queries_by_target"].keys() == split.test.keys()
    assert questions(split.test["last"]) == LAST


def test_candidates_are_seen_items_or_all_items_and_never_padding():
    seen, everything = (
        temporal(candidates=which).test["last"].candidates for which in ("train", "all")
    )
    assert seen.tolist() == [False, True, True, True, True, False]
    assert everything.tolist() == [False, True, True, True, True, True]


# --- validation -----------------------------------------------------------------------


def test_validation_by_time_cuts_the_training_rows_again():
    split = temporal(validation="by_time", q_val=0.5)  # past times 1..6: T = 3.5
    assert triples(split.train) == [(0, 1, 1), (0, 2, 3), (1, 3, 2)]
    # User 3 is cold there. For user 1, items 1..3 are known.
    assert questions(split.valid) == [(1, [3], [2])]
    assert split.valid.candidates.tolist() == [False, True, True, True, False, False]
    assert split.facts["valid_queries"] == 1
    assert questions(split.test["last"]) == LAST  # test does not care


def test_validation_may_ask_by_a_rule_of_its_own():
    rows = [(u, 1 + (u + n) % 5, 10 * n + u) for u in range(8) for n in range(9)]
    given = dict(log=make_log(rows, 8, 5), validation="by_time", q_val=0.5)
    own = temporal(**given, select_target="successive")
    every = questions(temporal(**given, target="successive").valid)
    last = temporal(**given)
    assert questions(own.valid) == every != questions(last.valid)
    assert len(every) > len(questions(last.valid)) == own.facts["test_queries"]
    assert questions(own.test["last"]) == questions(last.test["last"])
    assert triples(own.train) == triples(last.train)


def test_validation_on_the_last_train_item_holds_out_one_row_each():
    split = temporal(validation="last_train_item")
    assert triples(split.train) == [(0, 1, 1), (1, 3, 2), (3, 2, 5)]
    # User 3's last item, 4, is no longer seen in training.
    assert questions(split.valid) == [(0, [1], [2]), (1, [3], [2])]


def test_validation_by_user_keeps_whole_users_out_of_training():
    rows = [(u, 1 + (u + n) % 5, 10 * n + u) for u in range(8) for n in range(5)]
    split = temporal(make_log(rows, 8, 5), validation="by_user", q_test=0.7)
    asked = set(split.valid.users.tolist())
    assert len(asked) == 4  # at most half of the users
    assert not asked & set(split.train.users.tolist())
    assert asked | set(split.train.users.tolist()) == set(range(8))
    for user, history, (target,) in questions(split.valid):
        own = split.refit.items[split.refit.users == user].tolist()
        assert own == [*history, target]  # its last row before the cut


def test_without_validation_everything_before_the_cut_trains():
    split = temporal(validation="none")
    assert split.valid is None
    assert triples(split.train) == triples(split.refit)


def test_an_empty_validation_is_a_clear_error():
    # q_val = 0.7 cuts at 4.5: only user 3 has later rows, and it is cold there.
    with pytest.raises(InputError, match=r"no validation query.*split\.q_val"):
        temporal(validation="by_time", q_val=0.7)


# --- leave-one-out --------------------------------------------------------------------


def test_leave_one_out_holds_out_the_last_two_rows_of_users_with_three():
    split = leave_one_out(LOG, validation="last_train_item", target="last", seed=0)
    assert questions(split.test["last"]) == [
        (0, [1, 2, 5, 3], [5]),
        (1, [3, 2, 1], [4]),
    ]
    assert questions(split.valid) == [(0, [1, 2, 5], [3]), (1, [3, 2], [1])]
    assert triples(split.train) == [
        *[(0, 1, 1), (0, 2, 3), (0, 5, 7)],
        *[(1, 3, 2), (1, 2, 4)],
        (2, 1, 11),
        *[(3, 2, 5), (3, 4, 6)],
    ]
    assert len(split.refit.users) == len(split.train.users) + 2
    assert split.facts["warm_users"] == 2


def test_leave_one_out_says_what_short_users_lack():
    log = make_log([(u, i, i) for u in range(3) for i in (1, 2)], 3, 2)
    with pytest.raises(InputError) as caught:
        leave_one_out(log, validation="none", target="last", seed=0)
    assert "a user with three rows" in str(caught.value)
    assert "found at most 2 a user" in str(caught.value)
    assert "q_test" not in str(caught.value)


def test_leave_one_out_without_validation_trains_on_the_last_but_one():
    split = leave_one_out(LOG, validation="none", target="last", seed=0)
    assert split.valid is None
    assert triples(split.train) == triples(split.refit)
    assert (0, 3, 9) in triples(split.train)
    assert (0, 5, 12) not in triples(split.train)


# --- no leak, on a random log ---------------------------------------------------------


@pytest.fixture(scope="module")
def random_log():
    """Forty users, no item twice for a user, so that a pair names a row."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), int(time))
        for user in range(40)
        for item, time in zip(
            rng.permutation(30)[: rng.integers(1, 12)] + 1,
            rng.integers(0, 500, 12),
            strict=False,
        )
    ]
    return make_log(rows, 40, 30)


@pytest.mark.parametrize(
    "validation", ["by_time", "last_train_item", "by_user", "none"]
)
@pytest.mark.parametrize("cold_items", ["drop", "keep_as_miss"])
def test_no_target_trains_and_no_later_row_trains(random_log, validation, cold_items):
    split = temporal(
        random_log, q_test=0.7, q_val=0.7, validation=validation, cold_items=cold_items
    )
    cut = np.quantile(random_log.times, 0.7)
    time_of = {(u, i): t for u, i, t in triples(random_log)}
    assert split.refit.times.max() <= cut
    assert set(triples(split.train)) <= set(triples(split.refit))

    def check(holdout, rows):
        trained = {(user, item) for user, item, _ in triples(rows)}
        known = known_items(rows)
        assert holdout.n_queries > 5
        for user, history, targets in questions(holdout):
            assert history and known[history].all()
            newest = max(time_of[user, item] for item in history)
            for target in targets:
                assert (user, target) not in trained
                assert target not in history
                assert newest <= time_of[user, target]
                assert known[target] or cold_items == "keep_as_miss"

    for holdout in split.test.values():
        check(holdout, split.refit)
        assert all(
            time_of[user, target] > cut
            for user, _, targets in questions(holdout)
            for target in targets
        )
    if split.valid is not None:
        check(split.valid, split.train)
        assert all(
            time_of[user, target] <= cut
            for user, _, targets in questions(split.valid)
            for target in targets
        )
    if validation == "by_time":
        assert split.train.times.max() <= np.quantile(split.refit.times, 0.7)


# --- ties -----------------------------------------------------------------------------


def test_shuffled_ties_stay_with_their_user_and_their_moment():
    rows = [(u, 1 + n, n // 4) for u in range(3) for n in range(12)]
    log = make_log(rows, 3, 12)
    shuffled, again, other = (shuffle_ties(log, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(shuffled.users, log.users)
    np.testing.assert_array_equal(shuffled.times, log.times)
    assert sorted(triples(shuffled)) == sorted(triples(log))  # groups keep their items
    assert shuffled.items.tolist() != log.items.tolist()
    assert shuffled.items.tolist() == again.items.tolist()
    assert shuffled.items.tolist() != other.items.tolist()


def test_the_share_of_ties_is_counted():
    rows = [(u, 1 + n % 4, n // 4) for u in range(3) for n in range(12)]
    # In each group of four rows, three carry the time of the row before them.
    assert temporal(make_log(rows, 3, 4)).facts["ties_with_previous_share"] == 0.75


@pytest.mark.parametrize("history", ["full", "train"])
def test_targets_in_their_own_history_are_found(history):
    """Whatever the rule; a later row of the same item counts only where it is read."""
    rng = np.random.default_rng(0)
    times = rng.permutation(400)
    rows = [(n % 20, item, times[n]) for n, item in enumerate(rng.integers(1, 16, 400))]
    log = make_log(rows, 20, 15)
    rules = dict(validation="by_time", history=history, cold_items="keep_as_miss")
    for target in TARGETS:
        split = temporal(log, **rules, target=target)
        for holdout in (split.valid, split.test[target]):
            expected = [
                item in read
                for _, read, targets in questions(holdout)
                for item in targets
            ]
            assert in_history(holdout).tolist() == expected
            assert 0 < sum(expected) < len(expected)
        shares = [in_history(x).mean() for x in (split.test[target], split.valid)]
        names = ("targets_in_history_share", "valid_targets_in_history_share")
        assert [split.facts[name] for name in names] == pytest.approx(shares, abs=1e-6)


def test_targets_that_are_all_seen_before_are_counted_as_such():
    """Three items each, over and over: leave-one-out asks for one of them again."""
    rows = [(user, 1 + n % 3, n) for user in range(4) for n in range(9)]
    facts = leave_one_out(
        make_log(rows, 4, 3), validation="last_train_item", target="last", seed=0
    ).facts
    assert facts["targets_in_history_share"] == 1
    assert facts["valid_targets_in_history_share"] == 1
