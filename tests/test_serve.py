"""`python -m create_jax.serve`: what it answers, refuses, holds and survives."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis.errors import Unsatisfiable

from benchmarks.serving import load
from create_jax import artifact, scoring, search, serve, service
from create_jax.artifact import Artifact, Texts, Users
from create_jax.errors import InputError
from create_jax.recommender import Recommender

ROOT = Path(__file__).parents[1]
N = 300
NEVER = "i299"  # was never trained
TITLES = {
    1: "The Matrix (1999)",
    2: "Amélie",
    3: "The Ring",
    4: "The Ring",
    5: "<img src=x onerror=alert(1)>",
    6: "Forest Gate",
    7: "The Forest",
    8: "Deep in the Forest, & Beyond",
}


def made(seed: int = 0, **changes) -> Artifact:
    """300 items of 8 dimensions, some with titles, the last never trained; a history's
    vector is the sum of its items'."""
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((N + 1, 8), dtype=np.float32)
    items[0] = 0
    counts = rng.integers(1, 50, N + 1)
    counts[[0, N]] = 0
    ids = ["", *(f"i{number - 1:03}" for number in range(1, N + 1))]
    titles = [TITLES.get(code, "") for code in range(N + 1)]
    found = Artifact(
        {"method": "svd", "query": "sum"}, items, Texts.of(ids), counts,
        Texts.of(titles),
    )  # fmt: skip
    found = replace(found, **changes)
    if "golden" not in found.manifest:
        listed, scores = Recommender(found).recommend([[1, 2]], 10)
        golden = {"items": listed[0].tolist(), "scores": scores[0].tolist()}
        golden["history"] = [1, 2]
        found = replace(found, manifest=found.manifest | {"golden": golden})
    return found


def made_of_users() -> Artifact:
    """The same items, of a method that knows the users u1 and u2 alone."""
    plain = made()
    users = Users(
        Texts.of(["u1", "u2"]), plain.items[[5, 9]], np.array([0, 1, 3]),
        np.array([5, 9, 1], np.int32),
    )  # fmt: skip
    about = {"method": "lightgcn", "query": "user"}
    found = replace(plain, manifest=about, users=users)
    listed, scores = Recommender(found).recommend_users([0], 10)
    golden = {"items": listed[0].tolist(), "scores": scores[0].tolist(), "user": "u1"}
    return replace(found, manifest=about | {"golden": golden})


@pytest.fixture
def path(tmp_path):
    artifact.write(tmp_path / "a.safetensors", made())
    return tmp_path / "a.safetensors"


def started(path, **settings):
    found = service.Service(str(path), **settings)
    return found, TestClient(service.make_app(found), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    path = tmp_path_factory.mktemp("serve") / "a.safetensors"
    artifact.write(path, made())
    found, client = started(path)
    found.load()
    with client:
        yield found, client
    found.stop()


@pytest.fixture
def client(running):
    return running[1]


def post(client, path, **body):
    return client.post(path, json=body)


# --- answers --------------------------------------------------------------------------


def test_a_list_is_the_recommender_s(running):
    held, client = running
    answer = post(client, "/recommend", history=["i000", "i010"], k=5).json()
    items, scores = held.model.recommender.recommend([[1, 11]], 5)
    assert [one["id"] for one in answer["items"]] == [f"i{i - 1:03}" for i in items[0]]
    assert [one["score"] for one in answer["items"]] == scores[0].tolist()
    assert answer["unknown"] == [] and answer["model"] == held.model.artifact.hash[:12]
    assert "fallback" not in answer and "because" not in answer["items"][0]
    seen = post(client, "/recommend", history=["i000", "i010"], hide_history=False)
    assert {"i000", "i010"} & {one["id"] for one in seen.json()["items"]}


def test_rules_of_a_request(client):
    def ids(**body):
        answer = post(client, "/recommend", history=["i000"], **body)
        return [one["id"] for one in answer.json()["items"]]

    plain = ids(k=6)
    assert ids(k=5, exclude=plain[:1]) == plain[1:]
    assert ids(allow=[plain[4], plain[2], NEVER]) == [plain[2], plain[4]]
    assert ids(k=1000) == ids(k=298) and len(ids(k=1000)) == N - 2


def test_near_items_are_suggested_of_the_first_five_unknown(client):
    names = [f"the matr{letter}x (1999)" for letter in "abcdefg"]
    answer = post(client, "/recommend", history=names).json()
    assert answer["unknown"] == names and [*answer["suggestions"]] == names[:5]


def test_because_counts_an_item_that_comes_again_once(client):
    """PureSVD sums the items of a history as a set."""
    once, twice = (
        post(client, "/recommend", history=names, explain=True).json()
        for names in (["i001", "i002"], ["i001", "i002", "i001"])
    )
    assert once == twice and any(len(one["because"]) for one in once["items"])
    alone = post(client, "/recommend", history=["i001", "i001"], explain=True).json()
    only = [{"id": "i001", "title": TITLES[2], "score_without": None}]
    assert alone["items"] and all(one["because"] == only for one in alone["items"])


def test_unknown_names_are_listed_and_near_ones_suggested(running):
    held, client = running
    before = held.registry.get_sample_value("create_jax_unknown_names_total")
    asked = ["i000", "nothing like it", "the matrx (1999)", NEVER]
    answer = post(client, "/recommend", history=asked).json()
    assert answer["unknown"] == asked[1:]
    assert answer["suggestions"]["the matrx (1999)"][0] == {
        "id": "i000",
        "title": "The Matrix (1999)",
    }
    assert "nothing like it" not in answer["suggestions"]
    alone = post(client, "/recommend", history=["i000"]).json()
    assert answer["items"] == alone["items"] and "suggestions" not in alone
    after = held.registry.get_sample_value("create_jax_unknown_names_total")
    assert after - before == 3


@pytest.mark.parametrize("history", [[], ["none of them"], [NEVER]])
def test_without_a_known_history_the_most_popular_come(running, history):
    held, client = running
    answer = post(client, "/recommend", history=history, explain=True).json()
    assert answer["fallback"] == "mostpop" and answer["unknown"] == history
    counts = np.sort(held.model.artifact.counts)[::-1][:10]
    assert [one["score"] for one in answer["items"]] == counts.tolist()
    assert all(one["because"] == [] for one in answer["items"])


def test_a_title_names_an_item_in_any_letters_unless_two_have_it(client):
    by_id = post(client, "/recommend", history=["i000", "i001"]).json()
    for names in (["The Matrix (1999)", "Amélie"], ["the matrix (1999)", "AMELIE"]):
        assert post(client, "/recommend", history=names).json() == by_id
    spelt = [text.format(1999) for text in ("THE MATRIX ({})", "The matrix ({})")]
    spelt += ["the  matrix (1999)", "tHE Matrix (1999)", "ThE Matrix (1999)", "AMÉLIE"]
    answer = post(client, "/recommend", exclude=[*spelt, "forest gate"], k=N).json()
    assert answer["unknown"] == []  # however many are spelt in other letters
    assert not {"i000", "i001", "i005"} & {one["id"] for one in answer["items"]}
    answer = post(client, "/recommend", history=["The Ring", "i000"]).json()
    assert answer["unknown"] == ["The Ring"]
    assert [one["id"] for one in answer["suggestions"]["The Ring"]] == ["i002", "i003"]
    refused = post(client, "/similar", item="the ring")
    assert refused.status_code == 422
    assert refused.json()["error"].endswith(
        "several items: i002 (The Ring); i003 (The Ring); ask by an id"
    )


def test_because_is_what_leaving_out_does(running):
    held, client = running
    history = ["i000", "i010", "i020", "i030"]
    answer = post(client, "/recommend", history=history, explain=True, k=4).json()
    assert any(one["because"] for one in answer["items"])
    for one in answer["items"]:
        scores = {}
        for left_out in history:
            rest = [name for name in history if name != left_out]
            body = {"history": rest, "allow": [one["id"]], "hide_history": False}
            (alone,) = post(client, "/recommend", **body).json()["items"]
            scores[left_out] = alone["score"]
        lower = sorted(
            (name for name in history if scores[name] < one["score"]), key=scores.get
        )
        assert [reason["id"] for reason in one["because"]] == lower[:3]
        for reason in one["because"]:
            assert reason["score_without"] == pytest.approx(scores[reason["id"]], 1e-5)


def test_one_item_explained(client):
    (only,) = post(client, "/recommend", history=["i009"], explain=True, k=1).json()[
        "items"
    ]
    assert only["because"] == [{"id": "i009", "score_without": None}]
    history = ["i000", "i010", "i020"]
    listed = post(client, "/recommend", history=history, k=5).json()["items"]
    answer = post(client, "/explain", history=history, item=listed[4]["id"]).json()
    assert answer["rank"] == 5 and answer["item"] == {"id": listed[4]["id"]}
    assert answer["score"] == pytest.approx(listed[4]["score"], 1e-5)
    assert [one["id"] for one in answer["history"]] == history
    alone = post(client, "/explain", history=["i000"], item="i001").json()["history"]
    nothing = {"id": "i000", "title": TITLES[1], "score": None, "rank": None}
    assert alone == [nothing]
    assert post(client, "/explain", history=[], item="i001").status_code == 422
    assert post(client, "/explain", history=["i000"], item="x").status_code == 404


def test_similar_and_vector(running):
    held, client = running
    answer = post(client, "/similar", item="i000", k=3).json()
    items, scores = held.model.recommender.similar(1, 3)
    assert [one["id"] for one in answer["items"]] == [f"i{i - 1:03}" for i in items]
    vector = post(client, "/vector", history=["i000", "x"]).json()
    assert vector["vector"] == held.model.artifact.items[1].tolist()
    assert vector["unknown"] == ["x"]
    assert post(client, "/vector", history=[]).json()["vector"] is None


def test_items_are_found_for_the_page(client):
    def found(text, n=5):
        answer = client.get("/items", params={"q": text, "n": n}).json()
        return [one["id"] for one in answer["items"]]

    assert found("forest")[0] == "i005"
    assert set(found("FOREST")) == {"i005", "i006", "i007"}
    assert found("i123") == ["i123"] and found("amelie") == ["i001"]
    assert found("beyond deep") == ["i007"] and found("matirx") == ["i000"]
    assert len(found("", 100)) == 100 and NEVER not in found("i299")
    assert found("zzzzqqq") == []


def test_the_manifest_and_the_page(running):
    held, client = running
    manifest = client.get("/model").json()
    assert manifest["method"] == "svd" and manifest["hash"] == held.model.artifact.hash
    assert "golden" not in manifest  # somebody's history
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.text and "innerHTML" not in page.text
    assert client.get("/docs").status_code == 404
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "page.html" in setup["package-data"]["create_jax"]  # the wheel has it


def test_metrics(client):
    post(client, "/recommend", history=["i000"])
    client.get("/no such place")
    text = client.get("/metrics").text
    for line in (
        'create_jax_requests_total{path="/recommend",status="200"}',
        'create_jax_requests_total{path="other",status="404"}',
        'create_jax_request_seconds_bucket{le="0.01",path="/recommend"}',
        "create_jax_batch_requests_count",
        "create_jax_waiting 0.0",
        'create_jax_loads_total{result="done"} 1.0',
    ):
        assert line in text, line


@pytest.fixture
def of(tmp_path):
    """A client of an artifact."""
    running = []

    def start(made):
        artifact.write(tmp_path / "b.safetensors", made)
        held, client = started(tmp_path / "b.safetensors")
        held.load()
        running.append(held)
        return client

    yield start
    for held in running:
        held.stop()


def test_a_model_of_known_users(of):
    client = of(made_of_users())
    answer = post(client, "/recommend", user="u1", explain=True).json()
    golden = made_of_users().manifest["golden"]
    assert [one["score"] for one in answer["items"]] == golden["scores"]
    assert "fallback" not in answer and answer["items"][0]["because"] == []
    assert "i004" not in {one["id"] for one in answer["items"]}  # seen in training
    first = [one["id"] for one in answer["items"]]
    again = post(client, "/recommend", user="u1", history=first[:1]).json()
    assert [one["id"] for one in again["items"]][:-1] == first[1:]  # seen meanwhile
    refused = post(client, "/recommend", user="u3")
    assert refused.status_code == 422 and "no user 'u3'" in refused.json()["error"]
    answer = post(client, "/recommend", history=["i000"]).json()
    assert answer["fallback"] == "mostpop" and answer["unknown"] == []
    for path, body in (
        ("/vector", {"history": ["i000"]}),
        ("/explain", {"history": ["i000"], "item": "i001"}),
    ):
        refused = post(client, path, **body)
        assert refused.status_code == 422 and len(refused.json()["error"]) > 20
    assert post(client, "/similar", item="i000").status_code == 200


def test_a_model_without_vectors_and_titles(of):
    plain = made()
    about = {"method": "mostpop", "query": "constant"}
    items = plain.counts[:, None].astype(np.float32)
    client = of(made(manifest=about, items=items, titles=None))
    answer = post(client, "/recommend", history=["i000"], explain=True).json()
    assert "fallback" not in answer and "title" not in answer["items"][0]
    assert answer["items"][0]["because"] == []
    refused = post(client, "/similar", item="i000")
    assert refused.status_code == 422 and "no item vectors" in refused.json()["error"]
    refused = post(client, "/similar", item="i00")
    assert refused.status_code == 404 and "nearest: i0" in refused.json()["error"]


# --- bad input ------------------------------------------------------------------------

BAD = {
    "k 0": ({"k": 0}, "k is 0: input should be greater than or equal to 1"),
    "k large": ({"k": 1001}, "k is 1001: input should be less than or equal to 1000"),
    "k text": ({"k": "5"}, "k is '5': input should be a valid integer"),
    "k float": ({"k": 5.0}, "k is 5.0: input should be a valid integer"),
    "k true": ({"k": True}, "k is True: input should be a valid integer"),
    "text": ({"history": "i000"}, "history is 'i000': input should be a valid list"),
    "numbers": ({"history": ["i0", 1]}, "history[1] is 1: input should be a valid str"),
    "null": ({"history": None}, "history is None: input should be a valid list"),
    "other name": ({"n": 1}, "n is no name that this endpoint knows"),
    "long": ({"history": ["i000"] * 1001}, "history is ["),
    "flag": ({"hide_history": 1}, "hide_history is 1: input should be a valid boolean"),
    "no dict": (["i000"], "the body is ['i000']: input should be a valid dictionary"),
    "allow": ({"allow": []}, "the lists of allowed and excluded items leave none"),
    "allow unknown": (
        {"allow": ["x"]},
        "the lists of allowed and excluded items leave",
    ),
    "user": ({"user": "u1"}, "svd reads a history and knows no users"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_in_one_line(client, name):
    body, told = BAD[name]
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 422
    (text,) = answer.json().values()
    assert text.startswith(told) and "\n" not in text and len(text) <= 500


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{nope", 422),
        (b'{"k": NaN}', 422),
        (b'{"history": ["\\ud800"]}', 422),
        (b'{"history": ["\xff"]}', 400),
        (b"[" * 100_000, 400),
        (b" " * (service.BODY + 1), 413),
        ((b" " * 1000 for _ in range(2000)), 413),  # of a length that nobody told
    ],
    ids=["empty", "no json", "nan", "surrogate", "no utf-8", "deep", "large", "stream"],
)
def test_a_body_that_is_none(client, body, status):
    headers = {"content-type": "application/json"}
    answer = client.post("/recommend", content=body, headers=headers)
    assert answer.status_code == status and list(answer.json()) == ["error"]


def test_names_that_are_no_item(client):
    answer = post(client, "/similar", item="the matrx (1999)")
    assert answer.status_code == 404
    assert answer.json()["error"] == (
        "no item has the id or title 'the matrx (1999)'; nearest: i000 (The Matrix "
        "(1999))"
    )
    answer = post(client, "/similar", item=NEVER)
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "the item 'i299' was never trained",
    )
    assert post(client, "/similar", item="").status_code == 404
    for path in ("/nothing", "/recommend", "/live/"):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code in (404, 405) and list(answer.json()) == ["error"]


def test_a_failure_of_the_server_is_told_apart(running, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(scoring, "recommend", broken)
    answer = post(running[1], "/recommend", history=["i000"])
    assert answer.status_code == 500 and "secret" not in answer.text
    assert list(answer.json()) == ["error"]


def test_before_the_model_is_ready(path):
    held, client = started(path)
    assert client.get("/live").status_code == 200
    for answer in (
        client.get("/ready"),
        client.get("/model"),
        post(client, "/similar", item="a"),
    ):
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    held.load()
    assert client.get("/ready").json()["ready"]
    held.stop()


# --- the queue ------------------------------------------------------------------------


class Held:
    """A worker whose first batch waits until it is let go."""

    def __init__(self, longest=100, together=32):
        self.go, self.begun, self.batches = threading.Event(), threading.Event(), []
        self.worker = scoring.Worker(self.answer, longest, together)

    def answer(self, jobs):
        self.batches.append(len(jobs))
        self.begun.set()
        assert self.go.wait(20)
        return [ValueError(job) if job < 0 else 10 * job for job in jobs]

    async def ask_all(self, jobs):
        asked = [asyncio.ensure_future(self.worker.ask(jobs[0]))]
        await asyncio.to_thread(self.begun.wait)
        asked += [asyncio.ensure_future(self.worker.ask(job)) for job in jobs[1:]]
        await asyncio.sleep(0.01)
        return asked


def test_those_who_wait_are_answered_together():
    async def run():
        held = Held()
        asked = await held.ask_all(range(41))
        asked[7].cancel()
        held.go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers.pop(7), asyncio.CancelledError)
        assert answers == [10 * n for n in range(41) if n != 7]
        assert held.batches == [1, 31, 8]
        held.worker.stop()

    asyncio.run(run())


def test_one_who_asks_alone_does_not_wait(monkeypatch):
    monkeypatch.setattr(scoring, "WAIT", 30.0)

    async def run():
        held = Held()
        held.go.set()
        start = time.monotonic()
        assert await held.worker.ask(4) == 40 and await held.worker.ask(5) == 50
        assert time.monotonic() - start < 20
        held.worker.stop()

    asyncio.run(run())


def test_a_full_queue_and_an_end():
    async def run():
        held = Held(longest=3)
        asked = await held.ask_all([1, 2, -3, 4])
        with pytest.raises(scoring.Busy):
            await held.worker.ask(5)
        assert len(held.worker) == 3
        ending = threading.Thread(target=held.worker.stop)
        ending.start()
        await asyncio.sleep(0.01)
        held.go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[:2] == [10, 20] and answers[3] == 40
        assert isinstance(answers[2], ValueError)
        ending.join()
        with pytest.raises(scoring.Busy):
            await held.worker.ask(6)

    asyncio.run(run())


def test_a_loop_that_ends_meanwhile_ends_no_worker():
    held = Held()

    async def run():
        await held.ask_all([1])

    asyncio.run(run())
    held.go.set()

    async def again():
        assert await asyncio.wait_for(held.worker.ask(2), 20) == 20

    asyncio.run(again())
    held.worker.stop()


def test_a_full_queue_over_http(path, monkeypatch):
    held, client = started(path, longest=1)
    held.load()
    begun, go = threading.Event(), threading.Event()

    def slow(jobs):
        begun.set()
        assert go.wait(20)
        return [scoring.Listed([1], [1.0])] * len(jobs)

    monkeypatch.setattr(scoring, "recommend", slow)
    with client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, client, "/recommend", history=["i000"])
        assert begun.wait(20)
        second = pool.submit(post, client, "/recommend", history=["i000"])
        while not len(held.scorer):
            time.sleep(0.001)
        refused = post(client, "/recommend", history=["i000"])
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        go.set()
        assert first.result().status_code == second.result().status_code == 200
    held.stop()


def test_together_is_as_alone(running):
    model, rng = running[0].model, np.random.default_rng(0)
    rules = [((), None, True), ((), None, False), ((5, 9), None, True)]
    rules += [((), tuple(range(20, 80)), True)]
    jobs = []
    for number in range(40):
        history = tuple(rng.integers(1, N, number % 7).tolist())
        exclude, allow, hide = rules[number % 4]
        jobs.append(
            scoring.Recommend(
                model, history, None, 1 + number, exclude, allow, hide, number % 5 == 0
            )
        )
    jobs.append(lambda: scoring.similar(model, 3, 5))
    jobs.append(lambda: model.recommender.vectors([(1, 2)])[0].tolist())
    jobs += [jobs[0]._replace(allow=(N,))]
    together = scoring.answer(jobs)
    assert isinstance(together[-1], InputError)
    for job, found in zip(jobs[:-1], together, strict=False):
        assert scoring.answer([job]) == [found]


# --- what the OpenAPI file says -------------------------------------------------------


@pytest.mark.services
def test_what_is_described_is_so(client):
    """Of generated requests, right and wrong: no failure of the server, and no status,
    type or body that is not described."""
    import schemathesis  # takes a second or two
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    described = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    statuses = Counter()
    for found in described.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode:

            @settings(max_examples=30, deadline=None, derandomize=True, database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                # Lists that leave nothing are refused, which no schema can say.
                answer = case.call_and_validate(
                    excluded_checks=[positive_data_acceptance]
                )
                statuses[case.operation.path, answer.status_code] += 1

            try:
                check()
            except Unsatisfiable:  # nothing can be wrong with GET /live
                assert mode == GenerationMode.NEGATIVE and operation.method == "get"
    assert statuses["/recommend", 200] > 5 and statuses["/recommend", 422] > 5


def test_a_golden_query_of_the_whole_catalogue_is_no_fault():
    golden = {"history": [1, 2], "items": [], "scores": []}
    held = made(manifest={"method": "svd", "query": "sum", "golden": golden})
    assert scoring.prepare(held).artifact is held


# --- another model while it answers ---------------------------------------------------


def test_a_reload_and_reloads_that_fail(path):
    held, client = started(path)
    first = held.load().version
    artifact.write(path, made(1))
    second = held.load().version
    answer = post(client, "/recommend", history=["i000"]).json()
    assert first != second == answer["model"]
    whole = path.read_bytes()
    other = made(2)
    golden = other.manifest["golden"]
    wrong = golden | {"scores": [s + 0.5 for s in golden["scores"]]}
    damaged = bytearray(whole)
    damaged[-100] ^= 1
    for content, told in (
        (replace(other, manifest=other.manifest | {"golden": wrong}), "golden query"),
        (bytes(damaged), "damaged"),
        (whole[: len(whole) // 2], "cut off"),
        (b"", "safetensors"),
        (
            replace(other, manifest={"method": "x", "query": "new", "golden": golden}),
            "Error",
        ),
        (None, "No such file"),
    ):
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            artifact.write(path, content)
        with pytest.raises(InputError, match=told) as refused:
            held.load()
        assert "\n" not in str(refused.value) and str(path) in str(refused.value)
        assert post(client, "/recommend", history=["i000"]).json() == answer
    loads = held.registry.get_sample_value
    assert loads("create_jax_loads_total", {"result": "done"}) == 2
    assert loads("create_jax_loads_total", {"result": "failed"}) == 6
    held.stop()


def test_the_file_may_be_written_over(path):
    held, client = started(path)
    held.load()
    before = post(client, "/recommend", history=["i000"], explain=True).json()
    path.write_bytes(b"\xff" * path.stat().st_size)  # the mapping would see this
    after = post(client, "/recommend", history=["i000"], explain=True).json()
    assert before == after
    held.stop()


def test_a_file_written_over_while_it_is_read_is_a_reload_that_fails(path, monkeypatch):
    """By `cp`, which begins with an empty file: what maps that is ended by a signal."""
    held, client = started(path)
    version = held.load().version
    digest, content = artifact._digest, path.read_bytes()

    def beside(*args):
        path.write_bytes(b"\0" * len(content))
        return digest(*args)

    monkeypatch.setattr(artifact, "_digest", beside)
    assert held.load().version == version  # what was read is what is checked
    assert post(client, "/recommend", history=["i000"]).status_code == 200
    monkeypatch.setattr(artifact.np, "fromfile", lambda *_, **__: np.zeros(9, np.uint8))
    path.write_bytes(content)
    with pytest.raises(InputError, match="cut off"):
        held.load()
    assert post(client, "/recommend", history=["i000"]).json()["model"] == version
    held.stop()


# --- the command ----------------------------------------------------------------------


def refused(capsys, *args) -> str:
    assert serve.main([str(arg) for arg in args]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and len(told) <= 501
    return told


def test_what_keeps_it_from_starting(path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = refused(capsys, path, f"--port={port}")
        assert f"127.0.0.1:{port} (Address already in use)" in told
        assert "--port" in told
    assert "--host" in refused(capsys, path, "--port=0", "--host=203.0.113.7")
    assert "--host" in refused(capsys, path, "--port=0", "--host=no.such.host.invalid")
    assert "--mode=export" in refused(capsys, path.with_name("none"))
    broken = path.with_name("broken.safetensors")
    broken.write_bytes(path.read_bytes()[:1000])
    assert "cut off" in refused(capsys, broken)
    for flag in ("--port=70000", "--queue=0", "--port=x"):
        with pytest.raises(SystemExit) as end:
            serve.main([str(path), flag])
        assert end.value.code == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    told = refused(capsys, path)
    assert "uvicorn is not installed" in told and "create_jax[serve]" in told


def test_an_answer_does_not_wait_for_an_acknowledgement():
    with serve.listen("127.0.0.1", 0) as place:  # asyncio's condition for TCP_NODELAY
        assert place.proto == socket.IPPROTO_TCP and place.type == socket.SOCK_STREAM


def test_a_damaged_artifact_of_which_the_header_is_whole(path, capsys):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert "damaged" in refused(capsys, path, "--port=0")


@contextmanager
def running_program(path):
    """The server as a program, and its address."""
    command = [sys.executable, "-m", "create_jax.serve", str(path), "--port=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=Path(path).parent,
    ) as program:  # fmt: skip
        try:
            line = program.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line + program.stdout.read()
            yield program, line.split()[0]
        finally:
            program.kill()


@pytest.fixture
def process(path):
    with running_program(path) as found:
        yield found


@pytest.mark.services
def test_signals(process, path):
    program, address = process
    host, port = address.removeprefix("http://").split(":")

    def ask(body: bytes, pause=lambda: None):
        """An answer to a request whose body comes in two parts."""
        with socket.create_connection((host, int(port)), timeout=20) as wire:
            head = f"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
            kind = "content-type: application/json\r\nconnection: close\r\n\r\n"
            wire.sendall(f"{head}\r\n{kind}".encode() + body[:5])
            pause()
            wire.sendall(body[5:])
            found = b""
            while part := wire.recv(2**16):
                found += part
        head, _, text = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), found
        return json.loads(text)

    body = b'{"history": ["i000"]}'
    first = ask(body)
    artifact.write(path, made(1))
    program.send_signal(signal.SIGHUP)
    line = program.stdout.readline()
    second = ask(body)
    assert line.startswith("reloaded svd, 300 items") and second["model"] in line
    assert second["model"] != first["model"]
    path.write_bytes(b"nothing")
    program.send_signal(signal.SIGHUP)
    assert program.stdout.readline().startswith(
        "not reloaded, the model before answers"
    )
    assert ask(body) == second

    def stop():
        program.send_signal(signal.SIGTERM)
        time.sleep(0.5)

    assert ask(body, stop) == second  # it came before the signal
    assert program.wait(20) == 0
    assert program.stdout.read() == ""
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.services
def test_an_encoder_under_load(tmp_path):
    """32 clients at once, then requests at a rate, of a transformer's artifact."""
    load.write(tmp_path / "a.safetensors", 2000, 16, 0)
    server = load.Server(tmp_path / "a.safetensors")
    client = load.Client(server.port, 2000)

    async def run():
        for times in (
            await load.closed(client, 32, 2),
            await load.opened(client, 50, 2),
        ):
            assert set(times.statuses) == {200} and len(times.latencies) > 50
        client.close()

    asyncio.run(run())
    assert server.stop() == 0


def test_names_are_found_by_bytes_of_any_script():
    titles = ["", "Über uns", "東京物語", "東京の夜", "a\tb\nc", "The  Ring", "Strasse"]
    ids = ["", *(f"x{n}" for n in range(1, len(titles)))]
    items = np.zeros((len(ids), 2), np.float32)
    counts = np.array([0, 5, 4, 3, 2, 1, 6])
    names = search.Names(Artifact({}, items, Texts.of(ids), counts, Texts.of(titles)))
    assert names.find("uber", 3) == [1] and names.named("ÜBER UNS") == [1]
    assert names.find("東京", 3) == [2, 3] and names.find("京の", 3) == [3]
    assert names.find("a b c", 3) == [4] and names.named("the ring") == [5]
    assert names.find("straße", 3) == [6] and names.find("", 2) == [6, 1]
    assert names.named("x3") == [3] and names.named("X3") == []
    assert names.nearest("the rnig", 3) == [5] and names.nearest("", 3) == []
    without = search.Names(Artifact({}, items, Texts.of(ids), counts))
    assert without.find("x2", 3) == [2] and without.find("X2", 3) == [2]


def test_names_are_read_without_case_accents_and_spaces():
    """As Python writes it, for every character since Unicode 3.2; Arrow folds Cherokee
    to small letters and Python to capitals."""
    known = unicodedata.ucd_3_2_0.category
    codes = [i for i in range(0x110000) if known(chr(i)) not in ("Cn", "Co", "Cs")]
    texts = [f"a{chr(i)}b" for i in codes if not 0x13A0 <= i <= 0x13FF]
    found = search.plain(pa.array(texts, pa.large_string())).to_pylist()

    def by_python(text):
        apart = unicodedata.normalize("NFKD", text)
        bare = "".join(c for c in apart if not unicodedata.combining(c))
        return " ".join(bare.casefold().split())

    assert found == [*map(by_python, texts)]
    assert search.plain_text("  STRASSE\u3000\tN\ud800 ") == "strasse n?"


def test_a_whole_id_or_title_is_found_among_many():
    """Most names have these letters, and other titles are the same."""
    ids = ["", *(f"9{n}" for n in range(search.HITS)), "9", "77", "M", "m"]
    titles = ["", *("7 x" for _ in range(search.HITS)), "", "9", "7", ""]
    counts = np.array([0, *range(len(ids) + 9, 10, -1)])
    items = np.zeros((len(ids), 1), np.float32)
    made = Artifact({}, items, Texts.of(ids), counts, Texts.of(titles))
    names, last = search.Names(made), search.HITS
    assert names.named("7 X") == [*range(1, last + 1)] and names.named("x") == []
    assert names.find("9", 3) == [last + 1, last + 2, 1]
    assert names.find("7", 1) == [last + 3]
    assert names.find("m", 2) == [last + 4, last + 3] and names.find("M", 1) == [
        last + 3
    ]


def test_names_that_are_no_utf_8_are_found_by_the_rest():
    texts = Texts.of(["", "wxne", "beer"])
    bytes_ = np.frombuffer(b"w\xffnebeer", np.uint8)
    titles = Texts(bytes_, texts.offsets, texts.order)
    ids = Texts.of(["", "1", "2"])
    made = Artifact({}, np.zeros((3, 1)), ids, np.array([0, 1, 1]), titles)
    names = search.Names(made)
    assert names.find("beer", 3) == [2] and names.named("2") == [2]
    assert names.find("ne", 3) == [1]
