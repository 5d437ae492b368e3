"""Answers over HTTP by the model of one artifact, with a page for people.

    python -m create_jax.serve beauty.safetensors --port=8000

The endpoints are in docs/serve.md. SIGHUP reads the file anew, SIGTERM ends when all
that was asked is answered.
"""

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from create_jax import artifact
from create_jax.errors import InputError, exit_code

GRACE = 30  # seconds in which what was asked is answered after SIGTERM
SWITCH = 5e-4  # seconds; a reload or an explanation holds the interpreter no longer
KEPT = 75  # seconds of an idle connection, above the 60 of proxies that use it again


def main(argv=None) -> int:
    args = parse(argv)
    try:
        return exit_code(lambda: run(args))
    except KeyboardInterrupt:
        return 0


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m create_jax.serve", description=__doc__.split("\n")[0]
    )
    parser.add_argument("artifact", help="what --mode=export wrote")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port", type=int, default=8000, help="0: any; default: %(default)s"
    )
    parser.add_argument(
        "--queue", type=int, default=256, help="requests that may wait; %(default)s"
    )
    parser.add_argument(
        "--trust", action="store_true",
        help="run the exported program of an encoder whose module is not installed",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        parser.error(f"--port is {args.port}; expected 0 to 65535")
    if args.queue < 1:
        parser.error(f"--queue is {args.queue}; expected at least 1")
    return args


def run(args) -> None:
    """Serves until a signal ends it.

    Raises:
      InputError: the extra is missing, the artifact is not fit, the port is taken.
    """
    artifact.read(args.artifact, check=False)
    sys.setswitchinterval(SWITCH)
    try:
        import uvicorn

        from create_jax import service
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; serving needs the extra `serve`: "
            "pip install 'create_jax[serve]'"
        ) from None
    with listen(args.host, args.port) as place:
        served = service.Service(args.artifact, trust=args.trust, longest=args.queue)
        config = uvicorn.Config(
            service.make_app(served),
            log_config=None, access_log=False, lifespan="off", server_header=False,
            timeout_graceful_shutdown=GRACE, timeout_keep_alive=KEPT,
        )  # fmt: skip
        # uvicorn ends on it and raises it again, when all is done.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            asyncio.run(serve(uvicorn.Server(config), served, place))
        finally:
            signal.signal(signal.SIGTERM, before)
            served.stop()


def listen(host: str, port: int) -> socket.socket:
    """A socket at which requests wait from now on.

    Raises:
      InputError: it is taken, not ours, or no place of this machine.
    """
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        kind, *how, _, address = places[0]
        # With its protocol named: else asyncio leaves Nagle's algorithm on, and an
        # answer waits 40 ms for an acknowledgement.
        found = socket.socket(kind, *how)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        todo = "choose another with --port"
        if error.errno == errno.EADDRINUSE:
            todo = "another program answers there: end it, or " + todo
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            todo = "expected an address of this machine in --host"
        reason = error.strerror or error
        raise InputError(f"cannot listen at {host}:{port} ({reason}); {todo}") from None
    return found


async def serve(server, served, place: socket.socket) -> None:
    """Loads the model while `/live` answers already; then all does."""
    loop, wanted, failure = asyncio.get_running_loop(), asyncio.Event(), None
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, wanted.set)

    async def load():
        nonlocal failure
        try:
            loaded = about(await asyncio.to_thread(served.load))
        except InputError as error:
            failure, server.should_exit = error, True
            return
        host, port = place.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        say(f"http://{host}:{port} {loaded}")
        # Not for the first load: threads that answer begin in it.
        beside = ThreadPoolExecutor(1, initializer=step_back)
        while True:
            await wanted.wait()
            wanted.clear()
            try:
                reloaded = await loop.run_in_executor(beside, served.load)
                say(f"reloaded {about(reloaded)}")
            except InputError as error:
                say(f"not reloaded, the model before answers on: {error}")

    loading = asyncio.create_task(load())
    try:
        await server.serve(sockets=[place])
    finally:
        loading.cancel()
    if failure is not None:
        raise failure


def step_back() -> None:
    """Lets all other threads go before this one, where threads have priorities that a
    program may change."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def about(model) -> str:
    method, n = model.artifact.manifest["method"], len(model.artifact.ids) - 1
    return f"{method}, {n:,} items, {model.version}"


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
