"""Downloads a data set: `python -m create_jax.fetch NAME [--data=DIR] [--url=URL]`.

A download that breaks off is resumed, in the same run and in the next. The file gets
its name only when it is complete.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from create_jax.data.sources import SOURCES, data_directory, source
from create_jax.errors import InputError

ATTEMPTS = 5
CHUNK = 1 << 16


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a line that says what is wrong."""
    parser = argparse.ArgumentParser("python -m create_jax.fetch", description=__doc__)
    parser.add_argument("name", help=", ".join(SOURCES))
    parser.add_argument("--data", default=data_directory(), help="%(default)s")
    parser.add_argument("--url", help="a mirror instead of the official address")
    args = parser.parse_args(argv)
    try:
        print(fetch(args.name, args.data, args.url))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def fetch(name: str, data: str, url: str | None = None) -> str:
    """Brings a data set into the directory `data`; returns what was done."""
    known = source(name)
    if not known.path:
        return f"{name}: comes with the package, nothing to fetch"
    path = os.path.join(data, known.path)
    if os.path.exists(path):
        return f"{path}: already there"
    download(url or known.url, path, known.checksum)
    return f"{path}: {os.path.getsize(path):,} bytes; terms: {known.terms}"


def download(
    url: str, path: str, checksum: tuple[str, str] | None = None, pause: float = 1.0
) -> None:
    """Downloads to `path`, by way of `path`.part.

    Args:
      checksum: (algorithm, hexadecimal digest), compared before the file gets its name.
      pause: seconds before the second attempt; doubles with each.
    """
    part = f"{path}.part"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        _attempt_often(url, part, pause)
        _check(part, checksum)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: {error}; expected to write there") from error


def _attempt_often(url: str, part: str, pause: float) -> None:
    trouble = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _append(url, part)
        except ValueError as error:
            raise InputError(f"{url}: {error}; expected http(s)://...") from error
        except HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise InputError(
                    f"{url}: the server says {error.code} {error.reason}; expected the "
                    "file: check the address, or name a mirror with --url"
                ) from error
            trouble = error
        except (OSError, HTTPException) as error:
            trouble = error
    size = os.path.getsize(part) if os.path.exists(part) else 0
    raise InputError(
        f"{url}: broke off {ATTEMPTS} times ({trouble}); {part} holds {size:,} bytes: "
        "run again to resume, or name a mirror with --url"
    )


def _append(url: str, part: str) -> None:
    """Asks once for what `part` lacks; raises if it is not complete then."""
    done = os.path.getsize(part) if os.path.exists(part) else 0
    headers = {"User-Agent": "create_jax"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        response = urlopen(Request(url, headers=headers), timeout=60)
    except HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return  # there was nothing left to ask for
        os.remove(part)
        raise ConnectionError(f"{done:,} bytes are more than there are") from error
    with response:
        if response.status != 206:  # the server sends all of it, whatever we asked
            done = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise ConnectionError("the server sent another range than asked for")
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with (
            open(part, "ab" if done else "wb") as file,
            tqdm(total=total, initial=done, unit="B", unit_scale=True) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = os.path.getsize(part)
    if total is not None and size != total:
        raise ConnectionError(f"{size:,} of {total:,} bytes")


def _check(part: str, checksum: tuple[str, str] | None) -> None:
    if not checksum:
        return
    algorithm, expected = checksum
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        os.remove(part)
        raise InputError(
            f"{part}: found {algorithm} {found}; expected {expected}: "
            "deleted the damaged download, run again"
        )


if __name__ == "__main__":
    sys.exit(main())
