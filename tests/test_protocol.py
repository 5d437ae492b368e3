"""What is stamped on a result was done, and what a split cannot do is refused."""

import pytest

from create_jax import build, config_file, methods, protocol, settings
from create_jax.errors import InputError


def make(changes, method=None):
    config = config_file.make("table", changes, method)
    build.check(config)
    return config


LOO = {"split.kind": "leave_one_out"}
SELECTION = "select_by", "select_mean"


@pytest.mark.parametrize(
    "changes, validation, without",
    [
        ({}, "by_time", set()),
        (LOO, "last_train_item", {"q_test", "q_val"}),
        ({**LOO, "split.validation": "none"}, "none", {"q_test", *SELECTION, "q_val"}),
        ({"eval.select_target": "successive"}, "by_time", set()),
        ({"split.validation": "none"}, "none", {"q_val", *SELECTION}),
        ({"eval.select_mean": 1}, "by_time", {"select_mean"}),
        ({"split.validation": "last_train_item"}, "last_train_item", {"q_val"}),
        ({"eval.queries": 5}, "by_time", set()),
    ],
)
def test_a_stamp_says_what_was_done(changes, validation, without):
    config = make(changes)
    stamp = protocol.stamp(config)
    assert stamp["validation"] == validation
    whole = {*config.split, *config.eval, "k_core", "drop_repeats"}
    whole -= {"batch", "every", "targets", "metrics"}
    without = without | ({"queries", "select_target"} - {key[5:] for key in changes})
    assert stamp.keys() == whole - without
    # Of a result from before, which had all settings and the default of then.
    before = dict.fromkeys(whole, 0) | {"select_mean": 1, "select_target": ""} | stamp
    if "split.validation" not in changes:
        before["validation"] = "by_time"
    assert protocol.as_done(before) == stamp


@pytest.mark.parametrize("left_out", [{}, {"q_test": 0.8}, {"q_val": 0.9}])
def test_a_split_of_ones_own_keeps_what_it_may_read(left_out):
    rules = {"kind": "mine.weekly", "q_test": 0.8, "q_val": 0.9, "validation": "auto"}
    own = {key: value for key, value in rules.items() if key not in left_out}
    assert protocol.as_done(own) == own


@pytest.mark.parametrize("validation", ["by_time", "by_user"])
def test_leave_one_out_has_one_validation(validation):
    with pytest.raises(InputError, match="one of auto, last_train_item, none, with"):
        make({**LOO, "split.validation": validation})


BY_USER = {"split.validation": "by_user"}
BY_ROW = ("lightgcn", "ultragcn", "signed", "hypergraph", "mrgsrec", "selfgnn", "svd")


@pytest.mark.parametrize("method", methods.METHODS)
def test_no_selection_on_users_without_a_trained_row(method):
    if method in BY_ROW:
        with pytest.raises(InputError, match=f"split.validation .* {method} ranks by"):
            make(BY_USER, method)
    elif make({}, method).warmup.epochs and method.startswith("create"):
        with pytest.raises(InputError, match="warmup.eval is 'graph'; expected seq"):
            make(BY_USER, method)
        make({**BY_USER, "warmup.eval": "sequential"}, method)
        make({**BY_USER, "warmup.epochs": 0}, method)
    else:
        make(BY_USER, method)
    make({**BY_USER, "svd.history": "full"}, "svd")


def test_runs_are_compared_by_what_their_validation_did():
    old = {"split.kind": "leave_one_out", "split.validation": "by_time"}
    new = settings.flatten(make(LOO).to_dict())
    assert settings.meant(old)["split.validation"] == "last_train_item"
    assert settings.meant(new)["split.validation"] == "last_train_item"
    new = settings.flatten(make({}).to_dict())
    assert settings.meant(new)["split.validation"] == "by_time"
