"""Builds models and phases from a config, and checks settings that depend on them."""

from functools import partial
from types import ModuleType

import numpy as np

from create_jax import losses, methods, named, parallel, settings
from create_jax.errors import InputError, bad_setting
from create_jax.models import alignment
from create_jax.models.system import System
from create_jax.steps import Phase

# Modules of encoders; docs/extending.md and models/graph_encoder.py say what they have.
# The graph module of Self-GNN serves no other method.
SEQUENCE_ENCODERS = {
    name: f"create_jax.models.{name}" for name in ("sasrec", "bert4rec", "esasrec")
}
GRAPH_ENCODERS = {
    name: f"create_jax.models.{name}"
    for name in ("lightgcn", "ultragcn", "signed", "hypergraph")
}


def check(config, *, selects: bool = True) -> None:
    """Raises InputError for the first setting that cannot work. selects: as of
    `settings.check`."""
    settings.check(config, selects=selects)
    method = methods.find(config.method)
    sequence, graph = sequence_module(config), graph_module(config)
    next_item(config.loss, n_items=2)
    alignment.Alignment.from_config(config.align)
    if sequence is not None and aligns_views(config) and sequence.OBJECTIVE != "next":
        raise bad_setting("align.partner", "same_target", "graph, with masked items")
    sources = config.item_source.input, config.item_source.output
    propagates = method.kind == "joint" and graph is not None and graph.PROPAGATES
    if "propagated" in sources and not propagates:
        expected = "ego, unless a graph encoder propagates"
        raise bad_setting("item_source", "propagated", expected)
    needs_clock = graph is not None and "clock" in graph.NEEDS
    if needs_clock and not config.data.table.has_clock:
        raise settings.no_clock(f"the {named.last(graph_name(config))} encoder")
    if parts_of_tables(config) > 1:
        _check_split(config)


def parts_of_tables(config) -> int:
    """M, over how many devices the rows of a table are split; what nothing trains has
    none."""
    return config.mesh.model if methods.find(config.method).system else 1


def _check_split(config) -> None:
    """Raises InputError for what does not know of tables in parts."""
    parts, graph = config.mesh.model, graph_module(config)
    parallel.make_mesh(parts)
    name, kind = named.last(graph_name(config)), methods.find(config.method).kind
    unable = ""
    if not getattr(named.load(methods.find(config.method).system), "splits_tables", 0):
        unable = f"method={config.method}"
    elif graph is not None and not getattr(graph, "SPLITS_TABLES", False):
        unable = f"graph.encoder={name}"
    elif kind != "graph" and config.loss.local not in losses.OF_SPLIT_TABLES:
        unable = f"loss.local={config.loss.local}"
    elif config.optim.clip:
        unable = f"optim.clip={config.optim.clip}"
    elif graph is not None and graph.PROPAGATES:
        if config.graph.lightgcn.normalise:
            unable = "graph.lightgcn.normalise=True"
        elif config.model.dim % parts:
            expected = f"a divisor of model.dim = {config.model.dim}, with {name}"
            raise bad_setting("mesh.model", parts, expected)
    if unable:
        expected = f"1, as {unable} needs whole tables"
        raise bad_setting("mesh.model", parts, expected)


def check_log(config, log) -> None:
    """Raises InputError where the method needs what the log does not have."""
    encoder = graph_module(config)
    if encoder is None or "ratings" not in encoder.NEEDS:
        return
    name = f"the {named.last(graph_name(config))} encoder"
    if log.ratings is None:
        raise InputError(
            f"{config.data.name}: found no ratings in the log; {name} needs likes and "
            "dislikes: bring a log with ratings (config.data.table.columns.rating) or "
            "choose another --config.graph.encoder="
        )
    low, high = np.nanmin(log.ratings), np.nanmax(log.ratings)
    own = named.section_of(config.graph.to_dict(), graph_name(config))
    liked_from = own.get("liked_from")
    if liked_from is not None and not low < liked_from <= high:
        raise bad_setting(
            f"graph.{named.last(graph_name(config))}.liked_from",
            liked_from,
            f"above {low:g} and at most {high:g}, the ratings of the log",
        )


def aligns_views(config) -> bool:
    """Whether a sequence is aligned with a second one instead of the graph's user."""
    joint = methods.find(config.method).kind == "joint"
    return joint and config.align.partner == "same_target"


def graph_name(config) -> str:
    """The graph encoder of a config; "none" where there is none."""
    return methods.find(config.method).encoders(config)[1]


def graph_module(config) -> ModuleType | None:
    """The module of the graph encoder, or None."""
    name = graph_name(config)
    if name == "none":
        return None
    what = "module like models/lightgcn.py"
    table = {"none": None, **GRAPH_ENCODERS}
    module = named.find("graph.encoder", name, table, what)
    parts = ("PROPAGATES", "NEEDS", "prepare")
    missing = [part for part in parts if not hasattr(module, part)]
    if missing:
        expected = f"a {what} (it has no {missing[0]})"
        raise bad_setting("graph.encoder", name, expected)
    return module


def sequence_module(config) -> ModuleType | None:
    """The module of the sequence encoder, with `Encoder` and `OBJECTIVE`, or None where
    there is none or the system has its own."""
    name = methods.find(config.method).encoders(config)[0]
    if name in ("none", "own"):
        return None
    what = "module with OBJECTIVE and Encoder"
    module = named.find("seq.encoder", name, SEQUENCE_ENCODERS, what)
    reason = ""
    if not hasattr(module, "Encoder"):
        reason = "it has no attribute 'Encoder'"
    if getattr(module, "OBJECTIVE", None) not in ("next", "masked"):
        found = getattr(module, "OBJECTIVE", None)
        reason = f"OBJECTIVE is {found!r}, of next and masked"
    if reason:
        expected = f"one of {', '.join(SEQUENCE_ENCODERS)}, or a {what} ({reason})"
        raise bad_setting("seq.encoder", name, expected)
    return module


def next_item(loss, n_items: int):
    """The next-item loss of the config's `loss`, with its settings."""
    function = named.find("loss.local", loss.local, losses.NEXT_ITEM)
    given = named.arguments(loss.to_dict(), loss.local, function)
    return partial(function, n_items=n_items, **given)


def make_model(config, n_users: int, n_items: int) -> System:
    """The system of `config.method`, with the encoders and losses it needs."""
    method, loss = methods.find(config.method), config.loss
    if loss.local in losses.SAMPLE_FEWER and loss.negatives >= n_items - 1:
        raise bad_setting(
            "loss.negatives",
            loss.negatives,
            f"fewer than the {n_items} items of the log, as {loss.local} samples them",
        )
    sequence, graph = method.encoders(config)
    seq = config.seq.to_dict()
    own = named.section_of(seq, sequence)
    seq = {k: v for k, v in seq.items() if k != "encoder" and not isinstance(v, dict)}
    of_graph = named.section_of(config.graph.to_dict(), graph)
    return named.load(method.system).from_config(
        config,
        sequence_module(config),
        n_users=n_users,
        n_items=n_items,
        dim=config.model.dim,
        encoder=seq | own,
        local=next_item(loss, n_items),
        align=alignment.Alignment.from_config(config.align),
        graph=graph_module(config),
        graph_settings=of_graph | {"reduce": config.graph.reduce},
        item_std=config.model.item_std,
        user_std=config.model.user_std,
        precision=config.model.precision,
        random=config.model.random,
    )


def make_phases(config) -> list[Phase]:
    """Warm-up and joint training as data; an encoder alone has one phase."""
    epochs, method = config.train.epochs, methods.find(config.method)
    if method.kind == "graph":
        return [Phase("graph", epochs, 0.0, 1.0, 0.0)]
    w_align = config.loss.w_bt if config.align.kind != "none" else 0.0
    if graph_name(config) == "none":
        w_align = w_align if aligns_views(config) else 0.0
        return [Phase("joint", epochs, 1.0, 0.0, w_align)]
    joint = Phase("joint", epochs, 1.0, config.loss.w_global, w_align)
    if not method.warms_up or not config.warmup.epochs:
        return [joint]
    return [Phase("warmup", config.warmup.epochs, 0.0, 1.0, 0.0), joint]
