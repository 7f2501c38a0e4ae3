"""``--total``: a fixed number of frames per video, evenly spread over it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from make_video import make_video
from run_kit import failures, vfx_run
from tiny import tiny_engine
from tiny_sound import sound_engine
from vfx_engines.errors import UsageError, VideoError
from vfx_runtime import extract, read_features


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tiny_engine(tmp_path / "tiny.onnx")


@pytest.mark.parametrize("total", [4, 6, 7, 48, 96])
@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001)])
def test_frames_are_those_of_the_rate_that_gives_the_total(
    tmp_path: Path, engine: Path, total: int, fps: int | Fraction
) -> None:
    """The rate is video_features', total * fps / frames; FFmpeg's fps filter says which frames those are."""
    video = make_video(tmp_path / "a.mp4", frames=48, fps=fps)
    found = extract(video, engine, total=total, step=1)
    shown = [max(i for i in range(48) if int(i * total / 48 + 0.5) <= k) for k in range(total)]
    windows = [shown[k : k + 4] for k in range(total - 3)]

    assert found.fps == pytest.approx(total * float(fps) / 48)
    assert found.frame_range.tolist() == [[window[0], window[-1] + 1] for window in windows]
    assert found.meta["total"] == total
    same = extract(video, engine, fps=found.fps, step=1)
    np.testing.assert_array_equal(found.arrays["features"], same.arrays["features"])
    np.testing.assert_array_equal(found.timestamps_ms, same.timestamps_ms)


def test_each_video_has_a_rate_of_its_own_and_another_total_is_done_again(
    tmp_path: Path, engine: Path
) -> None:
    videos = [make_video(tmp_path / f"{count}.mp4", frames=count) for count in (16, 40)]
    options = ("--engine", engine, *videos, "--output", tmp_path / "out", "--step", 4)
    done = vfx_run(*options, "--total", 8)

    assert done.exit_code == 0, done.stderr
    read = {count: read_features(tmp_path / "out" / f"{count}.npz") for count in (16, 40)}
    assert {count: len(found.frame_range) for count, found in read.items()} == {16: 2, 40: 2}
    assert {count: found.fps for count, found in read.items()} == {16: 12.5, 40: 5.0}
    assert "2 were done before" in vfx_run(*options, "--total", 8).stderr
    assert "0 were done before" in vfx_run(*options, "--total", 12).stderr
    assert "0 were done before" in vfx_run(*options).stderr


def test_a_file_that_does_not_say_how_long_it_is(tmp_path: Path, engine: Path) -> None:
    video = make_video(tmp_path / "a.h264", frames=20)
    with pytest.raises(VideoError, match="does not say how many frames it has, so --total 4"):
        extract(video, engine, total=4)


def test_a_total_beyond_reason(tmp_path: Path, engine: Path) -> None:
    video = make_video(tmp_path / "a.mp4", frames=10)
    done = vfx_run("--engine", engine, video, "--output", tmp_path / "out", "--total", 10**9)
    assert done.exit_code == 1
    assert "expected less than 10000: ask for fewer" in failures(tmp_path / "out")["a"]


def test_what_goes_not_with_a_total(tmp_path: Path, engine: Path) -> None:
    video = make_video(tmp_path / "a.mp4")
    for options, said in (((0,), "total 0"), ((4, "--fps", 5), "both choose frames")):
        done = vfx_run("--engine", engine, video, "--output", tmp_path / "out", "--total", *options)
        assert done.exit_code == 2
        assert said in done.stderr
    with pytest.raises(UsageError, match="takes sound"):
        extract(video, sound_engine(tmp_path / "sound.onnx"), total=4)
