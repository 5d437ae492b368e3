"""Time of the exact top k of a large catalogue, beside its lower bound.

    OMP_NUM_THREADS=2 python -m benchmarks.serving.topk

The lower bound is a matrix-vector product of the same size alone. All implementations
take turns in each round, so that other load on the machine affects all alike. faiss and
JAX are compared if they are installed. An implementation that returns other items ends
the run.
"""

import argparse
import importlib.util
import os
import time

import numpy as np

from create_jax import topk

BATCH = 32
BARE, OURS = "matrix-vector product alone", "create_jax.topk"


def ways(table: np.ndarray, k: int) -> dict:
    """Name -> function of vectors [Q, D] that returns codes [Q, k], or nothing."""
    scores = np.empty(len(table), np.float32)
    longest = topk.longest_row(table)

    def partition(vectors):
        found = table @ vectors[0]
        some = np.argpartition(found, len(found) - k)[-k:]
        return some[np.argsort(-found[some])][None]

    found = {
        OURS: lambda v: topk.best(v, table, k, longest=longest)[0],
        "argpartition": partition,
    }
    found[BARE] = lambda v: np.dot(table, v[0], out=scores)
    if importlib.util.find_spec("faiss"):
        import faiss

        index = faiss.IndexFlatIP(table.shape[1])
        index.add(table)
        found["faiss IndexFlatIP"] = lambda v: index.search(v, k)[1]
    if importlib.util.find_spec("jax"):
        import jax

        on_device = jax.device_put(table)
        top = jax.jit(lambda t, v: jax.lax.top_k(v @ t.T, k)[1])
        found["jax.lax.top_k"] = lambda v: np.asarray(top(on_device, v))
    return found


def timed(ask, vectors: np.ndarray) -> float:
    start = time.perf_counter()
    ask(vectors)
    return 1e3 * (time.perf_counter() - start)


def measure(found: dict, queries: np.ndarray, rounds: int) -> dict:
    """Milliseconds of each way: an array [rounds]."""
    times = {name: [] for name in found}
    for ask in found.values():
        ask(queries[0])  # compiled, pages touched
    for number in range(rounds):
        for name, ask in found.items():
            times[name].append(timed(ask, queries[number % len(queries)]))
    return {name: np.array(some) for name, some in times.items()}


def check(found: dict, queries: np.ndarray, k: int) -> int:
    """How many entries of the lists differ from ours; equal scores may be swapped."""
    differ = 0
    for vectors in queries:
        ours = found[OURS](vectors)
        for name, ask in found.items():
            if name != BARE:
                theirs = ask(vectors)
                missing = set(ours[0].tolist()) ^ set(theirs[0].tolist())
                if len(missing) > 2:
                    raise SystemExit(f"{name} finds other items: {sorted(missing)}")
                differ += int((ours != theirs).sum())
    return differ


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    table = rng.standard_normal((args.items, args.width), dtype=np.float32)
    queries = rng.standard_normal((50, 1, args.width), dtype=np.float32)
    found = ways(table, args.k)
    load = os.getloadavg()[0]
    times = measure(found, queries, args.rounds)
    differ = check(found, queries[:10], args.k)
    cores = len(os.sched_getaffinity(0))
    print(f"{args.items:,} items x {args.width}, top {args.k}, {args.rounds} rounds")
    print(f"{cores} cores, load {load:.1f} before; {differ} places differ\n")
    print("| way | p50 ms | p99 ms | p50 over the product's |")
    print("| --- | --- | --- | --- |")
    bare = np.median(times[BARE])
    for name, some in times.items():
        p50, p99 = np.percentile(some, [50, 99])
        print(f"| {name} | {p50:.2f} | {p99:.2f} | {p50 / bare:.2f} |")
    many = rng.standard_normal((10, BATCH, args.width), dtype=np.float32)
    batch = np.median([timed(found[OURS], vectors) for vectors in many]) / BATCH
    name = f"{OURS}, {BATCH} queries together, each"
    print(f"| {name} | {batch:.2f} | | {batch / bare:.2f} |")


if __name__ == "__main__":
    main()
