"""Videos, folders and lists at URLs: names, fetching, failures; with fsspec's memory, file and HTTP."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from make_video import make_video
from run_kit import failures, files_in, vfx_run
from tiny import tiny_engine
from vfx_engines.errors import UsageError, VideoError
from vfx_runtime import extract, remote
from vfx_runtime.inputs import find_videos


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """A bucket with two videos, a list, and files that are not videos."""
    files = fsspec.filesystem("memory")
    for name, frames in (("a.mp4", 9), ("sub/b.mp4", 13)):
        local = make_video(tmp_path / "made.mp4", frames=frames)
        files.pipe(f"/bucket/clips/{name}", local.read_bytes())
    files.pipe("/bucket/clips/.hidden.mp4", b"no video")
    files.pipe("/bucket/clips/notes.md", b"notes")
    files.pipe("/bucket/list.txt", b"clips/a.mp4\n/clips/sub/b.mp4\nmemory://bucket/clips/none.mp4\n")
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tiny_engine(tmp_path / "tiny.onnx")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine, with one video."""
    (tmp_path / "www").mkdir()
    make_video(tmp_path / "www" / "a.mp4", frames=9)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_one_url_from_python(memory: str, engine: Path) -> None:
    assert extract(f"{memory}/clips/a.mp4", engine).arrays["features"].shape == (2, 4)
    with pytest.raises(VideoError, match=f"^{memory}/clips/none.mp4: cannot be fetched: no such file"):
        extract(f"{memory}/clips/none.mp4", engine)


def test_a_folder_and_a_list(memory: str) -> None:
    assert [(job.url, job.name) for job in find_videos([f"{memory}/clips"])] == [
        (f"{memory}/clips/a.mp4", "a"),
        (f"{memory}/clips/sub/b.mp4", "sub/b"),
    ]
    jobs = find_videos([f"{memory}/list.txt"])
    assert [job.name for job in jobs] == ["clips/a", "clips/sub/b", "clips/none"]
    rooted = find_videos([f"{memory}/clips"], Path(memory))
    assert [job.name for job in rooted] == ["clips/a", "clips/sub/b"]


def test_urls_in_a_local_list(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "video,label\ns3://bucket/x.1.mp4,1\nhttps://host/v/y.mp4?key=a/b.c,2\nz.mp4,3\n"
    )
    jobs = find_videos([tmp_path / "list.csv"])
    assert [job.name for job in jobs] == ["x.1", "y", "z"]
    assert [job.url for job in jobs] == ["s3://bucket/x.1.mp4", "https://host/v/y.mp4?key=a/b.c", None]


@pytest.mark.parametrize("url", ["s3://bucket/../x.mp4", "zip://x.mp4::s3://bucket/a.zip"])
def test_urls_that_lead_elsewhere_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected a plain URL"):
        find_videos([url])


def test_a_kind_of_url_that_needs_a_package_says_which() -> None:
    with pytest.raises(UsageError, match=r"s3fs|boto"):
        find_videos(["s3://bucket/clips"])


def test_the_features_are_those_of_the_local_file(memory: str, engine: Path, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    (tmp_path / "clips" / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/b.mp4"):
        (tmp_path / "clips" / name).write_bytes(files.cat(f"/bucket/clips/{name}"))
    here, there = tmp_path / "here", tmp_path / "there"
    assert vfx_run("--engine", engine, tmp_path / "clips", "--output", here).exit_code == 0
    done = vfx_run("--engine", engine, f"{memory}/clips", "--output", there)
    assert done.exit_code == 0, done.output
    assert files_in(there) == {"a.npz", "sub/b.npz"}
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in files_in(here))
    again = vfx_run("--engine", engine, f"{memory}/clips", "--output", there)
    assert "0 done, 2 were done before" in again.stderr
    files.pipe("/bucket/clips/a.mp4", files.cat("/bucket/clips/sub/b.mp4"))
    changed = vfx_run("--engine", engine, f"{memory}/clips", "--output", there)
    assert "1 done, 1 were done before" in changed.stderr


def test_failures_name_the_url(memory: str, engine: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/bucket/clips/bad.mp4", b"no video at all")
    done = vfx_run(
        "--engine",
        engine,
        f"{memory}/clips",
        f"{memory}/list.txt",
        "--root",
        memory,
        "--output",
        tmp_path / "out",
        "--report",
        tmp_path / "run.html",
    )
    assert done.exit_code == 1
    page = (tmp_path / "run.html").read_text("utf-8")
    assert ">memory://bucket/clips/none.mp4<" in page
    assert "memory:/bucket" not in page
    said = failures(tmp_path / "out")
    assert said.keys() == {"clips/bad", "clips/none"}
    assert said["clips/bad"].startswith("memory://bucket/clips/bad.mp4: ")
    assert said["clips/none"] == "memory://bucket/clips/none.mp4: cannot be fetched: no such file"
    assert "/proc/" not in done.output


def test_nothing_is_left_of_a_copy(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with remote.fetched(f"{memory}/clips/a.mp4") as path:
        assert len(path.read_bytes()) == remote.size_of(f"{memory}/clips/a.mp4")
        assert list((tmp_path / "temporary").iterdir()) == []
        files = len(os.listdir("/proc/self/fd"))
    assert len(os.listdir("/proc/self/fd")) < files


def test_a_file_that_ends_early_is_no_video(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory")
    monkeypatch.setattr(type(files), "size", lambda self, path: 10**6)
    with (
        pytest.raises(VideoError, match="bytes came, expected 1000000"),
        remote.fetched(f"{memory}/clips/a.mp4"),
    ):
        pass


def test_over_file_urls_and_http(server: str, engine: Path, tmp_path: Path) -> None:
    done = vfx_run("--engine", engine, (tmp_path / "www" / "a.mp4").as_uri(), "--output", tmp_path / "f")
    assert done.exit_code == 0, done.output
    pytest.importorskip("aiohttp")
    done = vfx_run("--engine", engine, f"{server}/a.mp4", "--output", tmp_path / "h")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "h" / "a.npz").read_bytes() == (tmp_path / "f" / "a.npz").read_bytes()


def test_a_server_that_is_away_or_refuses_is_no_missing_file(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404 if "none" in self.path else 403)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as httpd:
        url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        for name, says in (("a.mp4", "403, .*Forbidden"), ("none.mp4", "no such file$")):
            with (
                pytest.raises(VideoError, match=f"{name}: cannot be fetched: {says}"),
                remote.fetched(f"{url}/{name}"),
            ):
                pass
        httpd.shutdown()
        thread.join()
    with pytest.raises(VideoError, match="cannot be fetched: Cannot connect"), remote.fetched(f"{url}/a.mp4"):
        pass
