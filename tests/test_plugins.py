"""What a config names may stand anywhere: one of every sort, from outside the package,
from the command line to the result."""

import json
import sys

import pytest

from create_jax import build, config_file, main, named, prepare
from create_jax.configs import table
from create_jax.errors import InputError

OUTSIDE = {
    "data.loader": "plugins.walk",
    "data.walk.n_users": 14,
    "split.kind": "plugins.functions.newest",
    "split.newest.rows": 2,
    "split.validation": "none",
    "eval.metrics": "('plugins.functions.precision',)",
    "eval.precision.factor": 2.0,
    "eval.ks": "(3,)",
    "eval.select_by": "precision@3",
    "seq.encoder": "plugins.average",
    "seq.average.scale": 2.0,
    "graph.encoder": "plugins.shifted",
    "graph.shifted.shift": 0.25,
    "align.kind": "plugins.functions.cosine",
    "align.cosine.power": 2.0,
    "loss.local": "plugins.functions.margin",
    "loss.margin.width": 3.0,
    "model.dim": 4,
    "seq.max_len": 8,
    "warmup.epochs": 1,
    "train.epochs": 1,
    "eval.targets": "('last', 'successive')",
}


def test_a_log_of_a_loader_from_outside_is_prepared_with_its_settings(tmp_path):
    """They come with the loader, which the options name."""
    options = [f"--config.{key}={OUTSIDE[key]}" for key in list(OUTSIDE)[:2]]
    (tmp_path / "log").touch()
    place = f"--config.data.path={tmp_path / 'log'}"
    out = f"--out={tmp_path / 'out'}"
    assert prepare.main(["--config=table", *options, place, out]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"]["users"] == 14


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line in this process -> result.json and the config it ran."""

    def forget():
        main.FLAGS.unparse_flags()
        main.config_for.cache_clear()
        for name in [name for name in main.FLAGS if name.startswith("config.")]:
            delattr(main.FLAGS, name)

    def run(source, changes):
        options = [f"--config.{key}={value}" for key, value in changes.items()]
        place = tmp_path / source.replace(":", "-")
        argv = ["main", f"--config={source}", f"--workdir={place}", *options]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.chdir(tmp_path)
        forget()
        main.main(main.parse_flags(argv))
        started = json.loads((place / "config.json").read_text())["config"]
        return json.loads((place / "result.json").read_text()), started

    yield run
    forget()


def test_one_of_every_sort_from_outside_runs_from_the_command_line(command):
    result, config = command("table", OUTSIDE)
    assert result["data"]["test_queries"] == result["data"]["users"] == 14
    assert result["data"]["train_interactions"] == 14 * 4
    last, all_ = (result["test_by_target"][name] for name in ("last", "successive"))
    # Of one target precision is recall / k, here times the factor 2.
    assert last["precision@3"] == pytest.approx(2 * last["recall@3"] / 3)
    assert all_["precision@3"] == pytest.approx(2 * all_["recall@3"] / 3)
    for section, own in {
        "seq": {"average": {"scale": 2.0}},
        "graph": {"shifted": {"layers": 1, "l2": 0.0, "shift": 0.25}},
        "align": {"cosine": {"power": 2.0}},
        "loss": {"margin": {"width": 3.0}},
    }.items():
        assert config[section] | own == config[section]
    again, _ = command("table", OUTSIDE)  # a finished run is known again
    assert again["test"] == result["test"]


def test_a_method_from_outside_runs_by_its_path(command):
    changes = {key: OUTSIDE[key] for key in ("data.loader", "model.dim", "eval.ks")}
    changes |= {"split.validation": "none", "split.kind": "leave_one_out"}
    changes |= {"eval.select_by": "ndcg@3", "popular.start": 0.2}
    result, config = command("table", changes | {"method": "plugins.popular"})
    assert (result["method"], result["epochs"]) == ("plugins.popular", 2)
    assert config["popular"] == {"start": 0.2}
    fixed = config_file.make("table", {"align.kind": "nwj"}, "plugins.popular")
    with pytest.raises(InputError, match=r"'nwj'; expected none, for plugins.popular"):
        build.check(fixed)


def test_settings_of_what_is_named_reach_it():
    names = {key: OUTSIDE[key] for key in named.SECTIONS if key in OUTSIDE}
    names["eval.metrics"] = ("plugins.functions.precision",)
    own = {
        "align.cosine.power": 3.0,
        "loss.margin.width": 2.0,
        "seq.average.scale": 5.0,
    }
    model = build.make_model(config_file.make("table", names | own), 3, 9)
    assert model.align.loss.keywords == {"power": 3.0}
    assert model.local.keywords == {"n_items": 9, "width": 2.0}
    assert (model.encoder.scale, model.graph_settings["shift"]) == (5.0, 0.5)


@pytest.mark.parametrize("key", [k for k in named.SECTIONS if k != "method"])
def test_a_name_of_nothing_is_one_line_that_says_what_there_is(key):
    for name in ("nothing", "plugins.nothing", "nowhere.at_all", "plugins.broken.x"):
        value = (name,) if key == "eval.metrics" else name
        config = table.get_config()
        config.update_from_flattened_dict({key: value})
        with pytest.raises(
            InputError, match=f"config.{key} is '{name}'; expected"
        ) as e:
            build.check(config)
        assert "dotted path" in str(e.value) or "module" in str(e.value)
        assert "\n" not in str(e.value)


def test_settings_take_no_name_of_another(tmp_path, monkeypatch):
    (tmp_path / "clash.py").write_text("def kind(a, b, weights, *, power=1.0): pass")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="align.kind, which is a setting; give it"):
        config_file.make("table", {"align.kind": "clash.kind"})
