"""From a config to the questions asked: one protocol, stamped on every number."""

from types import ModuleType

from create_jax import methods, named
from create_jax.data import interactions, prepared, sources, splits, stored, table
from create_jax.data import titles as title_files
from create_jax.data.interactions import Interactions
from create_jax.data.splits import Split
from create_jax.data.stored import Stored
from create_jax.errors import InputError, bad_setting


def find_loader(name: str) -> ModuleType:
    """The module that loads a log."""
    what = "module with load(path, *, k_core, drop_repeats, counts)"
    found = named.find("data.loader", name, sources.LOADERS, what)
    if not callable(getattr(found, "load", None)):
        raise bad_setting("data.loader", name, f"a {what}")
    return found


def load(config) -> Interactions | Stored:
    """The log of `config.data`, with the ties that `split.ties` asks for. A prepared
    one stays on its disk where the run reads sequences alone."""
    log, kind = load_as_it_is(config), methods.find(config.method).kind
    if isinstance(log, Stored):
        if stored.stays(config.split.kind, config.split.ties, kind):
            return log
        log = log.in_memory()
    if config.split.ties == "random":
        log = interactions.shuffle_ties(log, config.split.seed)
    return log


def load_as_it_is(config) -> Interactions | Stored:
    """The log by the loader of that name, or of a folder that was prepared."""
    data = config.data
    given = {
        "k_core": data.k_core,
        "drop_repeats": data.drop_repeats,
        "counts": list(data.counts),
    }
    if prepared.is_prepared(data.path):
        return prepared.load(data.path, has_clock=data.table.has_clock, **given)
    return find_loader(data.loader).load(_locate(data), **given, **_form(data))


def stream(config) -> table.Stream:
    """The log in blocks, none of them filtered."""
    data, loader = config.data, find_loader(config.data.loader)
    if not hasattr(loader, "stream"):
        raise InputError(
            f"the loader {data.loader} reads its log at once; prepare it with "
            "--engine=polars"
        )
    return loader.stream(_locate(data), **_form(data))


def _form(data) -> dict:
    """What the loader is told of the form of its files."""
    if data.loader == "table":
        return table_form(data.table)
    return named.section_of(data.to_dict(), data.loader)


def table_form(section) -> dict:
    """The form of a log, as `table.load` takes it. Columns of a file without a header
    are numbers, given as text."""
    form = section.to_dict()
    del form["titles"]
    if not form["columns"]["rating"]:
        del form["columns"]["rating"]
    if not section.header:
        for key, column in form["columns"].items():
            if not column.isdecimal():
                raise InputError(
                    f"config.data.table.columns.{key} is {column!r}; a file without a "
                    "header needs the column's number, from 0"
                )
            form["columns"][key] = int(column)
    return form


def _locate(data) -> str:
    if "." in data.loader:
        return data.path  # its loader knows what to do without one
    if data.loader != "table":
        return sources.locate(data.name, data.path)
    if not data.path:
        raise InputError(
            "config.data.path is empty; say where your log is with "
            "--config.data.path=FILE"
        )
    return data.path


def titles(config) -> dict[str, str]:
    """Names of items by external id: of `data.table.titles`, or of the data set where
    it has them."""
    if config.data.table.titles:
        return title_files.read(config.data.table.titles)
    if prepared.is_prepared(config.data.path):
        return prepared.titles(config.data.path)
    loader = find_loader(config.data.loader)
    return loader.titles(_locate(config.data)) if hasattr(loader, "titles") else {}


def make_split(config, log: Interactions | Stored) -> Split:
    """Train, validation and test parts of `log` under the config's protocol."""
    kind, rules = config.split.kind, config.eval
    ours = stored.SPLITS if isinstance(log, Stored) else splits.SPLITS
    split = named.find("split.kind", kind, ours)
    own = named.arguments(config.split.to_dict(), kind, split)
    given = {
        "validation": splits.validation_of(kind, config.split.validation),
        "seed": config.split.seed,
        "target": rules.target,
        "targets": rules.targets,
        "select_target": rules.select_target,
        "cold_items": rules.cold_items,
        "candidates": rules.candidates,
        "history": rules.history,
        "queries": rules.queries,
        "places": interactions.places_of(log.item_ids),
    }
    return split(log, **own | given)


def stamp(config) -> dict:
    """Every switch that decides what a metric means; part of every result."""
    rules = config.eval.to_dict()
    for other in ("batch", "every", "targets", "metrics"):
        del rules[other]
    data = config.data
    filters = {"k_core": data.k_core, "drop_repeats": data.drop_repeats}
    return as_done({**config.split.to_dict(), **rules, **filters})


# Values of how an epoch is selected that add nothing to `select_by`.
IDLE = {"select_target": "", "select_mean": 1}


def as_done(stamp: dict) -> dict:
    """A stamp that says what was done and nothing that had no effect; of results from
    before too, which carried both."""
    done, kind = dict(stamp), stamp["kind"]
    if "validation" in stamp:
        done["validation"] = splits.validation_of(kind, stamp["validation"])
        if kind == "leave_one_out" and done["validation"] != "none":
            done["validation"] = "last_train_item"  # whatever was asked for
    selects, ours = _selects(done), kind in splits.SPLITS
    without = {
        "q_test": ours and "q_test" not in splits.READS.get(kind, ()),
        "q_val": ours and done.get("validation") != "by_time",
        "queries": not done.get("queries"),
        "select_by": not selects,
    }
    without |= {key: not selects or done.get(key) == idle for key, idle in IDLE.items()}
    return {key: value for key, value in done.items() if not without.get(key)}


def spelled_out(done: dict) -> dict:
    """What `as_done` left out as it changes nothing, beside those where it does."""
    return {"queries": 0, **(IDLE if _selects(done) else {}), **done}


def _selects(done: dict) -> bool:
    return done.get("validation") != "none"


def describe(config, log: Interactions | Stored, split: Split) -> dict:
    """The `dataset`, `protocol` and `data` parts of a result; trains nothing."""
    stays = isinstance(log, Stored)
    name = log.fingerprint if stays else interactions.fingerprint(log)
    facts = split.facts | {"fingerprint": name}
    if log.rows is not None:
        facts["rows"] = {
            "read": log.rows.read,
            "dropped_as_repeats": log.rows.repeats,
            "dropped_by_k_core": log.rows.k_core,
            "kept": log.n_rows,
        }
    if config.data.loader == "table" and config.data.table.has_clock:
        facts["times"] = [
            interactions.as_date(log, t) for t in (log.times.min(), log.times.max())
        ]
    return {"dataset": config.data.name, "protocol": stamp(config), "data": facts}
