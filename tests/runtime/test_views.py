"""Test-time views, target fps and looped last windows, as in PySlowFast and its Decord-based extractor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from make_video import make_video, picture
from run_kit import counting, failures, vfx_run
from tiny import FRAMES, SIZE, other_engine, tiny_engine, tiny_features, tiny_spec
from tiny_flow import tiny_flow_engine
from vfx_engines.errors import SpecError, UsageError
from vfx_engines.spec import Output, Sampling
from vfx_runtime import Views, extract, read_features
from vfx_runtime import preprocess as preprocess_module
from vfx_runtime import pyav_decoder as pyav_decoder_module
from vfx_runtime.features import RowSpool
from vfx_runtime.opening import count_frames, open_video
from vfx_runtime.run_sampling import run_sampling
from vfx_runtime.sampling import Window, Windows, truncated_linspace
from vfx_runtime.views import ViewWindows, check_views, cropped

LENGTH = 61
"""Number of frames of the test video, which has 25 fps; windows take 4 frames, 2 apart."""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "v.mp4", frames=LENGTH)


def resized(video: Path, short: int) -> NDArray[np.uint8]:
    """All frames resized by Pillow to this short side, uint8 [frames, height, width, 3]."""
    made = []
    with open_video(video) as decoder:
        for frame in decoder:
            image = Image.fromarray(np.ascontiguousarray(frame.rgb()))
            scale = short / min(image.size)
            size = int(image.width * scale), int(image.height * scale)
            made.append(np.asarray(image.resize(size, Image.Resampling.BILINEAR)))
    return np.stack(made)


# Which frames


@pytest.mark.parametrize(
    ("frames", "stride", "fps", "total", "views", "starts_and_frames"),
    [
        # A clip lasts 64 frames; 236 are left, so the 5 views begin at 0, 47.2, 94.4, 141.6 and 188.8.
        pytest.param(8, 8, 30, 300, 5, {0: [0, 9, 18, 27, 36, 45, 54, 63]}, id="8x8, first"),
        pytest.param(8, 8, 30, 300, 5, {4: [188, 197, 206, 215, 224, 233, 242, 251]}, id="8x8, last"),
        # A clip lasts 64 / 30 * 25 = 53.33 frames: samples from 0 to 52.33, 7.476 apart.
        pytest.param(8, 8, 25, 300, 10, {0: [0, 7, 14, 22, 29, 37, 44, 52]}, id="25 fps"),
        # 246.67 frames are left: the view in the middle begins at 123.33.
        pytest.param(8, 8, 25, 300, 10, {5: [123, 130, 138, 145, 153, 160, 168, 175]}, id="25 fps, sixth"),
        # A clip lasts 48 / 30 * 60 = 96 frames, the whole video: samples from 0 to 95, 31.67 apart.
        pytest.param(4, 12, 60, 96, 3, {0: [0, 31, 63, 95], 2: [0, 31, 63, 95]}, id="just as long"),
        # A clip of 64 frames in a video of 40: the last frame stands in for those after it.
        pytest.param(8, 8, 30, 40, 2, {0: [0, 9, 18, 27, 36, 39, 39, 39]}, id="short"),
        pytest.param(8, 8, 30, 1, 2, {0: [0] * 8, 1: [0] * 8}, id="one frame"),
        # A clip lasts 4 * 1 / 30 * 1 frames, less than one.
        pytest.param(4, 1, 1, 9, 2, {0: [0] * 4, 1: [4] * 4}, id="a clip shorter than a frame"),
        pytest.param(1, 1, 30, 10, 2, {0: [0], 1: [4]}, id="single frames"),
    ],
)
def test_views_are_those_of_pyslowfasts_rule(
    frames: int, stride: int, fps: float, total: int, views: int, starts_and_frames: dict[int, list[int]]
) -> None:
    sampling = Sampling(frames, stride, 1, target_fps=30)
    planner = ViewWindows(sampling, Views(views), total, fps)
    found = [window for n in range(total) for window in planner.add(n)]
    assert planner.done
    assert [window.row for window in found] == list(range(views))
    for view, wanted in starts_and_frames.items():
        assert found[view] == Window(view, tuple(wanted), wanted[0], wanted[-1])


def test_offset_sampling_begins_on_whole_frames_and_ends_with_the_video() -> None:
    """A clip of 64 of 300 frames leaves 236: five views start 59 apart, a single one starts at 118."""
    sampling = Sampling(8, 8, 1, target_fps=30)

    def firsts(count: int) -> list[int]:
        planner = ViewWindows(sampling, Views(count, offset=True), 300, 30)
        return [window.first for window in planner.add(299)]

    assert firsts(5) == [0, 59, 118, 177, 236]
    assert firsts(1) == [118]


def test_positions_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0)
    for _ in range(3000):
        count = int(numbers.choice([1, 2, 3, 4, 8, 13, 16, 32, 40, 64]))
        start = float(numbers.choice([0, numbers.uniform(0, 3000), numbers.integers(0, 300)]))
        end = start + float(numbers.choice([0, numbers.uniform(0, 200), numbers.integers(0, 200)]))
        most = int(numbers.integers(0, 3300))
        wanted = torch.clamp(torch.linspace(start, end, count), 0, most).long().tolist()
        assert list(truncated_linspace(start, end, count, most)) == wanted, (start, end, count)


@pytest.mark.parametrize(
    ("fps", "grid"),
    [(30.0, [0, 5, 10, 15]), (15.0, [0, 2, 4, 7]), (25.0, [0, 4, 8, 12]), (1.0, [0, 0, 0, 0])],
)
def test_windows_at_a_target_fps_last_as_long_at_any_rate(fps: float, grid: list[int]) -> None:
    """4 samples, 4 apart at 30 fps, last 16, 8, 13.33 and 0.53 (taken as one) of the video's frames."""
    planner = Windows(Sampling(4, 4, 10, target_fps=30), fps)
    found = [window for n in range(60) if (window := planner.add(n)) is not None]
    assert [list(window.samples) for window in found] == [
        [first + n for n in grid] for first in range(0, 60 - grid[-1], 10)
    ]
    assert planner.count(60) == len(found)
    used = {n for window in found for n in window.samples}
    assert {n for n in range(60) if planner.needs(n)} >= used
    assert all(planner.needs(n) == (n in used) for n in range(40))


@pytest.mark.parametrize(
    ("total", "rows", "drawn_rows", "last"),
    [
        (3, 1, 0, [0, 1, 2, 0]),
        (4, 1, 0, [0, 1, 2, 3]),
        (5, 2, 2, [4, 4, 4, 4]),
        (6, 2, 2, [4, 5, 4, 5]),
        (7, 2, 2, [4, 5, 6, 4]),
        (8, 2, 1, [4, 5, 6, 7]),
        (9, 3, 3, [8, 8, 8, 8]),
    ],
)
def test_a_last_window_takes_its_own_frames_again(
    total: int, rows: int, drawn_rows: int, last: list[int]
) -> None:
    """In order or, with a seed, drawn; drawing skips the windows that the Decord-based extractor skips."""

    def laid(seed: int | None) -> list[Window]:
        planner = Windows(Sampling(4, 1, 4, edges="loop", seed=seed))
        found = [window for n in range(total) if (window := planner.add(n)) is not None]
        found += planner.finish()
        assert planner.count(total) == len(found)
        return found

    in_order = laid(None)
    assert len(in_order) == rows
    assert list(in_order[-1].samples) == last
    assert (in_order[-1].first, in_order[-1].last) == (min(last), max(last))
    drawn = laid(7)
    assert len(drawn) == drawn_rows
    assert drawn == laid(7)
    if drawn and total % 4:
        own = last[: total % 4]
        assert list(drawn[-1].samples[: len(own)]) == own
        assert set(drawn[-1].samples) <= set(own)
    if total == 7:
        assert len({laid(seed)[-1].samples for seed in range(20)}) == 3


def test_what_does_not_go_together() -> None:
    own = tiny_spec(fps=25).sampling
    assert run_sampling(own, views=Views(2)) == replace(own, fps=None, target_fps=25)
    assert run_sampling(tiny_spec().sampling, views=Views(2)).target_fps == 30
    assert run_sampling(own, target_fps=10, fps=20) == replace(own, fps=20, target_fps=10)
    assert run_sampling(own, target_fps=10).fps is None
    assert run_sampling(own, fps="source") == replace(own, fps=None)
    with pytest.raises(UsageError, match="expected a rate, or 'source'"):
        run_sampling(own, fps="own")  # type: ignore[arg-type]
    looped = run_sampling(own, tail="loop", seed=3)
    assert (looped.edges, looped.seed) == ("loop", 3)
    assert run_sampling(looped, tail="drop").seed is None
    refused: list[tuple[str, dict[str, Any]]] = [
        ("seed 3: expected 0 to 4294967295, together with --tail loop", {"seed": 3}),
        ("seed -1: expected 0", {"seed": -1, "tail": "loop"}),
        ("leave --anchor out", {"tail": "loop", "anchor": "centre"}),
        ("target fps 0", {"target_fps": 0}),
        ("--views and --step", {"views": Views(2), "step": 2}),
        ("--views and --tail", {"views": Views(2), "tail": "drop"}),
        ("--target-fps is the rate", {"views": Views(2), "fps": 30}),
    ]
    for says, options in refused:
        with pytest.raises(UsageError, match=says):
            run_sampling(own, **options)
    for says, fields in (
        ("'loop' go with anchor", {"edges": "loop", "anchor": "centre"}),
        ("a seed of 32 bits", {"seed": 1}),
        ("a seed of 32 bits", {"seed": 2**32, "edges": "loop"}),
        ("target_fps must lie", {"target_fps": 0.0}),
    ):
        with pytest.raises(SpecError, match=says):
            Sampling(4, 1, 4, **fields)  # type: ignore[arg-type]
    for arguments in ((0,), (2, 2)):
        with pytest.raises(UsageError, match="expected 1"):
            Views(*arguments)  # type: ignore[arg-type]


# Crops


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (48, 48), (49, 64), (33, 64)])
def test_crops_are_those_of_the_longer_side(height: int, width: int) -> None:
    image = picture(5, width, height)
    size = min(height, width)
    room = max(height, width) - size
    whole = Image.fromarray(image)
    for crop, offset in enumerate((0, (room + 1) // 2, room)):
        left, top = (0, offset) if height > width else (offset, 0)
        wanted = whole.crop((left, top, left + size, top + size))
        np.testing.assert_array_equal(cropped(image, crop), np.asarray(wanted))
        assert cropped(image, crop).base is not None


def test_three_crops_need_a_square_and_a_short_side(tmp_path: Path, video: Path) -> None:
    spec = tiny_spec()
    plain = spec.transform
    with pytest.raises(UsageError, match="resized by nothing: three crops need a square"):
        check_views([replace(spec, transform=replace(plain, resize=None))], [spec.sampling], Views(1, 3))
    with pytest.raises(UsageError, match="takes pairs of frames"):
        extract(video, tiny_flow_engine(tmp_path / "flow.onnx"), views=Views(2))


# Whole runs


def expected(frames: NDArray[np.uint8], views: Views, total: int = LENGTH) -> NDArray[np.float32]:
    """Features float32 [views * crops, 4], window by window, of resized frames that are cropped here."""
    planner = ViewWindows(Sampling(FRAMES, 2, 1, target_fps=30), views, total, 25)
    rows = []
    for window in planner.add(total):
        clip = frames[list(window.samples)]
        height, width = clip.shape[1:3]
        for part in range(views.crops):
            # The centre for a single crop; of three, the place that PySlowFast's rule gives.
            left, top = (width - SIZE) // 2, (height - SIZE) // 2
            if views.crops == 3:
                left = (0, (width - SIZE + 1) // 2, width - SIZE)[part]
            rows.append(clip[:, top : top + SIZE, left : left + SIZE])
    return tiny_features(np.stack(rows))


@pytest.mark.parametrize("crops", [1, 3])
def test_rows_are_those_of_windows_made_alone(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, crops: Any
) -> None:
    engine = tiny_engine(tmp_path / "tiny.onnx", stride=2)
    prepared = counting(monkeypatch, preprocess_module.CpuPreprocess, "prepare")
    views = Views(5, crops, keep=True)
    kept = extract(video, engine, views=views)

    rows = expected(resized(video, 20 if crops == 1 else SIZE), views)
    np.testing.assert_allclose(kept.arrays["features"], rows, rtol=1e-5)
    # Clips of 8 / 30 * 25 = 6.67 frames begin at 0, 10.87, 21.73, 32.6 and 43.47. Each takes 4 frames,
    # prepared once (20 in all) and shared by its crops.
    firsts, lasts = [0, 10, 21, 32, 43], [5, 16, 27, 38, 49]
    assert len(prepared) == 20
    assert kept.frame_range.tolist() == [
        [first, last + 1] for first, last in zip(firsts, lasts, strict=True) for _ in range(crops)
    ]
    np.testing.assert_allclose(kept.timestamps_ms, kept.frame_range * 40.0)
    assert kept.meta["views"]["rows"] == [[view, crop] for view in range(5) for crop in range(crops)]
    assert kept.meta["sampling"]["target_fps"] == 30

    mean = extract(video, engine, views=replace(views, keep=False))
    wanted = kept.arrays["features"].mean(0, np.float64, keepdims=True).astype(np.float32)
    np.testing.assert_array_equal(mean.arrays["features"], wanted)
    assert mean.frame_range.tolist() == [[0, 50]]
    assert mean.timestamps_ms.tolist() == [[0.0, 2000.0]]
    assert mean.meta["views"] == {"count": 5, "crops": crops, "offset": False, "averaged": True}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_of_views_are_those_of_their_mean_probabilities(dtype: Any) -> None:
    """As PySlowFast averages views; also where a view is certain (its other classes get probability 0)."""
    softmax = Output("logits", (3,), dtype, "logits", activation="softmax")
    sigmoid = Output("several", (3,), dtype, "logits", activation="sigmoid")
    rows = np.array([[1, 2, 4], [0, 5000, 1], [3, -2, -3]], dtype)
    with RowSpool([softmax, sigmoid, Output("features", (3,), dtype)]) as spool:
        arrays = {"logits": rows, "several": rows, "features": rows}
        spool.append(arrays, np.array([[0, 4], [2, 6], [4, 9]]), np.zeros((3, 2)))
        spool.average()
        found = spool.features(25, {})
    assert found.frame_range.tolist() == [[0, 9]]
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(found.arrays["features"], wide.mean(0, keepdims=True), rtol=1e-3)

    def chances(logits: NDArray[Any]) -> NDArray[np.float64]:
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(raised / raised.sum(1, keepdims=True))

    got = chances(found.arrays["logits"].astype(np.float64))
    np.testing.assert_allclose(got, chances(wide).mean(0, keepdims=True), rtol=2e-3)
    got = 1 / (1 + np.exp(-found.arrays["several"].astype(np.float64)))
    np.testing.assert_allclose(got, (1 / (1 + np.exp(-wide))).mean(0, keepdims=True), rtol=2e-3)


def test_short_videos_repeat_their_last_frame(tmp_path: Path) -> None:
    short = make_video(tmp_path / "short.mp4", frames=3)
    engine = tiny_engine(tmp_path / "tiny.onnx", stride=2)
    views = Views(2, 3, keep=True)
    found = extract(short, engine, views=views)
    rows = expected(resized(short, SIZE), views, 3)
    np.testing.assert_allclose(found.arrays["features"], rows, rtol=1e-5)
    assert found.frame_range.tolist() == [[0, 3]] * 6


def test_a_long_video_is_decoded_where_its_views_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = make_video(tmp_path / "long.mp4", frames=400, gop=10)
    sought = counting(monkeypatch, pyav_decoder_module.PyAvDecoder, "_seek")
    engine = tiny_engine(tmp_path / "tiny.onnx", stride=2)
    found = extract(long, engine, views=Views(3, keep=True))
    rows = expected(resized(long, 20), Views(3), 400)
    np.testing.assert_allclose(found.arrays["features"], rows, rtol=1e-5)
    assert len(sought) == 2


@pytest.mark.parametrize("codec", ["h264", "vp9", "mpeg4", "gif", "ffv1"])
def test_frames_are_counted_as_they_are_decoded(tmp_path: Path, codec: Any) -> None:
    suffix = {"vp9": ".webm", "gif": ".gif", "ffv1": ".mkv"}.get(codec, ".mp4")
    path = make_video(tmp_path / f"v{suffix}", codec=codec, frames=17)
    with open_video(path) as decoder:
        assert count_frames(path) == sum(1 for _ in decoder) == 17


def test_a_wrong_count_gives_no_rows(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfx_runtime.pipeline.count_frames", lambda *given: LENGTH + 30)
    engine = tiny_engine(tmp_path / "tiny.onnx", stride=2)
    (found,) = extract([video], engine, views=Views(3, offset=True))
    assert "its packets announce 91 frames, and it ends before" in str(found.error)


def test_several_engines_see_the_same_clips(tmp_path: Path, video: Path) -> None:
    engines = [
        tiny_engine(tmp_path / "a.onnx", stride=2),
        other_engine(tmp_path / "b.onnx", stride=2, step=3),
    ]
    views = Views(3, 3, keep=True)
    both = extract(video, engines, views=views)
    np.testing.assert_array_equal(both.arrays["features"], both.arrays["other"])
    assert both.arrays["other"].shape == (9, 4)
    other_engine(tmp_path / "b.onnx", stride=3)
    with pytest.raises(UsageError, match="4x2 frames at 30 fps; 4x3 frames at 30 fps"):
        extract(video, engines, views=views)


def test_on_the_command_line(tmp_path: Path, video: Path) -> None:
    """With other options the video is redone; with the same options it counts as done."""
    engine, out = tiny_engine(tmp_path / "tiny.onnx", stride=2), tmp_path / "out"
    options = ("--engine", engine, video, "--output", out)
    for changed in (
        ("--views", 2),
        ("--views", 3),
        ("--views", 3, "--crops", 3),
        ("--views", 3, "--crops", 3, "--keep-views"),
        ("--views", 3, "--crops", 3, "--keep-views", "--offset-sampling"),
        ("--views", 3, "--target-fps", 25),
        ("--target-fps", 25),
        ("--fps", 5),
        ("--fps", "source"),
        ("--tail", "loop"),
        ("--tail", "loop", "--seed", 1),
        ("--tail", "loop", "--seed", 2),
    ):
        assert "1 done, 0 were done" in vfx_run(*options, *changed).stderr, changed
        assert "0 done, 1 were done" in vfx_run(*options, *changed).stderr, changed
    done = vfx_run(*options, "--views", 4, "--crops", 3, "--keep-views", "--format", "npz")
    assert done.exit_code == 0, done.stderr
    features = read_features(out / "v.npz")
    assert features.arrays["features"].shape == (12, 4)
    with np.load(out / "v.npz") as file:
        assert json.loads(str(file["meta"]))["views"]["rows"][4] == [1, 1]
    said = vfx_run(*options, "--views", 4, "--crops", 3, "--dry-run").stderr
    assert "1 video, 4 views of 4 frames, 3 crops of each" in said
    assert "'x' is neither a frame rate nor 'source'" in vfx_run(*options, "--fps", "x").stderr
    for wrong in (("--crops", 3), ("--keep-views",), ("--offset-sampling",), ("--views", 0)):
        refused = vfx_run(*options, *wrong)
        assert refused.exit_code == 2
        assert "views" in refused.stderr


def test_a_video_shorter_than_a_drawn_window(tmp_path: Path) -> None:
    short = make_video(tmp_path / "short.mp4", frames=3)
    out = tmp_path / "out"
    engine = tiny_engine(tmp_path / "tiny.onnx")
    refused = vfx_run("--engine", engine, short, "--output", out, "--tail", "loop", "--seed", 0)
    assert refused.exit_code == 1
    assert "3 frames, a window of tiny needs 5 frames (4 and 1 that must follow)" in failures(out)["short"]
    assert len(extract(short, engine, tail="loop").frame_range) == 1
