"""metrics.jsonl and result.json; process 0 writes, and a resumed run writes on."""

import json
import os
import tempfile
from pathlib import Path

import jax

from create_jax.errors import InputError


class JsonLines:
    """Appends one JSON object a line to `path`.

    With the extra `tensorboard`, numbers also go to event files beside it.
    """

    def __init__(self, path: Path):
        self.path, self.events = path, None

    def rewind(self, keep) -> None:
        """Drops lines for which `keep(record)` is false: those that a resumed run is
        about to write again, and a half-written last one."""
        if jax.process_index() or not self.path.exists():
            return
        lines = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if keep(record):
                lines.append(line)
        write_text(self.path, "".join(line + "\n" for line in lines))

    def write(self, record: dict) -> None:
        """Args: record: with `stage` and `epoch`, and numbers by name."""
        if jax.process_index():
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        if self.events is None:
            self.events = _open_events(self.path.parent / "tensorboard")
        for name, value in record.items():
            if self.events and isinstance(value, float):
                self.events.add_scalar(
                    f"{record['stage']}/{name}", value, record["epoch"]
                )

    def close(self) -> None:
        """Hands on what TensorBoard's writer still holds."""
        if self.events:
            self.events.close()


def _open_events(directory: Path):
    """A writer of TensorBoard events; False without the extra `tensorboard`."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(str(directory))


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def write_json(path: Path, value) -> None:
    if jax.process_index() == 0:
        write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path):
    """The file's content; None where there is no file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); delete it to run again"
        ) from None


def check_writable(directory: Path) -> None:
    """Fails before any work if `directory`, which may not exist yet, cannot be written
    to; leaves nothing behind."""
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise InputError(
            f"--workdir {directory}: {error.strerror or error}; a writable directory "
            "with free space is needed, choose another with --workdir"
        ) from None
