"""Bad input: each case gives the right rows, or one line that says what to do, and other videos are done.

Bad checkpoints are tested in tests/export, and the decoder alone in test_decode.py. Here, each case goes
through the command, together with good videos.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from broken import cut, spoil
from make_video import make_video
from run_kit import expected_rows, failures, files_in, vfx_run
from tiny import tiny_engine
from tolerances import TINY
from vfx_runtime import read_features

VFX_RUN = Path(sys.executable).with_name("vfx-run")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("engine") / "tiny.onnx")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("good")
    return [make_video(folder / f"good{i}.mp4", frames=9 + 8 * i) for i in range(2)]


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def folder_called(path: Path) -> Path:
    path.mkdir()
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "none.mp4", "No such file"),
    "not a video": (lambda d: text(d / "a.mp4", b"these are words, not pictures\n" * 40), "not a video"),
    "a picture of another kind": (
        lambda d: text(d / "a.mp4", b"%PDF-1.7\n" + bytes(range(256)) * 9),
        "not a video",
    ),
    "zero bytes": (lambda d: text(d / "a.mp4", b""), "empty"),
    "truncated, no index": (lambda d: cut(make_video(d / "a.mp4", frames=40), 0.6), "truncated"),
    "truncated, index first": (
        lambda d: cut(make_video(d / "a.mp4", frames=40, container_options={"movflags": "faststart"}), 0.6),
        "truncated",
    ),
    "truncated to its header": (lambda d: cut(make_video(d / "a.mp4", frames=40), 0.01), ""),
    "truncated matroska": (lambda d: cut(make_video(d / "a.mkv", frames=40), 0.6), "truncated"),
    "damaged in the middle": (lambda d: spoil(make_video(d / "a.mp4", frames=40), 0.5), "damaged"),
    "damaged in the middle, hevc": (
        lambda d: spoil(make_video(d / "a.mp4", codec="hevc", frames=40), 0.5),
        "damaged",
    ),
    "no video stream": (lambda d: make_video(d / "a.mp4", frames=0, audio=True), "no video"),
    "sound alone": (lambda d: make_video(d / "a.mp3", frames=0, audio=True), "not a video"),
    "one frame": (lambda d: make_video(d / "a.mp4", frames=1), "1 frame, a window of tiny needs 4"),
    "shorter than a window": (
        lambda d: make_video(d / "a.mp4", frames=3),
        "3 frames, a window of tiny needs 4",
    ),
    "too long and thin": (lambda d: make_video(d / "a.mp4", width=2000, height=16, frames=5), ""),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_video_fails_alone(engine: Path, good: list[Path], tmp_path: Path, what: str) -> None:
    make, said = BAD[what]
    bad = make(tmp_path)
    output = tmp_path / "out"
    result = vfx_run("--engine", engine, good[0], bad, good[1], "--output", output)

    if what == "too long and thin":  # 2500 x 20 after resizing, which is fine
        assert result.exit_code == 0, result.stderr
        return
    assert result.exit_code == 1, result.stderr
    lines = {line for line in result.stderr.splitlines() if bad.name in line}
    (reason,) = failures(output).values()
    assert bad.name in reason
    assert said in reason
    assert reason.isprintable()
    assert lines == {f"failed: {reason}", f"  {reason}"}
    assert "Traceback" not in result.stderr
    for video in good:
        found = read_features(output / f"{video.stem}.npz")
        np.testing.assert_allclose(found.arrays["features"], expected_rows(video), rtol=TINY)
    assert files_in(output) == {"good0.npz", "good1.npz", "failures.jsonl"}


ODD: dict[str, Callable[[Path], Path]] = {
    "hevc": lambda d: make_video(d / "a.mp4", codec="hevc", frames=21),
    "vp9": lambda d: make_video(d / "a.webm", codec="vp9", frames=21),
    "av1": lambda d: make_video(d / "a.mkv", codec="av1", frames=21),
    "mpeg-4": lambda d: make_video(d / "a.avi", codec="mpeg4", frames=21),
    "mpeg-2": lambda d: make_video(d / "a.ts", codec="mpeg2", frames=21),
    "gif": lambda d: make_video(d / "a.gif", codec="gif", frames=21),
    "motion jpeg": lambda d: make_video(d / "a.avi", codec="mjpeg", frames=21),
    "10 bits": lambda d: make_video(d / "a.mkv", codec="hevc", pix_fmt="yuv420p10le", frames=21),
    "odd width": lambda d: make_video(d / "a.mkv", codec="ffv1", width=67, height=48, frames=21),
    "odd sizes": lambda d: make_video(d / "a.mkv", codec="ffv1", width=67, height=49, frames=21),
    "portrait": lambda d: make_video(d / "a.mp4", width=48, height=64, frames=21),
    "smaller than a window": lambda d: make_video(d / "a.mp4", width=16, height=16, frames=21),
    "large": lambda d: make_video(d / "a.mp4", width=3840, height=2160, frames=5),
    "with sound": lambda d: make_video(d / "a.mp4", audio=True, frames=21),
    "space and quotes": lambda d: make_video(d / """it's a "film" .mp4""", frames=21),
    "newline": lambda d: make_video(d / "two\nlines.mp4", frames=21),
    "unicode": lambda d: make_video(d / "Übung 影片 🎬.mp4", frames=21),
    "leading dash": lambda d: make_video(d / "--engine.mp4", frames=21),
    "percent and glob": lambda d: make_video(d / "%03d*[a].mp4", frames=21),
    "colon": lambda d: make_video(d / "concat:a|b.mp4", frames=21),
    "no suffix": lambda d: make_video(d / "a.mp4", frames=21).rename(d / "video"),
    "another suffix": lambda d: make_video(d / "a.mp4", frames=21).rename(d / "video.mp3"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_video_gives_its_rows(engine: Path, tmp_path: Path, what: str) -> None:
    video = ODD[what](tmp_path)
    output = tmp_path / "out"
    result = vfx_run("--engine", engine, "--output", output, "--", video)

    assert result.exit_code == 0, result.stderr
    (file,) = output.iterdir()
    found = read_features(file)
    np.testing.assert_allclose(found.arrays["features"], expected_rows(video), rtol=TINY)
    assert len(result.stdout.splitlines()) == 1


def test_a_name_that_is_no_unicode(engine: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    video = make_video(tmp_path / "a.mp4", frames=9).rename(tmp_path / name)
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", video)

    assert result.exit_code == 0, result.stderr
    found = read_features(tmp_path / "out" / os.fsdecode(b"caf\xe9.npz"))
    np.testing.assert_allclose(found.arrays["features"], expected_rows(video), rtol=TINY)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_metadata_is_followed(engine: Path, tmp_path: Path, turn: int) -> None:
    video = make_video(tmp_path / "a.mp4", rotation=turn, width=80, height=48, frames=9)
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", video)

    assert result.exit_code == 0, result.stderr
    found = read_features(tmp_path / "out" / "a.npz")
    np.testing.assert_allclose(found.arrays["features"], expected_rows(video, turns=turn // 90), rtol=TINY)


def test_a_variable_frame_rate_keeps_its_times(engine: Path, tmp_path: Path) -> None:
    times = [Fraction(number * number, 50) for number in range(12)]
    video = make_video(tmp_path / "a.mp4", frames=12, times=times)
    assert vfx_run("--engine", engine, "--output", tmp_path / "out", video).exit_code == 0
    found = read_features(tmp_path / "out" / "a.npz")

    np.testing.assert_allclose(found.arrays["features"], expected_rows(video), rtol=TINY)
    starts = [float(times[row * 4] * 1000) for row in range(3)]
    ends = [float(times[row * 4 + 4] * 1000) for row in range(2)]
    np.testing.assert_allclose(found.timestamps_ms[:, 0], starts, atol=0.02)
    np.testing.assert_allclose(found.timestamps_ms[:2, 1], ends, atol=0.02)


def test_a_huge_picture_that_a_header_only_claims(engine: Path, good: list[Path], tmp_path: Path) -> None:
    """A GIF's header has two bytes each for width and height: 65535 x 65535 would be 12 GiB of RGB."""
    video = make_video(tmp_path / "huge.gif", codec="gif", frames=9)
    data = bytearray(video.read_bytes())
    data[6:10] = b"\xff\xff\xff\xff"
    video.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", video, good[0])

    assert result.exit_code == 1
    assert "huge.gif" in failures(tmp_path / "out")["huge"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


LISTS = {
    "plain": b"good0.mp4\ngood1.mp4\n",
    "comments, blank lines, no last line end": b"# two\n\ngood0.mp4\n\n  \ngood1.mp4",
    "dos line ends and a byte order mark": b"\xef\xbb\xbfgood0.mp4\r\ngood1.mp4\r\n",
    "space around": b"  good0.mp4  \n\tgood1.mp4\n",
    "the same twice": b"good0.mp4\n./good0.mp4\ngood1.mp4\n",
}


@pytest.mark.parametrize("what", LISTS)
def test_lists(engine: Path, good: list[Path], tmp_path: Path, what: str) -> None:
    for video in good:
        (tmp_path / video.name).hardlink_to(video)
    listed = text(tmp_path / "videos.txt", LISTS[what])
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", listed)

    assert result.exit_code == 0, result.stderr
    assert files_in(tmp_path / "out") == {"good0.npz", "good1.npz"}


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n"])
def test_a_list_of_nothing(engine: Path, tmp_path: Path, content: bytes) -> None:
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", text(tmp_path / "a.txt", content))

    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "a.txt" in line
    assert not (tmp_path / "out").exists()


def test_a_list_with_a_missing_video(engine: Path, good: list[Path], tmp_path: Path) -> None:
    listed = text(tmp_path / "a.txt", f"{good[0]}\nmissing.mp4\n{good[1]}\n".encode())
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", listed)

    assert result.exit_code == 1
    assert list(failures(tmp_path / "out")) == ["missing"]
    assert files_in(tmp_path / "out") == {"good0.npz", "good1.npz", "failures.jsonl"}


ENGINES: dict[str, tuple[Callable[[Path, Path], Path], int, str]] = {
    "missing": (lambda d, e: d / "none.onnx", 1, "No such file"),
    "a folder": (lambda d, e: folder_called(d / "a.onnx"), 1, "a.onnx"),
    "zero bytes": (lambda d, e: text(d / "a.onnx", b""), 1, "zero bytes"),
    "truncated": (lambda d, e: text(d / "a.onnx", e.read_bytes()[:300]), 1, "damaged"),
    "no engine": (lambda d, e: text(d / "a.onnx", b"words" * 99), 1, "a.onnx"),
    "without its spec": (
        lambda d, e: text(d / "a.onnx", e.read_bytes().replace(b"\x03vfx", b"\x03xfv")),
        1,
        "spec",
    ),
    "of a newer spec": (
        lambda d, e: text(d / "a.onnx", e.read_bytes().replace(b'"spec_version": 1', b'"spec_version": 9')),
        1,
        "newer",
    ),
    "a plan without its spec": (lambda d, e: text(d / "a.plan", b"plan"), 1, "a.plan.json is missing"),
}


@pytest.mark.parametrize("what", ENGINES)
def test_a_bad_engine_is_said_before_anything_is_made(
    engine: Path, good: list[Path], tmp_path: Path, what: str
) -> None:
    make, code, said = ENGINES[what]
    result = vfx_run("--engine", make(tmp_path, engine), "--output", tmp_path / "out", *good)

    assert result.exit_code == code, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("vfx-run: ")
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["npz", "npy", "pickle", "hdf5"])
def test_a_full_disk_keeps_what_is_finished(
    engine: Path, good: list[Path], tmp_path: Path, format: str
) -> None:
    """A limit on the size of files stands in for a full disk: writes also fail half-way."""
    output = tmp_path / "out"
    many = make_video(tmp_path / "many.mp4", width=32, height=32, frames=4000)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    command = [VFX_RUN, "--engine", engine, "--output", output, "--format", format, good[0], many, good[1]]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, timeout=60)

    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    # An hdf5 run keeps the parts of which it makes its pack, and the next run continues from them.
    assert not {name for name in files_in(output) if name.startswith(".") and ".h5.parts/good" not in name}
    again = vfx_run("--engine", engine, "--output", output, "--format", format, good[0], many, good[1])
    assert again.exit_code == 0, again.stderr
    assert not {name for name in files_in(output) if name.startswith(".")}


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("where", ["/proc/vfx", "/dev/null", "/dev/null/out"])
def test_an_output_folder_that_cannot_be(engine: Path, good: list[Path], where: str) -> None:
    result = vfx_run("--engine", engine, "--output", where, *good)

    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert where in line
    assert "--output" in line


def test_a_read_only_output_folder(engine: Path, good: list[Path], closed_folder: Path) -> None:
    if os.access(closed_folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    result = vfx_run("--engine", engine, "--output", closed_folder, *good)

    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "no permission" in line


def test_a_folder_where_a_file_should_be(engine: Path, good: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "good0.npz").mkdir(parents=True)
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", *good)

    assert result.exit_code == 1
    assert list(failures(tmp_path / "out")) == ["good0"]
    assert (tmp_path / "out" / "good1.npz").is_file()
