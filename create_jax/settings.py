"""Checks a config before anything is loaded, and builds models and phases from it."""

from create_jax.data.splits import TARGETS, VALIDATIONS
from create_jax.errors import InputError
from create_jax.models import create, sasrec
from create_jax.steps import Phase

MODEL_FREE = ("mostpop", "poprnd", "random")
GRAPH_ONLY = ("lightgcn", "ultragcn")
METHODS = ("create", "sasrec", *GRAPH_ONLY, *MODEL_FREE)

ONE_OF = {
    "method": METHODS,
    "data.loader": ("amazon", "movielens", "movietweetings", "yambda", "table"),
    "split.kind": ("global_temporal", "leave_one_out"),
    "split.validation": VALIDATIONS,
    "split.ties": ("file", "random"),
    "eval.target": TARGETS,
    "eval.cold_items": ("drop", "keep_as_miss"),
    "eval.candidates": ("train", "all"),
    "eval.history": ("full", "train"),
    "item_source.input": ("ego", "propagated"),
    "item_source.output": ("ego", "propagated"),
    "seq.encoder": ("sasrec",),
    "graph.encoder": GRAPH_ONLY,
    "graph.reduce": ("mean", "sum"),
    "graph.batch_source": ("edges", "batch_users"),
    "align.kind": ("none", "infonce", "bt"),
    "align.positions": ("last", "all"),
    "align.user_source": ("propagated", "ego"),
    "align.stop_grad": ("none", "global", "local"),
    "align.bt.reduce": ("mean_dim", "sum"),
    "warmup.eval": ("graph", "sequential"),
    "retrain.epochs": ("best", "scaled", "none"),
}
# (lowest, highest); open ends are excluded where the text says so.
RANGES = {
    "split.q_test": ("between 0 and 1", lambda x: 0 < x < 1),
    "split.q_val": ("between 0 and 1", lambda x: 0 < x < 1),
    "seq.dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "graph.last_frac": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "optim.lr": ("above 0", lambda x: x > 0),
    "optim.clip": ("0 (off) or more", lambda x: x >= 0),
    "align.temperature": ("above 0", lambda x: x > 0),
    "loss.w_global": ("0 or more", lambda x: x >= 0),
    "loss.w_bt": ("0 or more", lambda x: x >= 0),
    "model.item_std": ("0 or more", lambda x: x >= 0),
    "model.user_std": ("0 or more", lambda x: x >= 0),
}
AT_LEAST_ONE = (
    *("model.dim", "seq.blocks", "seq.heads", "seq.max_len", "graph.batch_size"),
    *("graph.ultragcn.neighbours", "graph.ultragcn.negatives", "graph.lightgcn.layers"),
    *("train.batch", "train.epochs", "train.patience", "train.chunk", "eval.batch"),
    *("eval.every", "loss.token_chunk", "loss.item_chunk"),
)
AT_LEAST_ZERO = ("data.k_core", "graph.last_n", "warmup.epochs", "checkpoint.seconds")


def check(config) -> None:
    """Raises InputError for the first setting that cannot work."""

    def value(key):
        node = config
        for part in key.split("."):
            node = node[part]
        return node

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
    if not config.eval.ks or any(k < 1 for k in config.eval.ks):
        raise _bad("eval.ks", list(config.eval.ks), "a list of cut-offs of 1 or more")
    names = [
        f"{metric}@{k}" for metric in ("ndcg", "recall", "mrr") for k in config.eval.ks
    ]
    if config.eval.select_by not in names:
        raise _bad(
            "eval.select_by", config.eval.select_by, "one of " + ", ".join(names)
        )
    for method in config.compare:
        if method not in METHODS:
            raise _bad("compare", method, "methods: " + ", ".join(METHODS))
    if config.split.validation == "none" and config.retrain.epochs == "scaled":
        raise _bad(
            "retrain.epochs", "scaled", "best, as there is no validation to scale"
        )
    propagated = "propagated" in (config.item_source.input, config.item_source.output)
    if propagated and not (
        config.method == "create" and config.graph.encoder == "lightgcn"
    ):
        raise _bad(
            "item_source", "propagated", "ego, unless LightGCN propagates (create)"
        )


def _bad(key, found, expected):
    if key == "method":
        return InputError(
            f"unknown method {found!r} after the colon of --config; expected {expected}"
        )
    return InputError(
        f"config.{key} is {found!r}; expected {expected}; set it with --config.{key}="
    )


def make_model(config, n_users: int, n_items: int) -> create.Model:
    """The encoders that `config.method` needs."""
    method, seq = config.method, config.seq
    graph = {"create": config.graph.encoder, "sasrec": "none"}.get(method, method)
    encoder = None
    if method not in GRAPH_ONLY:
        encoder = sasrec.Encoder(seq.blocks, seq.heads, seq.dropout, seq.max_len)
    own = config.graph[graph].to_dict() if graph != "none" else {}
    for host_side in ("neighbours", "negatives", "shared_negatives"):
        own.pop(host_side, None)
    return create.Model(
        n_users=n_users,
        n_items=n_items,
        dim=config.model.dim,
        encoder=encoder,
        graph=graph,
        graph_settings=own | {"reduce": config.graph.reduce},
        align=config.align.to_dict(),
        input_items=config.item_source.input if method == "create" else "ego",
        output_items=config.item_source.output if method == "create" else "ego",
        item_std=config.model.item_std,
        user_std=config.model.user_std,
        token_chunk=config.loss.token_chunk,
        item_chunk=config.loss.item_chunk,
    )


def make_phases(config) -> list[Phase]:
    """Warm-up and joint training as data; a graph encoder or SASRec alone has one."""
    epochs = config.train.epochs
    if config.method == "sasrec":
        return [Phase("joint", epochs, 1.0, 0.0, 0.0)]
    if config.method in GRAPH_ONLY:
        return [Phase("graph", epochs, 0.0, 1.0, 0.0)]
    w_align = config.loss.w_bt if config.align.kind != "none" else 0.0
    joint = Phase("joint", epochs, 1.0, config.loss.w_global, w_align)
    warmup = Phase("warmup", config.warmup.epochs, 0.0, 1.0, 0.0)
    return [warmup, joint] if config.warmup.epochs else [joint]
