"""The endpoints of `create_jax.serve`: what is asked over HTTP, checked and answered.

Bodies are checked by pydantic, names become codes here, and one thread scores
(`scoring.Worker`). Every error is `{"error": "one line"}`.
"""

import asyncio
import base64
import contextlib
import ctypes
import hashlib
import re
import threading
import time
from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Any

import prometheus_client as prometheus
import pyarrow
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from create_jax import artifact, scoring
from create_jax.errors import LONGEST, InputError, one_line
from create_jax.recommender import MOST

BODY = 2**20  # bytes of a request's body
NAME = 2000  # letters of an id or title
HISTORY, LIST = 1000, 10_000  # names of a history, of a list of items
NEAR = 5  # unknown names of a request for which items are suggested
NEAREST = 3  # items suggested for each of them
LATENCIES = [s / 1e3 for s in (1, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250, 1000, 5000)]

# --- what is asked and answered -------------------------------------------------------

Name = Annotated[str, Field(max_length=NAME)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendBody(Asked):
    """`history`: ids or titles, the oldest first. `allow`: the only items that may
    come; null allows all. `explain`: adds `because`."""

    history: list[Name] = Field([], max_length=HISTORY)
    user: Name | None = Field(
        None, description="a user of the training data, where the model knows users"
    )
    k: int = Field(10, ge=1, le=MOST)
    exclude: list[Name] = Field([], max_length=LIST)
    allow: list[Name] | None = Field(None, max_length=LIST)
    hide_history: bool = True
    explain: bool = False


class SimilarBody(Asked):
    item: Name
    k: int = Field(10, ge=1, le=MOST)


class VectorBody(Asked):
    history: list[Name] = Field(max_length=HISTORY)


class ExplainBody(Asked):
    """`item`: the id or title of any item, as of one that was recommended."""

    history: list[Name] = Field(max_length=HISTORY)
    item: Name
    hide_history: bool = True


class Item(BaseModel):
    id: str
    title: str | None = None


class Reason(Item):
    """`score_without`: null, where nothing of the history is left."""

    score_without: float | None


class Scored(Item):
    score: float
    because: list[Reason] | None = None


class Answer(BaseModel):
    """`unknown`: names of the request that are no item the model was trained with.
    `suggestions`: items near to them. `fallback`: how it was answered without any."""

    items: list[Scored]
    unknown: list[str]
    suggestions: dict[str, list[Item]] | None = None
    fallback: str | None = None
    model: str


class Found(BaseModel):
    items: list[Item]
    model: str


class VectorAnswer(BaseModel):
    """`vector`: null, where no item of the history is known."""

    vector: list[float] | None
    unknown: list[str]
    suggestions: dict[str, list[Item]] | None = None
    model: str


class Without(Item):
    score: float | None
    rank: int | None


class Explanation(BaseModel):
    """`history`: score and rank of the item without each of these; null, where none is
    left."""

    item: Item
    score: float
    rank: int
    history: list[Without]
    unknown: list[str]
    suggestions: dict[str, list[Item]] | None = None
    model: str


class Error(BaseModel):
    error: str


class Ready(BaseModel):
    ready: bool
    model: str


# --- the model that answers -----------------------------------------------------------


class NotReady(Exception):
    """The model is not loaded yet."""


class Service:
    """The model of a file, which may be changed while it answers, and its threads.

    Args:
      path: of the artifact. longest: requests that may wait for a score.
    """

    def __init__(self, path: str, *, trust: bool = False, longest: int = 256):
        self.path, self.trust = path, trust
        self.model: scoring.Model | None = None
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self.metrics = Metrics(self.registry)
        self.scorer = scoring.Worker(self._score, longest, scoring.TOGETHER)
        self.explainer = scoring.Worker(scoring.answer, longest)
        self.searcher = scoring.Worker(scoring.answer, longest)
        self.metrics.waiting.set_function(lambda: len(self.scorer))
        self._loading = threading.Lock()

    def load(self) -> scoring.Model:
        """Reads the file, warms the model up and lets it answer; the one before answers
        until then, and goes on where this one fails.

        Raises:
          InputError: the file or its model is not fit to answer.
        """
        with self._loading:
            try:
                found = artifact.read(self.path, mapped=False)
                model = scoring.prepare(found, trust=self.trust)
            except Exception as error:
                self.metrics.loads.labels("failed").inc()
                told = "" if isinstance(error, InputError) else type(error).__name__
                told = f"{told}: {error}".removeprefix(": ")
                told = told.removeprefix(f"{self.path}: ")
                raise InputError(f"{self.path}: {told}") from error
            self.metrics.loads.labels("done").inc()
            self.metrics.model.info({"hash": model.version})
            self.model, found = model, None
            give_back()
            return model

    def ready(self) -> scoring.Model:
        if self.model is None:
            raise NotReady
        return self.model

    def stop(self) -> None:
        for worker in (self.scorer, self.explainer, self.searcher):
            worker.stop()

    def _score(self, jobs: list) -> list:
        start = time.perf_counter()
        results = scoring.answer(jobs)
        self.metrics.scoring.observe(time.perf_counter() - start)
        self.metrics.together.observe(len(jobs))
        return results


def give_back() -> None:
    """Hands what was freed to the system, which Arrow and glibc else keep for later."""
    pyarrow.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


class Metrics:
    def __init__(self, registry: prometheus.CollectorRegistry):
        def made(kind, name, text, labels=(), **rest):
            return kind(f"create_jax_{name}", text, labels, registry=registry, **rest)

        histogram, counter = prometheus.Histogram, prometheus.Counter
        self.requests = made(
            counter, "requests", "Answers by endpoint and status", ("path", "status")
        )
        self.seconds = made(
            histogram, "request_seconds", "Seconds from a request to its answer",
            ("path",), buckets=LATENCIES,
        )  # fmt: skip
        self.scoring = made(
            histogram, "scoring_seconds", "Seconds of a batch", buckets=LATENCIES
        )
        self.together = made(
            histogram, "batch_requests", "Requests scored together",
            buckets=[1, 2, 4, 8, 16, 32],
        )  # fmt: skip
        self.waiting = made(prometheus.Gauge, "waiting", "Requests in the queue")
        self.loads = made(counter, "loads", "Models loaded, or not", ("result",))
        self.unknown = made(counter, "unknown_names", "Names that are no known item")
        self.fallbacks = made(counter, "fallbacks", "Lists without a known history")
        self.model = made(prometheus.Info, "model", "The model that answers")


# --- names ----------------------------------------------------------------------------


class Resolver:
    """Codes of the names of one request; what is unknown, and what is near to that."""

    def __init__(self, service: Service, model: scoring.Model):
        self._service, self._model = service, model
        self._codes: dict[str, int] = {}
        self.near: dict[str, list[int]] = {}  # unknown name -> codes; also those of
        self.unknown: list[str] = []  # which several items have the title

    async def codes(self, names: Sequence[str]) -> tuple[int, ...]:
        """Of the known names, in order."""
        new = [name for name in dict.fromkeys(names) if name not in self._codes]
        for start in range(0, len(new), 100):
            some = new[start : start + 100]
            for name, same in zip(some, self._same(some), strict=True):
                self._codes[name] = await self._code(name, same)
            await asyncio.sleep(0)  # others have a turn
        return tuple(self._codes[name] for name in names if self._codes[name])

    async def _code(self, name: str, same: list[int]) -> int:
        """0: unknown. same: the items of that name."""
        if len(same) == 1 and self._model.artifact.counts[same[0]] > 0:
            return same[0]
        if len(same) != 1 and len(self.near) < NEAR:
            self.near[name] = same or await self._nearest(name)
        self.unknown.append(name)
        self._service.metrics.unknown.inc()
        return 0

    def _same(self, names: list[str]) -> list[list[int]]:
        """Of each the item of an id, or else those of a title: of its letters, or of
        any."""
        ids, titles = self._model.artifact.ids, self._model.artifact.titles
        found = [ids.codes_of(name)[:1] for name in names]
        if titles is not None:
            both = zip(names, found, strict=True)
            found = [same or titles.codes_of(name) for name, same in both]
        apart = [n for n, same in zip(names, found, strict=True) if len(same) != 1]
        in_any = iter(self._model.names.named_all(apart))
        return [same if len(same) == 1 else next(in_any) for same in found]

    async def _nearest(self, name: str) -> list[int]:
        names = self._model.names
        try:
            return await self._service.searcher.ask(lambda: names.find(name, NEAREST))
        except scoring.Busy:  # a list without suggestions is better than none
            return []

    def told(self) -> dict[str, Any]:
        """The part of an answer that says what was unknown."""
        near = {
            name: [item(self._model, code) for code in self.near.get(name, ())]
            for name in self.unknown
        }
        near = {name: items for name, items in near.items() if items}
        return {"unknown": self.unknown} | ({"suggestions": near} if near else {})

    async def one(self, name: str) -> int:
        """The code of an item that has to be known.

        Raises:
          HTTPException: 404 with the nearest, 422 where several have that title.
        """
        (code,) = await self.codes([name]) or (0,)
        if code:
            return code
        shown, near = one_line(name, 80), self.near.get(name, [])
        ids, titles = self._model.artifact.ids, self._model.artifact.titles
        listed = "; ".join(
            f"{ids[code]} ({one_line(titles[code], 60)})" if titles else ids[code]
            for code in near[:5]
        )
        if len(self._model.names.named(name)) > 1:
            raise HTTPException(
                422,
                f"{shown!r} is the title of several items: {listed}; ask by an id",
            )
        if self._model.artifact.ids.code_of(name) is not None:
            raise HTTPException(404, f"the item {shown!r} was never trained")
        listed = f"; nearest: {listed}" if listed else ""
        raise HTTPException(404, f"no item has the id or title {shown!r}{listed}")


def item(model: scoring.Model, code: int, **more) -> dict[str, Any]:
    ids, titles = model.artifact.ids, model.artifact.titles
    title = titles[code] if titles is not None else ""
    return (
        {"id": ids[code], "title": title, **more}
        if title
        else {"id": ids[code], **more}
    )


def listed(model: scoring.Model, found: scoring.Listed) -> list[dict]:
    pairs = zip(found.items, found.scores, strict=True)
    rows = [item(model, code, score=score) for code, score in pairs]
    for row, reasons in zip(rows, found.because or (), strict=bool(found.because)):
        row["because"] = [item(model, c, score_without=score) for c, score in reasons]
    return rows


# --- the application ------------------------------------------------------------------


def as_json(content, status: int = 200, **headers) -> Response:
    """NaN and infinities, which JSON has not, become null."""
    text = to_json(content, inf_nan_mode="null")
    return Response(text, status, headers, media_type="application/json")


def error(status: int, text: object, **headers) -> Response:
    line = one_line(text, LONGEST).encode(errors="replace").decode()
    return as_json({"error": line}, status, **headers)


def wait_and_retry(text: str) -> Response:
    return error(503, text, **{"Retry-After": "1"})


BAD = {"model": Error}
ERRORS = {413: BAD, 422: BAD, 503: BAD, 400: BAD}


def make_app(service: Service) -> FastAPI:
    """All endpoints; `service` may still be loading."""
    app = FastAPI(
        title="create_jax", version="1", docs_url=None, redoc_url=None,
        redirect_slashes=False,  # it would go to the Host header's
        description="Recommendations of one model (docs/serve.md).",
    )  # fmt: skip
    app.add_middleware(Gate, metrics=service.metrics)
    _add_errors(app)

    @app.post("/recommend", response_model=Answer, responses=ERRORS)
    async def recommend(body: RecommendBody):
        """The best items after a history, best first."""
        model = service.ready()
        names = Resolver(service, model)
        history = await names.codes(body.history)
        exclude = await names.codes(body.exclude)
        allow = None if body.allow is None else await names.codes(body.allow)
        user = None
        if body.user is not None:  # an unknown one takes a search for the nearest
            find = model.recommender.user
            user = await service.searcher.ask(lambda: find(body.user))
        # A hundred queries for one: others need not wait for them.
        worker = service.explainer if body.explain else service.scorer
        found = await worker.ask(
            scoring.Recommend(
                model, history, user, body.k, exclude, allow, body.hide_history,
                body.explain,
            )
        )  # fmt: skip
        answer = {"items": listed(model, found)} | names.told()
        if user is None and (not history or model.recommender.kind == "user"):
            answer["fallback"] = "mostpop"
            service.metrics.fallbacks.inc()
        return as_json(answer | {"model": model.version})

    @app.post("/similar", response_model=Answer, responses=ERRORS | {404: BAD})
    async def similar(body: SimilarBody):
        """The items whose vectors point most nearly the same way."""
        model = service.ready()
        code = await Resolver(service, model).one(body.item)
        found = await service.scorer.ask(lambda: scoring.similar(model, code, body.k))
        answer = {"items": listed(model, found), "unknown": []}
        return as_json(answer | {"model": model.version})

    @app.post("/vector", response_model=VectorAnswer, responses=ERRORS)
    async def vector(body: VectorBody):
        """What a history is to the model: its inner products with items are scores."""
        model = service.ready()
        names = Resolver(service, model)
        history = await names.codes(body.history)
        vectors = model.recommender.vectors
        found = await service.scorer.ask(lambda: vectors([history])[0].tolist())
        answer = {"vector": found if history else None} | names.told()
        return as_json(answer | {"model": model.version})

    @app.post("/explain", response_model=Explanation, responses=ERRORS | {404: BAD})
    async def explain(body: ExplainBody):
        """How an item stands without each item of the history: leave one out."""
        model = service.ready()
        names = Resolver(service, model)
        code = await names.one(body.item)
        history = await names.codes(body.history)
        found = await service.explainer.ask(
            lambda: scoring.explain(model, history, code, body.hide_history)
        )
        without = [
            item(model, one, score=score, rank=rank or None)
            for one, score, rank in zip(
                found.history.tolist(), found.scores.tolist(), found.ranks.tolist(),
                strict=True,
            )
        ]  # fmt: skip
        answer = {"item": item(model, code), "score": found.score, "rank": found.rank}
        answer |= {"history": without} | names.told()
        return as_json(answer | {"model": model.version})

    @app.get("/items", response_model=Found, responses={422: BAD, 503: BAD})
    async def items(
        q: Annotated[str, Query(max_length=NAME)] = "",
        n: Annotated[int, Query(ge=1, le=100)] = 10,
    ):
        """Items by a part of their title or id; the most popular for no text."""
        model = service.ready()
        codes = await service.searcher.ask(lambda: model.names.find(q, n))
        found = [item(model, code) for code in codes]
        return as_json({"items": found, "model": model.version})

    @app.get("/model", response_model=dict[str, Any], responses={503: BAD})
    async def manifest():
        """What answers: method, config, protocol, metrics, data, versions."""
        model = service.ready()
        # The golden query is somebody's history.
        kept = {k: v for k, v in model.artifact.manifest.items() if k != "golden"}
        return as_json(kept | {"hash": model.artifact.hash})

    @app.get("/live", response_model=dict[str, bool])
    async def live():
        """The process answers."""
        return as_json({"live": True})

    @app.get("/ready", response_model=Ready, responses={503: BAD})
    async def ready():
        """The model is loaded and warm."""
        return as_json({"ready": True, "model": service.ready().version})

    @app.get("/metrics", response_class=Response)
    async def metrics():
        """For Prometheus."""
        text = prometheus.generate_latest(service.registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    page, policy = read_page()

    @app.get("/", include_in_schema=False)
    async def root():
        return Response(page, headers=policy, media_type="text/html; charset=utf-8")

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, bad: RequestValidationError):
        return error(422, what_is_wrong(bad.errors()[0]))

    @app.exception_handler(HTTPException)
    async def http(request: Request, bad: HTTPException):
        headers = dict(bad.headers or {})
        return error(bad.status_code, bad.detail, **headers)

    @app.exception_handler(InputError)
    async def refused(request: Request, bad: InputError):
        return error(422, bad)

    @app.exception_handler(scoring.Busy)
    async def busy(request: Request, bad: scoring.Busy):
        return wait_and_retry("too many requests wait; ask again later")

    @app.exception_handler(NotReady)
    async def not_ready(request: Request, bad: NotReady):
        return wait_and_retry("the model is being loaded; ask again later")

    @app.exception_handler(Exception)
    async def failed(request: Request, bad: Exception):
        return error(500, "the server failed; its log says how")


def what_is_wrong(bad: dict) -> str:
    """One line about the first error that pydantic found."""
    kind, (place, *parts) = bad["type"], bad["loc"]
    if kind == "json_invalid":
        return f"the body is no JSON: {bad['ctx']['error']}"
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
    name = name.removeprefix(".") or f"the {place}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"{name} is no name that this endpoint knows"
    found = one_line(repr(bad["input"]), 100)
    return f"{name} is {found}: {bad['msg'][0].lower()}{bad['msg'][1:]}"


class Gate:
    """Counts and times what comes in, and refuses bodies that are too large."""

    def __init__(self, app, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, size = time.perf_counter(), 500, 0
        headers = dict(scope["headers"])

        async def counted():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def noted(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > BODY:
                await error(413, TOO_LARGE)(scope, receive, noted)
            else:
                await self.app(scope, counted, noted)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)


TOO_LARGE = f"the body has more than {BODY:,} bytes; ask in parts"


def read_page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers by which a browser runs its own script alone."""
    page = resources.files("create_jax").joinpath("page.html").read_bytes()

    def hashes(tag: bytes) -> str:
        parts = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        found = (base64.b64encode(hashlib.sha256(part).digest()) for part in parts)
        return " ".join(f"'sha256-{one.decode()}'" for one in found)

    policy = (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src "
        f"{hashes(b'style')}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
