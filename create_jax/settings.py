"""Checks the values of a config before anything is loaded, without starting JAX.

`build` checks what depends on a model.
"""

import json
from functools import partial
from typing import get_args

from create_jax import methods, metrics, named, protocol
from create_jax.data import table, times
from create_jax.data.splits import (
    NEED_CLOCK,
    SPLITS,
    TARGETS,
    VALIDATIONS,
    validation_of,
)
from create_jax.data.text import is_encoding
from create_jax.errors import InputError
from create_jax.errors import bad_setting as _bad

ONE_OF = {
    "data.table.format": get_args(table.Format),
    "data.table.time_unit": get_args(times.Unit),
    "split.validation": ("auto", *VALIDATIONS["global_temporal"]),
    "split.ties": ("file", "random"),
    "eval.target": TARGETS,
    "eval.select_target": ("", *TARGETS),
    "eval.cold_items": ("drop", "keep_as_miss"),
    "eval.candidates": ("train", "all"),
    "eval.history": ("full", "train"),
    "svd.history": ("full", "train"),
    "model.precision": ("highest", "high", "default"),
    "model.random": ("threefry2x32", "rbg"),
    "item_source.input": ("ego", "propagated"),
    "item_source.output": ("ego", "propagated"),
    "graph.reduce": ("mean", "sum"),
    "graph.batch_source": ("edges", "batch_users"),
    "align.partner": ("graph", "same_target"),
    "align.positions": ("last", "all"),
    "align.user_source": ("propagated", "ego"),
    "align.stop_grad": ("none", "global", "local"),
    "align.bt.reduce": ("mean_dim", "sum"),
    "align.bert_state": ("appended_mask", "last_position"),
    "graph.lightgcn.loss": ("bpr", "alignment_uniformity"),
    "graph.hypergraph.convolution": ("gcn", "gin", "gat"),
    "mrgsrec.user_token_mask": ("causal", "leaky"),
    "warmup.eval": ("graph", "sequential"),
    "retrain.epochs": ("best", "scaled", "none"),
    "final.fit": ("none", "all"),
}
SEEDS = "from 0 and below 2**32, which is what generators take"
AT_LEAST_ONE = (
    *("model.dim", "seq.blocks", "seq.heads", "seq.max_len", "graph.batch_size"),
    *("graph.ultragcn.neighbours", "graph.ultragcn.negatives", "graph.lightgcn.layers"),
    *("train.batch", "train.epochs", "train.patience", "train.chunk", "eval.batch"),
    *("eval.select_mean", "tune.trials"),
    *("eval.every", "loss.token_chunk", "loss.item_chunk", "loss.whole_items"),
    *("loss.negatives", "mesh.model", "graph.hypergraph.window_hours"),
    *("loss.sce.buckets", "loss.sce.bucket_states", "loss.sce.bucket_items"),
    *("seq.feed_forward", "graph.signed.layers", "graph.hypergraph.layers"),
    *("graph.selfgnn.intervals", "graph.selfgnn.layers"),
)
AT_LEAST_ZERO = (
    *("data.k_core", "graph.last_n", "warmup.epochs", "checkpoint.seconds"),
    *("eval.queries", "loss.w_global", "loss.w_fused", "loss.w_bt"),
    *("align.orthogonality", "graph.selfgnn.self_weight", "graph.selfgnn.decay"),
    *("graph.signed.contrastive", "model.item_std", "model.user_std"),
)


def _is_seed(value) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _are_whole(values, least: int, most: float = float("inf")) -> bool:
    """True and 1.0 are no whole numbers."""
    return all(type(x) is int and least <= x <= most for x in values)


def _differ(values) -> bool:
    return len(set(values)) == len(values)


# What a setting may be: in words, and as a test.
RANGES = {
    "split.q_test": ("between 0 and 1", lambda x: 0 < x < 1),
    "split.q_val": ("between 0 and 1", lambda x: 0 < x < 1),
    "split.seed": (f"a whole number {SEEDS}", _is_seed),
    "seq.dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "train.mask": ("above 0 and below 1", lambda x: 0 < x < 1),
    "loss.gbce_t": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "graph.last_frac": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "optim.lr": ("above 0", lambda x: x > 0),
    "optim.clip": ("0 (off) or more", lambda x: x >= 0),
    "align.temperature": ("above 0", lambda x: x > 0),
    "graph.signed.temperature": ("above 0", lambda x: x > 0),
    **dict.fromkeys(AT_LEAST_ONE, ("1 or more", lambda x: x >= 1)),
    **dict.fromkeys(AT_LEAST_ZERO, ("0 or more", lambda x: x >= 0)),
    "data.table.encoding": (
        "auto or an encoding that Python knows: utf-8, utf-16, latin-1 ...",
        is_encoding,
    ),
    "data.counts": (
        "three whole numbers (users, items, interactions), or ()",
        lambda x: len(x) in (0, 3) and _are_whole(x, 0),
    ),
    "eval.targets": (
        f"{', '.join(TARGETS)}, each once, as in ('last', 'first')",
        lambda x: _differ(x) and set(x) <= set(TARGETS),
    ),
    # All ranks above the greatest are evaluated as a table: 10,000 need a gigabyte.
    "eval.ks": (
        "different whole numbers from 1 to 10000, as in (10, 100)",
        lambda x: x and _are_whole(x, 1, 10_000) and _differ(x),
    ),
    "svd.ranks": (
        "whole numbers of 1 or more, as in (64, 128)",
        lambda x: x and _are_whole(x, 1),
    ),
    "align.projector_dims": (
        "whole numbers of 1 or more, as in (512, 512), or ()",
        lambda x: _are_whole(x, 1),
    ),
}

# Settings that change no number: they may differ when a run goes on and make no other
# system of a report. All others count. "x." is a section. Settings for
# reading a log are here too, because the fingerprint of the data shows their effect;
# and `mesh.`, which changes the rounding of sums.
CHANGE_NO_NUMBER = (
    *("data.path", "data.counts", "data.table.", "checkpoint.", "eval.batch", "mesh."),
    *("eval.targets", "eval.metrics", "compare", "example", "seeds", "final."),
)
# For a config.json older than a setting: the value that its absence means.
OLD_DEFAULTS: dict[str, object] = {
    "model.precision": "highest",  # all old runs are from CPUs
    "model.random": "threefry2x32",
    "eval.targets": ["last", "first", "random", "successive"],
    "eval.metrics": [],
    "eval.queries": 0,
    "eval.select_target": "",
    "eval.select_mean": 1,
}


def is_among(key: str, names: tuple[str, ...]) -> bool:
    """Whether a setting is one of the names, or in a section ("x.") that is."""
    sections = tuple(name for name in names if name.endswith("."))
    return key in names or key.startswith(sections)


def of_run(config: dict) -> dict:
    """The settings of a run by their dotted names of now, as runs are compared by them:
    those included that it does not have because they came later."""
    flat = flatten(config)
    later = {k: v for k, v in flatten(OLD_DEFAULTS).items() if k not in flat}
    return meant(flat | later)


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


def shown(value):
    """A value as messages and tables have it: of a float four digits."""
    return f"{value:.4g}" if isinstance(value, float) else value


def meant(flat: dict) -> dict:
    """Flat settings with the validation that is really done as `split.validation`.
    leave_one_out once ignored that setting."""
    kind, validation = flat.get("split.kind"), flat.get("split.validation")
    if validation in (None, "none"):
        return flat
    validation = "auto" if kind == "leave_one_out" else validation
    return flat | {"split.validation": validation_of(kind, validation)}


def check(config, *, selects: bool = True) -> None:
    """Raises InputError for the first value that cannot work. selects: whether it may
    be validation that chooses; of a finished run, say, it has."""
    value = partial(read, config)
    method = methods.find(config.method)
    protocol.find_loader(config.data.loader)
    named.find("split.kind", config.split.kind, SPLITS)
    for key, allowed in ONE_OF.items():
        if value(key) not in allowed:
            names = ", ".join(name or "''" for name in allowed)
            raise _bad(key, value(key), f"one of {names}")
    for key, (text, holds) in RANGES.items():
        if not holds(value(key)):
            raise _bad(key, value(key), text)
    if config.model.dim % config.seq.heads:
        expected = f"a divisor of model.dim = {config.model.dim}"
        raise _bad("seq.heads", config.seq.heads, expected)
    known = metrics.chosen(config.eval)
    if selects and method.chooses and config.split.validation != "none":
        _check_selection(config.eval, known)
    seeds(config)
    for other in config.compare:
        methods.find(other, "method to compare")
    if config.split.validation == "none" and config.retrain.epochs == "scaled":
        raise _bad(
            "retrain.epochs", "scaled", "best, as there is no validation to scale"
        )
    _check_validation(config)
    trained = selects and method.kind != "free"
    if trained and config.retrain.epochs == "none" and _ranks_by_user_rows(config):
        validation = validation_of(config.split.kind, config.split.validation)
        if validation == "by_time":
            expected = (
                f"best or scaled: {config.method} ranks by a trained row of each user; "
                "not retrained, it has none of those who came after validation's cut"
            )
            raise _bad("retrain.epochs", "none", expected)
    for key, only in method.fixed.items():
        if value(key) != only:
            raise _bad(key, value(key), f"{only}, for {config.method}")
    if method.needs_graph and config.graph.encoder == "none":
        raise _bad("graph.encoder", "none", f"a graph, which {config.method} reads")
    if config.split.kind in NEED_CLOCK and not config.data.table.has_clock:
        raise no_clock(f"split.kind={config.split.kind}")


def _check_selection(rules, known: dict) -> None:
    """Refuses to select by a metric that validation does not have. known: the metrics
    with a cut-off."""
    names = [f"{name}@{k}" for name in known for k in rules.ks]
    if (rules.select_target or rules.target) != "all":
        names += metrics.UNCUT
    if rules.select_by not in names:
        expected = "one of " + ", ".join(names)
        if rules.select_by in metrics.UNCUT:
            expected += "; or config.eval.select_target=last, for one target a query"
        raise _bad("eval.select_by", rules.select_by, expected)


def no_clock(what: str) -> InputError:
    """The error of a setting that needs real times, for a log without them."""
    return InputError(
        f"config.data.table.has_clock is False, but {what} needs real times; use "
        "--config.split.kind=leave_one_out and a graph without times"
    )


def _ranks_by_user_rows(config) -> bool:
    rows = methods.find(config.method).user_rows
    return rows is not None and all(read(config, key) == rows[key] for key in rows)


def _check_validation(config) -> None:
    """Refuses a validation that the split lacks, or one on users without training."""
    kind, validation = config.split.kind, config.split.validation
    possible = ("auto", *VALIDATIONS.get(kind, VALIDATIONS["global_temporal"]))
    if validation not in possible:
        expected = f"one of {', '.join(possible)}, with split.kind={kind}"
        raise _bad("split.validation", validation, expected)
    if validation != "by_user":
        return
    method = methods.find(config.method)
    if _ranks_by_user_rows(config):
        raise _bad(
            "split.validation",
            validation,
            f"by_time or last_train_item: {config.method} ranks by a trained row of "
            "each user, and by_user trains none of those it asks",
        )
    warms_up = method.warms_up and config.graph.encoder != "none"
    if warms_up and config.warmup.epochs and config.warmup.eval == "graph":
        raise _bad(
            "warmup.eval",
            "graph",
            "sequential with split.validation=by_user, which trains no row of the "
            "users it asks",
        )


def seeds(config) -> list[int]:
    """The seeds to run: those of `--config.seeds=0,1` or `=[0,1]`, else `config.seed`.

    Raises InputError for a value that is no seed, and for a seed given twice.
    """
    given = config.seeds
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = given[0]  # the command line wraps a list into a tuple
    if not all(_is_seed(seed) for seed in given) or len(set(given)) < len(given):
        raise _bad("seeds", config.seeds, f"different whole numbers {SEEDS}")
    if not _is_seed(config.seed):
        raise _bad("seed", config.seed, f"a whole number {SEEDS}")
    return list(given) or [config.seed]
