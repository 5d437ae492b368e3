"""How long `create_jax.serve` takes to answer, and what a long load does to it.

    python -m benchmarks.serving.load                # 1, 8, 32 clients; three rates
    python -m benchmarks.serving.load --minutes=30   # the soak

A made-up artifact of 10^6 items: SASRec with random parameters. Each request has a
history of 20 random items and asks for the best 100. Clients run in this process, on
the same cores as the server.

Closed loop: each client asks again as soon as it is answered. Open loop: requests come
at random moments at a rate, whatever the server does, and the clock runs from the
moment at which one was due, so that waiting counts. The soak is an open loop at 70 % of
the limit, which is what 32 clients reach in a closed loop, through three reloads of
another model and one that fails.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from create_jax import artifact, scoring
from create_jax.artifact import Artifact, Texts
from create_jax.recommender import Recommender, make_encoder

SHARES = 0.3, 0.5, 0.7  # of the limit: the rates of the open loop
CLIENTS = 1, 8, 32
HISTORY, K = 20, 100
BLOCK = 20  # queries of one way before the other's turn


# --- the artifact ---------------------------------------------------------------------


def make(items: int, width: int, seed: int, name: Callable[[int], str]) -> Artifact:
    """SASRec of random parameters: time and memory do not ask what is in them. Two
    blocks, one head and 50 slots, as SASRec has them on Amazon reviews.

    Args:
      name: the id of an item by its number, from 0.
    """
    settings = {"blocks": 2, "heads": 1, "dropout": 0.0, "max_len": 50}
    about = {"module": "create_jax.models.sasrec", "settings": settings, "max_len": 50}
    x, places = jnp.zeros((1, 50, width)), jnp.zeros((1, 50), int)
    params = make_encoder(about).init(jax.random.key(seed), x, places, places, False)
    rng = np.random.default_rng(seed)
    return Artifact(
        {"method": "sasrec", "query": "encoder", "encoder": about},
        rng.standard_normal((items + 1, width), dtype=np.float32),
        Texts.of(["", *map(name, range(items))]),
        np.append(0, np.ones(items, np.int64)),
        parameters={"sequence": jax.device_get(params["params"])},
    )


def write(path: Path, items: int, width: int, seed: int) -> None:
    """With titles, counts and a golden query."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "night", "day", "river", "king", "queen", "lost", "house"]
    named = rng.integers(0, len(words), (items, 3))
    titles = (" ".join(words[one] for one in three) for three in named.tolist())
    counts = rng.integers(1, 1000, items + 1)
    counts[0] = 0
    texts = Texts.of(["", *(f"{t} {n % 9973}" for n, t in enumerate(titles))])
    made = replace(make(items, width, seed, name), counts=counts, titles=texts)
    listed, scores = Recommender(made).recommend([[1, 2, 3]], 10)
    golden = {"history": [1, 2, 3], "items": listed[0].tolist()}
    golden["scores"] = scores[0].tolist()
    artifact.write(path, replace(made, manifest=made.manifest | {"golden": golden}))


def name(number: int) -> str:
    return f"B{number:08d}"


# --- clients --------------------------------------------------------------------------


class Times(NamedTuple):
    """Milliseconds of the answers, what each request came to, and seconds of it all."""

    latencies: np.ndarray
    statuses: Counter
    seconds: float

    def row(self, label: str) -> str:
        p50, p99 = np.percentile(self.latencies, [50, 99])
        rate = len(self.latencies) / self.seconds
        failed = sum(n for status, n in self.statuses.items() if status != 200)
        return f"| {label} | {rate:.0f} | {p50:.1f} | {p99:.1f} | {failed} |"


class Client:
    """Asks over connections that stay open, with bodies made beforehand."""

    def __init__(self, port: int, items: int):
        rng = np.random.default_rng(1)
        self._port, self._idle = port, []
        histories = rng.integers(0, items, (500, HISTORY)).tolist()
        bodies = [
            json.dumps({"history": [*map(name, some)], "k": K}).encode()
            for some in histories
        ]
        head = b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
        self._requests = [
            b"%b\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)
            for body in bodies
        ]
        self._number = 0

    async def ask(self) -> int:
        """The status of one answer; 0: the connection was lost."""
        self._number += 1
        request = self._requests[self._number % len(self._requests)]
        try:
            while self._idle:
                reader, writer = self._idle.pop()
                if not reader.at_eof():  # or the server was tired of it
                    break
                writer.close()
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = head.lower().split(b"content-length: ")[1]
            await reader.readexactly(int(fields.split(b"\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError):
            return 0
        self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1])

    def close(self):
        for _, writer in self._idle:
            writer.close()

    def forget(self):
        """The connections of an event loop that has ended."""
        self._idle = []


async def closed(client: Client, clients: int, seconds: float) -> Times:
    latencies, statuses = [], Counter()
    begun = time.perf_counter()

    async def one():
        while time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            statuses[await client.ask()] += 1
            latencies.append(1e3 * (time.perf_counter() - start))

    await asyncio.gather(*(one() for _ in range(clients)))
    return Times(np.array(latencies), statuses, time.perf_counter() - begun)


async def opened(client: Client, rate: float, seconds: float) -> Times:
    latencies, statuses, asked = [], Counter(), set()
    rng = np.random.default_rng(2)
    begun = due = time.perf_counter()

    async def one(start):
        statuses[await client.ask()] += 1
        latencies.append(1e3 * (time.perf_counter() - start))

    while due - begun < seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(one(due))
        asked.add(task)
        task.add_done_callback(asked.discard)
        due += rng.exponential(1 / rate)
    await asyncio.gather(*asked)
    return Times(np.array(latencies), statuses, time.perf_counter() - begun)


# --- the server -----------------------------------------------------------------------


class Server:
    def __init__(self, path: Path):
        command = [sys.executable, "-m", "create_jax.serve", str(path), "--port=0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.line()
        self.port = int(line.split()[0].rsplit(":", 1)[1])

    def line(self) -> str:
        return self._process.stdout.readline().strip()

    def rss(self) -> float:
        """MB of memory, now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1e3

    def reload(self) -> str:
        """Asks for a reload and says what came of it."""
        self._process.send_signal(signal.SIGHUP)
        return self.line()

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait()


async def turns(client: Client, path: Path, items: int, rounds: int = 200):
    """Milliseconds [2, rounds] of one query after the other, without HTTP, in this
    process, and with it.

    Each has BLOCK queries at a time: the threads of a matrix product go on turning for
    some milliseconds, and would take the other process's cores.
    """
    recommender = Recommender(artifact.read(path))
    recommender.warm_up()
    model = scoring.Model(recommender.artifact, recommender, None)
    rng, times = np.random.default_rng(1), np.zeros((2, rounds))

    async def scored():
        history = tuple(rng.integers(1, items, HISTORY).tolist())
        job = scoring.Recommend(model, history, None, K, (), None, True, False)
        scoring.answer([job])

    async def asked():
        assert await client.ask() == 200

    for start in range(-BLOCK, rounds, BLOCK):  # the first are not counted
        for some, ask in zip(times, (scored, asked), strict=True):
            await asyncio.sleep(0.5)
            for number in range(start, start + BLOCK):
                begun = time.perf_counter()
                await ask()
                some[number] = time.perf_counter() - begun
    return 1e3 * times


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def measure(path: Path, args) -> None:
    server = Server(path)
    before = server.rss()
    client = Client(server.port, args.items)
    print("| in turn | p5 ms | p50 ms | p99 ms |\n| --- | --- | --- | --- |")
    times = asyncio.run(turns(client, path, args.items))
    for label, some in zip(("in one process", "over HTTP"), times, strict=True):
        p5, p50, p99 = np.percentile(some, [5, 50, 99])
        print(f"| {label} | {p5:.1f} | {p50:.1f} | {p99:.1f} |")
    print(f"{load()}\n\n| load | answers a second | p50 ms | p99 ms | failed |")
    print("| --- | --- | --- | --- | --- |")
    client.forget()
    asyncio.run(run(client, args.seconds))
    print(f"RSS {before:.0f} MB before, {server.rss():.0f} MB after; {load()}")
    assert server.stop() == 0


async def run(client: Client, seconds: float) -> None:
    await closed(client, 8, 3)
    limit = 0.0
    for clients in CLIENTS:
        times = await closed(client, clients, seconds)
        limit = max(limit, len(times.latencies) / times.seconds)
        print(times.row(f"closed, {clients}"), flush=True)
    for share in SHARES:
        times = await opened(client, share * limit, seconds)
        label = f"open, {share * limit:.0f} a second ({share:.0%} of the limit)"
        print(times.row(label), flush=True)
    client.close()


def soak(path: Path, args) -> None:
    first, other = path, path.with_name("other.safetensors")
    write(other, args.items, args.width, 1)
    first, other = first.read_bytes, other.read_bytes
    server = Server(path)
    client = Client(server.port, args.items)
    asyncio.run(_soak(server, client, path, (first(), other()), args))
    assert server.stop() == 0


async def _soak(server, client, path, models, args) -> None:
    times = await closed(client, max(CLIENTS), 10)
    rate = 0.7 * len(times.latencies) / times.seconds
    print(f"{rate:.0f} requests a second, {args.minutes} minutes; {load()}")
    print("| minute | answers a second | p50 ms | p99 ms | failed | RSS MB | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    parts = 10
    events = {2: models[1], 4: models[0], 6: b"no artifact", 8: models[1]}
    for part in range(parts):
        happened = ""
        running = asyncio.ensure_future(opened(client, rate, 6 * args.minutes))
        if part in events:
            whole = path.with_name("new")
            await asyncio.to_thread(whole.write_bytes, events[part])
            whole.replace(path)
            happened = (await asyncio.to_thread(server.reload)).split(",")[0]
        row = (await running).row(f"{(part + 1) * args.minutes / parts:.1f}")
        print(f"{row} {server.rss():.0f} | {happened} |", flush=True)
    client.close()
    print(load())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--minutes", type=float, help="soak so long")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "a.safetensors"
        write(path, args.items, args.width, 0)
        cores = len(os.sched_getaffinity(0))
        print(f"{args.items:,} items x {args.width}, top {K}, {cores} cores; {load()}")
        soak(path, args) if args.minutes else measure(path, args)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
