import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from create_jax import fetch, files
from create_jax.data.sources import SOURCES, Source
from create_jax.errors import InputError

BODY = os.urandom(300_000)
DIGEST = ("sha256", hashlib.sha256(BODY).hexdigest())


class Server(ThreadingHTTPServer):
    """Breaks off after `cut` bytes, `breaks` times; `asked` lists the Range headers."""

    breaks = 0
    cut = 100_000
    ranges = True
    status = 200
    body = BODY
    tags = {}  # headers that name the version of the file
    heeds = True  # If-Range

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        body = server.body
        start = int(asked[len("bytes=") : -1]) if asked and server.ranges else 0
        tied = self.headers.get("If-Range")
        if server.heeds and tied and tied not in server.tags.values():
            start = 0
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            return self.end_headers()
        if server.status != 200:
            return self.send_error(server.status)
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            last = len(body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
        for header in server.tags.items():
            self.send_header(*header)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = len(body)
        if server.breaks:
            server.breaks -= 1
            end = start + server.cut
        self.wfile.write(body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "folder" / "file")


def refusal(*args, **options):
    with pytest.raises(InputError) as caught:
        fetch.download(*args, pause=0, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def test_downloads(server, path):
    fetch.download(server.url, path, DIGEST)
    assert content(path) == BODY
    assert sorted(os.listdir(os.path.dirname(path))) == ["file", "file.sha256"]
    assert content(f"{path}.sha256").decode() == f"{DIGEST[1]}  file\n"
    assert server.asked == [None]


def test_resumes_within_a_run(server, path):
    server.breaks = 2
    fetch.download(server.url, path, DIGEST, pause=0)
    assert content(path) == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_resumes_in_the_next_run(server, path):
    server.tags, server.breaks, server.cut = {"ETag": '"1"'}, 5, 10_000
    text = refusal(server.url, path)
    assert "broke off 5 times" in text
    assert "file.part holds 50,000 bytes: run again to resume" in text
    assert not os.path.exists(path)
    fetch.download(server.url, path, DIGEST)
    assert content(path) == BODY
    assert server.asked[-1] == "bytes=50000-"


TAG, DATE = {"ETag": '"1"'}, {"Last-Modified": "Fri, 20 Nov 2026 08:00:00 GMT"}


@pytest.mark.parametrize("tags", [TAG, DATE, DATE | {"ETag": 'W/"1"'}])
def test_resumes_the_version_it_began_with(server, path, tags):
    server.tags, server.breaks, server.cut = tags, 5, 10_000
    assert "holds 50,000 bytes" in refusal(server.url, path)
    fetch.download(server.url, path)
    assert content(path) == BODY
    assert server.asked[-1] == "bytes=50000-"


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("tags", [TAG, DATE, {}])
def test_never_joins_two_versions(server, path, tags, heeds):
    server.tags, server.breaks, server.cut = tags, 5, 10_000
    refusal(server.url, path)
    server.body, server.heeds = BODY[::-1], heeds
    server.tags = {key: value.replace("1", "2") for key, value in tags.items()}
    if tags is DATE:
        server.tags = {"Last-Modified": "Sat, 21 Nov 2026 08:00:00 GMT"}
    fetch.download(server.url, path, pause=0)
    assert content(path) == BODY[::-1]
    assert sorted(os.listdir(os.path.dirname(path))) == ["file", "file.sha256"]


def test_another_address_is_another_file(server, path):
    server.tags, server.breaks, server.cut = TAG, 5, 10_000
    refusal(server.url, path)
    fetch.download(server.url.replace("/file", "/mirror"), path)
    assert server.asked[-1] is None


def test_redirects_stay_on_the_web(server, path):
    there = server.url.replace("/file", "/to/")
    fetch.download(there + server.url, path)
    assert content(path) == BODY
    for place in ("file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"):
        text = refusal(there + place, path + "2").removeprefix(there + place)
        assert place in text
    assert not os.path.exists(path + "2")
    assert "expected http(s)://" in refusal("file:///etc/hostname", path + "3")


@pytest.mark.parametrize(
    ("old", "new", "follows"),
    [("https", "http", False), ("https", "https", True), ("http", "https", True)],
)
def test_no_redirect_leaves_https(old, new, follows):
    request = fetch.Request(f"{old}://a/x")
    arguments = (request, None, 302, "Found", {}, f"{new}://b/y")
    if follows:
        assert (
            fetch._Redirects().redirect_request(*arguments).full_url == f"{new}://b/y"
        )
    else:
        with pytest.raises(InputError, match="redirects to http://b/y; expected https"):
            fetch._Redirects().redirect_request(*arguments)


def test_starts_over_where_the_server_ignores_ranges(server, path):
    server.breaks, server.ranges = 1, False
    fetch.download(server.url, path, DIGEST, pause=0)
    assert content(path) == BODY
    assert server.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_with_nothing_left_to_ask_for(server, path, extra):
    os.makedirs(os.path.dirname(path))
    with open(path + ".part", "wb") as file:
        file.write(BODY + extra)
    fetch.download(server.url, path, DIGEST, pause=0)
    assert content(path) == BODY
    assert server.asked == [f"bytes={len(BODY + extra)}-"] + [None] * bool(extra)


def test_deletes_a_part_with_a_wrong_checksum(server, path):
    server.body = BODY[:-1] + bytes([BODY[-1] ^ 1])  # a fixed byte might be its own
    text = refusal(server.url, path, checksum=DIGEST)
    assert f"expected {DIGEST[1]}: deleted the damaged download" in text
    assert os.listdir(os.path.dirname(path)) == []


def test_one_process_at_a_time_fetches_a_file(server, path):
    os.makedirs(os.path.dirname(path))
    with files.lock(Path(f"{path}.lock")):  # by another
        assert "another process is fetching it" in refusal(server.url, path)
    fetch.download(server.url, path, DIGEST)
    assert sorted(os.listdir(os.path.dirname(path))) == ["file", "file.sha256"]


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (503, 5)])
def test_server_errors(server, path, status, asked):
    server.status = status
    assert str(status) in refusal(server.url, path)
    assert len(server.asked) == asked
    assert not os.path.exists(path)


def test_unreachable_or_odd_addresses(path):
    assert "broke off 5 times" in refusal("http://127.0.0.1:1/file", path)
    assert "expected http(s)://" in refusal("nonsense", path)


def test_command(server, tmp_path, monkeypatch, capsys):
    known = Source("a/b.gz", server.url, DIGEST, "free; cite us")
    monkeypatch.setitem(SOURCES, "toy", known)
    assert fetch.main(["toy", f"--data={tmp_path}"]) == 0
    assert "300,000 bytes; terms: free; cite us" in capsys.readouterr().out
    assert content(tmp_path / "a" / "b.gz") == BODY
    assert fetch.main(["toy", f"--data={tmp_path}"]) == 0
    assert "already there" in capsys.readouterr().out
    assert server.asked == [None]

    server.status = 404
    assert fetch.main(["toy", f"--data={tmp_path}/2", f"--url={server.url}/x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {server.url}/x: the server says 404")
    assert err.count("\n") == 1
    assert fetch.main(["movietweetings"]) == 0


def test_command_line():
    command = [sys.executable, "-m", "create_jax.fetch", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: found data set 'nothing'; expected one of")
