"""Files that take their place whole, or not at all, and locks beside them."""

import csv
import errno
import hashlib
import io
import os
import secrets
import sys
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path

from create_jax.errors import InputError


def is_remote(path) -> bool:
    """Whether a path is an object store's: `gs://`."""
    return "://" in str(path)


@contextmanager
def whole(path: Path):
    """A binary file that takes its place at `path` when all is written, or goes."""
    if is_remote(path):  # an object is there when it is whole, and not before
        with io.BytesIO() as file:
            yield file
            path.write_bytes(file.getvalue())
        return
    # Processes of two containers that share a disk may have one number.
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    part = path.with_name(f"{path.name}.{own}.part")
    try:
        with named(path, part):
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def named(path: Path, part: Path | None = None):
    """Errors of writing that say where: Python names no file when a disk is full, and
    else the part of it that is written first."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(part):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    with whole(path) as file:
        file.write(text.encode())


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def csv_text(rows: Iterable) -> str:
    """Rows as CSV, floats to six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in row)
    return text.getvalue()


def lock(path: Path, timeout: float = 0.0):
    """A lock to enter with `with`, or None where another process holds it for longer
    than `timeout` seconds. It falls with the process. Object stores have none."""
    import filelock  # who only reads files need not have it

    if is_remote(path):
        _warn(f"{path.parent} has no locks; let one run at a time work in it")
        return nullcontext()
    try:
        return filelock.FileLock(path).acquire(timeout=timeout)
    except filelock.Timeout:
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _warn(f"{path}: this file system has no locks")
        return nullcontext()


@contextmanager
def alone(mark: Path, otherwise: str, timeout: float = 0.0):
    """Holds a lock that is there only while somebody works.

    Raises:
      InputError: `otherwise`, where another process holds it.
    """
    held = lock(mark, timeout)
    if held is None:
        raise InputError(otherwise)
    with held:
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def is_held(mark: Path) -> bool:
    """Whether a process holds a lock; one that nobody holds goes."""
    try:
        with alone(mark, ""):
            return False
    except InputError:
        return True


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
