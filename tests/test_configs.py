"""Every config loads, passes its own checks, and its model takes shape."""

import importlib
import os
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from create_jax import build, config_file, methods, settings
from create_jax.configs import common
from create_jax.errors import InputError

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)


def get_config(name, method=None):
    return importlib.import_module(f"create_jax.configs.{name}").get_config(method)


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_config_and_model(name, method):
    config = get_config(name, method)
    build.check(config)
    if methods.find(method).kind != "free":
        model = build.make_model(config, n_users=5, n_items=7)
        params = jax.eval_shape(lambda: model.init(0))
        assert params["item_table"].shape[-2:] == (model.n_rows, config.model.dim)
        assert ("sequence" in params) == (methods.find(method).kind != "graph")
        assert ("user_table" in params) == (model.graph is not None)
        assert (model.graph is None) == (
            methods.find(method).kind == "sequence" or method == "bt_sr"
        )


BAD = {
    "data.table.time_unit": ("min", "expected one of auto, s, ms, us, ns, iso"),
    "data.table.format": ("tsv", "expected one of auto, csv, jsonl, parquet"),
    "data.table.encoding": ("hex", "an encoding that Python knows"),
    "method": ("transformer", "unknown method 'transformer'"),
    "seq.heads": (7, "config.seq.heads is 7; expected a divisor of model.dim = 64"),
    "seq.dropout": (1.0, "config.seq.dropout is 1.0; expected at least 0 and below 1"),
    "split.q_test": (1.5, "config.split.q_test is 1.5; expected between 0 and 1"),
    "train.epochs": (0, "config.train.epochs is 0; expected 1 or more"),
    "warmup.epochs": (-1, "config.warmup.epochs is -1; expected 0 or more"),
    "loss.w_bt": (-0.1, "config.loss.w_bt is -0.1; expected 0 or more"),
    "eval.target": ("middle", "config.eval.target is 'middle'; expected one of last"),
    "eval.targets": (
        ("last", "middle"),
        "config.eval.targets is ('last', 'middle'); expected last, first, random,",
    ),
    "eval.select_by": ("map@10", "config.eval.select_by is 'map@10'"),
    "split.seed": (-1, "config.split.seed is -1; expected a whole number from 0"),
    "align.projector_dims": ((64, -1), "config.align.projector_dims is (64, -1); exp"),
    "svd.ranks": ((0,), "config.svd.ranks is (0,); expected whole numbers of 1 or mo"),
    "tune.trials": (0, "config.tune.trials is 0; expected 1 or more"),
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
        build.check(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_metric_without_a_cut_selects_where_queries_have_one_target():
    for name in ("mrr", "log_reciprocal_rank", "log_likelihood", "mrr@100"):
        config = get_config("beauty")
        config.eval.select_by = name
        build.check(config)
    config.eval.update(target="all", select_by="mrr")
    expected = "'mrr'; expected one of ndcg@10, .*mrr@100; or .*select_target=last"
    with pytest.raises(InputError, match=expected):
        build.check(config)
    build.check(config, selects=False)  # as of a finished run
    config.eval.select_target = "last"
    build.check(config)
    config.eval.select_target = ""
    config.split.validation = "none"
    build.check(config)
    counts = common.get_config("mostpop")
    counts.eval.target = "all"
    build.check(counts)


def test_users_of_the_test_have_a_trained_row():
    """Without a retraining those who came since the validation would not."""
    config = common.get_config("lightgcn")
    config.retrain.epochs = "none"
    with pytest.raises(
        InputError, match="config.retrain.epochs is 'none'; .*trained row"
    ):
        build.check(config)
    build.check(config, selects=False)  # as of a finished run
    counts = common.get_config("svd")
    counts.retrain.epochs = "none"
    build.check(counts)  # which is fitted on all rows before the test
    config.split.validation = "none"
    build.check(config)
    config.split.update(kind="leave_one_out", validation="auto")
    build.check(config)


@pytest.mark.parametrize("given", [(0, 2, 5), ([0, 2, 5],)])
def test_seeds_are_given_as_a_tuple_or_a_list(given):
    config = common.get_config("sasrec")
    assert settings.seeds(config) == [0]
    config.seeds = given
    build.check(config)
    assert settings.seeds(config) == [0, 2, 5]


@pytest.mark.parametrize("given", [(1, 1), (-1,), ("a",), (0.5,)])
def test_what_is_no_seed_is_refused(given):
    config = common.get_config("sasrec")
    config.seeds = given
    with pytest.raises(InputError, match="config.seeds is"):
        build.check(config)


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_method_is_not_a_label(method):
    expected = get_config("beauty", method).to_dict()
    for found in (
        config_file.make(f"beauty:{method}", {}),
        config_file.make("beauty", {"method": method}),  # by --config.method
        config_file.make("beauty:svd", {"method": method}),
        config_file.make("beauty", {}, method),  # by compare
        config_file.make(f"{ROOT}/configs/beauty.py", {}, method),
    ):
        assert found.to_dict() == expected


def test_a_config_is_what_its_file_says_now(tmp_path, monkeypatch):
    """Also where it changes within a second and keeps its size."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    text = (ROOT / "configs" / "quickstart.py").read_text()
    for seed in (1, 2):
        path.write_text(f"{text}\nget = get_config\ndef get_config(method='svd'):\n"
                        f"    config = get(method)\n    config.seed = {seed}\n"
                        "    return config\n")  # fmt: skip
        os.utime(path, (1e9, 1e9))
        assert config_file.load(str(path)).seed == seed
    assert os.listdir(tmp_path) == ["mine.py"]


def test_the_command_line_has_the_last_word_for_every_method():
    changes = {"train.patience": 7, "seq.dropout": 0.2, "compare": ("bert4rec",)}
    config = config_file.make("beauty:create", changes, "bert4rec")
    assert (config.train.patience, config.seq.dropout) == (7, 0.2)
    assert config.seq.heads == 2  # bert4rec's own
    assert config_file.make("beauty", changes | {"method": "gsau"}).method == "gsau"


OTHERWISE = {
    "create_pone": ("graph.encoder", "hypergraph"),
    "create_uni": ("graph.encoder", "signed"),
    "bt_sr": ("align.kind", "infonce"),
    "gsau": ("loss.local", "ce"),
    "mrgsrec": ("align.positions", "last"),
    "selfgnn": ("loss.local", "bce"),
}


@pytest.mark.parametrize("method", OTHERWISE)
def test_what_defines_a_method_cannot_be_contradicted(method):
    assert OTHERWISE.keys() == {m for m, row in methods.METHODS.items() if row.fixed}
    key, value = OTHERWISE[method]
    config = config_file.make("table", {key: value}, method)
    with pytest.raises(InputError, match=f"config.{key} is '{value}'; .*for {method}"):
        build.check(config)


def test_a_config_of_one_method_is_of_no_other(tmp_path):
    best = tmp_path / "best.py"
    whole = common.get_config("sasrec").to_dict()
    whole["compare"] = ("mostpop",)
    del whole["loss"]["whole_items"]  # written before this setting was there
    best.write_text(
        "from ml_collections import ConfigDict\n\n"
        f"def get_config():\n    return ConfigDict({whole})\n"
    )
    for source in (f"{best}", f"{best}:sasrec"):
        config = config_file.make(source, {"seq.blocks": 3})
        assert (config.method, config.seq.blocks) == ("sasrec", 3)
        assert config.loss.whole_items == common.get_config().loss.whole_items
    for call in (
        lambda: config_file.make(f"{best}:gsau", {}),
        lambda: config_file.make(f"{best}", {"method": "gsau"}),
        lambda: config_file.make(f"{best}", {}, "gsau"),
    ):
        with pytest.raises(InputError, match="best.py is a config of sasrec and has"):
            call()
    with pytest.raises(InputError, match=r"this one with --config.compare=\(\)"):
        config_file.make(f"{best}", {}, "mostpop")


BROKEN = {
    "def get_config(method=None):\n    return 1 / 0": "mine.py:2: ZeroDivisionError",
    "def get_config(:": "mine.py: SyntaxError: invalid syntax (mine.py, line 1)",
    "": "mine.py: AttributeError",
    "def get_config(method=None): pass": "get_config returned NoneType, no config",
    "from configs.nothing import common": "mine.py:1: ModuleNotFoundError: No module",
    "from create_jax.configs import common\n"
    "def get_config(method=None): return common.get_config()": "does not pass the",
    "raise ValueError('so much ' * 900)": "mine.py:1: ValueError: so much",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_config_file_that_does_not_work_is_one_line(tmp_path, monkeypatch, text):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        config_file.make("mine.py:gsau", {})
    assert BROKEN[text] in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 500


def test_a_packaged_config_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file.names() == CONFIGS
    for name in CONFIGS:
        assert config_file.make(name, {}).to_dict() == get_config(name).to_dict()
    with pytest.raises(InputError, match="nothing: no config file .* one of beauty, "):
        config_file.make("nothing:sasrec", {})


def test_a_wheel_has_every_package_and_the_configs_inside():
    with open(ROOT / "pyproject.toml", "rb") as file:
        about = tomllib.load(file)
    setup = about["tool"]["setuptools"]
    assert "license" not in about["project"]  # one form old setuptools refuse, one new
    folders = {path.parent for path in (ROOT / "create_jax").rglob("*.*")}
    folders = {path.relative_to(ROOT) for path in folders if "__" not in path.name}
    assert {".".join(path.parts) for path in folders} == set(setup["packages"])
    assert setup["package-dir"] == {"create_jax.configs": "configs"}


@pytest.mark.parametrize(
    "key, value",
    [
        *[("seed", value) for value in (-1, 2**32, True, 1.0, "0")],
        *[("seeds", (0, 2**32)), ("seeds", (True,))],
        *[("eval.ks", value) for value in (("a",), (1.5, 10), (10, 10), (True,))],
        ("eval.ks", (10, 10_001)),
        *[("data.counts", value) for value in ((1, 2), ("a",), (1, 2, "3"))],
    ],
)
def test_numbers_of_another_kind_are_refused(key, value):
    config = common.get_config("sasrec")
    section, _, name = key.rpartition(".")
    place = config[section] if section else config
    with place.ignore_type():
        place[name] = value
    with pytest.raises(InputError, match=rf"config\.{key} is"):
        settings.check(config)
