"""The files of a run's directory, written by process 0; a resumed run writes on."""

import json
import sys
import time
from pathlib import Path

import jax

from create_jax.errors import InputError
from create_jax.files import is_remote, named, write_text


class JsonLines:
    """Appends one JSON object a line to `path`.

    With the extra `tensorboard`, numbers also go to event files beside it, on a disk.
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
        text = json.dumps(record) + "\n"
        if is_remote(self.path):  # nothing can be added to an object
            before = self.path.read_text() if self.path.exists() else ""
            self.path.write_text(before + text)
            return
        with named(self.path), open(self.path, "a") as file:
            file.write(text)
        if self.events is None:
            self.events = _open_events(self.path.parent / "tensorboard")
        if self.events:
            with named(self.path.parent / "tensorboard"):
                self.events(record)


def _open_events(directory: Path):
    """A function that writes a record as TensorBoard events; False without the extra
    `tensorboard`.

    It writes at once: behind tensorboardX's own writer is a thread that ends when a
    disk is full, and a queue that then waits for it without end.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    except ImportError:
        return False
    directory.mkdir(exist_ok=True)
    writer = EventsWriter(str(directory / "events"))

    def write(record: dict) -> None:
        for name, value in record.items():
            if isinstance(value, float):
                summary = scalar(f"{record['stage']}/{name}", value)
                now = time.time()
                step = record["epoch"]
                writer.write_event(Event(wall_time=now, step=step, summary=summary))
        writer.flush()

    return write


def write_json(path: Path, value) -> None:
    if jax.process_index() == 0:
        write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path):
    """The file's content; None where there is no file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); bring it back as it was, or "
            "choose another --workdir"
        ) from None


def say(text: str) -> None:
    """One line for people, from process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def warn(text: str) -> None:
    """One line on stderr, from process 0."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr)
