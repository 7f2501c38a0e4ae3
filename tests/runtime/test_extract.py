"""`extract`, the Python interface: one video or many, in memory or on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from make_video import make_video
from run_kit import expected_rows, files_in
from tiny import tiny_engine
from tiny_flow import tiny_flow_engine
from tolerances import TINY
from vfx_engines import EngineError, UsageError, VideoError, open_engine, read_spec
from vfx_runtime import Extracted, Features, extract, read_features
from vfx_runtime.inputs import find_videos
from vfx_runtime.running import Listener, Runner, Task, run_here


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("engine") / "tiny.onnx")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(folder / f"v{number}.mp4", frames=5 + 4 * number) for number in range(3)]


def check(features: Features | None, video: Path) -> None:
    assert features is not None
    np.testing.assert_allclose(features.arrays["features"], expected_rows(video), rtol=TINY)
    assert features.meta["spec"]["model"] == "tiny"


def test_one_video_in_memory(engine: Path, videos: list[Path]) -> None:
    check(extract(videos[1], engine), videos[1])
    check(extract(str(videos[1]), str(engine)), videos[1])


def test_many_in_memory(engine: Path, videos: list[Path]) -> None:
    found = {item.name: item for item in extract(videos, engine)}

    assert list(sorted(found)) == ["v0", "v1", "v2"]
    for video in videos:
        item = found[video.stem]
        assert isinstance(item, Extracted)
        assert item.path == video
        assert (item.files, item.skipped, item.error) == ((), False, None)
        check(item.features, video)


def test_to_disk_and_again(engine: Path, videos: list[Path], tmp_path: Path) -> None:
    first = list(extract(videos, engine, output=tmp_path))
    again = list(extract(videos, engine, output=tmp_path))

    assert files_in(tmp_path) == {"v0.npz", "v1.npz", "v2.npz"}
    assert [item.skipped for item in first] == [False] * 3
    assert [item.skipped for item in again] == [True] * 3
    for item in first:
        (file,) = item.files
        check(read_features(file), item.path)
    check(extract(videos[0], engine, output=tmp_path), videos[0])


def test_an_open_engine_serves_many_calls(engine: Path, videos: list[Path]) -> None:
    with open_engine(engine) as opened:
        for video in videos:
            check(extract(video, opened), video)
        assert len(list(extract(videos, opened, step=1, tail="repeat"))) == 3
        features = extract(videos[0], opened, step=1)
    assert features.frame_range.tolist() == [[0, 4], [1, 5]]


def test_an_error_is_raised_for_one_and_told_for_many(
    engine: Path, videos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        extract(bad, engine)
    found = {item.name: item for item in extract([videos[0], bad, videos[1]], engine)}

    assert isinstance(found["bad"].error, VideoError)
    assert found["bad"].features is None
    check(found["v0"].features, videos[0])
    check(found["v1"].features, videos[1])


def test_what_cannot_be_is_refused(engine: Path, videos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No such file"):
        extract(videos[0], tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="step 0"):
        extract(videos[0], engine, step=0)
    with pytest.raises(UsageError, match="stands for 3 videos"):
        extract(videos[0].parent, engine, output=tmp_path)
    with pytest.raises(UsageError, match="format"):
        list(extract(videos, engine, output=tmp_path, format="mat"))  # type: ignore[arg-type]
    # Without a check, an unknown word would be treated like the last known one.
    for wrong in ({"tail": "pad"}, {"anchor": "center"}, {"step": 2.5}, {"stride": "2"}):
        (name,) = wrong
        with pytest.raises(UsageError, match=f"{name} .*: expected "):
            extract(videos[0], engine, **wrong)  # type: ignore[arg-type]  # wrong types are what is tested
    with pytest.raises(UsageError, match="features come back from npz alone"):
        extract(videos[0], engine, output=tmp_path / "out", format="npy")
    for elsewhere in ("s3://bucket/features", ""):
        with pytest.raises(UsageError, match="expected a folder of this machine"):
            extract(videos[0], engine, output=elsewhere)
    assert not (tmp_path / "out").exists()


def test_results_may_be_left_half_way(engine: Path, videos: list[Path], tmp_path: Path) -> None:
    results = extract(videos, engine, output=tmp_path)
    next(results)
    results.close()  # type: ignore[attr-defined]  # extract gives a generator

    assert all(name.endswith(".npz") for name in files_in(tmp_path))
    assert len(list(extract(videos, engine, output=tmp_path))) == 3


@pytest.mark.parametrize("way", ["extract", "run_here"])
def test_an_engine_that_is_replaced_during_a_run_ends_it(tmp_path: Path, way: str) -> None:
    """It is opened once for each size of video, and windows laid for another engine would give wrong rows."""
    engine, videos, output = tiny_flow_engine(tmp_path / "flow.onnx"), tmp_path / "videos", tmp_path / "out"
    output.mkdir()
    videos.mkdir()
    for number in range(4):
        make_video(videos / f"v{number}.mp4", width=32 + 16 * (number % 2), height=32, frames=8)
    if way == "extract":
        results = extract([videos], engine, output=output)
    else:
        task = Task((engine,), output, "npz", (read_spec(engine).sampling,))
        listener = Listener(lambda line: None, lambda stats: None)
        results = run_here(task, "cpu", find_videos([videos]), 4, listener)
    assert next(results).error is None
    tiny_flow_engine(engine, smallest_side=2)
    with pytest.raises(EngineError, match="replaced by another engine since this run began"):
        list(results)
    assert files_in(output) == {"v0.npz", "v2.npz"}


def test_an_engine_that_was_replaced_since_the_run_was_planned(tmp_path: Path) -> None:
    """A run's actors and processes open it later than the run looks at it."""
    engine = tiny_engine(tmp_path / "tiny.onnx")
    spec = read_spec(engine)
    tiny_engine(engine, step=3)
    task = Task((engine,), tmp_path, "npz", (spec.sampling,), specs=(spec,))
    with pytest.raises(EngineError, match=r"tiny.onnx: replaced .*: run again"):
        Runner(task, "cpu", Listener(lambda line: None, lambda stats: None))
