"""From a finished run to an artifact: `create_jax.main --mode=export --out=FILE`."""

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from create_jax import (
    artifact,
    build,
    experiment,
    methods,
    named,
    parallel,
    protocol,
    steps,
    tables,
)
from create_jax.artifact import Artifact, Texts, Users
from create_jax.data import interactions
from create_jax.data.stored import Stored
from create_jax.errors import InputError, one_line
from create_jax.files import is_remote
from create_jax.models.create import Create
from create_jax.recommender import Recommender, encoder_program
from create_jax.writers import read_json, say

PLATFORMS = ("cpu", "cuda", "tpu")
DRAWS = ("poprnd", "random")  # another list for each query, and no vectors
GOLDEN = 10  # items of the query that an artifact carries with its answer


def export(config, workdir: str, out: str) -> str:
    """Writes the artifact of a finished run; returns its hash.

    Raises:
      InputError: no finished run, a method that cannot serve, or several processes.
    """
    if reason := unservable(config):
        raise InputError(
            f"{config.method} cannot be exported: it {reason}; choose another method"
        )
    if jax.process_count() > 1:
        raise InputError(
            "--mode=export was started on several processes of one cluster; start one, "
            "with --nodistributed"
        )
    return write(*experiment.reopen(config, workdir), out)


def write(opened, fitted, selection, out: str) -> str:
    """Writes the artifact of a run that `experiment.reopen` opened; returns its hash.

    Its parameters are those of the final fit where the run has one, else those that
    were tested.
    """
    run = opened.run
    if is_remote(out):
        raise InputError(f"--out={out}: a file on a disk is needed; copy it from there")
    if Path(out).is_dir():
        raise InputError(
            f"--out={out}: found a directory; name a file, as model.safetensors"
        )
    log, rows = tested_rows(opened)
    stage = run.workdir / "checkpoints" / "final"  # there before its first step is
    final = any(step.name.isdigit() for step in stage.glob("*"))
    if run.config.final.fit == "all" and not final and fitted.progress.epoch:
        raise InputError(
            f"{run.workdir}: this run has no final fit; add it with --mode=train "
            "--config.final.fit=all, or export what was tested without that setting"
        )
    if run.config.final.fit == "all" or final:
        fitted = experiment.fit_all_rows(opened, selection, trains=False)
        log, rows = opened.log, "all"
    if isinstance(log, Stored):
        log = log.in_memory()
    made = make(opened, fitted, log)
    result = read_json(run.workdir / "result.json")
    made = replace(made, manifest=manifest(opened, made, result, log, rows))
    made = with_golden_query(opened, made)
    digest = artifact.write(out, made)
    size, trained = Path(out).stat().st_size / 1e6, np.count_nonzero(made.counts)
    say(
        f"{out}: {run.config.method}, {trained:,} of {len(made.ids) - 1:,} items "
        f"trained, rows {rows}; {size:,.1f} MB, {digest[:12]}"
    )
    return digest


def unservable(config) -> str:
    """What a method does that keeps it from serving; "" = nothing."""
    method = methods.find(config.method)
    if config.method in DRAWS:
        return "draws another list for each query and learns no vectors"
    if method.kind == "free" or named.load(method.system) is Create:
        return ""
    return (
        "makes a query in a way of its own, as of a user's row and its history "
        "together, and an artifact holds an encoder or users"
    )


def tested_rows(opened) -> tuple[interactions.Interactions | Stored, str]:
    """The rows that the tested parameters learnt from, and which these are."""
    split = opened.split
    selects = split.valid is not None and opened.run.config.retrain.epochs == "none"
    free = methods.find(opened.run.config.method).kind == "free"
    if selects and not free:
        return split.train, "up to the validation, as tested"
    return split.refit, "up to the cut, as tested"


# --- arrays ---------------------------------------------------------------------------


def make(opened, fitted, log) -> Artifact:
    """The artifact of a fitted method, its manifest but begun.

    Args:
      log: the rows that it learnt from.
    """
    config = opened.run.config
    names = protocol.titles(config)
    ids = ["", *log.item_ids.to_list()]
    counts = np.bincount(log.items, minlength=len(ids)).astype(np.int64)
    common = {
        "ids": Texts.of(ids),
        "counts": counts,
        "titles": titles_of(ids, names),
    }
    if config.method == "mostpop":
        items = counts[:, None].astype(np.float32)
        return Artifact({"query": "constant"}, items, **common)
    if config.method == "svd":
        items = np.asarray(fitted.params["items"])
        return Artifact({"query": "sum"}, items, **common)
    model = build.make_model(config, log.n_users, log.n_items)
    source, items = query_tables(opened, model, fitted)
    if not np.isfinite(items).all():
        raise InputError("the item vectors are not finite; train with a lower optim.lr")
    if model.encoder is None:
        users = known_users(log, source)
        return Artifact({"query": "user"}, items, **common, users=users)
    params = jax.device_get(fitted.params)
    parameters = {key: params[key] for key in ("sequence", "token") if key in params}
    about = {"query": "encoder", "encoder": encoder_of(config, model)}
    made = Artifact(about, items, **common, parameters=parameters)
    if not np.array_equal(source, items):
        made = replace(made, inputs=source)
    return replace(made, program=program(made))


def titles_of(ids: Sequence[str], names: Mapping[str, str]) -> Texts | None:
    """Titles of items, "" for none; None where nothing has one, which is said of a file
    of other ids."""
    if not any(name in names for name in ids):
        if names:
            some = one_line(next(iter(names)), 40)
            say(
                f"note: the artifact has no titles: none of {len(names):,} ids with "
                f"one, {some!r} among them, is that of an item of the log"
            )
        return None
    return Texts.of(names.get(name, "") for name in ids)


def query_tables(opened, model, fitted) -> tuple[np.ndarray, np.ndarray]:
    """What queries are made of, and the items they are scored with, as in ranking."""
    graph, mesh = fitted.graph(), opened.run.mesh
    axes = parallel.batch_axes(mesh)

    def run(params, graph):
        with jax.default_matmul_precision("highest"):
            by_graph = model.encoder is None
            return model.query_tables(params, graph, by_graph=by_graph, axis_name=axes)

    specs = steps.group_specs(fitted.params, axes), steps.graph_specs(graph, axes)
    rows = P(parallel.MODEL) if tables.is_split(axes) else P()
    step = parallel.compile_step(run, mesh, specs, rows)
    source, items = jax.device_get(step(fitted.params, graph))
    if model.encoder is not None:
        source = source[: model.n_rows]  # without what fills up the parts of a table
    return source, items[: model.n_rows]


def known_users(log, vectors: np.ndarray) -> Users:
    """Those with a training row; others have vectors that nothing trained."""
    sizes = np.bincount(log.users, minlength=log.n_users)
    known = np.flatnonzero(sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes[known])])
    names = log.user_ids.gather(known).to_list()
    return Users(Texts.of(names), vectors[known], offsets, log.items)


def encoder_of(config, model) -> dict:
    """An encoder as its module and the fields it was made with."""
    own = {
        one.name: getattr(model.encoder, one.name)
        for one in fields(model.encoder)
        if one.init and one.name not in ("parent", "name")
    }
    module = build.sequence_module(config).__name__
    return {"module": module, "settings": own, "max_len": config.seq.max_len}


def program(made: Artifact) -> bytes | None:
    """The encoder as JAX exports it, for any number of queries and items; None where
    that cannot be, which is said."""
    try:
        import flatbuffers  # noqa: F401
        from jax import export
    except ImportError:
        say(
            "note: the artifact has no exported program, for which the extra `export` "
            "is needed; our own encoders run without one"
        )
        return None
    about = made.manifest["encoder"]
    queries, rows = export.symbolic_shape("b, v")
    shape = jax.ShapeDtypeStruct
    arguments = (
        jax.tree.map(lambda x: shape(x.shape, x.dtype), made.parameters),
        shape((rows, made.items.shape[1]), jnp.float32),
        shape((queries, about["max_len"]), jnp.int32),
        shape((queries,), jnp.int32),
    )
    try:
        run = jax.jit(encoder_program(about))
        with _without_places():
            made = export.export(run, platforms=PLATFORMS)(*arguments)
        return bytes(made.serialize())
    except Exception as error:  # somebody's encoder may need a known batch
        say(
            f"note: the artifact has no exported program ({one_line(error, 200)}); its "
            "encoder runs from its module"
        )
        return None


@contextmanager
def _without_places():
    """Programs do not say from which lines of Python they come: the same encoder gives
    the same bytes, wherever it was exported."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


# --- the manifest ---------------------------------------------------------------------


def manifest(opened, made: Artifact, result: dict, log, rows: str) -> dict:
    """What the artifact is, in plain data (docs/recommend.md#the-manifest)."""
    config = opened.run.config
    settings = json.loads(json.dumps(config.to_dict()))
    # Places on the machine of the training.
    settings["data"]["path"] = settings["data"]["table"]["titles"] = ""
    last = log.times.max()
    clock = config.data.table.has_clock
    return made.manifest | {
        "method": config.method,
        "needs": "known user" if made.manifest["query"] == "user" else "history",
        "dataset": result["dataset"],
        "seed": config.seed,
        "protocol": result["protocol"],
        "metrics": result["test_by_target"],
        "data": {
            "fingerprint": result["data"]["fingerprint"],
            "parent": None,
            "rows": rows,
            "interactions": len(log.users),
            "items": log.n_items,
            "trained_items": int(np.count_nonzero(made.counts)),
            "last_seen": interactions.as_date(log, last) if clock else int(last),
        },
        "config": settings,
        "versions": opened.facts["versions"],
        "git": opened.facts["git"],
    }


def with_golden_query(opened, made: Artifact) -> Artifact:
    """The artifact with a query and its answer, by which whoever loads it can tell that
    it answers there as here."""
    recommender = Recommender(made, trust=True)
    if made.users is not None:
        items, scores = recommender.recommend_users([0], GOLDEN)
        golden = {"user": made.users.ids[0]}
    else:
        holdout = next(iter(opened.split.test.values()))
        longest = np.argmax(holdout.end - holdout.begin)
        history = holdout.log[holdout.begin[longest] : holdout.end[longest]]
        history = recommender.known(history[-GOLDEN:])
        items, scores = recommender.recommend([history], GOLDEN)
        golden = {"history": history.tolist()}
    left = items[0] > 0
    golden |= {"items": items[0][left].tolist(), "scores": scores[0][left].tolist()}
    return replace(made, manifest=made.manifest | {"golden": golden})
