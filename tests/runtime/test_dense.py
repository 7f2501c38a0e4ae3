"""A window on every frame: each frame is decoded and resized once, and rows are the same as one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from make_video import make_video, picture
from run_kit import files_in, vfx_run
from tiny import FRAMES, SIZE, tiny_engine, tiny_features, tiny_spec
from tiny_flow import tiny_flow_engine
from vfx_engines import open_engine
from vfx_engines.errors import UsageError
from vfx_runtime import Features, extract
from vfx_runtime import image_folder as image_folder_module
from vfx_runtime import preprocess as preprocess_module
from vfx_runtime import pyav_decoder as pyav_decoder_module
from vfx_runtime.opening import open_video
from vfx_runtime.resize import plan
from vfx_runtime.run_sampling import run_sampling

LENGTH = 23


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "v.mp4", frames=LENGTH)


def counting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    calls: list[object] = []
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given: (calls.append(given), real(*given))[1])
    return calls


def resized(video: Path) -> NDArray[np.uint8]:
    """All frames of a video, resized and cropped: uint8 ``[frames, 16, 16, 3]``."""
    with open_video(video) as decoder:
        frames = [frame.rgb() for frame in decoder]
    out = np.empty((len(frames), SIZE, SIZE, 3), np.uint8)
    for frame, place in zip(frames, out, strict=True):
        plan(tiny_spec().transform, *frame.shape[:2]).apply(frame, place)
    return out


def window(frames: NDArray[np.uint8], middle: int, stride: int, tail: str) -> NDArray[np.uint8]:
    """The window in which frame ``middle`` is number ``FRAMES // 2``: uint8 ``[4, 16, 16, 3]``."""
    made = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    for slot in range(FRAMES):
        number = middle + (slot - FRAMES // 2) * stride
        if tail == "repeat":
            number = min(max(number, 0), len(frames) - 1)
        if 0 <= number < len(frames):
            made[slot] = frames[number]
    return made


@pytest.mark.parametrize("tail", ["zeros", "repeat"])
@pytest.mark.parametrize("stride", [1, 2, 7])
def test_a_window_on_every_frame(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, tail: Any, stride: int
) -> None:
    engine = tiny_engine(tmp_path / "tiny.onnx")
    frames = resized(video)
    converted = counting(monkeypatch, pyav_decoder_module, "to_rgb")
    prepared = counting(monkeypatch, preprocess_module.CpuPreprocess, "prepare")
    found = extract(video, engine, step=1, stride=stride, anchor="centre", tail=tail)

    assert len(converted) == len(prepared) == LENGTH
    assert found.arrays["features"].shape == (LENGTH, 4)
    alone = [window(frames, middle, stride, tail) for middle in range(LENGTH)]
    np.testing.assert_allclose(found.arrays["features"], tiny_features(np.stack(alone)), rtol=1e-5)
    with open_engine(engine) as opened:
        for row, one in zip(found.arrays["features"], alone, strict=True):
            np.testing.assert_array_equal(row, opened.run(one[None])["features"][0])
    firsts = [middle - FRAMES // 2 * stride for middle in range(LENGTH)]
    lasts = [first + (FRAMES - 1) * stride for first in firsts]
    if tail == "repeat":
        assert found.frame_range[:, 0].tolist() == [max(first, 0) for first in firsts]
        assert found.frame_range[:, 1].tolist() == [min(last, LENGTH - 1) + 1 for last in lasts]


def test_every_image_of_a_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for number in range(LENGTH):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    read = counting(monkeypatch, image_folder_module, "read_image")
    prepared = counting(monkeypatch, preprocess_module.CpuPreprocess, "prepare")
    found = extract(
        folder,
        tiny_engine(tmp_path / "tiny.onnx"),
        images="%d.png",
        step=1,
        anchor="centre",
        tail="zeros",
    )
    assert isinstance(found, Features)
    assert len(read) == len(prepared) == len(found.frame_range) == LENGTH


def test_as_slowfast_feature_extractor_on_the_command_line(tmp_path: Path, video: Path) -> None:
    """With its list, its windows at half the frame rate (IN_FPS 25, OUT_FPS 12.5), and its files."""
    clips = tmp_path / "data/clips"
    clips.mkdir(parents=True)
    for name in ("a.MP4", "b.c.mp4"):
        (clips / name).write_bytes(video.read_bytes())
    (tmp_path / "data/video_list.csv").write_text("clips/a\nclips/b.c\n\n")
    engine, out = tiny_engine(tmp_path / "tiny.onnx"), tmp_path / "out"
    options = (
        *("--engine", engine, tmp_path / "data/video_list.csv", "--output", out, "--format", "slowfast"),
        *("--step", 1, "--anchor", "centre", "--tail", "zeros", "--fps", 25, "--stride", 2),
    )
    assert "windows of 7 frames every 1" in vfx_run(*options, "--dry-run").stderr
    done = vfx_run(*options)
    assert done.exit_code == 0, done.stderr
    assert files_in(out) == {"clips/a_4.npy", "clips/b_4.npy"}
    frames = resized(video)
    windows = np.stack([window(frames, middle, 2, "zeros") for middle in range(LENGTH)])
    rows = np.load(out / "clips/b_4.npy")
    assert (rows.dtype, rows.shape) == (np.float32, (LENGTH, 4))
    np.testing.assert_allclose(rows, tiny_features(windows), rtol=1e-5)
    assert "2 were done before" in vfx_run(*options).stderr

    (clips / "b.d.mp4").write_bytes(b"")
    (tmp_path / "data/video_list.csv").write_text("clips/b.c\nclips/b.d\n")
    refused = vfx_run(*options)
    assert refused.exit_code == 2
    assert "would both write clips/b: --format slowfast cuts names at their first dot" in refused.stderr


def test_other_windows_are_another_run(tmp_path: Path, video: Path) -> None:
    options = ("--engine", tiny_engine(tmp_path / "tiny.onnx"), video, "--output", tmp_path / "out")
    for changed in (("--stride", 2), ("--anchor", "centre"), ("--stride", 2, "--anchor", "centre")):
        assert "1 done, 0 were done" in vfx_run(*options, *changed).stderr
        assert "0 done, 1 were done" in vfx_run(*options, *changed).stderr


def test_what_a_run_may_change(tmp_path: Path, video: Path) -> None:
    own = tiny_spec(stride=3, anchor="centre", edges="zeros").sampling
    assert run_sampling(own) == own
    changed = run_sampling(own, anchor="start", stride=2, step=5)
    assert (changed.anchor, changed.stride, changed.step, changed.edges) == ("start", 2, 5, "zeros")
    with pytest.raises(UsageError, match="stride 0: expected 1 or more frames"):
        run_sampling(own, stride=0)
    pairs = tiny_flow_engine(tmp_path / "flow.onnx")
    for option in ({"stride": 2}, {"anchor": "centre"}):
        with pytest.raises(UsageError, match="pair of neighbouring frames: leave --anchor and --stride out"):
            extract(video, pairs, **option)  # type: ignore[call-overload]
