"""Several processes that act as one: they join, agree, and leave together.

Every process runs the same program on its own devices. What a process may see otherwise
than the others, files above all, is read by process 0 and told (`first`), or read by
each and agreed on (`together`), so that all go on or all end. With one process nothing
here waits or costs anything. Nothing here wakes JAX before `join`.
"""

import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

from create_jax.errors import AgreedError, InputError

COORDINATOR = "CREATE_JAX_COORDINATOR"  # host:port of process 0
PROCESSES, PROCESS = "CREATE_JAX_PROCESSES", "CREATE_JAX_PROCESS"
WAIT = "CREATE_JAX_WAIT"  # seconds that the processes have to find each other
# Tasks of a Slurm step (not of a job, whose script is one process), and of Open MPI.
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# How XLA says that another process is gone.
LOST = re.compile(
    "Gloo|NCCL|closed by peer|oordination service|heartbeat|UNAVAILABLE|"
    "waiting for .* barrier"  # of orbax, a TimeoutError
)
SIGTERM_CODE = 128 + signal.SIGTERM  # 143, what a shell says of a process that it ends


# --- joining --------------------------------------------------------------------------


def described() -> bool:
    """Whether the environment says that this is one of several processes."""
    if any(os.environ.get(name) for name in (COORDINATOR, PROCESSES, PROCESS)):
        return True
    tasks = [os.environ.get(name, "") for name in TASKS]
    return any(text.isdecimal() and int(text) > 1 for text in tasks)


def join() -> None:
    """Joins the processes of the variables above; without them, those that JAX's own
    detection finds (Slurm, Open MPI, Kubernetes, TPU pods).

    Raises:
      InputError: only some variables are set, or hold something else; the rank is out
        of range; no cluster is found; devices are not shared out evenly. Where the
        others do not come in time the process ends with code 2 and one line: XLA would
        abort it.
    """
    import jax

    arguments, limit = _from_environment(), _whole_number(WAIT, least=1, default=300)
    if arguments.get("num_processes") == 1:
        return
    giving_up = threading.Timer(limit, _give_up, (arguments, limit))
    giving_up.daemon = True
    giving_up.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=limit + 60)
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"could not join other processes ({' '.join(str(error).split())}); start "
            f"them by Slurm, Open MPI, Kubernetes or on a TPU pod, or set {COORDINATOR}"
            f"=host:port, {PROCESSES} and {PROCESS}"
        ) from None
    finally:
        giving_up.cancel()
    check_devices([device.process_index for device in jax.devices()])


def check_devices(owners: list[int]) -> None:
    """Refuses processes of which some have more devices than others: JAX gathers what
    they say by rows of equal length.

    Args:
      owners: the process of each device.
    """
    numbers = [owners.count(rank) for rank in sorted(set(owners))]
    if len(set(numbers)) > 1:
        raise AgreedError(
            f"the processes have {', '.join(map(str, numbers))} devices; expected as "
            "many in each: start one for each device, or hide some of them"
        )


def _from_environment() -> dict:
    """Arguments of `jax.distributed.initialize`; {} where no variable is set."""
    names = COORDINATOR, PROCESSES, PROCESS
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == len(names):
        return {}
    if missing:
        raise InputError(
            f"{' and '.join(missing)} not set; {COORDINATOR} (host:port of process 0), "
            f"{PROCESSES} (how many) and {PROCESS} (which, from 0) go together"
        )
    address = os.environ[COORDINATOR]
    if not re.fullmatch(r".+:\d{1,5}", address):
        raise InputError(f"{COORDINATOR} is {address!r}; expected host:port")
    count, rank = _whole_number(PROCESSES, least=1), _whole_number(PROCESS)
    if rank >= count:
        raise InputError(
            f"{PROCESS} is {rank} of {PROCESSES}={count}; expected a rank from 0 to "
            f"{count - 1}, another for each process"
        )
    return dict(coordinator_address=address, num_processes=count, process_id=rank)


def _whole_number(name: str, *, least: int = 0, default: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{name} is {text!r}; expected a whole number from {least}")
    return int(text)


def _give_up(arguments: dict, limit: int) -> None:
    address = arguments.get("coordinator_address", "")
    who = "this process"
    if arguments:
        who = f"process {arguments['process_id']} of {arguments['num_processes']}"
    found = "not all others came"
    if address and not _answers(address):
        found = f"no coordinator answers at {address}"
    stop(
        f"error: {who} waited {limit} s for the others: {found}; start all of them "
        f"within that time, process 0 on the host that {COORDINATOR} names, or raise "
        f"{WAIT}",
        2,
    )


def _answers(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return False
    return True


# --- agreeing -------------------------------------------------------------------------


def count() -> int:
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, which writes and speaks for all."""
    import jax

    return jax.process_index() == 0


def gather(value) -> list:
    """What every process has to say, by rank: a JSON value of each. Waits for all."""
    from jax.experimental import multihost_utils

    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    room = 1 << int(sizes.max()).bit_length()  # few shapes: each is compiled once
    texts = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
    pairs = zip(texts, sizes, strict=True)
    return [json.loads(row[:size].tobytes()) for row, size in pairs]


def first(make: Callable):
    """What `make()`, a JSON value, is in process 0, where alone it is called; what
    process 0 wrote before is there for all afterwards.

    Raises:
      InputError: of process 0, in all alike.
    """
    if count() == 1:
        return make()
    value = None
    with together():
        if is_first():
            value = make()
    return gather(value)[0]


@contextmanager
def together():
    """A block that ends alike in all processes: where one cannot go on, none does.

    Inside it no process may wait for another.

    Raises:
      InputError: in all; of the first process that has one.
    """
    if count() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as raised:  # also what nobody expected: the others must not wait
        error = raised
    said = None
    if error is not None:
        said = str(error) if isinstance(error, InputError) else repr(error)
    everyone = gather(said)
    if error is not None and not isinstance(error, InputError):
        raise error
    rank = next((rank for rank, text in enumerate(everyone) if text), None)
    if rank is not None:
        alone = "" if rank == 0 else f"process {rank}: "
        raise AgreedError(alone + everyone[rank])


def same(what: str, values: dict[str, object]) -> None:
    """Raises InputError, in all, where a process has other values than process 0; says
    which.

    Args:
      what: these are, for the message.
      values: JSON values by name.
    """
    others = first(lambda: values)
    with together():
        differ = [
            f"{name} is {_shown(values.get(name))}, in process 0 it is "
            f"{_shown(others.get(name))}"
            for name in sorted(values.keys() | others.keys())
            if json.dumps(values.get(name)) != json.dumps(others.get(name))
        ]
        if differ:
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise InputError(
                f"the processes have different {what}: {'; '.join(differ[:3])}{more}; "
                "start all with the same command on the same files"
            )


def _shown(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- leaving --------------------------------------------------------------------------

# What a process wishes; the greatest of all processes is done by all.
NOTHING, SAVE, LEAVE = 0, 1, 2


class Leaving(Exception):
    """All processes agreed to end here; the same command goes on."""


_asked = threading.Event()


def asked_to_leave() -> bool:
    """Whether SIGTERM came to this process."""
    return _asked.is_set()


def listen() -> None:
    """From now on SIGTERM asks to leave at the next good moment; a second one ends the
    process at once, even while it compiles. Of the main thread, after `join`: JAX has a
    handler of its own, which swallows the signal."""
    _asked.clear()
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Python's own handlers wait until XLA returns; bytes are written at once.
    signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)

    def hear():
        while byte := ours.recv(1):
            if byte[0] != signal.SIGTERM:
                continue
            if _asked.is_set():
                stop("ended at once by a second SIGTERM", SIGTERM_CODE)
            _asked.set()

    _KEPT[:] = ours, pythons
    threading.Thread(target=hear, daemon=True).start()


_KEPT: list = []  # the pipe of `listen`, open as long as the process


def leave_if_asked() -> None:
    """Leaves, in all processes, where one was asked to and nothing is to be saved."""
    if any(gather(asked_to_leave())):
        raise Leaving


def is_lost(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    return count() > 1 and LOST.search(str(error)) is not None


def part() -> None:
    """All processes go their ways, which call it alike: it waits for those who have not
    read the last message yet. Who leaves without a word is taken for dead, and the
    others are aborted."""
    import jax

    if count() > 1:
        jax.distributed.shutdown()


def end(message: str, code: int) -> None:
    """Ends all processes, which call it alike; process 0 says why."""
    message = message if is_first() else ""
    part()
    stop(message, code)


def stop(message: str, code: int) -> None:
    """Says why, and ends the process at once: a failed save must not speak after it."""
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
