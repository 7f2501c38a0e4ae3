"""Runs may end at any moment, and several may share a folder: nothing is lost, done twice or left over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exports import heavy_in_ci
from make_video import make_video
from run_kit import files_in
from tiny import tiny_engine

VFX_RUN = Path(sys.executable).with_name("vfx-run")
VIDEOS = 24


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine, and videos that take a run some seconds."""
    folder = tmp_path_factory.mktemp("work")
    tiny_engine(folder / "tiny.onnx")
    (folder / "videos").mkdir()
    for number in range(VIDEOS):
        frames = 300 if number % 8 == 0 else 20 + number
        make_video(folder / "videos" / f"v{number:02}.mp4", width=160, height=120, frames=frames)
    return folder


@pytest.fixture(scope="module")
def more_work(work: Path) -> Path:
    """Like `work`, but for half a minute, so that even a delayed test meets the run in the middle."""
    folder = work / "more"
    folder.mkdir()
    os.link(work / "tiny.onnx", folder / "tiny.onnx")
    for video in (work / "videos").iterdir():
        for copy in range(20):
            (folder / "videos" / str(copy)).mkdir(parents=True, exist_ok=True)
            os.link(video, folder / "videos" / str(copy) / video.name)
    return folder


def command(work: Path, output: Path, *more: str) -> list[str]:
    return [*map(str, (VFX_RUN, "--engine", work / "tiny.onnx", work / "videos", "--output", output)), *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


@pytest.mark.parametrize(
    ("format", "kills"),
    [
        ("npz", 4),
        ("hdf5", 4),
        ("parquet", 4),
        *(heavy_in_ci(*case) for case in (("npy", 4), ("webdataset", 4), ("hdf5", 8), ("npz", 20))),
    ],
)
def test_kills_lose_nothing_and_leave_nothing(work: Path, tmp_path: Path, format: str, kills: int) -> None:
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    started = time.monotonic()
    subprocess.run(command(work, undisturbed, "--format", format), check=True, capture_output=True)
    seconds = time.monotonic() - started
    chance = random.Random(format)
    for number in range(kills):
        run = subprocess.Popen(
            command(work, output, "--format", format), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Anywhere from the imports to the last file. Later runs find finished videos, and so are shorter.
        time.sleep(chance.uniform(0.3, 1.1) * seconds * (0.7 if number > kills // 2 else 1))
        run.kill()
        run.wait()

    subprocess.run(command(work, output, "--format", format), check=True, capture_output=True)

    assert contents(output) == contents(undisturbed)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_end_leaves_a_clean_folder(more_work: Path, tmp_path: Path, which: signal.Signals) -> None:
    output = tmp_path / "out"
    run = subprocess.Popen(
        command(more_work, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    first = run.stdout.readline()  # it is in the middle of its work
    run.send_signal(which)
    _, said = run.communicate(timeout=30)

    assert first
    assert run.returncode == 130
    assert said.splitlines()[-1].startswith("vfx-run: interrupted")
    assert "Traceback" not in said
    assert all(name.endswith(".npz") for name in files_in(output))


@pytest.mark.parametrize("format", ["npz", "hdf5"])
def test_two_at_once_share_the_work(work: Path, tmp_path: Path, format: str) -> None:
    output, alone = tmp_path / "out", tmp_path / "alone"
    both = command(work, output, "--format", format)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(both, **pipes) for _ in range(2)]
    try:
        results = [run.communicate(timeout=120) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    subprocess.run(command(work, alone, "--format", format), check=True, capture_output=True)

    assert [run.returncode for run in runs] == [0, 0], results
    assert contents(output) == contents(alone)
    if format == "npz":
        written = [line for stdout, _ in results for line in stdout.splitlines()]
        assert len(written) == len(set(written)) == VIDEOS, "a video was done twice, or by nobody"
