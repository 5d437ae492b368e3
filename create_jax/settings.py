"""Checks a config before anything is loaded, and builds models and phases from it."""

import importlib
import json
from functools import partial

import numpy as np

from create_jax.data.splits import TARGETS, VALIDATIONS, validation_of
from create_jax.errors import InputError
from create_jax.models import create, mrgsrec, selfgnn
from create_jax.steps import Phase

COUNTING = ("mostpop", "poprnd", "random")
MODEL_FREE = ("svd", *COUNTING)
GRAPH_ONLY = ("lightgcn", "ultragcn", "signed", "hypergraph")
SEQUENCE_ONLY = ("sasrec", "bert4rec", "esasrec")
JOINT = ("create", "create_pone", "create_uni", "bt_sr", "gsau", "mrgsrec", "selfgnn")
OTHER_SYSTEMS = {"mrgsrec": mrgsrec, "selfgnn": selfgnn}  # not losses of CREATE
METHODS = (*JOINT, *SEQUENCE_ONLY, *GRAPH_ONLY, *MODEL_FREE)
# What makes a method the one of its name: with anything else it would be another.
FIXED = {
    "create_pone": {"graph.encoder": "signed"},
    "create_uni": {"graph.encoder": "hypergraph"},
    "bt_sr": {
        "graph.encoder": "none",
        "align.kind": "barlow_twins",
        "align.partner": "same_target",
    },
    "gsau": {
        "graph.encoder": "lightgcn",
        "graph.lightgcn.loss": "alignment_uniformity",
        "loss.local": "gsau",
        "align.kind": "none",
    },
    **{name: system.FIXED for name, system in OTHER_SYSTEMS.items()},
}

ONE_OF = {
    "method": METHODS,
    "data.loader": ("amazon", "movielens", "movietweetings", "yambda", "table"),
    "data.table.format": ("auto", "csv", "jsonl", "parquet"),
    "data.table.time_unit": ("auto", "s", "ms", "us", "ns", "iso"),
    "split.kind": ("global_temporal", "leave_one_out"),
    "split.validation": ("auto", *VALIDATIONS["global_temporal"]),
    "split.ties": ("file", "random"),
    "eval.target": TARGETS,
    "eval.cold_items": ("drop", "keep_as_miss"),
    "eval.candidates": ("train", "all"),
    "eval.history": ("full", "train"),
    "svd.history": ("full", "train"),
    "model.precision": ("highest", "high", "default"),
    "model.random": ("threefry2x32", "rbg"),
    "item_source.input": ("ego", "propagated"),
    "item_source.output": ("ego", "propagated"),
    "graph.encoder": (*GRAPH_ONLY, "selfgnn", "none"),
    "graph.reduce": ("mean", "sum"),
    "graph.batch_source": ("edges", "batch_users"),
    "align.kind": ("none", "infonce", "barlow_twins", "vicreg", "nwj"),
    "align.partner": ("graph", "same_target"),
    "align.positions": ("last", "all"),
    "align.user_source": ("propagated", "ego"),
    "align.stop_grad": ("none", "global", "local"),
    "align.bt.reduce": ("mean_dim", "sum"),
    "align.bert_state": ("appended_mask", "last_position"),
    "loss.local": ("ce", "sce", "sampled", "gbce", "bce", "gsau"),
    "graph.lightgcn.loss": ("bpr", "alignment_uniformity"),
    "graph.hypergraph.convolution": ("gcn", "gin", "gat"),
    "mrgsrec.user_token_mask": ("causal", "leaky"),
    "warmup.eval": ("graph", "sequential"),
    "retrain.epochs": ("best", "scaled", "none"),
}
RANGES = {
    "split.q_test": ("between 0 and 1", lambda x: 0 < x < 1),
    "split.q_val": ("between 0 and 1", lambda x: 0 < x < 1),
    "seq.dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "train.mask": ("above 0 and below 1", lambda x: 0 < x < 1),
    "loss.gbce_t": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "graph.last_frac": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "optim.lr": ("above 0", lambda x: x > 0),
    "optim.clip": ("0 (off) or more", lambda x: x >= 0),
    "align.temperature": ("above 0", lambda x: x > 0),
    "loss.w_global": ("0 or more", lambda x: x >= 0),
    "loss.w_fused": ("0 or more", lambda x: x >= 0),
    "loss.w_bt": ("0 or more", lambda x: x >= 0),
    "align.orthogonality": ("0 or more", lambda x: x >= 0),
    "graph.selfgnn.self_weight": ("0 or more", lambda x: x >= 0),
    "graph.selfgnn.decay": ("0 or more", lambda x: x >= 0),
    "graph.signed.contrastive": ("0 or more", lambda x: x >= 0),
    "graph.signed.temperature": ("above 0", lambda x: x > 0),
    "graph.hypergraph.window_hours": ("1 or more", lambda x: x >= 1),
    "model.item_std": ("0 or more", lambda x: x >= 0),
    "model.user_std": ("0 or more", lambda x: x >= 0),
}
AT_LEAST_ONE = (
    *("model.dim", "seq.blocks", "seq.heads", "seq.max_len", "graph.batch_size"),
    *("graph.ultragcn.neighbours", "graph.ultragcn.negatives", "graph.lightgcn.layers"),
    *("train.batch", "train.epochs", "train.patience", "train.chunk", "eval.batch"),
    *("eval.every", "loss.token_chunk", "loss.item_chunk", "loss.whole_items"),
    *("loss.negatives",),
    *("loss.sce.buckets", "loss.sce.bucket_states", "loss.sce.bucket_items"),
    *("seq.feed_forward", "graph.signed.layers", "graph.hypergraph.layers"),
    *("graph.selfgnn.intervals", "graph.selfgnn.layers"),
)
AT_LEAST_ZERO = ("data.k_core", "graph.last_n", "warmup.epochs", "checkpoint.seconds")

# Settings that change no number: they may differ when a run goes on and make no other
# system of a report. All others count. "x." is a section. Of the form of a log the
# fingerprint of the data says whether it matters.
CHANGE_NO_NUMBER = (
    *("data.path", "data.counts", "data.table.", "checkpoint.", "eval.batch"),
    *("eval.targets", "compare", "example", "seeds"),
)
# For a config.json from before a setting was there: what its absence means, and the
# name of now of a setting that had another.
OLD_DEFAULTS: dict[str, object] = {
    "model.precision": "highest",  # on CPUs, where all that was kept is from
    "model.random": "threefry2x32",
    "eval.targets": ["last", "first", "random", "successive"],
}
OLD_NAMES: dict[str, str] = {}


def is_among(key: str, names: tuple[str, ...]) -> bool:
    """Whether a setting is one of the names, or in a section ("x.") that is."""
    sections = tuple(name for name in names if name.endswith("."))
    return key in names or key.startswith(sections)


def of_run(config: dict) -> dict:
    """The settings of a run by their dotted names of now, as runs are compared by them:
    those included that it does not have because they came later."""
    flat = {OLD_NAMES.get(key, key): value for key, value in flatten(config).items()}
    came_later = flatten(OLD_DEFAULTS)
    flat |= {key: came_later[key] for key in came_later.keys() - flat.keys()}
    return meant(flat)


def read(config, key: str):
    """The setting of a dotted name; KeyError where there is none."""
    for part in key.split("."):
        config = config[part]
    return config


def flatten(tree: dict, prefix: str = "") -> dict:
    """Settings by their dotted names; tuples become lists, as in config.json."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def meant(flat: dict) -> dict:
    """Flat settings with `split.validation` as what is done, which leave_one_out once
    did whatever it was asked for."""
    kind, validation = flat.get("split.kind"), flat.get("split.validation")
    if validation in (None, "none"):
        return flat
    validation = "auto" if kind == "leave_one_out" else validation
    return flat | {"split.validation": validation_of(kind, validation)}


def check(config) -> None:
    """Raises InputError for the first setting that cannot work."""
    value = partial(read, config)
    for key, allowed in ONE_OF.items():
        if value(key) not in allowed:
            raise _bad(key, value(key), "one of " + ", ".join(allowed))
    for key, (text, holds) in RANGES.items():
        if not holds(value(key)):
            raise _bad(key, value(key), text)
    for key in AT_LEAST_ONE:
        if value(key) < 1:
            raise _bad(key, value(key), "1 or more")
    for key in AT_LEAST_ZERO:
        if value(key) < 0:
            raise _bad(key, value(key), "0 or more")
    if value("model.dim") % value("seq.heads"):
        raise _bad(
            "seq.heads",
            value("seq.heads"),
            f"a divisor of model.dim = {config.model.dim}",
        )
    if config.method not in (*GRAPH_ONLY, *MODEL_FREE):
        module, _ = encoder_module(config)
        if _aligns_views(config) and module.OBJECTIVE != "next":
            raise _bad("align.partner", "same_target", "graph, with masked items")
    if not _is_encoding(config.data.table.encoding):
        expected = "auto or an encoding that Python knows: utf-8, utf-16, latin-1 ..."
        raise _bad("data.table.encoding", config.data.table.encoding, expected)
    targets = tuple(config.eval.targets)
    if len(set(targets)) < len(targets) or not set(targets) <= set(TARGETS):
        expected = ", ".join(TARGETS) + ", each once, as in ('last', 'first')"
        raise _bad("eval.targets", targets, expected)
    if not config.eval.ks or any(k < 1 for k in config.eval.ks):
        raise _bad("eval.ks", list(config.eval.ks), "a list of cut-offs of 1 or more")
    names = [
        f"{metric}@{k}" for metric in ("ndcg", "recall", "mrr") for k in config.eval.ks
    ]
    if config.eval.select_by not in names:
        raise _bad(
            "eval.select_by", config.eval.select_by, "one of " + ", ".join(names)
        )
    seeds(config)
    for method in config.compare:
        if method not in METHODS:
            raise _bad("compare", method, "methods: " + ", ".join(METHODS))
    if config.split.validation == "none" and config.retrain.epochs == "scaled":
        raise _bad(
            "retrain.epochs", "scaled", "best, as there is no validation to scale"
        )
    _check_validation(config)
    propagated = "propagated" in (config.item_source.input, config.item_source.output)
    for key, only in FIXED.get(config.method, {}).items():
        if value(key) != only:
            raise _bad(key, value(key), f"{only}, for {config.method}")
    if config.method == "mrgsrec" and config.graph.encoder == "none":
        raise _bad("graph.encoder", "none", "a graph, which mrgsrec fuses")
    own_graph = config.graph.encoder == "selfgnn"
    if config.method in JOINT and (config.method == "selfgnn") != own_graph:
        expected = "selfgnn for that method, and for no other"
        raise _bad("graph.encoder", config.graph.encoder, expected)
    encoder = graph_module(config)
    if propagated and not (
        config.method in JOINT and encoder is not None and encoder.PROPAGATES
    ):
        raise _bad(
            "item_source", "propagated", "ego, unless a graph encoder propagates"
        )
    if not config.data.table.has_clock:
        needs = []
        if config.split.kind == "global_temporal":
            needs.append("split.kind=global_temporal")
        if encoder is not None and "clock" in encoder.NEEDS:
            needs.append(f"the {_graph_name(config)} encoder")
        if needs:
            raise InputError(
                "config.data.table.has_clock is False, but "
                f"{' and '.join(needs)} needs real times; use "
                "--config.split.kind=leave_one_out and a graph without times"
            )


def _check_validation(config) -> None:
    """Refuses what a split cannot do, and a selection on users who are not trained."""
    kind, validation = config.split.kind, config.split.validation
    possible = ("auto", *VALIDATIONS[kind])
    if validation not in possible:
        expected = f"one of {', '.join(possible)}, with split.kind={kind}"
        raise _bad("split.validation", validation, expected)
    if validation != "by_user":
        return
    by_row = config.method in (*GRAPH_ONLY, *OTHER_SYSTEMS)
    if by_row or (config.method == "svd" and config.svd.history == "train"):
        raise _bad(
            "split.validation",
            validation,
            f"by_time or last_train_item: {config.method} ranks by a trained row of "
            "each user, and by_user trains none of those it asks",
        )
    warms_up = config.method in JOINT and config.graph.encoder != "none"
    if warms_up and config.warmup.epochs and config.warmup.eval == "graph":
        raise _bad(
            "warmup.eval",
            "graph",
            "sequential with split.validation=by_user, which trains no row of the "
            "users it asks",
        )


def _is_encoding(name: str) -> bool:
    """Whether text can be read in it, piece by piece."""
    try:
        return name == "auto" or "".encode(name).decode(name) == ""
    except (LookupError, UnicodeError, ValueError):
        return False


def seeds(config) -> list[int]:
    """The seeds to run: those of `--config.seeds=0,1` or `=[0,1]`, else `config.seed`.

    Raises InputError for what is no seed, or there twice.
    """
    given = config.seeds
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = given[0]  # the command line wraps a list into a tuple
    whole = all(isinstance(seed, int) and seed >= 0 for seed in given)
    if not whole or len(set(given)) < len(given):
        raise _bad("seeds", config.seeds, "different whole numbers from 0")
    return list(given) or [config.seed]


def check_log(config, log) -> None:
    """Raises InputError where the method needs what the log does not have."""
    encoder = graph_module(config)
    if encoder is None or "ratings" not in encoder.NEEDS:
        return
    name = f"the {_graph_name(config)} encoder"
    if log.ratings is None:
        raise InputError(
            f"{config.data.name}: found no ratings in the log; {name} needs likes and "
            "dislikes: bring a log with ratings (config.data.table.columns.rating) or "
            "choose another --config.graph.encoder="
        )
    low, high = np.nanmin(log.ratings), np.nanmax(log.ratings)
    liked_from = config.graph.signed.liked_from
    if not low < liked_from <= high:
        raise _bad(
            "graph.signed.liked_from",
            liked_from,
            f"above {low:g} and at most {high:g}, the ratings of the log",
        )


def _aligns_views(config) -> bool:
    """Whether a sequence is aligned with a second one instead of the graph's user."""
    return config.method in JOINT and config.align.partner == "same_target"


def _bad(key, found, expected):
    if key == "method":
        return InputError(f"unknown method {found!r}; expected {expected}")
    return InputError(
        f"config.{key} is {found!r}; expected {expected}; set it with --config.{key}="
    )


def _graph_name(config) -> str:
    if config.method in GRAPH_ONLY:
        return config.method
    return config.graph.encoder if config.method in JOINT else "none"


def graph_module(config):
    """The module of the graph encoder, or None."""
    name = _graph_name(config)
    if name == "none":
        return None
    return importlib.import_module(f"create_jax.models.{name}")


def encoder_module(config):
    """The module of the sequence encoder: its `Encoder` and `OBJECTIVE`.

    A name without a dot is one of ours, one with dots is any importable module.
    """
    name = config.seq.encoder if config.method in JOINT else config.method
    if config.method in OTHER_SYSTEMS:
        name = config.method
    path = name if "." in name else f"create_jax.models.{name}"
    try:
        module = importlib.import_module(path)
        if module.OBJECTIVE not in ("next", "masked"):
            raise AttributeError(f"OBJECTIVE is {module.OBJECTIVE!r}")
        return module, module.Encoder
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        ours = ", ".join(SEQUENCE_ONLY)
        raise _bad(
            "seq.encoder",
            name,
            f"one of {ours}, or a module with OBJECTIVE and Encoder ({error})",
        ) from None


def make_model(config, n_users: int, n_items: int) -> create.Model:
    """The encoders that `config.method` needs."""
    method = config.method
    encoder, objective = None, "next"
    if method not in GRAPH_ONLY:
        module, encoder_class = encoder_module(config)
        fields = {k: v for k, v in config.seq.items() if k != "encoder"}
        if method == "mrgsrec":
            fields |= config.mrgsrec.to_dict()
        encoder, objective = encoder_class(**fields), module.OBJECTIVE
    graph, own = graph_module(config), {}
    if graph is not None:
        own = config.graph[_graph_name(config)].to_dict()
    local = config.loss.to_dict()
    if local["local"] == "gbce" and local["negatives"] >= n_items - 1:
        raise _bad(
            "loss.negatives",
            local["negatives"],
            f"fewer than the {n_items} items of the log, as gbce samples them",
        )
    return create.Model(
        system=OTHER_SYSTEMS.get(method, create),
        n_users=n_users,
        n_items=n_items,
        dim=config.model.dim,
        encoder=encoder,
        objective=objective,
        mask_share=config.train.mask,
        token=objective == "masked" or method == "mrgsrec",
        graph=graph,
        graph_settings=own | {"reduce": config.graph.reduce},
        align=config.align.to_dict(),
        local=local | {"kind": local["local"]},
        input_items=config.item_source.input if method in JOINT else "ego",
        output_items=config.item_source.output if method in JOINT else "ego",
        item_std=config.model.item_std,
        user_std=config.model.user_std,
        precision=config.model.precision,
        random=config.model.random,
    )


def make_phases(config) -> list[Phase]:
    """Warm-up and joint training as data; an encoder alone has one phase."""
    epochs = config.train.epochs
    if config.method in GRAPH_ONLY:
        return [Phase("graph", epochs, 0.0, 1.0, 0.0)]
    w_align = config.loss.w_bt if config.align.kind != "none" else 0.0
    if config.method in OTHER_SYSTEMS:
        return [Phase("joint", epochs, 1.0, config.loss.w_global, w_align)]
    if config.method in SEQUENCE_ONLY or config.graph.encoder == "none":
        return [
            Phase("joint", epochs, 1.0, 0.0, w_align if _aligns_views(config) else 0.0)
        ]
    joint = Phase("joint", epochs, 1.0, config.loss.w_global, w_align)
    warmup = Phase("warmup", config.warmup.epochs, 0.0, 1.0, 0.0)
    return [warmup, joint] if config.warmup.epochs else [joint]
