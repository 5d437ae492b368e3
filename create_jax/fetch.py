"""Downloads a data set: `python -m create_jax.fetch NAME [--data=DIR] [--url=URL]`.

A download that breaks off is resumed, in the same run or in the next. That needs a
server or a checksum which confirms that the file is still the same. The file gets its
name when it is complete. Its SHA-256 is written to FILE.sha256, for `sha256sum -c`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from create_jax.data.sources import SOURCES, data_directory, source
from create_jax.errors import InputError, exit_code
from create_jax.files import alone, digest_of, write_text

ATTEMPTS = 5
CHUNK = 1 << 16


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one line with the error."""
    parser = argparse.ArgumentParser("python -m create_jax.fetch", description=__doc__)
    parser.add_argument("name", help=", ".join(SOURCES))
    parser.add_argument(
        "--data",
        default=data_directory(),
        help="the data directory; CREATE_JAX_DATA names another than %(default)s",
    )
    parser.add_argument("--url", help="a mirror instead of the official address")
    args = parser.parse_args(argv)
    return exit_code(lambda: print(fetch(args.name, args.data, args.url)))


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
    """Downloads to `path`.part, then renames to `path`; writes `path`.sha256.

    Args:
      checksum: (algorithm, hexadecimal digest), compared before the file gets its name.
      pause: seconds before the second attempt; doubles with each.
    """
    part, mark = f"{path}.part", Path(f"{path}.lock")
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        # Each of two would append to what the other one has.
        held = f"{path}: another process is fetching it; wait until it has ended"
        with alone(mark, held):
            _attempt_often(url, part, pause, whole_is_checked=checksum is not None)
            _check(part, checksum)
            _record_hash(part, path)
            os.replace(part, path)
            _forget(part)
    except OSError as error:
        raise InputError(f"{path}: {error}; expected to write there") from error


def _attempt_often(
    url: str, part: str, pause: float, *, whole_is_checked: bool
) -> None:
    trouble = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _append(url, part, whole_is_checked)
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


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https to http."""

    def redirect_request(self, request, file, code, message, headers, url):
        old, new = urlsplit(request.full_url).scheme, urlsplit(url).scheme
        if new != "https" and (new != "http" or old == "https"):
            raise InputError(
                f"{request.full_url}: the server redirects to {url}; expected "
                f"{'https' if old == 'https' else 'http or https'}: check the address, "
                "or name a mirror with --url"
            )
        return super().redirect_request(request, file, code, message, headers, url)


_open = build_opener(_Redirects).open


def _append(url: str, part: str, whole_is_checked: bool) -> None:
    """Requests once what `part` lacks; raises if it is then still incomplete."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("no web address")
    version = _version(part, url)
    if not version and not whole_is_checked:  # it may be of another file
        _remove(part)
    done = os.path.getsize(part) if os.path.exists(part) else 0
    headers = {"User-Agent": "create_jax"}
    if done:
        headers["Range"] = f"bytes={done}-"
        headers |= {"If-Range": version} if version else {}
    try:
        response = _open(Request(url, headers=headers), timeout=60)
    except HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return  # nothing was left to request
        _remove(part)
        raise ConnectionError(f"{done:,} bytes are more than there are") from error
    with response:
        # The whole file: it has changed, or the server does not send ranges.
        if response.status != 206:
            done = 0
            _remove(part)
            _remember(part, url, response.headers)
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise ConnectionError("the server sent another range than asked for")
        elif version and not _is_same(version, response.headers):
            _remove(part)
            raise ConnectionError("the server has another file than at the beginning")
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


def _version_of(headers) -> str:
    """The header that identifies this version of a file; "" if there is none."""
    tag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if tag[:2] in ("", "W/") else tag


def _is_same(version: str, headers) -> bool:
    """Whether a response is of that version. It must repeat a tag, but not a date."""
    found = _version_of(headers)
    return found == version or not (found or version.startswith('"'))


def _remember(part: str, url: str, headers) -> None:
    with open(f"{part}.json", "w") as file:
        json.dump({"url": url, "version": _version_of(headers)}, file)


def _version(part: str, url: str) -> str:
    """The version to which `part` belongs; "" if it is not known."""
    try:
        with open(f"{part}.json") as file:
            began = json.load(file)
        return began["version"] if began["url"] == url else ""
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return ""


def _forget(part: str) -> None:
    Path(f"{part}.json").unlink(missing_ok=True)


def _remove(part: str) -> None:
    Path(part).unlink(missing_ok=True)
    _forget(part)


def _record_hash(part: str, path: str) -> None:
    line = f"{digest_of(Path(part))}  {os.path.basename(path)}\n"
    write_text(Path(f"{path}.sha256"), line)


def _check(part: str, checksum: tuple[str, str] | None) -> None:
    if not checksum:
        return
    algorithm, expected = checksum
    found = digest_of(Path(part), algorithm)
    if found != expected:
        _remove(part)
        raise InputError(
            f"{part}: found {algorithm} {found}; expected {expected}: "
            "deleted the damaged download, run again"
        )


if __name__ == "__main__":
    sys.exit(main())
