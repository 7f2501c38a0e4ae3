"""Downloads from a real server on this machine, which can be told to misbehave."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vfx_engines.errors import DownloadError
from vfx_export import download
from vfx_export.download import cache_folder, fetch, is_url

DATA = bytes(range(256)) * 4096 + b"the end"
OTHER = bytes(reversed(DATA))
SHA256 = hashlib.sha256(DATA).hexdigest()
GIT_BLOB = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
GOOD = {"sha256": SHA256}


class Server(ThreadingHTTPServer):
    """Serves `data` under any path; the attributes say how badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.etag: str | None = '"one"'
        self.ranges = True
        self.lengths = True
        self.cut_after: list[int] = []  # bytes to send of each coming response before hanging up
        self.status: list[int] = []  # codes of the coming responses
        self.type = "application/octet-stream"
        self.redirect: str | None = None
        self.asked: list[str | None] = []  # Range of each request
        self.gate: threading.Event | None = None

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is part of the tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights/model.pth?token=secret"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        code = server.status.pop(0) if server.status else 200
        start = 0
        current = self.headers.get("If-Range", server.etag) == server.etag
        if code == 200 and wanted and server.ranges and current:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            code = 206 if start < len(server.data) else 416
        body = server.data[start:] if code in (200, 206) else b"<html>no</html>"
        self.send_response(302 if server.redirect else code)
        if server.redirect:
            self.send_header("Location", server.redirect)
        self.send_header("Content-Type", server.type)
        if server.etag:
            self.send_header("ETag", server.etag)
        if code == 206:
            whole = len(server.data)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if server.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.gate is not None:
            self.wfile.write(body[:1])
            self.wfile.flush()
            server.gate.wait(20)
            body = body[1:]
        self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSES_S", (0.0, 0.0, 0.0))
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def refusal(*args: object, **kwargs: object) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(*args, **kwargs)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "secret" not in text
    return text


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("lengths", [True, False], ids=["length", "no length"])
@pytest.mark.parametrize(
    "known",
    [GOOD, {"sha256": SHA256.upper()}, {"git_blob": GIT_BLOB}, {"sha256_prefix": SHA256[:8]}, {}],
    ids=["sha256", "capitals", "git blob", "prefix", "no hash"],
)
def test_a_download_is_whole_and_then_kept(server, tmp_path, known, lengths):
    server.lengths = lengths
    seen = []
    path = fetch(server.url, tmp_path, progress=lambda *state: seen.append(state), **known)
    assert path.name == "model.pth"
    assert path.read_bytes() == DATA
    total = len(DATA) if lengths else None
    assert seen[0] == (0, total)
    assert seen[-1] == (len(DATA), total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert fetch(server.url, tmp_path, **known) == path
    assert server.asked == [None]
    assert held(tmp_path) == ["model.pth"]


def test_a_given_name_is_used(server, tmp_path):
    assert fetch(server.url, tmp_path, filename="i3d.pt", **GOOD) == tmp_path / "i3d.pt"


def test_a_cut_connection_is_resumed_within_a_call(server, tmp_path):
    server.cut_after = [300_000, 200_000, 100_000, 100_000, 100_000]
    assert fetch(server.url, tmp_path, **GOOD).read_bytes() == DATA
    assert server.asked == [None, *(f"bytes={n}-" for n in (300000, 500000, 600000, 700000, 800000))]


@pytest.mark.parametrize("known", [GOOD, {"git_blob": GIT_BLOB}, {}], ids=["sha256", "git", "none"])
def test_a_later_call_resumes_the_part(server, tmp_path, known):
    server.cut_after, server.status = [300_000], [200, 503, 503, 503, 503]
    text = refusal(server.url, tmp_path, **known)
    assert "HTTP 503" in text
    assert "go on from 300000 bytes" in text
    assert held(tmp_path) == ["model.pth.part", "model.pth.part.etag"]
    server.asked.clear()
    server.status.clear()
    seen = []
    path = fetch(server.url, tmp_path, progress=lambda *state: seen.append(state), **known)
    assert path.read_bytes() == DATA
    assert server.asked == ["bytes=300000-"]
    assert seen[0] == (300_000, len(DATA))
    assert held(tmp_path) == ["model.pth"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.cut_after = [300_000]
    assert fetch(server.url, tmp_path, **GOOD).read_bytes() == DATA
    server.cut_after = [300_000] * 20
    assert "ended after 300000 of" in refusal(server.url, tmp_path, sha256="0" * 64)


@pytest.mark.parametrize("known", [{"sha256": hashlib.sha256(OTHER).hexdigest()}, {}])
def test_a_file_that_changed_is_not_glued_together(server, tmp_path, known):
    server.cut_after, server.status = [300_000], [200, 503, 503, 503, 503]
    refusal(server.url, tmp_path, **known)
    server.status.clear()
    server.data, server.etag = OTHER, '"two"'
    assert fetch(server.url, tmp_path, **known).read_bytes() == OTHER


def test_without_an_etag_and_a_hash_a_part_is_not_trusted(server, tmp_path):
    server.etag = None
    server.cut_after = [300_000]
    assert fetch(server.url, tmp_path).read_bytes() == DATA
    assert server.asked == [None, None]


def test_a_part_of_another_file_is_found_by_the_hash(server, tmp_path):
    server.etag = None
    (tmp_path / "model.pth.part").write_bytes(OTHER[:1000])
    assert fetch(server.url, tmp_path, **GOOD).read_bytes() == DATA
    assert server.asked == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_starts_over(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(DATA + b"more")
    assert fetch(server.url, tmp_path, **GOOD).read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA) + 4}-", None]


def test_a_part_that_was_whole_needs_no_server(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(DATA)
    assert fetch(server.url, tmp_path, **GOOD).read_bytes() == DATA
    assert server.asked == []


@pytest.mark.parametrize(
    ("known", "found"),
    [
        ({"sha256": "0" * 64}, SHA256),
        ({"git_blob": "0" * 40}, GIT_BLOB),
        ({"sha256_prefix": "0" * 8}, SHA256),
    ],
    ids=["sha256", "git blob", "prefix"],
)
def test_a_wrong_hash_leaves_nothing(server, tmp_path, known, found):
    text = refusal(server.url, tmp_path, **known)
    assert found in text
    assert next(iter(known.values())) in text
    assert held(tmp_path) == []
    assert server.asked == [None]


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path):
    (tmp_path / "model.pth").write_bytes(OTHER)
    assert fetch(server.url, tmp_path, **GOOD).read_bytes() == DATA


def test_files_of_one_name_without_a_hash_are_kept_apart(server, tmp_path):
    first = fetch(server.url, tmp_path)
    server.data = OTHER
    second = fetch(server.url.replace("weights", "others"), tmp_path)
    assert first.name == second.name
    assert first.read_bytes() == DATA
    assert second.read_bytes() == OTHER


@pytest.mark.parametrize("code", [404, 403, 410])
def test_a_file_that_is_not_there_is_said_at_once(server, tmp_path, code):
    server.status = [code] * 9
    text = refusal(server.url, tmp_path, **GOOD)
    assert f"HTTP {code}" in text
    assert "--checkpoint FILE" in text
    assert len(server.asked) == 1
    assert held(tmp_path) == []


@pytest.mark.parametrize("arriving", [0, 1000])
def test_every_pause_is_taken_and_the_attempts_are_counted(server, tmp_path, monkeypatch, arriving):
    paused = []
    monkeypatch.setattr(download, "_PAUSES_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(download.time, "sleep", paused.append)
    server.cut_after = [arriving, *[0] * 9]
    text = refusal(server.url, tmp_path, **GOOD)
    assert paused == [0.01, 0.02, 0.03]
    assert "after 3 more attempts" in text
    assert len(server.asked) == 4


def test_an_html_page_is_refused(server, tmp_path):
    server.type = "text/html; charset=utf-8"
    assert "HTML page" in refusal(server.url, tmp_path)
    assert held(tmp_path) == []


def test_redirects_are_followed_but_not_to_other_kinds_of_place(server, tmp_path):
    (tmp_path / "secret.pth").write_bytes(DATA)
    server.redirect = (tmp_path / "secret.pth").as_uri()
    refusal(server.url, tmp_path / "cache")
    with Server() as target:
        thread = threading.Thread(target=target.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.redirect = target.url
        assert fetch(server.url, tmp_path / "cache", **GOOD).read_bytes() == DATA
        target.shutdown()
        thread.join()


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PAUSES_S", (0.0,))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:  # bound and not listening: refuses
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        text = refusal(f"http://127.0.0.1:{port}/a.pt", tmp_path, **GOOD)
    assert "127.0.0.1" in text
    assert "refused" in text
    assert "--checkpoint FILE" in text
    text = refusal("https://no-such-host.invalid/a.pt", tmp_path, **GOOD)
    assert "cannot reach no-such-host.invalid" in text
    assert "--checkpoint FILE" in text


def test_file_urls(tmp_path):
    source = tmp_path / "with space.pt"
    source.write_bytes(DATA)
    path = fetch(source.as_uri(), tmp_path / "cache", **GOOD)
    assert path.name == "with space.pt"
    assert path.read_bytes() == DATA
    assert "cannot reach" in refusal((tmp_path / "none.pt").as_uri(), tmp_path / "cache")


@pytest.mark.parametrize(
    "url",
    ["ftp://host/a.pt", "a.pt", "http://host/", "http://host/..", "http://host/a%2Fb", "http://host:x/a"],
)
def test_urls_that_cannot_be_fetched(tmp_path, url):
    refusal(url, tmp_path)
    assert held(tmp_path) == []


def test_what_is_a_url():
    assert is_url("https://host/a.pt")
    assert is_url("FILE:///a.pt")
    assert not is_url("a.pt")
    assert not is_url("C:\\a.pt")
    assert not is_url("ftp://host/a.pt")


def test_a_full_disk_is_one_line(server, tmp_path):
    fetch(server.url, tmp_path).rename(tmp_path / "away")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "model.pth.part").symlink_to("/dev/full")
    text = refusal(server.url, tmp_path)
    assert "No space left on device" in text
    assert "VFX_CACHE" in text


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "cannot be written" in refusal("http://127.0.0.1:9/a.pt", tmp_path / "cache" / "deep")


def test_callers_of_one_file_wait_for_each_other(server, tmp_path):
    server.gate = threading.Event()
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(fetch(server.url, tmp_path, **GOOD))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    server.gate.set()
    for thread in threads:
        thread.join(20)
    assert paths == [tmp_path / "model.pth"] * 4
    assert paths[0].read_bytes() == DATA
    assert server.asked == [None]
    assert held(tmp_path) == ["model.pth"]


def test_a_killed_process_leaves_a_part_that_is_resumed(server, tmp_path):
    server.gate = threading.Event()
    code = (
        "import sys; from pathlib import Path; from vfx_export.download import fetch;"
        "fetch(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3],"
        " progress=lambda done, total: done and print(done, flush=True))"
    )
    command = [sys.executable, "-c", code, server.url, str(tmp_path), SHA256]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"1\n"
        child.kill()
    server.gate.set()
    server.gate = None
    assert held(tmp_path) == ["model.pth.part", "model.pth.part.etag"]
    assert fetch(server.url, tmp_path, **GOOD).read_bytes() == DATA
    assert held(tmp_path) == ["model.pth"]


def test_more_than_one_hash_or_a_short_one_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="enough"):
        fetch("http://host/a", tmp_path, sha256=SHA256, git_blob=GIT_BLOB)
    with pytest.raises(ValueError, match="64"):
        fetch("http://host/a", tmp_path, sha256=SHA256[:8])


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VFX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("VFX_CACHE", "~/weights")
    assert cache_folder() == Path.home() / "weights"
    monkeypatch.setenv("VFX_CACHE", "")
    assert cache_folder().name == "vfx"
    assert cache_folder().is_absolute()


def test_downloading_needs_no_torch():
    code = "import sys, vfx_export.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
