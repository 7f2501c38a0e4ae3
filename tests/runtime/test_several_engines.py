"""Several engines sharing one decode; engines that take frames at the video's size; a row per pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from make_video import make_video
from run_kit import counting, failures, files_in, vfx_run
from tiny import other_engine, tiny_engine, tiny_spec
from tiny_flow import tiny_flow, tiny_flow_engine
from tiny_sound import sound_spec
from tolerances import TIMESTAMP_MS
from vfx_engines import open_engine
from vfx_engines.errors import UsageError
from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime import Features, extract, read_features
from vfx_runtime import pipeline as pipeline_module
from vfx_runtime import preprocess as preprocess_module
from vfx_runtime.laying import check_alike
from vfx_runtime.opening import open_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    sizes = [(40, 30), (48, 32), (40, 30), (48, 32), (30, 40)]
    return [
        make_video(folder / f"v{i}.mp4", width=width, height=height, frames=9 + 4 * i)
        for i, (width, height) in enumerate(sizes)
    ]


def decoded(path: Path) -> NDArray[np.uint8]:
    with open_video(path) as decoder:
        return np.stack([frame.rgb() for frame in decoder])


@pytest.mark.parametrize("alike", [True, False])
def test_two_engines_share_one_decode(
    tmp_path: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    transform = None if alike else Transform(Resize("short_side", 24, 24), Crop(16, 16))
    engines = [tiny_engine(tmp_path / "a.onnx"), other_engine(tmp_path / "b.onnx", transform=transform)]
    alone = [dict((item.name, item.features) for item in extract(videos, engine)) for engine in engines]
    opened = counting(monkeypatch, pipeline_module, "open_video")
    resized = counting(monkeypatch, preprocess_module.CpuPreprocess, "prepare")
    together = {item.name: item.features for item in extract(videos, engines)}

    assert len(opened) == len(videos)
    needed = sum(len(decoded(path)) for path in videos)
    assert len(resized) == (needed if alike else 2 * needed)
    for name, found in together.items():
        assert isinstance(found, Features)
        first, second = (part[name] for part in alone)
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(found.arrays["features"], first.arrays["features"])
        np.testing.assert_array_equal(found.arrays["other"], second.arrays["other"])
        np.testing.assert_array_equal(found.frame_range, first.frame_range)
        assert [part["spec"]["model"] for part in (found.meta, *found.meta["others"])] == ["tiny", "other"]


def test_long_windows_of_two_engines_share_each_frame(
    tmp_path: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are shared even where a window is longer than the memory of the latest frames."""
    engines = [
        tiny_engine(tmp_path / "a.onnx", stride=5, step=1),
        other_engine(tmp_path / "b.onnx", stride=5, step=1),
    ]
    prepared = counting(monkeypatch, preprocess_module.CpuPreprocess, "prepare")
    found = extract(videos[4], engines)
    assert len(found.frame_range) == 10
    assert len(prepared) == 25
    np.testing.assert_array_equal(found.arrays["features"], found.arrays["other"])


def test_two_engines_write_one_file(tmp_path: Path, videos: list[Path]) -> None:
    engines = (tiny_engine(tmp_path / "a.onnx", step=2), other_engine(tmp_path / "b.onnx", step=4))
    arguments = [part for engine in engines for part in ("--engine", engine)]
    done = vfx_run(*arguments, *videos, "--step", "2", "--output", tmp_path / "out")

    assert done.exit_code == 0, done.stderr
    assert files_in(tmp_path / "out") == {f"v{i}.npz" for i in range(5)}
    features = read_features(tmp_path / "out" / "v3.npz")
    assert features.arrays["features"].shape == features.arrays["other"].shape == (9, 4)
    again = vfx_run(*arguments, *videos, "--step", "2", "--output", tmp_path / "out")
    assert "5 were done before" in again.stderr
    redone = vfx_run("--engine", engines[0], *videos, "--step", "2", "--output", tmp_path / "out")
    assert "5 done, 0 were done before" in redone.stderr


def test_windows_of_other_shapes_are_aligned_where_their_rows_are(tmp_path: Path, videos: list[Path]) -> None:
    """Like I3D's two streams: one takes four frames and waits for a fifth, the other takes all five."""
    first, second = tiny_spec(lead=1), tiny_spec()
    wide = replace(
        second,
        input=replace(second.input, shape=("batch", 5, 16, 16, 3)),
        sampling=replace(second.sampling, frames=5, step=4),
        outputs=(replace(second.outputs[0], name="other"),),
    )
    check_alike([first, wide], [first.sampling, wide.sampling])
    for sampling in ({"step": 3}, {"fps": 5.0}, {"anchor": "centre"}, {"edges": "zeros"}, {"lead": 2}):
        changed = replace(wide.sampling, **sampling)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="lay their windows differently"):
            check_alike([first, wide], [first.sampling, changed])
    with pytest.raises(UsageError, match="two engines have an output called 'features'"):
        check_alike([first, first], [first.sampling, first.sampling])
    with pytest.raises(UsageError, match="tiny takes frames and tiny_sound audio"):
        check_alike([first, sound_spec()], [first.sampling, sound_spec().sampling])


def test_a_bad_video_fails_for_both(tmp_path: Path, videos: list[Path]) -> None:
    engines = (tiny_engine(tmp_path / "a.onnx"), other_engine(tmp_path / "b.onnx"))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(videos[0].read_bytes()[:2000])
    arguments = [part for engine in engines for part in ("--engine", engine)]
    done = vfx_run(*arguments, bad, *videos, "--output", tmp_path / "out")

    assert done.exit_code == 1
    assert list(failures(tmp_path / "out")) == ["bad"]
    assert len(files_in(tmp_path / "out")) == len(videos) + 1


# Frames at the video's size, a row per pair


def test_pairs_of_videos_of_any_size(tmp_path: Path, videos: list[Path]) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    done = vfx_run("--engine", engine, *videos, "--output", tmp_path / "out")

    assert done.exit_code == 0, done.stderr
    for path in videos:
        frames = decoded(path)
        features = read_features(tmp_path / "out" / f"{path.stem}.npz")
        np.testing.assert_array_equal(features.arrays["flow"], tiny_flow(frames))
        pairs = np.arange(len(frames) - 1)
        np.testing.assert_array_equal(features.frame_range, np.stack([pairs, pairs + 2], 1))
    assert done.stderr.count("engine: flow.onnx") == 1
    again = vfx_run("--engine", engine, *videos, "--output", tmp_path / "out")
    assert "5 were done before" in again.stderr


@pytest.mark.parametrize("format", ["npy", "hdf5"])
def test_pairs_in_other_formats(tmp_path: Path, videos: list[Path], format: str) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    options = ("--engine", engine, *videos, "--format", format, "--output", tmp_path / "out")
    done = vfx_run(*options)

    assert done.exit_code == 0, done.stderr
    wanted = tiny_flow(decoded(videos[1]))
    if format == "npy":
        np.testing.assert_array_equal(np.load(tmp_path / "out" / "v1_flow.npy"), wanted)
        times, fps = (np.load(tmp_path / "out" / f"v1_{key}.npy") for key in ("timestamps_ms", "fps"))
        np.testing.assert_allclose(times, 1000 / fps * np.arange(len(wanted) + 1), atol=TIMESTAMP_MS)
        assert "were done before" in vfx_run(*options).stderr
    else:
        import h5py

        with h5py.File(tmp_path / "out" / "features.h5") as file:
            np.testing.assert_array_equal(file["v1/flow"][:], wanted)
            assert len(file) == len(videos)
    assert "5 were done before" in vfx_run(*options).stderr


def test_a_single_frame_has_no_pair(tmp_path: Path) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    video = make_video(tmp_path / "one.mp4", frames=1)
    done = vfx_run("--engine", engine, video, tmp_path / "absent.mp4", "--output", tmp_path / "out")

    assert done.exit_code == 1
    reasons = failures(tmp_path / "out")
    assert "1 frame, a pair of tiny_flow needs 2" in reasons["one"]
    assert "No such file" in reasons["absent"]


def test_too_short_for_a_whole_window_of_pairs(tmp_path: Path) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    video = make_video(tmp_path / "two.mp4", frames=2)
    done = vfx_run("--engine", engine, video, "--tail", "drop", "--output", tmp_path / "out")

    assert done.exit_code == 1
    reason = failures(tmp_path / "out")["two"]
    assert "2 frames, a window of tiny_flow needs 3 frames: use --tail repeat" in reason


def test_pairs_are_never_of_the_end_and_the_start(tmp_path: Path) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    video = make_video(tmp_path / "four.mp4", frames=4)
    done = vfx_run("--engine", engine, video, "--tail", "loop", "--output", tmp_path / "out")

    assert done.exit_code == 2
    assert "take --tail repeat" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_resize_rule_sets_the_size(tmp_path: Path, videos: list[Path]) -> None:
    transform = Transform(Resize("short_side", 20, 20))
    engine = tiny_flow_engine(tmp_path / "flow.onnx", transform)
    for path, shape in zip(videos[1::3], ((20, 30), (26, 20)), strict=True):
        features = extract(path, engine)
        assert features.arrays["flow"].shape[2:] == shape
    with pytest.raises(UsageError, match="sizes given: none"):
        open_engine(engine)


def test_a_video_that_cannot_be_looked_at_fails_alone(tmp_path: Path, videos: list[Path]) -> None:
    """A video that cannot be probed has no known size, so no engine is opened for it; the others go on."""
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    found = {item.name: item for item in extract([tmp_path / "absent.mp4", videos[0]], engine)}

    assert "No such file" in str(found["absent"].error)
    assert found["v0"].features is not None


def test_a_size_that_changes_within_a_video(tmp_path: Path, videos: list[Path]) -> None:
    """An engine that takes the video's size fails that video, with a reason; other videos go on."""
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    small, large = (
        make_video(tmp_path / f"{width}.264", width=width, height=32, frames=7) for width in (48, 64)
    )
    joined = tmp_path / "joined.264"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    done = vfx_run("--engine", engine, joined, videos[1], "--output", tmp_path / "out")

    assert done.exit_code == 1
    assert set(failures(tmp_path / "out")) == {"joined"}
    assert "joined.264: a frame of 64x32 gives 64x32, the first one gave 48x32" in done.stderr
    np.testing.assert_array_equal(
        read_features(tmp_path / "out" / "v1.npz").arrays["flow"], tiny_flow(decoded(videos[1]))
    )
    # Resized to one size, the same video has a row for every pair, the one across the seam included.
    exact = tiny_flow_engine(tmp_path / "exact.onnx", Transform(Resize("exact", 16, 24)))
    assert extract(joined, exact).arrays["flow"].shape == (13, 2, 16, 24)


@pytest.mark.parametrize(("width", "height"), [(2, 2), (18, 34), (63, 47), (101, 35)])
def test_odd_and_tiny_sizes_give_their_pairs(tmp_path: Path, width: int, height: int) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    video = make_video(tmp_path / "a.mkv", codec="ffv1", width=width, height=height, frames=4)
    np.testing.assert_array_equal(extract(video, engine).arrays["flow"], tiny_flow(decoded(video)))


def test_frames_smaller_than_the_network_takes_fail_alone(tmp_path: Path, videos: list[Path]) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx", smallest_side=31)
    done = vfx_run("--engine", engine, *videos[:2], "--output", tmp_path / "out")

    assert done.exit_code == 1
    assert set(failures(tmp_path / "out")) == {"v0"}
    assert "v0.mp4: frames of 40x30, tiny_flow needs 31 pixels or more on each side" in done.stderr
    assert files_in(tmp_path / "out") >= {"v1.npz"}


@pytest.mark.parametrize("format", ["npz", "npy", "pickle", "hdf5"])
def test_flow_in_half_precision(tmp_path: Path, videos: list[Path], format: str) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    options = ("--engine", engine, videos[0], "--format", format, "--output", tmp_path / "out")
    done = vfx_run(*options, "--float16")

    assert done.exit_code == 0, done.stderr
    if format == "npz":
        flow = read_features(tmp_path / "out" / "v0.npz").arrays["flow"]
    elif format == "hdf5":
        import h5py

        with h5py.File(tmp_path / "out" / "features.h5") as file:
            flow = file["v0/flow"][:]
    else:
        suffix = "npy" if format == "npy" else "pkl"
        flow = np.load(tmp_path / "out" / f"v0_flow.{suffix}", allow_pickle=True)
    assert flow.dtype == np.float16
    # The values are differences of integer grey levels, which half precision holds exactly.
    np.testing.assert_array_equal(flow, tiny_flow(decoded(videos[0])))
    assert "1 were done before" in vfx_run(*options, "--float16").stderr
    assert "0 were done before" in vfx_run(*options).stderr


def test_half_precision_where_it_has_no_place(tmp_path: Path, videos: list[Path]) -> None:
    engine = tiny_engine(tmp_path / "tiny.onnx")
    done = vfx_run("--engine", engine, videos[0], "--format", "slowfast", "--float16")
    assert done.exit_code == 2
    assert "holds float32" in done.stderr
