"""Every config loads, passes its own checks, and its model takes shape."""

import importlib
from pathlib import Path

import jax
import pytest

from configs import common
from create_jax import settings
from create_jax.errors import InputError

CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parent.parent / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)


def get_config(name, method=None):
    return importlib.import_module(f"configs.{name}").get_config(method)


@pytest.mark.parametrize("method", settings.METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_config_and_model(name, method):
    config = get_config(name, method)
    settings.check(config)
    if method not in settings.MODEL_FREE:
        model = settings.make_model(config, n_users=5, n_items=7)
        params = jax.eval_shape(lambda: model.system.init(model, 0))
        assert params["item_table"].shape[-2:] == (model.n_rows, config.model.dim)
        assert ("sequence" in params) == (method not in settings.GRAPH_ONLY)
        assert ("user_table" in params) == (model.graph is not None)
        assert (model.graph is None) == (method in (*settings.SEQUENCE_ONLY, "bt_sr"))


BAD = {
    "method": ("transformer", "unknown method 'transformer'"),
    "seq.heads": (7, "config.seq.heads is 7; expected a divisor of model.dim = 64"),
    "seq.dropout": (1.0, "config.seq.dropout is 1.0; expected at least 0 and below 1"),
    "split.q_test": (1.5, "config.split.q_test is 1.5; expected between 0 and 1"),
    "train.epochs": (0, "config.train.epochs is 0; expected 1 or more"),
    "warmup.epochs": (-1, "config.warmup.epochs is -1; expected 0 or more"),
    "loss.w_bt": (-0.1, "config.loss.w_bt is -0.1; expected 0 or more"),
    "eval.target": ("middle", "config.eval.target is 'middle'; expected one of last"),
    "eval.select_by": ("map@10", "config.eval.select_by is 'map@10'"),
    "item_source.input": (
        "propagated",
        "expected ego, unless a graph encoder propagates",
    ),
}


@pytest.mark.parametrize("key", BAD)
def test_a_setting_out_of_range_is_named(key):
    value, message = BAD[key]
    config = get_config("beauty")
    node, parts = config, key.split(".")
    for part in parts[:-1]:
        node = node[part]
    node[parts[-1]] = value
    with pytest.raises(InputError) as error:
        settings.check(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [(0, 2, 5), ([0, 2, 5],)])
def test_seeds_are_given_as_a_tuple_or_a_list(given):
    config = common.get_config("sasrec")
    assert settings.seeds(config) == [0]
    config.seeds = given
    settings.check(config)
    assert settings.seeds(config) == [0, 2, 5]


@pytest.mark.parametrize("given", [(1, 1), (-1,), ("a",), (0.5,)])
def test_what_is_no_seed_is_refused(given):
    config = common.get_config("sasrec")
    config.seeds = given
    with pytest.raises(InputError, match="config.seeds is"):
        settings.check(config)
