"""One thread that answers what many ask: a short queue, and those who wait together."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from create_jax.artifact import Artifact
from create_jax.errors import InputError
from create_jax.recommender import Explanation, Recommender
from create_jax.search import Names

TOGETHER = 32  # jobs of one batch
WAIT = 0.002  # seconds for more of them, where there were more the last time
EXPLAINED = 100  # items of a history, of which each is left out once
REASONS = 3  # of one item of a list


class Busy(Exception):
    """The queue is full."""


class Worker:
    """A thread that answers jobs in their order, some at once.

    Args:
      answer: a list of jobs -> a list of results; one that is an exception is raised
        where the job was asked.
      longest: jobs that may wait. together: of one call of `answer`.
    """

    def __init__(self, answer: Callable[[list], list], longest: int, together: int = 1):
        self._answer, self._longest, self._together = answer, longest, together
        self._jobs: deque = deque()
        self._more = threading.Condition()
        self._ends, self._last = False, 1
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._jobs)

    async def ask(self, job):
        """The result of a job.

        Raises:
          Busy: `longest` jobs wait already.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._more:
            if len(self._jobs) >= self._longest or self._ends:
                raise Busy
            self._jobs.append((job, future, loop))
            self._more.notify()
        return await future

    def stop(self) -> None:
        """Returns when all that wait are answered."""
        with self._more:
            self._ends = True
            self._more.notify()
        self._thread.join()

    def _take(self) -> list:
        """The next jobs; none at the end. One who asks alone never waits for others:
        only where several came the last time are as many awaited, for a moment."""
        with self._more:
            while not self._jobs and not self._ends:
                self._more.wait()
            until = time.monotonic() + WAIT
            while len(self._jobs) < self._last and not self._ends:
                left = until - time.monotonic()
                if left <= 0 or not self._more.wait(left):
                    break
            some = min(len(self._jobs), self._together)
            self._last = some
            return [self._jobs.popleft() for _ in range(some)]

    def _run(self) -> None:
        while taken := self._take():
            wanted = [one for one in taken if not one[1].cancelled()]
            try:
                results = self._answer([job for job, _, _ in wanted])
            except Exception as error:
                results = [error] * len(wanted)
            for (_, future, loop), result in zip(wanted, results, strict=True):
                with suppress(RuntimeError):  # its loop ended: nobody waits any more
                    loop.call_soon_threadsafe(_settle, future, result)


def _settle(future: asyncio.Future, result) -> None:
    if future.cancelled():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


# --- a model and what it is asked -----------------------------------------------------


class Model(NamedTuple):
    """An artifact, ready."""

    artifact: Artifact
    recommender: Recommender
    names: Names

    @property
    def version(self) -> str:
        return self.artifact.hash[:12]


def prepare(artifact: Artifact, *, trust: bool = False) -> Model:
    """A model that is warm and answers the artifact's own query as it should.

    Raises:
      InputError: it does not; the encoder is missing.
    """
    recommender = Recommender(artifact, trust=trust)
    recommender.warm_up()
    check_golden(recommender)
    return Model(artifact, recommender, Names(artifact))


def check_golden(recommender: Recommender) -> None:
    """Asks the query that the artifact carries and compares the answer with its own.

    Raises:
      InputError: the scores differ by more than a thousandth of the highest.
    """
    golden = recommender.manifest.get("golden")
    if not golden or not golden["items"]:  # its history has all items
        return
    k = len(golden["items"])
    if "user" in golden:
        user = recommender.user(golden["user"])
        items, scores = recommender.recommend_users([user], k)
    else:
        items, scores = recommender.recommend([golden["history"]], k)
    wanted = np.array(golden["scores"], np.float32)
    most = 1e-3 * max(np.abs(wanted).max(initial=0.0), 1e-6)
    off = np.abs(scores[0] - wanted).max(initial=0.0)
    if not off <= most:  # NaN too
        raise InputError(
            "the golden query has other scores here (off by "
            f"{off:.3g}, at most {most:.3g} is right); the encoder's module or JAX "
            "is another than at the export: export it again"
        )


class Recommend(NamedTuple):
    """Codes of a history, oldest first, or a known user's place; what may come."""

    model: Model
    history: tuple[int, ...]
    user: int | None
    k: int
    exclude: tuple[int, ...]
    allow: tuple[int, ...] | None
    hide_history: bool
    explain: bool


class Listed(NamedTuple):
    """Codes and scores of a list, best first; for each, if asked, the items of the
    history without which its score is lower, most first: (code, score without), which
    is None where nothing is left."""

    items: list[int]
    scores: list[float]
    because: list[list[tuple[int, float | None]]] | None = None


def answer(jobs: Sequence) -> list:
    """The results of jobs: a Recommend, or a function without arguments. An InputError
    stands where one is refused. Lists with equal rules are made together.
    """
    results = [None] * len(jobs)
    groups: dict[tuple, list[int]] = {}
    for place, job in enumerate(jobs):
        key = (place,)
        if isinstance(job, Recommend):
            rules = job.user is None, job.exclude, job.allow, job.hide_history
            key = id(job.model), *rules
        groups.setdefault(key, []).append(place)
    for places in groups.values():
        some = [jobs[place] for place in places]
        try:
            lists = isinstance(some[0], Recommend)
            found = recommend(some) if lists else [some[0]()]
        except InputError as error:
            found = [error] * len(some)
        for place, result in zip(places, found, strict=True):
            results[place] = result
    return results


def recommend(jobs: list[Recommend]) -> list[Listed]:
    first, recommender = jobs[0], jobs[0].model.recommender
    rules = {
        name: getattr(first, name) for name in ("exclude", "allow", "hide_history")
    }
    most = max(job.k for job in jobs)
    if first.user is None:
        histories = [job.history for job in jobs]
        items, scores = recommender.recommend(histories, most, **rules)
    else:
        users = [job.user for job in jobs]
        seen = [job.history for job in jobs]
        items, scores = recommender.recommend_users(users, most, seen=seen, **rules)
    listed = [
        _listed(row[: job.k], row_scores[: job.k])
        for job, row, row_scores in zip(jobs, items, scores, strict=True)
    ]
    return [
        one._replace(because=_because(job, one.items)) if job.explain else one
        for job, one in zip(jobs, listed, strict=True)
    ]


def _listed(items: np.ndarray, scores: np.ndarray) -> Listed:
    left = items > 0
    return Listed(items[left].tolist(), scores[left].tolist())


def _because(job: Recommend, items: list[int]) -> list[list]:
    """Leave one out, for all items of a list by one batch of vectors."""
    recommender = job.model.recommender
    known = recommender.known(job.history)
    if job.user is not None or not len(known) or recommender.kind == "constant":
        return [[] for _ in items]
    check_explained(recommender, known)
    read, queries = recommender.left_out(known)
    if not len(queries[-1]):  # nothing is left to score without it
        return [[(int(read[0]), None)] for _ in items]
    vectors = recommender.vectors(queries)
    scores = vectors @ job.model.artifact.items[items].T  # [n + 1, k]
    reasons = []
    for own, others in zip(scores[0], scores[1:].T, strict=True):
        strongest = {}  # of an item that comes again
        for place in np.argsort(others):
            if others[place] < own:
                strongest.setdefault(int(read[place]), float(others[place]))
        reasons.append(list(strongest.items())[:REASONS])
    return reasons


def check_explained(recommender: Recommender, known: np.ndarray) -> None:
    if min(len(known), recommender.max_len) > EXPLAINED:
        raise InputError(
            f"the history has {len(known)} known items; expected at most {EXPLAINED} "
            "where it is to be explained, for each is left out once"
        )


def similar(model: Model, item: int, k: int) -> Listed:
    return _listed(*model.recommender.similar(item, k))


def explain(
    model: Model, history: tuple[int, ...], item: int, hide_history: bool
) -> Explanation:
    recommender = model.recommender
    check_explained(recommender, recommender.known(history))
    return recommender.explain(history, item, hide_history=hide_history)
