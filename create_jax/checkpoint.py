"""Orbax checkpoints of one stage of a run: the latest two, and the best they name."""

import json
import re
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from create_jax import cluster
from create_jax.errors import StorageError
from create_jax.writers import warn

# How tensorstore and zstd say that a file is not what was written. Memory that is out,
# rights that are missing and a disk that is away have other words.
DAMAGE = re.compile(
    "DATA_LOSS|OUT_OF_RANGE|NOT_FOUND|CRC-32C|ZSTD_decompress|Truncated Zstd"
)


class Checkpoints:
    """Saves (state arrays, progress JSON) by step; saving runs in the background.

    Two latest are kept, so that a damaged one (a full disk, a kill inside a copy) costs
    minutes and not the run. Beside them stays the step that the latest progress names
    as `best_step`; 0 = none. What cannot be read is never deleted.

    Args:
      directory: an absolute path.
      every: seconds after which a save is due.
      read_only: writes nothing, not even the directory.
      rows: by name, how many rows of some arrays are real. The zeros behind them are as
        many as a mesh needs (tables.py), and a checkpoint of any mesh can be read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every: float = 0.0,
        read_only: bool = False,
        rows: dict[str, int] | None = None,
    ):
        self.directory, self.every, self.rows = directory, every, rows or {}
        self.saved_at = time.monotonic()
        self.kept = _Kept()
        self.manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self.kept,
                read_only=read_only,
                create=not read_only,
                save_interval_steps=0 if read_only else 1,
            ),
        )

    def due(self) -> bool:
        """Whether the last save is long ago by the clock of process 0; the others never
        say so."""
        return cluster.is_first() and time.monotonic() - self.saved_at >= self.every

    def save(self, step: int, state, progress: dict) -> None:
        """Begins to save; `progress` must not be changed any more."""
        self.saved_at = time.monotonic()
        if step in self.manager.all_steps():
            # Of a run that was asked to leave before its validation, which is done now.
            self.manager.delete(step)
        self.kept.best_of[step] = progress["best_step"]
        progress = progress | {"checksum": _checksum(state, progress, self.rows)}
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(progress),
                ),
            )
        except Exception as error:  # also of the save before, in the background
            raise _cannot_save(self.directory, error) from None

    def wait(self) -> None:
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # the background thread's own error, of many types
            raise _cannot_save(self.directory, error) from None

    def close(self) -> None:
        self.wait()
        self.manager.close()

    def restore_latest(self, like):
        """(state, progress) of the newest checkpoint, None where there is none.

        Damaged ones are passed over and put aside under another name.

        Args:
          like: a state of the same shapes, placed as the restored one shall be.

        Raises:
          StorageError: one cannot be read for another reason, or holds other arrays
            than `like`, or all are damaged.
        """
        damaged = []
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = self._restore(step, like)
            except Damaged as error:
                damaged.append((step, error))
                continue
            for bad, error in damaged:
                warn(
                    f"warning: checkpoint {self.directory / str(bad)} is damaged "
                    f"({error}) and put aside; continuing from the one before"
                )
                self._put_aside(bad)
            return found
        if damaged:
            raise StorageError(
                f"{self.directory}: every checkpoint is damaged ({damaged[0][1]}); "
                "bring one back, or remove this directory to train the stage anew"
            )
        return None

    def restore(self, step: int | None, like):
        """(state, progress) of one step, None = the newest.

        Raises:
          StorageError: it is not there, cannot be read, or holds other arrays.
        """
        steps = self.manager.all_steps()
        step = max(steps, default=None) if step is None else step
        if step not in steps:
            raise StorageError(
                f"{self.directory}: found no checkpoint{f' {step}' if step else ''}; "
                "bring it back, or train again into another --workdir"
            )
        try:
            return self._restore(step, like)
        except Damaged as error:
            raise StorageError(
                f"{self.directory / str(step)}: the checkpoint is damaged ({error}); "
                "bring it back, or train again into another --workdir"
            ) from None

    def _restore(self, step, like):
        """(state, progress); all processes agree on what is wrong with it."""
        state, progress = _agreed(lambda: self._read(step, like))
        expected = progress.pop("checksum", None)  # older ones have none

        def check():
            if expected not in (None, found):
                raise Damaged("its checksum differs")

        found = _checksum(state, progress, self.rows)
        _agreed(check)
        if "best_step" not in progress:
            progress["best_step"] = self._best_by_score()
        self.kept.best_of[step] = progress["best_step"]
        return state, progress

    def _read(self, step, like):
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        place = self.directory / str(step)
        # Zeros behind the real rows are cut or added.
        other = self.rows and _other_form(place / "state", abstract, {})
        refits = bool(other) and not _other_form(place / "state", abstract, self.rows)
        try:
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract, strict=not refits),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # orbax raises many types
            reason = _damage(error, place) if place.is_dir() else None
            if reason:
                raise Damaged(reason) from None
            other = _other_form(place / "state", abstract, self.rows)
            if other:
                raise StorageError(
                    f"{place}: this checkpoint is of another version of the method "
                    f"({other}); train again into another --workdir, or go on with the "
                    "version that made it"
                ) from None
            raise StorageError(
                f"{place}: the checkpoint could not be read ({_reason(error)}); "
                "nothing was changed: once that is mended, the same command goes on"
            ) from None
        return restored["state"], restored["progress"]

    def _best_by_score(self) -> int:
        """The best step of a run that is older than `best_step`: the last of those with
        the highest score, as orbax kept it."""
        scores = {0: -1.0}
        for step in self.manager.all_steps():
            file = self.directory / str(step) / "metrics" / "metrics"
            if file.exists():
                scores[step] = json.loads(file.read_text())["score"]
        return max(scores, key=lambda step: (scores[step], step))

    def _put_aside(self, step: int) -> None:
        """Renames a checkpoint, so that its step can be saved again."""
        if cluster.is_first():
            place, number = self.directory / str(step), 1
            while (aside := place.with_name(f"{step}.damaged-{number}")).exists():
                number += 1
            place.rename(aside)
        cluster.gather(None)  # all wait for that
        self.manager.reload()


class Damaged(Exception):
    """A checkpoint whose files are not what was written."""


class _Kept:
    """Orbax's preservation policy: the two latest steps, and the best that each of them
    names: where the newest is damaged the run goes on from the other."""

    def __init__(self):
        self.best_of: dict[int, int] = {}  # of the steps that were saved or read

    def should_preserve(self, checkpoints, *, context):
        latest = {checkpoint.step for checkpoint in checkpoints[-2:]}
        kept = latest | {self.best_of.get(step) for step in latest}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _agreed(attempt):
    """What `attempt()` returns, where it succeeds in every process.

    Raises:
      StorageError: of the first that has one. Damaged: of the first, if none has.
    """
    found = error = None
    try:
        found = attempt()
    except (Damaged, StorageError) as raised:
        error = raised
    said = None if error is None else [type(error).__name__, str(error)]
    everyone = [one for one in cluster.gather(said) if one]
    for kind in (StorageError, Damaged):
        for name, text in everyone:
            if name == kind.__name__:
                raise kind(text)
    return found


def _checksum(state, progress: dict, rows: dict[str, int]) -> int:
    """CRC-32 of what a checkpoint holds, however it lies on the devices. Compressed
    files carry none of their own: a flipped bit would give other numbers without a
    word.

    Args:
      rows: as of `Checkpoints`.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    leaves = [(leaf, _real_rows(name, leaf, rows)) for name, leaf in leaves.items()]
    ours = {n: _own_parts(*x) for n, x in enumerate(leaves) if _is_split(x[0])}
    parts = cluster.gather([ours[n] for n in sorted(ours)]) if ours else []
    value = zlib.crc32(json.dumps(progress, sort_keys=True).encode())
    for n, (leaf, size) in enumerate(leaves):
        if n not in ours:
            value = zlib.crc32(np.ascontiguousarray(leaf)[:size], value)
            continue
        at = sorted(ours).index(n)
        for _, crc, size in sorted(part for process in parts for part in process[at]):
            value = combined(value, crc, size)
    return value


def _is_split(x) -> bool:
    """Whether parts of an array lie in other processes only."""
    there = isinstance(x, jax.Array)
    return there and not (x.is_fully_addressable or x.is_fully_replicated)


def _real_rows(name: str, shape_of, rows: dict[str, int]) -> int | None:
    """How many rows of an array are real; None = all."""
    own = [rows[part] for part in name.split(".") if part in rows and shape_of.shape]
    return own[0] if own else None


def _own_parts(x, size: int | None) -> list[list[int]]:
    """[first row, CRC-32, bytes] of the rows that lie here; each once in a cluster."""
    found = []
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            first, rows = shard.index[0].start or 0, np.ascontiguousarray(shard.data)
            rows = rows if size is None else rows[: max(0, size - first)]
            found.append([first, zlib.crc32(rows), rows.nbytes])
    return found


def combined(crc: int, after: int, size: int) -> int:
    """The CRC-32 of a text from that of its beginning and that of its last `size` bytes
    (as `crc32_combine` of zlib): the first one times x^(8 size) modulo the polynomial.
    """
    power, factor = 1 << 23, 1 << 31  # x^8, x^0; the highest bit is the lowest power
    while size:
        if size & 1:
            factor = _product(power, factor)
        power, size = _product(power, power), size >> 1
    return _product(factor, crc) ^ after


def _product(a: int, b: int) -> int:
    """Of two polynomials over GF(2), modulo that of CRC-32."""
    total = 0
    while a:
        if a & 1 << 31:
            total ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return total


def _damage(error, place: Path) -> str | None:
    """What shows that the files of a checkpoint are damaged; None: not the files."""
    for part in ("state", "progress"):
        if not any(names for _, _, names in epath.Path(place / part).walk()):
            return f"no files in {part}"
    while error is not None:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            return "broken JSON"
        if isinstance(error, FileNotFoundError):
            return "a file is missing"
        found = DAMAGE.search(str(error))
        if isinstance(error, ValueError) and found:
            return found[0]
        error = error.__cause__
    return None


def _other_form(place: Path, like, rows: dict[str, int]) -> str | None:
    """The first array of a checkpoint that is not as in `like` up to its real rows, if
    its list of arrays can be read."""
    try:
        stored = ocp.StandardCheckpointer().metadata(place).item_metadata.tree
    except Exception:  # orbax raises many types; the error before this one says why
        return None
    found, expected = _shapes(stored, rows), _shapes(like, rows)
    names = sorted(found | expected, key=lambda name: name.startswith("opt_state"))
    for name in names:
        has, wanted = (shapes.get(name, "none") for shapes in (found, expected))
        if has != wanted:
            return f"{name}: found {has}, expected {wanted}"
    return None


def _shapes(tree, rows: dict[str, int]) -> dict[str, list[int]]:
    arrays, shapes = ocp.tree.to_flat_dict(tree, sep="."), {}
    for name, x in arrays.items():
        if hasattr(x, "shape"):
            size = _real_rows(name, x, rows)
            cut = [] if size is None else [min(size, x.shape[0])]
            shapes[name] = cut + list(x.shape[len(cut) :])
    return shapes


def _cannot_save(directory, error):
    if cluster.is_lost(error):
        return error
    return StorageError(
        f"{directory}: the checkpoint could not be saved ({_reason(error)}); once that "
        "is mended, often by freeing space, the same command goes on from the last one"
    )


def _reason(error):
    """The end of the first line: what went wrong, after where."""
    line = (str(error) or repr(error)).splitlines()[0]
    return line.rsplit(": ", 1)[-1][:200]
