"""Prepares a log once, for runs that map it into memory (docs/prepared.md).

python -m create_jax.prepare --config=NAME --out=DIR [--engine=duckdb] [--config.x.y=V]
python -m create_jax.prepare --check=DIR
python -m create_jax.prepare --finish=DIR

A log takes its place whole, or not at all: it is written into DIR.part, which a killed
run leaves behind and the same command begins anew.
"""

import argparse
import ast
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from create_jax import config_file, protocol, settings
from create_jax.data import out_of_core, prepared
from create_jax.data.interactions import Rows
from create_jax.data.prepared import About
from create_jax.errors import InputError, bad_setting, exit_code
from create_jax.files import alone, named

ENGINES = ("polars", "duckdb")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a line that says what is wrong."""
    parser = argparse.ArgumentParser(
        "python -m create_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="NAME or FILE.py, as create_jax.main takes it")
    parser.add_argument("--out", help="the folder to make")
    parser.add_argument("--engine", choices=ENGINES, default="polars")
    parser.add_argument("--memory", default="4GB", help="of duckdb; %(default)s")
    parser.add_argument("--spill", help="of duckdb: a folder on a disk with room")
    parser.add_argument(
        "--check", metavar="DIR", help="say what is wrong with a folder"
    )
    parser.add_argument(
        "--finish", metavar="DIR", help="add raw rows and manifest to an engine's files"
    )
    args, changes = parser.parse_known_args(argv)
    return exit_code(lambda: run(args, changes))


def run(args, changes: Sequence[str]) -> None:
    """What the flags ask for; `changes` are those that argparse does not know."""
    if args.check:
        manifest = prepared.check(Path(args.check))
        print(_line(args.check, manifest, "whole"))
    elif args.finish:
        manifest = prepared.finish(Path(args.finish))
        print(_line(args.finish, manifest, "finished"))
    elif args.config and args.out:
        config = _config(args.config, changes)
        manifest = prepare(config, args.out, args.engine, args.memory, args.spill or "")
        print(_line(args.out, manifest, f"prepared by {manifest['engine']}"))
    else:
        raise InputError(
            "found nothing to do; expected --config=NAME with --out=DIR, or "
            "--check=DIR, or --finish=DIR"
        )


def prepare(
    config, out: str, engine: str = "polars", memory: str = "4GB", spill: str = ""
) -> dict:
    """Prepares the log of a config; returns the manifest.

    Args:
      engine: one of ENGINES.
      memory, spill: of duckdb: what it may hold, as in "8GB", and where the rest goes;
        "" = beside `out`.
    """
    if prepared.is_prepared(config.data.path):
        raise InputError(
            f"{config.data.path}: is prepared already; name the log it was made of"
        )
    with written_beside(Path(out)) as folder:
        if engine == "polars":
            return _by_polars(config, folder)
        return _by_duckdb(config, folder, memory, Path(spill) if spill else folder)


def _by_polars(config, folder: Path) -> dict:
    """In memory, by the loader."""
    log = protocol.load_as_it_is(config)
    rows = log.rows or Rows(log.n_rows, 0, 0)  # of a loader that counts none
    about = _about(config, f"polars {pl.__version__}", rows, log.per_second)
    return prepared.write(folder, log, about, protocol.titles(config))


def _by_duckdb(config, folder: Path, memory: str, spill: Path) -> dict:
    data = config.data
    engine, rows, per_second = out_of_core.write(
        folder,
        protocol.stream(config),
        k_core=data.k_core,
        drop_repeats=data.drop_repeats,
        counts=tuple(data.counts),
        titles=protocol.titles(config),
        memory=memory,
        spill=spill,
    )
    prepared.write_about(folder, _about(config, engine, rows, per_second))
    return prepared.finish(folder)


def _about(config, engine: str, rows, per_second: int) -> About:
    data = config.data
    return About(
        name=data.name,
        engine=engine,
        sources=[data.path or data.name],
        k_core=data.k_core,
        drop_repeats=data.drop_repeats,
        per_second=per_second,
        has_clock=data.table.has_clock,
        rows=rows,
    )


@contextmanager
def written_beside(out: Path):
    """An empty folder, `out`.part, that becomes `out` when all is written."""
    if os.path.lexists(out):
        raise InputError(
            f"{out}: is there already; take it away, or choose another --out"
        )
    part = out.with_name(f"{out.name}.part")
    with named(part):
        part.mkdir(parents=True, exist_ok=True)
    mark = part.with_name(f"{part.name}.lock")
    left = mark.exists()  # by a run that was killed; other content is not ours
    held = (
        f"{part}: another process is at work here; wait until it has ended, or "
        "choose another --out"
    )
    with alone(mark, held):
        there = list(part.iterdir())
        if there and not left:
            raise InputError(
                f"{part}: holds {there[0].name}, and is where {out} is to be written; "
                "take it away, or choose another --out"
            )
        for old in there:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        try:
            yield part
            with named(out):
                os.replace(part, out)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(part, ignore_errors=True)
            raise


def _config(source: str, options: Sequence[str]):
    """The config of a file with --config.x.y=VALUE on top."""
    config = config_file.make(source, config_file.sections(options))
    changes = {}
    for option in options:
        key, _, text = option.removeprefix("--config.").partition("=")
        if not option.startswith("--config.") or "=" not in option:
            raise InputError(
                f"found {option!r}; expected --config.x.y=VALUE, or a flag of "
                "python -m create_jax.prepare --help"
            )
        try:
            value = settings.read(config, key)
            if isinstance(value, bool):
                text = text.title()
            changes[key] = text if isinstance(value, str) else ast.literal_eval(text)
        except (KeyError, TypeError):
            raise InputError(f"found {option!r}; there is no setting {key}") from None
        except (ValueError, SyntaxError):
            words = {int: "a whole number", float: "a number"}
            kind = words.get(type(value), f"a {type(value).__name__}")
            raise bad_setting(key, text, kind) from None
    try:
        config = config_file.make(source, changes)
    except TypeError as error:  # 2.5 where a whole number is needed
        raise InputError(f"found {' '.join(options)}: {error}") from None
    settings.check(config)
    return config


def _line(place: str, manifest: dict, done: str) -> str:
    counts = json.dumps(manifest["counts"])[1:-1].replace('"', "")
    return f"{place}: {done}; {counts}, fingerprint {manifest['fingerprint']}"


if __name__ == "__main__":
    sys.exit(main())
