"""python -m create_jax.recommend FILE: asks an artifact of --mode=export.

A history, a known user, or what is similar to an item, on the terminal; or all users of
a log, into Parquet files. FILE is all that is needed: no config and no checkpoint.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
from ml_collections import ConfigDict

from create_jax import bulk, protocol
from create_jax.artifact import Artifact, read
from create_jax.data import prepared, sources, table, times
from create_jax.data.text import is_encoding
from create_jax.errors import InputError, exit_code
from create_jax.recommender import Recommender, check_k

SHOWN = 3  # history items that explain an item
COLUMNS = {"user_column": "user", "item_column": "item", "time_column": "time"}
FORM = ("format", "separator", "encoding", "time_unit")  # of --log, texts
ONE_OF = {"format": get_args(table.Format), "time_unit": get_args(times.Unit)}
SWITCHES = ("header", "quoting", "has_clock")  # of --log
FORMS = (*COLUMNS, *FORM, *SWITCHES)
READ = ("loader", *FORMS)
# The questions with which a flag has an effect.
HISTORIES = "--history", "--user and --log"
GOES_WITH = {
    "explain": HISTORIES,
    "part": ("--log",),
    **dict.fromkeys(READ, ("--log", "--user and --log")),
    **dict.fromkeys(
        ("exclude", "allow", "hide_history", "vectors"),
        (*HISTORIES, "--user", "--log"),
    ),
}
OF_LISTS = ("k", "exclude", "allow", "hide_history", "explain")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a line that says what is wrong."""
    args = _parser().parse_args(argv)
    try:
        return exit_code(lambda: _told(args))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m create_jax.recommend", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("file", help="an artifact of --mode=export")
    add(
        "--history",
        action="append",
        metavar="ITEMS",
        help="ids or titles, oldest first; several with commas between, or the flag "
        "again for each, as a title that has a comma needs",
    )
    add("--user", help="a user that the model was trained with; or one of --log")
    add("--log", metavar="FILE", help="a log: lists for each of its users, into --out")
    add("--out", metavar="DIR", help="of --log: where Parquet parts are written")
    add("--part", metavar="I/N", help="of --log: the I-th of N processes, from 0")
    add("--similar", metavar="ITEM", help="what is similar to an item (id or title)")
    add("--k", type=int, help="items of a list: 1 to 1000; 10, and 100 of a log")
    add("--exclude", metavar="FILE", help="ids that shall not come, one a line")
    add("--allow", metavar="FILE", help="the only ids that may come, one a line")
    add("--vectors", action="store_true", help="the query's vector, not its list")
    add("--explain", action="store_true", help="how each item stands without others")
    add(
        "--hide_history",
        type=_boolean,
        metavar="true|false",
        help="whether seen items do not come; as the model was measured unless given",
    )
    add("--trust", action="store_true", help="run the program that FILE carries")
    for flag, key in COLUMNS.items():
        add(f"--{flag}", metavar="NAME", help=f"of --log: the {key}s")
    loaders = list(sources.LOADERS)
    add("--loader", choices=loaders, help="of --log: as in training unless given")
    for name in FORM:
        help_ = f"of --log: config.data.table.{name}, as in training"
        kind = _encoding if name == "encoding" else str
        add(f"--{name}", help=help_, choices=ONE_OF.get(name), type=kind)
    for name in SWITCHES:
        add(f"--{name}", type=_boolean, metavar="true|false", help="likewise")
    return parser


def _told(args) -> None:
    """`run`; a reader may leave early, as `head` does."""
    try:
        run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _encoding(text: str) -> str:
    if not is_encoding(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no encoding that Python knows")
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def run(args) -> None:
    """One question to an artifact, or a log of them."""
    asked = {"--history": args.history, "--user": args.user, "--similar": args.similar}
    asked |= {"--log": args.log}
    asked = [name for name, value in asked.items() if value is not None]
    if len(asked) != 1 and asked != ["--user", "--log"]:
        raise InputError(
            f"found {' and '.join(asked) or 'no question'}; expected one of --history, "
            "--user, --similar and --log; see --help"
        )
    if (args.out is None) != (asked != ["--log"]):
        raise InputError(
            f"--out goes with --log alone, found {' and '.join(asked)} and --out="
            f"{args.out or ''}; as in --log=log.parquet --out=recs"
        )
    if args.out == "":
        raise InputError("--out is empty; name a directory, as in --out=recs")
    question, k = " and ".join(asked), k_of(args)
    refuse_idle(args, question)
    check_k(k)
    artifact = read(args.file)
    recommender = Recommender(artifact, trust=args.trust)
    if args.log is not None:
        refuse_idle_of_log(args, recommender)
    if question == "--log":
        return write_lists(args, recommender)
    if question == "--similar":
        return show(artifact, *recommender.similar(recommender.code(args.similar), k))
    rules = rules_of(args, recommender)
    if question == "--user":  # refused where the model knows none
        user = recommender.user(args.user)
        if args.vectors:
            return print(json.dumps(artifact.users.vectors[user].tolist()))
        items, scores = recommender.recommend_users([user], k, **rules)
        return show(artifact, items[0], scores[0])
    if question == "--history":
        history = codes_of(args.history, recommender)
    else:
        history = history_in(args, recommender)
    if args.vectors:
        return print(json.dumps(recommender.vectors([history])[0].tolist()))
    items, scores = recommender.recommend([history], k, **rules)
    if recommender.falls_back(history):
        print("note: no known history: the most popular items", file=sys.stderr)
    why = []
    if args.explain:
        why = recommender.explain_all(history, items[0][items[0] > 0], **rules)
    show(artifact, items[0], scores[0], why)


def given(args, names: Sequence[str]) -> list[str]:
    """Those of the flags that the command line has."""
    default = _parser().get_default
    return [name for name in names if getattr(args, name) != default(name)]


def refuse_idle(args, question: str) -> None:
    """Raises InputError for a flag without effect on a question."""
    for name in given(args, GOES_WITH):
        if question not in GOES_WITH[name]:
            raise InputError(
                f"--{name} has no effect with {question}; it goes with "
                f"{' or with '.join(GOES_WITH[name])}: leave it out, or ask so"
            )
    for name in given(args, OF_LISTS) if args.vectors else ():
        raise InputError(
            f"--{name} has no effect with --vectors; it goes with a list: leave out "
            "one of the two"
        )


def refuse_idle_of_log(args, recommender: Recommender) -> None:
    """Raises InputError for a log, or flags of its form, that the model's kind or the
    loader would not read, and for one that was prepared."""
    if args.user is not None and recommender.artifact.users is not None:
        raise InputError(
            f"--log has no effect with --user of {recommender.manifest['method']}, "
            "which knows its users by training and reads no history: leave out --log, "
            "or --user, for lists of all users of the log into --out"
        )
    for folder in (Path(args.log), Path(args.log).absolute().parent):
        if prepared.is_prepared(str(folder)):
            raise InputError(
                f"--log={args.log}: found a log that was prepared, {folder}, whose "
                "rows hold codes and no ids; name the log that it was made of"
            )
    loader, form = loader_of(args, recommender), given(args, FORMS)
    if loader != "table" and form:
        raise InputError(
            f"--{form[0]} has no effect with --loader={loader}"
            f"{'' if args.loader else ' (as in training)'}; it goes with "
            "--loader=table: leave it out, or name that loader"
        )


def k_of(args) -> int:
    if args.k is not None:
        return args.k
    return 100 if args.log and not args.user else 10


# --- a whole log ----------------------------------------------------------------------


def write_lists(args, recommender: Recommender) -> None:
    """Lists, or vectors, of every user of a log, into Parquet parts."""
    mine = _share(args.part or "0/1")
    rules, source, out = rules_of(args, recommender), Path(args.log), Path(args.out)
    recommender.allowed(rules["exclude"], rules["allow"])
    exclude, allow = (_named(rules[key]) for key in ("exclude", "allow"))
    job = bulk.Job(
        model=recommender.artifact.hash,
        log=bulk.fingerprint(source),
        form=" ".join(f"--{name}={getattr(args, name)}" for name in given(args, READ)),
        k=k_of(args),
        exclude=exclude,
        allow=allow,
        hide_history=rules["hide_history"],
        drop_repeats=drops_repeats(recommender),
        vectors=args.vectors,
        parts=bulk.parts_for(source, out, mine[1]),
    )
    lists = {key: rules[key] for key in ("exclude", "allow")}
    blocks = blocks_of(args, recommender)
    complete = bulk.run(recommender, blocks, job, out, mine=mine, **lists)
    if not complete:
        print(f"{out}: the parts of this process; manifest.json comes with the last")
        return
    about = json.loads((out / "manifest.json").read_text())
    print(f"{out}: {about['users']:,} users in {about['parts']} parts, k {job.k}")
    if about["users_without_known_items"]:
        knows = recommender.artifact.users is not None
        print(
            f"note: {about['users_without_known_items']:,} of them "
            f"{'are none of the model' if knows else 'have no item that it knows'}: "
            f"{'no vectors' if job.vectors else 'the most popular items'}",
            file=sys.stderr,
        )


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise InputError(
            f"--part is {text!r}; expected I/N with I from 0 to N - 1, as in 0/4"
        )
    return int(number), int(of)


def _named(codes) -> str:
    """A list of codes by a hash, "" where there is none."""
    if codes is None or (isinstance(codes, tuple) and not codes):
        return ""
    return hashlib.sha256(np.sort(np.array(codes, np.int64))).hexdigest()[:16]


def drops_repeats(recommender: Recommender) -> bool:
    """Whether of the same item twice in a row one counts, as in training."""
    return recommender.manifest["config"]["data"]["drop_repeats"]


def loader_of(args, recommender: Recommender) -> str:
    """What reads --log: the training's, or the table's where that is the user's own."""
    own = recommender.manifest["config"]["data"]["loader"]
    return args.loader or (own if own in sources.LOADERS else "table")


def blocks_of(args, recommender: Recommender):
    """The rows of --log, read as in training but for what the flags say."""
    loader = loader_of(args, recommender)
    if loader != "table":
        yield from protocol.find_loader(loader).stream(args.log).blocks
        return
    form = ConfigDict(recommender.manifest["config"]["data"]["table"])
    form.columns.rating = ""
    for flag, key in COLUMNS.items():
        form.columns[key] = getattr(args, flag) or form.columns[key]
    for key in (*FORM, *SWITCHES):
        if getattr(args, key) is not None:
            form[key] = getattr(args, key)
    try:
        yield from table.stream(args.log, **protocol.table_form(form)).blocks
    except InputError as error:  # in the words of this command
        text = re.sub(
            r"config\.data\.table\.columns\.(\w+)", r"--\1_column", str(error)
        )
        raise InputError(text.replace("--config.data.table.", "--")) from None


def history_in(args, recommender: Recommender) -> np.ndarray:
    """The codes of one user's rows in --log, oldest first, as lists for all have them;
    negative where the model does not know the item."""
    own, codes = pl.col("user") == args.user, bulk.codes_of(recommender)
    blocks = (block.filter(own) for block in blocks_of(args, recommender))
    rows = [bulk.coded(block, codes) for block in blocks if len(block)]
    if not rows:
        raise InputError(f"{args.log}: found no row of user {args.user!r}")
    return bulk.in_order(pl.concat(rows), drops_repeats(recommender)).codes


# --- one question ---------------------------------------------------------------------


def rules_of(args, recommender: Recommender) -> dict:
    """Of `Recommender.recommend`: what may come and what may not."""
    hide = args.hide_history
    if hide is None:
        hide = recommender.manifest["protocol"]["filter_seen"]
    return {
        "exclude": () if args.exclude is None else _list(args.exclude, recommender),
        "allow": None if args.allow is None else _list(args.allow, recommender),
        "hide_history": hide,
    }


def _list(path: str, recommender: Recommender) -> list[int]:
    """The codes of a file of ids; unknown ones are counted and left out."""
    try:
        lines = Path(path).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path or 'a file without a name'}: "
            f"{getattr(error, 'strerror', None) or error}; expected a text of one id a "
            "line"
        ) from None
    wanted, ids = [line for line in lines if line.strip()], recommender.artifact.ids
    codes = [ids.code_of(line) or ids.code_of(line.strip()) for line in wanted]
    unknown = [line for line, code in zip(wanted, codes, strict=True) if code is None]
    if unknown:
        print(
            f"note: {path}: {len(unknown):,} of {len(wanted):,} ids are not the "
            f"model's, {unknown[0]!r} for one",
            file=sys.stderr,
        )
    return [code for code in codes if code is not None]


def codes_of(texts: list[str], recommender: Recommender) -> list[int]:
    """Items of a history: each text is one id or title, or several with commas.

    Raises:
      InputError: an item is unknown or a title is that of several.
    """
    codes = []
    for text in texts:
        if not text.strip():
            continue
        try:
            codes.append(recommender.code(text))
        except InputError as whole:
            parts = [part.strip() for part in text.split(",") if part.strip()]
            if len(parts) < 2:
                raise
            try:
                codes += [recommender.code(part) for part in parts]
            except InputError as error:
                known = any(recommender.artifact.ids.code_of(part) for part in parts)
                raise (error if known else whole) from None
    return codes


def show(artifact: Artifact, items, scores, why=()) -> None:
    """A list, best first: in columns on a terminal, with tabs between elsewhere.

    Args:
      why: an Explanation of each item, of which the strongest parts are shown.
    """
    left = items > 0
    titles = artifact.titles is not None
    rows = [
        (f"{rank}", f"{score:.4f}", printable(artifact.ids[item]))
        + ((printable(artifact.titles[item]),) if titles else ())
        for rank, (item, score) in enumerate(
            zip(items[left], scores[left], strict=True), start=1
        )
    ]
    rows.insert(0, ("rank", "score", "id") + (("title",) if titles else ()))
    lines = _columns(rows) if sys.stdout.isatty() else map("\t".join, rows)
    for number, line in enumerate(lines, start=-1):
        print(line)
        if 0 <= number < len(why):
            for text in _because(artifact, why[number]):
                print(text)


def printable(text: str) -> str:
    """A text in one cell of a table: of tabs, line ends and the like their escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _columns(rows: list[tuple]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (True, True, False, False)
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=False)
        ).rstrip()
        for row in rows
    ]


def _because(artifact: Artifact, one) -> list[str]:
    """Lines that say what an item loses without the strongest of the history."""
    falls = one.score - one.scores
    strongest = {}  # place of each item
    for place in np.argsort(-falls):
        if falls[place] > 0:
            strongest.setdefault(int(one.history[place]), place)
    if len(one.history) == 1 and not one.ranks[0]:
        return [f"      by {printable(artifact.name(one.history[0]))} alone"]
    return [
        f"      without {printable(artifact.name(one.history[place]))}: score "
        f"{-falls[place]:+.4f}, rank {one.rank} -> {one.ranks[place]}"
        for place in list(strongest.values())[:SHOWN]
    ] or ["      no item of the history raises it"]


if __name__ == "__main__":
    sys.exit(main())
