"""A trained model in one file: item vectors, encoder, ids, titles, counts, a manifest.

The file is safetensors (docs/recommend.md#the-file), so it holds arrays and text and no
code, but for the exported program, which nothing runs unasked. It is read by mapping it
into memory, so that several processes share one copy. This module knows no JAX.
"""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from create_jax.errors import InputError, one_line
from create_jax.files import whole

FORMAT = 1  # of the file; one that is newer is refused
DTYPES = {
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}


@dataclass(frozen=True, eq=False)
class Texts(Sequence):
    """Texts as their UTF-8 bytes, one after the other.

    data: [N] uint8. offsets: [V + 1] int64, where text i begins, and in
    i + 1 ends. order: [V] int32, the texts by their bytes.
    """

    data: np.ndarray
    offsets: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        offsets[1:] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        order = sorted(range(len(encoded)), key=encoded.__getitem__)
        data = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(data, offsets, np.array(order, np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self._bytes(range(len(self))[index]).decode(errors="replace")

    @cached_property
    def _views(self) -> tuple[memoryview, memoryview, memoryview]:
        """Of the arrays: an element or a slice costs a tenth of NumPy's."""
        return memoryview(self.data), memoryview(self.offsets), memoryview(self.order)

    def _bytes(self, index: int) -> bytes:
        data, offsets, _ = self._views
        return bytes(data[offsets[index] : offsets[index + 1]])

    def codes_of(self, text: str) -> list[int]:
        """All places of a text, in order; none of an empty one."""
        wanted, order = text.encode(errors="replace"), self._views[2]
        place, found = bisect_left(order, wanted, key=self._bytes), []
        while wanted and place < len(self) and self._bytes(order[place]) == wanted:
            found.append(order[place])
            place += 1
        return sorted(found)

    def code_of(self, text: str) -> int | None:
        """The first place of a text, or None."""
        return next(iter(self.codes_of(text)), None)


@dataclass(frozen=True, eq=False)
class Users:
    """The users of a method that needs to know them.

    ids: [U] texts. vectors: [U, D] float32. The items they were trained with are
    `seen[offsets[u]:offsets[u + 1]]`, oldest first.
    """

    ids: Texts
    vectors: np.ndarray
    offsets: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True, eq=False)
class Artifact:
    """What recommending needs. Row 0 of what has V rows is padding, rows 1..V-1 are the
    items; a code never changes its item, and new items come after the last.

    manifest: docs/recommend.md#the-manifest. items: [V, D] float32, what queries are
    scored with. ids: [V] texts. counts: [V] int64, training rows; an item without one
    is never recommended. titles: [V] texts, "" where there is none; None: nobody has
    one. inputs: [V, D], what the encoder reads where that is not `items`. parameters:
    of the encoder, nested by name. users: of methods that need a known user. program:
    the encoder as exported by JAX. hash: 64 hexadecimal digits over all of this.
    """

    manifest: dict
    items: np.ndarray
    ids: Texts
    counts: np.ndarray
    titles: Texts | None = None
    inputs: np.ndarray | None = None
    parameters: dict = field(default_factory=dict)
    users: Users | None = None
    program: bytes | None = None
    hash: str = ""

    def name(self, code: int) -> str:
        """The title of an item, or its id where it has none."""
        return (self.titles[code] if self.titles else "") or self.ids[code]


def write(path: str | os.PathLike, artifact: Artifact) -> str:
    """Writes the file whole or not at all; returns its hash.

    The manifest gets the format's number; `artifact.hash` is not read.
    """
    path = Path(path)
    manifest = json.dumps(artifact.manifest | {"format": FORMAT})
    tensors = dict(sorted(_tensors(artifact).items()))
    digest = _digest(manifest, tensors)
    metadata = {"create_jax": manifest, "sha256": digest}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(safetensors.numpy.save(tensors, metadata))
    return digest


def _tensors(artifact: Artifact) -> dict[str, np.ndarray]:
    found = {"items": artifact.items, "counts": artifact.counts}
    found |= _of_texts("ids", artifact.ids)
    if artifact.titles is not None:
        found |= _of_texts("titles", artifact.titles)
    if artifact.inputs is not None:
        found["inputs"] = artifact.inputs
    if artifact.program is not None:
        found["program"] = np.frombuffer(artifact.program, np.uint8)
    if artifact.users is not None:
        users = artifact.users
        found |= _of_texts("users.ids", users.ids) | {
            "users.vectors": users.vectors,
            "users.offsets": users.offsets,
            "users.seen": users.seen,
        }
    found |= _flat(artifact.parameters, PARAMETERS)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _of_texts(name: str, texts: Texts) -> dict:
    return {f"{name}.{part}": getattr(texts, part) for part in TEXT_PARTS}


TEXT_PARTS = ("data", "offsets", "order")
PARAMETERS = "parameters"  # of the encoder: their names begin with it


def _flat(tree: dict, prefix: str) -> dict[str, np.ndarray]:
    """Arrays by their path, with / between the names."""
    found = {}
    for name, value in tree.items():
        path = f"{prefix}/{name}"
        found |= _flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def _nested(tensors: dict) -> dict:
    """What `_flat` made of PARAMETERS, nested again."""
    tree = {}
    for path, array in tensors.items():
        if not path.startswith(f"{PARAMETERS}/"):
            continue
        node, (*parts, last) = tree, path.split("/")[1:]
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = np.asarray(array)
    return tree


def _digest(manifest: str, tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of the manifest and, by name, of each array with its type and shape."""
    digest = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def read(
    path: str | os.PathLike, *, check: bool = True, mapped: bool = True
) -> Artifact:
    """The artifact of a file.

    Args:
      check: compare its content with its hash, for which all of it is read once.
      mapped: into memory, which several processes share; else a copy of its own, and
        the file may be written over, even while it is read.

    Raises:
      InputError: no such file, none of ours, cut off, damaged, or of a newer format.
    """
    path = Path(path)
    again = "copy it anew, or export it again with --mode=export"
    if path.is_dir():
        raise InputError(
            f"{path}: is a directory; expected a file that --mode=export --out=FILE "
            "wrote, of a run if that is one"
        )
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        tensors = _tensors_of(path, mapped) if "create_jax" in metadata else {}
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; expected a file that --mode=export "
            "wrote: check the path"
        ) from None
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: is no safetensors file, or is cut off ({one_line(error, 120)}); "
            f"expected one that --mode=export wrote: {again}"
        ) from None
    if "create_jax" not in metadata:
        raise InputError(
            f"{path}: is a safetensors file of something else (it has no manifest of "
            "create_jax); expected one that --mode=export wrote"
        )
    try:
        manifest = json.loads(metadata["create_jax"])
        version = manifest["format"]
        if version > FORMAT:
            raise InputError(
                f"{path}: is of format {version}; this create_jax reads up to "
                f"{FORMAT}: update create_jax, or export it again with this one"
            )
        if check and metadata["sha256"] != _digest(metadata["create_jax"], tensors):
            raise ValueError("its content is not that of its hash")
        found = _artifact(manifest, tensors, metadata["sha256"])
        _check(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(f"no {error}" if isinstance(error, KeyError) else error, 120)
        raise InputError(f"{path}: the file is damaged ({reason}); {again}") from None
    return found


def _tensors_of(path: Path, mapped: bool) -> dict[str, np.ndarray]:
    """The tensors of a file; of a mapped one they are not read before they are needed.
    The library has looked at the header; its own arrays are copies."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = b""
    if header and mapped:
        data = np.memmap(path, np.uint8, mode="r", offset=8 + size)
    elif header:
        data = np.fromfile(path, np.uint8, offset=8 + size)
    found = {}
    for name, about in header.items():
        start, end = about["data_offsets"]
        array = np.frombuffer(data[start:end], DTYPES[about["dtype"]])
        found[name] = array.reshape(about["shape"])
    return found


def _artifact(manifest: dict, tensors: dict, digest: str) -> Artifact:
    def texts(name):
        return Texts(*(tensors[f"{name}.{part}"] for part in TEXT_PARTS))

    users, program = None, tensors.get("program")
    if "users.vectors" in tensors:
        parts = (tensors[f"users.{part}"] for part in ("vectors", "offsets", "seen"))
        users = Users(texts("users.ids"), *parts)
    return Artifact(
        manifest=manifest,
        items=tensors["items"],
        ids=texts("ids"),
        counts=tensors["counts"],
        titles=texts("titles") if "titles.data" in tensors else None,
        inputs=tensors.get("inputs"),
        parameters=_nested(tensors),
        users=users,
        program=None if program is None else program.tobytes(),
        hash=digest,
    )


def _check(artifact: Artifact) -> None:
    """Raises ValueError where the parts do not fit each other."""
    rows = len(artifact.items)
    sizes = {"counts": artifact.counts, "ids": artifact.ids}
    sizes |= {"titles": artifact.titles, "inputs": artifact.inputs}
    for name, part in sizes.items():
        if part is not None and len(part) != rows:
            raise ValueError(f"{rows} rows of items and {len(part)} of {name}")
    if artifact.items.ndim != 2 or artifact.items.dtype != np.float32:
        raise ValueError("items are no matrix of float32")
    lists = [artifact.ids, artifact.titles]
    if artifact.users is not None:
        lists.append(artifact.users.ids)
        if len(artifact.users.vectors) != len(artifact.users.ids):
            raise ValueError("vectors and ids of users differ in number")
    for texts in filter(None, lists):
        ends = texts.offsets[0], texts.offsets[-1]
        if ends != (0, len(texts.data)) or (np.diff(texts.offsets) < 0).any():
            raise ValueError("offsets of texts do not fit their bytes")
        if len(texts.order) != len(texts):
            raise ValueError("the order of texts is of another number")
