"""Which settings have no effect on a run, because of others.

A user who sets one on the command line gets a message. A study may not tune them. A run
may continue with other values of them.
"""

from create_jax import methods, named
from create_jax.errors import InputError

# Settings that choose what runs. If nothing reads one, the user meant another system.
CHOICES = (
    *("seq.encoder", "graph.encoder", "align.kind", "loss.local"),
    *("item_source.input", "item_source.output"),
)
# Prefixes of settings that a kind of method never reads.
BY_KIND = {
    "free": (
        *("model.", "seq.", "graph.", "item_source.", "align.", "loss."),
        *("warmup.", "train.", "retrain.", "optim.", "mesh."),
    ),
    "graph": (
        *("seq.", "item_source.", "align.", "loss.", "warmup."),
        *("graph.encoder", "graph.batch_source", "train.batch", "train.mask"),
    ),
    "sequence": (
        *("seq.encoder", "graph.", "item_source.", "align.", "warmup."),
        *("model.user_std", "loss.w_global", "loss.w_bt"),
    ),
    "joint": (),
}
# The next-item losses that read a setting; a loss or a system of yours may read any.
OF_LOSSES = {
    "loss.negatives": ("sampled", "gbce", "bce"),
    "loss.shared_negatives": ("sampled", "gbce", "bce"),
    "loss.gbce_t": ("gbce",),
    "loss.token_chunk": ("ce",),
    "loss.item_chunk": ("ce",),
    "loss.whole_items": ("ce",),
}
# Settings of graph encoders that only their own loss reads.
OF_GRAPH_LOSSES = (
    *("graph.lightgcn.l2", "graph.lightgcn.loss", "graph.lightgcn.gamma"),
    *("graph.ultragcn.", "graph.hypergraph.l2", "graph.signed.averse_weight"),
    *("graph.signed.contrastive", "graph.signed.temperature"),
)
# Encoders that hide no items; a user's encoder may hide some.
NEVER_HIDE = ("sasrec", "esasrec", "own")
# Prefixes of settings that a mode never reads.
BY_MODE = {
    "train": ("tune.",),
    "evaluate": ("tune.", "compare", "example", "final.", "eval.select_"),
    "export": ("tune.", "compare", "example"),
    "tune": ("seeds", "compare", "example", "retrain."),
}


def unread(flat: dict) -> set[str]:
    """The settings of a flat config that change no number of its run.

    Settings that nobody would set by mistake may be missing.
    """
    method = methods.find(flat["method"])
    off = [*BY_KIND[method.kind], *_data_and_selection(flat)]
    others = {key for other in methods.METHODS.values() for key in other.settings}
    off += others - set(method.settings)
    if method.kind == "free":  # it has no epochs
        off += ["eval.every", "eval.select_mean" if method.chooses else "eval.select_"]
    else:
        off += _graph(flat, method)
    if method.kind in ("sequence", "joint"):
        off += _losses(flat, method)
    if method.kind == "joint":
        off += _joint(flat, method)
    kept = set()
    if method.kind == "joint":  # a choice of `none` turns off all beside it, not itself
        kept = {key for key in CHOICES if key not in off}
        if flat["graph.encoder"] == "none":
            kept.add("align.partner")  # which says whether alignment is read at all
    if method.kind in ("sequence", "joint"):  # there all the same, in the checkpoints
        kept.add("align.projector_dims")
        if flat["align.projector_dims"]:  # two, or one for two views
            kept.add("align.partner")
    return {key for key in flat if key.startswith(tuple(off)) and key not in kept}


def without_effect(changed: list[str], flats: list[dict], mode: str) -> str:
    """A line that names settings of the command line without effect; "" if none.

    Args:
      changed: the settings. flats: the configs of its runs.

    Raises:
      InputError: one of the settings chooses what runs, so that another run was meant.
    """
    asked = ", ".join(dict.fromkeys(flat["method"] for flat in flats))
    found = {methods.find(flat["method"]).kind for flat in flats}
    idle = set.intersection(*map(unread, flats))
    for key in [key for key in changed if key in CHOICES and key in idle]:
        value = flats[0][key]
        if value not in ("none", "ego", flats[0]["method"]):  # these choose what runs
            raise InputError(
                f"config.{key} is {value!r} by the command line, but {asked} does "
                "not read it; leave it out, or choose a method that does"
            )
    if flats[0]["seeds"] and mode != "tune":
        idle.add("seed")
    if mode == "train" and found <= {"free"}:  # which leave no checkpoints
        idle.add("final.fit")
    names = [key for key in changed if key in idle or key.startswith(BY_MODE[mode])]
    names = ", ".join(f"config.{name}" for name in names)
    return f"note: no effect on {asked}, --mode={mode}: {names}" if names else ""


def _data_and_selection(flat: dict) -> list[str]:
    off = []
    if flat["data.loader"] != "table":
        form = "format", "separator", "quoting", "encoding", "header", "time_unit"
        off += [f"data.table.{name}" for name in (*form, "columns.")]
    if flat["split.kind"] == "leave_one_out":
        off += ["split.q_test", "split.q_val"]
    if flat["split.validation"] not in ("auto", "by_time"):
        off.append("split.q_val")
    if flat["split.validation"] == "none":
        off += ["eval.select_", "eval.every", "train.patience", "retrain."]
    return off


def _other_sections(flat: dict, section: str, own: str) -> list[str]:
    """The sections inside a section, except that of the name `own`."""
    parts = [key.split(".") for key in flat if key.startswith(f"{section}.")]
    names = {part[1] for part in parts if len(part) > 2}
    return [f"{section}.{name}." for name in names - {named.last(own)}]


def _graph(flat: dict, method) -> list[str]:
    off = _other_sections(flat, "graph", method.graph or flat["graph.encoder"])
    if flat["graph.lightgcn.loss"] != "alignment_uniformity":
        off.append("graph.lightgcn.gamma")
    return off


def _losses(flat: dict, method) -> list[str]:
    kind = flat["loss.local"]
    off = _other_sections(flat, "loss", kind)
    if "." not in kind and "." not in flat["method"]:
        off += [key for key, kinds in OF_LOSSES.items() if kind not in kinds]
    if flat["method"] == "mrgsrec":  # its other losses read it
        off = [key for key in off if key != "loss.token_chunk"]
    if (method.sequence or flat["seq.encoder"]) in NEVER_HIDE:
        off.append("train.mask")
    return off


def _joint(flat: dict, method) -> list[str]:
    off = []
    views = flat["align.partner"] == "same_target"
    if flat["graph.encoder"] == "none":
        off += ["graph.batch", "graph.last_", "graph.reduce", "warmup."]
        off += ["model.user_std", "loss.w_global"]
        off += [] if views else ["align.kind", "align.", "loss.w_bt"]
    if flat["method"] in ("mrgsrec", "selfgnn"):  # no batches of pairs
        off += ["graph.batch_", "graph.reduce"]
        off += OF_GRAPH_LOSSES if flat["method"] == "mrgsrec" else ["loss."]
    elif flat["graph.encoder"] == "ultragcn":  # whose pairs are those of all users
        off += ["graph.batch_source", "align.user_source"]  # and propagate nothing
    if not flat["warmup.epochs"]:
        off += ["warmup.reset_optimizer", "warmup.eval"]
        if not flat["loss.w_global"]:
            off += [*OF_GRAPH_LOSSES, "graph.batch_", "graph.reduce"]
    if flat["align.kind"] == "none":
        return [*off, "align.", "loss.w_bt"]
    if not flat["loss.w_bt"]:
        return [*off, "align."]
    of_kind = {
        "align.bt.": ("barlow_twins",),
        "align.vicreg.": ("vicreg",),
        "align.temperature": ("infonce", "nwj"),
    }
    off += [key for key, kinds in of_kind.items() if flat["align.kind"] not in kinds]
    if views:
        off += [f"align.{x}" for x in ("positions", "user_source", "stop_grad")]
    encoder = flat["graph.encoder"]  # one of your own may have averse users too
    apart = (encoder == "signed" or "." in encoder) and flat["method"] != "mrgsrec"
    if views or not apart:
        off.append("align.orthogonality")
    if views or (method.sequence or flat["seq.encoder"]) in NEVER_HIDE:
        off.append("align.bert_state")
    return off
