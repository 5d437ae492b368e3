import numpy as np
import polars as pl
import pytest

from create_jax.data.interactions import (
    fingerprint,
    from_frame,
    in_order,
    shuffle_ties,
    take,
)
from create_jax.errors import InputError


def log(*rows, **options):
    frame = pl.DataFrame(rows, ["user", "item", "time"], orient="row")
    return from_frame(frame, source="log", **options)


def triples(interactions):
    """(user, item, time) by external names."""
    return [
        (interactions.user_ids[u], interactions.item_ids[i - 1], t)
        for u, i, t in zip(*map(np.ndarray.tolist, interactions[:3]), strict=True)
    ]


def test_sorts_by_user_and_time_and_leaves_ties_in_file_order():
    found = log(("b", "y", 2), ("a", "z", 5), ("b", "x", 2), ("b", "z", 1))
    assert triples(found) == [
        ("a", "z", 5),
        ("b", "z", 1),
        ("b", "y", 2),
        ("b", "x", 2),
    ]
    assert found.users.tolist() == [0, 1, 1, 1]
    assert found.items.tolist() == [3, 3, 2, 1]  # from 1: 0 is padding
    assert (found.users.dtype, found.items.dtype) == (np.int32, np.int32)
    assert found.times.dtype == np.int64
    assert (found.n_users, found.n_items) == (2, 3)


@pytest.mark.parametrize("scale", [1, 2**55])
def test_the_order_is_that_of_users_then_times(scale):
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, 2000).astype(np.int32)
    times = (rng.integers(0, 100, 2000) - 50) * scale  # the large ones fit no key
    expected = sorted(range(2000), key=lambda row: (users[row], times[row]))
    assert in_order(users, times).tolist() == expected


def test_codes_follow_the_names_and_not_the_rows():
    rows = [(10, 7, 1), (9, 8, 2), (9, 7, 3)]
    found = log(*rows)
    assert found.user_ids.to_list() == ["10", "9"]  # as strings
    again = log(*rows[::-1])
    assert triples(again) == triples(found)
    assert fingerprint(again) == fingerprint(found)


def test_categories_code_as_strings_do():
    frame = pl.DataFrame({"user": ["b", "a"], "item": ["y", "x"], "time": [1, 2]})
    categories = frame.with_columns(pl.col("user", "item").cast(pl.Categorical))
    strings, codes = (from_frame(f, source="log") for f in (frame, categories))
    assert fingerprint(strings) == fingerprint(codes)


def test_drops_consecutive_repeats_and_keeps_the_first():
    rows = [("a", "x", 3), ("a", "x", 1), ("a", "y", 4), ("a", "x", 5), ("b", "x", 6)]
    kept = [("a", "x", 1), ("a", "y", 4), ("a", "x", 5), ("b", "x", 6)]
    assert triples(log(*rows)) == kept
    assert len(triples(log(*rows, drop_repeats=False))) == 5


def test_k_core_reaches_the_fixed_point():
    # z has one interaction, so it goes; then c has one, so c goes; then y has one and
    # goes too. Left are a, b and x, w.
    rows = [
        ("a", "x", 1),
        ("a", "w", 2),
        ("b", "x", 3),
        ("b", "w", 4),
        ("b", "y", 5),
        ("c", "y", 6),
        ("c", "z", 7),
    ]
    found = log(*rows, k_core=2, counts=(3, 4, 7))  # the counts before the filter
    assert triples(found) == rows[:4]
    assert found.user_ids.to_list() == ["a", "b"]
    assert found.item_ids.to_list() == ["w", "x"]
    assert triples(log(*rows, k_core=1)) == rows


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "empty"),
        ([("a", "x", 1), ("a", "y", 2)], {}, "1 user(s) and 2 item(s)"),
        ([("a", "x", 1), ("b", "x", 2)], {}, "2 user(s) and 1 item(s)"),
        (
            [("a", "x", 1), ("b", "y", 2)],
            {"k_core": 2},
            "2-core leaves no interactions",
        ),
        (
            [("a", "x", 1), ("a", "y", 2), ("b", "x", 3), ("a", "y", 3)],
            {"k_core": 2, "drop_repeats": False},
            "1 user(s) and 1 item(s) after the 2-core",
        ),
        (
            [("a", "x", 1), ("b", "y", 2)],
            {"counts": (2, 3, 1000)},
            "found 2 users, 2 items, 2 interactions; "
            "expected 2 users, 3 items, 1,000 interactions",
        ),
        ([("a", "x", 1), ("b", None, 2)], {}, "empty users, items or times"),
    ],
)
def test_refuses(rows, options, message):
    with pytest.raises(InputError) as caught:
        log(*rows, **options)
    text = str(caught.value)
    assert text.startswith("log: ")
    assert message in text
    assert "\n" not in text


def test_shuffle_ties_moves_items_inside_ties_only():
    rows = [("a", f"{i:02}", 5) for i in range(20)]
    found = log(*rows, ("a", "first", 1), ("b", "alone", 5))
    shuffled = shuffle_ties(found, seed=0)
    assert triples(shuffled)[0] == ("a", "first", 1)
    assert triples(shuffled)[-1] == ("b", "alone", 5)
    assert triples(shuffled) != triples(found)
    assert sorted(triples(shuffled)) == sorted(triples(found))
    assert fingerprint(shuffled) == fingerprint(shuffle_ties(found, seed=0))
    assert fingerprint(shuffled) != fingerprint(shuffle_ties(found, seed=1))


def test_fingerprint_tells_logs_apart():
    rows = [("a", "x", 1), ("b", "y", 2)]
    prints = [
        fingerprint(log(*rows)),
        fingerprint(log(("a", "x", 1), ("b", "y", 3))),
        fingerprint(log(("a", "x", 1), ("c", "y", 2))),
        fingerprint(log(("a", "y", 1), ("b", "x", 2))),
    ]
    assert len(set(prints)) == 4
    assert fingerprint(log(*rows)) == prints[0]
    assert len(prints[0]) == 16


@pytest.mark.parametrize(
    ("unit", "times", "per_second", "expected"),
    [
        ("ms", [1000, 3000], 1, [1, 3]),
        ("us", [1_001_000, 3_000_000], 1000, [1001, 3000]),
        ("ns", [1_001_000, 3_000_000], 10**6, [1001, 3000]),
        ("ns", [1_001_001, 3_000_000], 10**9, [1_001_001, 3_000_000]),
    ],
)
def test_times_stay_exact_in_the_coarsest_unit(unit, times, per_second, expected):
    frame = pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "time": times})
    found = from_frame(frame.cast({"time": pl.Datetime(unit)}), source="log")
    assert (found.times.tolist(), found.per_second) == (expected, per_second)
    seconds = log(("a", "x", 1), ("b", "y", 3))
    assert (fingerprint(found) == fingerprint(seconds)) == (per_second == 1)


def test_the_fingerprint_knows_the_unit_and_leaves_whole_seconds_as_they_were():
    found = log(("a", "x", 1), ("b", "y", 2))
    assert fingerprint(found) == "8272a49e6684b48d"
    assert fingerprint(found._replace(per_second=1000)) != fingerprint(found)


def test_every_row_is_accounted_for():
    rows = [("a", "x", 1), ("a", "x", 2), ("a", "y", 3), ("b", "x", 4), ("b", "y", 5)]
    found = log(*rows, ("c", "z", 6), k_core=2)
    assert found.rows == (6, 1, 1)
    assert take(found, found.users == 0).rows == found.rows
    assert log(*rows, drop_repeats=False).rows == (5, 0, 0)


# --- ratings --------------------------------------------------------------------------


def rated(*rows, **options):
    frame = pl.DataFrame(rows, ["user", "item", "time", "rating"], orient="row")
    return from_frame(frame, source="log", **options)


def with_ratings(interactions):
    """(user, item, time, rating); "-" where one is missing."""
    assert interactions.ratings.dtype == np.float32
    ratings = ["-" if np.isnan(r) else r for r in interactions.ratings.tolist()]
    rows = zip(triples(interactions), ratings, strict=True)
    return [(*row, rating) for row, rating in rows]


def test_ratings_follow_their_rows_through_every_filter():
    rows = [
        *[("b", "y", 9, 1.5), ("a", "x", 7, 2.0), ("a", "x", 5, 3.0)],
        *[("b", "x", 5, None), ("b", "w", 5, 4.0), ("a", "y", 8, 5.0)],
        *[("c", "y", 6, 0.5), ("a", "z", 9, 2.5)],
    ]
    a = [("a", "x", 5, 3.0), ("a", "x", 7, 2.0), ("a", "y", 8, 5.0), ("a", "z", 9, 2.5)]
    b = [("b", "x", 5, "-"), ("b", "w", 5, 4.0), ("b", "y", 9, 1.5)]
    c = [("c", "y", 6, 0.5)]
    assert with_ratings(rated(*rows, drop_repeats=False)) == a + b + c
    assert with_ratings(rated(*rows)) == a[:1] + a[2:] + b + c
    found = rated(*rows, k_core=2)  # w and z go, and c
    assert with_ratings(found) == [a[0], a[2], b[0], b[2]]
    mask = np.array([True, False, True, False])
    assert with_ratings(take(found, mask)) == [a[0], b[0]]
    assert with_ratings(take(found, np.array([3, 0]))) == [b[2], a[0]]


def test_ratings_follow_their_rows_through_shuffled_ties():
    rows = [("a", f"{i:02}", 5, float(i)) for i in range(20)]
    found = rated(*rows, ("b", "alone", 5, 99.0))
    shuffled = shuffle_ties(found, seed=0)
    assert with_ratings(shuffled) != with_ratings(found)
    assert sorted(with_ratings(shuffled)) == sorted(with_ratings(found))


def test_a_log_without_a_single_rating_has_none():
    assert log(("a", "x", 1), ("b", "y", 2)).ratings is None
    assert rated(("a", "x", 1, None), ("b", "y", 2, None)).ratings is None
    rows = [("a", "x", 1, 3), ("b", "y", 2, None)]  # integers
    assert with_ratings(rated(*rows)) == [("a", "x", 1, 3.0), ("b", "y", 2, "-")]


def test_nothing_but_nan_is_no_rating_either():
    nan = float("nan")
    assert rated(("a", "x", 1, nan), ("b", "y", 2, nan)).ratings is None
    rows = [(u, i, 1, None) for u in "ab" for i in "xy"]
    assert rated(*rows, ("c", "x", 1, 4.0), k_core=2).ratings is None


def test_the_fingerprint_knows_the_ratings():
    rows = [("a", "x", 1), ("b", "y", 2)]
    ratings = [(4.0, 5.0), (4.0, 3.0), (4.0, None), (5.0, 4.0)]
    prints = [
        fingerprint(rated(*[(*row, r) for row, r in zip(rows, pair, strict=True)]))
        for pair in (*ratings, ratings[0])
    ]
    assert prints[0] == prints[-1]
    assert len({*prints, fingerprint(log(*rows))}) == 5
