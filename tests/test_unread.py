"""Settings without effect: a step of a run is the same whatever they are."""

import jax
import numpy as np
import polars as pl
import pytest

from create_jax import build, config_file, feeds, losses, settings
from create_jax.data.interactions import Interactions
from create_jax.errors import InputError
from create_jax.unread import unread, without_effect

RNG = np.random.default_rng(0)
USERS = np.repeat(np.arange(12), 6).astype(np.int32)
LOG = Interactions(
    USERS,
    RNG.integers(1, 10, len(USERS)).astype(np.int32),
    np.arange(len(USERS)),
    pl.Series([str(u) for u in range(12)]),
    pl.Series([str(i) for i in range(1, 10)]),
)


NAMES = settings.ONE_OF | {
    "loss.local": losses.NEXT_ITEM,
    "align.kind": losses.ALIGNMENTS,
    "graph.encoder": build.GRAPH_ENCODERS,
    "seq.encoder": build.SEQUENCE_ENCODERS,
}


def other(key, value):
    """Another value of a setting, within its range."""
    if isinstance(value, str):
        return next(x for x in NAMES.get(key, ("a", "b")) if x != value)
    if isinstance(value, float):
        return 0.05 + value / 2
    return not value if isinstance(value, bool) else value + 1


def traced(config) -> str:
    """The programs of all phases of a tiny run and the arrays they are fed."""
    model = build.make_model(config, 12, 9)
    rows, pairs, graph = feeds.make_graph(config, model, LOG, shards=1)
    init, params = jax.make_jaxpr(lambda: model.init(0), return_shape=True)()
    phases = [str(init)]
    for phase in build.make_phases(config):
        feed = feeds.Feed(config, model, phase, LOG, rows, pairs, 1)
        batch = jax.tree.map(lambda x: x[0], feed.batch(feed.plan(0), 0))

        def loss(params, batch, graph, key, phase=phase):
            return model.loss(phase, params, batch, graph, key)

        program = jax.make_jaxpr(loss)(params, batch, graph, jax.random.key(0))
        name = phase.name, phase.epochs  # its weights stand in the program
        phases.append((name, str(program), jax.tree.map(np.ndarray.tolist, batch)))
    return str((phases, model.mask, model.n_rows))


TRACED = {
    "create": {"align.kind": "none", "warmup.epochs": 1},
    "create, w_bt=0": {"loss.w_bt": 0.0, "warmup.epochs": 1},
    "create, w_global=0": {"loss.w_global": 0.0, "warmup.epochs": 0},
    "bert4rec": {},
    "sasrec": {"loss.local": "bce", "loss.negatives": 3},
    "lightgcn": {},
    "bt_sr": {},
    "mrgsrec": {},
    "selfgnn": {},
}


@pytest.mark.parametrize("name", TRACED)
def test_settings_without_effect_have_none(name):
    method = name.split(",")[0]
    small = {"model.dim": 4, "seq.max_len": 8, "train.batch": 4, "seq.blocks": 1}
    config = config_file.make("table", small | TRACED[name], method)
    flat = settings.flatten(config.to_dict())
    # The neighbours are the shape of a graph that is made and not read.
    lists = {"svd.ranks", "align.projector_dims", "graph.ultragcn.neighbours"}
    changes = {key: other(key, flat[key]) for key in unread(flat) - lists}
    assert len(changes) > 10
    changed = config_file.make("table", small | TRACED[name] | changes, method)
    assert traced(changed) == traced(config)


@pytest.mark.parametrize("graph", ["ultragcn", "lightgcn", "signed", "none"])
@pytest.mark.parametrize("partner", settings.ONE_OF["align.partner"])
@pytest.mark.parametrize("kind", ["barlow_twins", "infonce", "none"])
def test_no_setting_says_of_itself_that_it_counts_for_nothing(graph, partner, kind):
    """Else a run would go on under another value: of two, that of now is asked."""
    changes = {"graph.encoder": graph, "align.partner": partner, "align.kind": kind}
    flat = settings.flatten(config_file.make("table", changes, "create").to_dict())
    for key in sorted(settings.ONE_OF.keys() & flat.keys()):
        found = {key in unread(flat | {key: one}) for one in settings.ONE_OF[key]}
        assert len(found) == 1, key


def test_an_encoder_of_ones_own_may_have_averse_users():
    flat = settings.flatten(config_file.make("table", {}, "create").to_dict())
    assert "align.orthogonality" in unread(flat)
    for encoder in ("signed", "mine.taste"):
        assert "align.orthogonality" not in unread(flat | {"graph.encoder": encoder})


def test_a_partner_that_shapes_the_checkpoint_counts():
    """Two views have one projector; another checkpoint would be of no use."""
    flat = settings.flatten(config_file.make("table", {}, "bert4rec").to_dict())
    assert "align.partner" in unread(flat)
    assert "align.partner" not in unread(flat | {"align.projector_dims": [5]})


def told(changes, methods, mode="train"):
    configs = [config_file.make("table", changes, method) for method in methods]
    flats = [settings.flatten(config.to_dict()) for config in configs]
    return without_effect(list(changes), flats, mode)


@pytest.mark.parametrize(
    "key, method",
    [
        ("seq.encoder", "sasrec"),
        ("graph.encoder", "sasrec"),
        ("graph.encoder", "lightgcn"),
        ("loss.local", "ultragcn"),
        ("align.kind", "esasrec"),
        ("item_source.input", "mostpop"),
    ],
)
def test_a_choice_that_nothing_reads_is_refused(key, method):
    values = {
        "seq.encoder": "bert4rec",
        "graph.encoder": "signed",
        "loss.local": "sce",
        "align.kind": "infonce",
    }
    value = values.get(key, "propagated")
    with pytest.raises(
        InputError, match=f"config.{key} is .*{method} does not read it"
    ):
        told({key: value}, [method])
    assert told({"seq.encoder": "esasrec"}, ["create", "sasrec"]) == ""
    said = {"graph.encoder": "none", "align.kind": "none", "seq.encoder": "sasrec"}
    assert told(said, ["sasrec"]).startswith("note: ")


def test_an_amount_that_nothing_reads_is_named():
    changes = {
        "train.epochs": 3,
        "svd.power": 0.5,
        "seq.dropout": 0.1,
        "tune.trials": 2,
    }
    told_of = "note: no effect on svd, --mode=train: config."
    names = "train.epochs, config.seq.dropout, config.tune.trials"
    assert told(changes, ["svd"]) == told_of + names
    assert told(changes, ["svd", "sasrec"]).endswith(
        "sasrec, --mode=train: config.tune.trials"
    )
    seeds = {"seed": 3, "seeds": (1, 2)}
    assert told(seeds, ["sasrec"]).endswith(": config.seed")
    assert told(seeds, ["sasrec"], "tune").endswith(": config.seeds")
    assert told({"split.validation": "none"}, ["mostpop"]) == ""
    rule = {"eval.select_by": "mrr", "eval.select_mean": 2, "eval.every": 3}
    assert told(rule, ["mostpop"]).endswith(
        ": config.eval.select_by, config.eval.select_mean, config.eval.every"
    )
    assert told(rule, ["svd"]).endswith(": config.eval.select_mean, config.eval.every")
    assert told(rule, ["svd", "sasrec"]) == ""
    pairs = {"graph.batch_source": "batch_users"}
    assert told(pairs, ["create"]).endswith(": config.graph.batch_source")
    assert told(pairs, ["create_uni"]) == ""
    assert told({"graph.batch_size": 9}, ["mrgsrec", "selfgnn"]).startswith("note: ")
    idle = {"loss.token_chunk": 9, "loss.item_chunk": 9, "loss.whole_items": 9}
    assert told(idle, ["sasrec"]) == told(idle, ["sasrec", "esasrec"]) == ""
    ends = "config.loss.item_chunk, config.loss.whole_items"
    sampled = {"loss.local": "sampled", **idle}
    assert told(idle, ["esasrec"]).endswith(f": config.loss.token_chunk, {ends}")
    assert told(sampled, ["mrgsrec"]).endswith(f"train: {ends}")
    assert told({"loss.w_global": 2.0, **idle}, ["selfgnn"]).endswith(
        f"train: config.loss.w_global, config.loss.token_chunk, {ends}"
    )
    own = {"graph.lightgcn.l2": 0.1, "graph.lightgcn.loss": "alignment_uniformity"}
    assert told(own, ["create_pone", "mrgsrec"]).endswith(
        ": config.graph.lightgcn.l2, config.graph.lightgcn.loss"
    )
    assert told(own, ["lightgcn"]) == told({"graph.lightgcn.layers": 3}, ["mrgsrec"])
    kept = {"final.fit": "all"}
    assert told(kept, ["sasrec"]) == told(kept, ["sasrec"], "export") == ""
    assert told(kept, ["svd"], "export") == told(kept, ["svd", "sasrec"]) == ""
    assert told(kept, ["svd", "mostpop"]).endswith("--mode=train: config.final.fit")
    assert told(kept, ["sasrec"], "evaluate").endswith("evaluate: config.final.fit")
    quoted = {"data.loader": "amazon", "data.table.quoting": False}
    assert told(quoted, ["sasrec"]).endswith(": config.data.table.quoting")
    mu = {"align.orthogonality": 2.0, "graph.encoder": "signed"}
    assert told(mu, ["create"]) == ""
    assert told(mu, ["mrgsrec"]).endswith("train: config.align.orthogonality")
