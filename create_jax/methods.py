"""The list of methods in plain data: encoders, fixed settings, needs and defaults.

All other modules read the facts of a method here. A user-defined method is a module
with such a row as `METHOD`; its dotted path is the value of `config.method`.
"""

from dataclasses import dataclass, field

from create_jax import named
from create_jax.errors import InputError

# What --mode=tune searches, unless a config names another space. Settings that the
# others turn off are left out: those of another graph encoder, say.
SEARCH = (("optim.lr", "log", 3e-4, 3e-3), ("seq.dropout", "uniform", 0.1, 0.6))
SEARCH_JOINT = (
    *SEARCH,
    ("loss.w_global", "log", 0.01, 10.0),
    ("loss.w_bt", "log", 0.02, 20.0),
    ("align.bt.lambda", "log", 0.005, 0.5),
    ("align.stop_grad", "choice", "none", "global", "local"),
    ("align.user_source", "choice", "propagated", "ego"),
    ("graph.lightgcn.layers", "integer", 1, 4),
    ("warmup.epochs", "integer", 0, 100),
)


@dataclass(frozen=True)
class Method:
    """Facts about a method that the package needs before it builds the model.

    system: dotted path of its class (models/system.py); "" = nothing is trained by
      gradients.
    sequence, graph: its encoders. "" = the choice of the config, "none" = it has none,
      "own" = the system brings its own.
    needs_graph: `graph.encoder` must not be none.
    fixed: settings that define the method; other values are refused.
    defaults: settings whose default differs from the common one.
    settings: those of this method only, by their names or sections ("x.").
    user_rows: under which settings it ranks by a trained row of each user; None = it
      never does, {} = always.
    """

    system: str = "create_jax.models.create.Create"
    sequence: str = ""
    graph: str = ""
    needs_graph: bool = False
    fixed: dict = field(default_factory=dict)
    defaults: dict = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    user_rows: dict | None = None

    @property
    def kind(self) -> str:
        """joint, sequence or graph, by what is trained; or free: no training."""
        if not self.system:
            return "free"
        if self.sequence == "none":
            return "graph"
        return "sequence" if self.graph == "none" else "joint"

    @property
    def chooses(self) -> bool:
        """Whether validation chooses anything: an epoch, or SVD's rank."""
        return self.kind != "free" or "svd." in self.settings

    @property
    def warms_up(self) -> bool:
        """Whether the graph may be trained alone at first."""
        return self.kind == "joint" and self.sequence != "own"

    def encoders(self, config) -> tuple[str, str]:
        """The names of the sequence and of the graph encoder under a config."""
        return self.sequence or config.seq.encoder, self.graph or config.graph.encoder


# Patience follows the source of each method: slow starts get more.
def _alone(name: str) -> Method:
    defaults = {"train.patience": 50, "tune.space": SEARCH[:1]}  # there is no dropout
    return Method(sequence="none", graph=name, defaults=defaults, user_rows={})


def _free(**facts) -> Method:
    return Method(system="", sequence="none", graph="none", **facts)


PROPAGATED = {"item_source.input": "propagated", "item_source.output": "propagated"}
METHODS = {
    "create": Method(defaults={"tune.space": SEARCH_JOINT}),
    "create_pone": Method(
        fixed={"graph.encoder": "signed"},
        defaults={"graph.encoder": "signed", "tune.space": SEARCH_JOINT, **PROPAGATED},
    ),
    "create_uni": Method(
        fixed={"graph.encoder": "hypergraph"},
        defaults={
            "graph.encoder": "hypergraph",
            "tune.space": SEARCH_JOINT,
            **PROPAGATED,
        },
    ),
    "bt_sr": Method(
        fixed={
            "graph.encoder": "none",
            "align.kind": "barlow_twins",
            "align.partner": "same_target",
        },
        defaults={
            "graph.encoder": "none",
            "warmup.epochs": 0,
            "align.partner": "same_target",
            "align.l2_normalize": True,
        },
    ),
    "gsau": Method(
        fixed={
            "graph.encoder": "lightgcn",
            "graph.lightgcn.loss": "alignment_uniformity",
            "loss.local": "gsau",
            "align.kind": "none",
        },
        defaults={
            "graph.encoder": "lightgcn",
            "graph.lightgcn.loss": "alignment_uniformity",
            "graph.lightgcn.l2": 0.0,
            "loss.local": "gsau",
            "loss.w_global": 1.0,
            "align.kind": "none",
            "warmup.epochs": 0,
        },
    ),
    "mrgsrec": Method(
        system="create_jax.models.mrgsrec.MRGSRec",
        sequence="own",
        needs_graph=True,
        fixed={
            "seq.encoder": "sasrec",
            "warmup.epochs": 0,
            "item_source.input": "ego",
            "item_source.output": "ego",
            "align.partner": "graph",
            "align.positions": "all",
            "align.user_source": "propagated",
            "align.stop_grad": "none",
        },
        defaults={
            "graph.encoder": "lightgcn",
            "graph.lightgcn.layers": 1,
            "graph.lightgcn.normalise": True,
            "seq.heads": 2,
            "seq.feed_forward": 4,
            "seq.dropout": 0.3,
            "loss.w_global": 0.1,
            "loss.w_bt": 0.05,
            "align.kind": "infonce",
            "align.positions": "all",
            "warmup.epochs": 0,
        },
        settings=("mrgsrec.", "loss.w_fused"),
        user_rows={},
    ),
    "selfgnn": Method(
        system="create_jax.models.selfgnn.SelfGNN",
        sequence="own",
        graph="create_jax.models.selfgnn",
        fixed={
            "graph.encoder": "selfgnn",
            "seq.encoder": "sasrec",
            "seq.feed_forward": 1,
            "warmup.epochs": 0,
            "item_source.input": "ego",
            "item_source.output": "ego",
            "align.kind": "none",
            "align.partner": "graph",
            "loss.local": "ce",
        },
        defaults={
            "graph.encoder": "selfgnn",
            "align.kind": "none",
            "warmup.epochs": 0,
        },
        user_rows={},
    ),
    "sasrec": Method(sequence="sasrec", graph="none"),
    "bert4rec": Method(
        sequence="bert4rec",
        graph="none",
        defaults={
            "seq.heads": 2,
            "seq.feed_forward": 4,
            "seq.dropout": 0.1,
            "train.patience": 20,
        },
    ),
    "esasrec": Method(
        sequence="esasrec",
        graph="none",
        defaults={
            "seq.feed_forward": 4,
            "seq.dropout": 0.2,
            "loss.local": "sampled",
            "train.patience": 50,
        },
    ),
    "lightgcn": _alone("lightgcn"),
    "ultragcn": _alone("ultragcn"),
    "signed": _alone("signed"),
    "hypergraph": _alone("hypergraph"),
    "svd": _free(settings=("svd.",), user_rows={"svd.history": "train"}),
    "mostpop": _free(),
    "poprnd": _free(),
    "random": _free(),
}


def find(name: str, key: str = "method") -> Method:
    """The row of a method of the package or of a user's module.

    Raises:
      InputError: there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    reason = ""
    if "." in str(name):
        found = named.find(key, name, {}, "module with a METHOD")
        if isinstance(getattr(found, "METHOD", None), Method):
            return found.METHOD
        reason = " (it has no METHOD)"
    expected = f"{', '.join(METHODS)}, or the dotted path of a module with a METHOD"
    raise InputError(f"unknown {key} {name!r}{reason}; expected {expected}")
