"""The pipeline on an engine with hostile timing, whose device watches its buffers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from make_video import make_video
from tiny import FRAMES, SIZE, tiny_features, tiny_spec
from tolerances import TINY
from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, VideoError
from vfx_engines.spec import EngineSpec
from vfx_runtime import pipeline as pipeline_module
from vfx_runtime.features import Features
from vfx_runtime.job import Job
from vfx_runtime.opening import open_video
from vfx_runtime.pipeline import Pipeline, Result
from vfx_runtime.preprocess import CpuPreprocess
from vfx_runtime.resize import plan


class Device:
    """Runs the tiny engine as a device does: later, in any order, and from the slot's own memory.

    It reads a slot's buffer when it starts and again when it is done. If pixels were written while the slot
    was in flight, that is recorded as a violation.
    """

    name, precision = "a simulated device", "fp32"

    def __init__(
        self,
        slots: int,
        batch: int,
        *,
        seed: int = 0,
        delay: float = 0.004,
        fail_at: tuple[str, int] | None = None,
    ) -> None:
        self.buffers = [np.zeros((batch, FRAMES, SIZE, SIZE, 3), np.uint8) for _ in range(slots)]
        self.violations: list[int] = []
        self.counts: list[int] = []
        self.most_in_flight = 0
        self._random = random.Random(seed)
        self._delay, self._fail_at = delay, fail_at
        self._running: dict[int, threading.Thread] = {}
        self._outputs: dict[int, NDArray[Any]] = {}
        self.calls = {"start": 0, "wait": 0}

    def _call(self, what: str) -> None:
        self.calls[what] += 1
        if self._fail_at == (what, self.calls[what]):
            raise EngineError(f"simulated: {what} failed")

    def start(self, slot: int, count: int) -> None:
        self._call("start")
        before = self.buffers[slot].copy()
        seconds = self._random.uniform(0, self._delay)

        def compute() -> None:
            time.sleep(seconds)
            if not np.array_equal(before[:count], self.buffers[slot][:count]):
                self.violations.append(slot)
            self._outputs[slot] = tiny_features(self.buffers[slot])

        assert slot not in self._running
        self._running[slot] = threading.Thread(target=compute)
        self.most_in_flight = max(self.most_in_flight, len(self._running))
        self.counts.append(count)
        self._running[slot].start()

    def wait(self, slot: int) -> Sequence[NDArray[Any]]:
        self._running[slot].join()
        del self._running[slot]
        self._call("wait")
        return [self._outputs[slot]]

    def close(self) -> None:
        assert not self._running


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    folder = tmp_path_factory.mktemp("videos")
    lengths = [4, 37, 8, 5, 61, 12, 4, 23, 9, 16]
    return [
        Job(make_video(folder / f"v{i}.mp4", width=40 + 2 * i, height=30, frames=n), f"v{i}")
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def expected(videos: list[Job]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Frame ranges and features, computed by a plain loop over each video's frames."""
    transform = tiny_spec().transform
    found = {}
    for job in videos:
        frames = []
        with open_video(job.path) as decoder:
            for frame in decoder:
                rgb = frame.rgb()
                frames.append(np.empty((SIZE, SIZE, 3), np.uint8))
                plan(transform, *rgb.shape[:2]).apply(rgb, frames[-1])
        firsts = range(0, len(frames) - FRAMES + 1, FRAMES)
        windows = np.stack([np.stack(frames[first : first + FRAMES]) for first in firsts])
        ranges = np.array([(first, first + FRAMES) for first in firsts])
        found[job.name] = ranges, tiny_features(windows)
    return found


def read(results: Iterator[Result]) -> dict[str, Features | Exception]:
    read: dict[str, Features | Exception] = {}
    for result in results:
        assert result.job.name not in read
        if result.rows is None:
            assert result.error is not None
            read[result.job.name] = result.error
        else:
            with result.rows as rows:
                read[result.job.name] = rows.features(result.fps, {})
    return read


def alive() -> set[str]:
    return {
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("vfx-decode", "vfx-collect"))
    }


@pytest.mark.parametrize(
    ("slots", "batch", "workers"), [(2, 1, 1), (2, 3, 4), (3, 4, 2), (5, 2, 8), (2, 64, 3)]
)
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_right_whatever_the_timing(
    monkeypatch: pytest.MonkeyPatch,
    videos: list[Job],
    expected: dict[str, tuple[NDArray[Any], NDArray[Any]]],
    slots: int,
    batch: int,
    workers: int,
    seed: int,
) -> None:
    chance = random.Random(seed)
    place = CpuPreprocess.place

    def slow_copy(preprocess: CpuPreprocess, *window: Any) -> None:
        time.sleep(chance.choice([0, 0, 0.004]))
        place(preprocess, *window)

    # A worker that copies slowly holds its slot back while later slots fill up.
    monkeypatch.setattr(CpuPreprocess, "place", slow_copy)
    device = Device(slots, batch, seed=seed)
    pipeline = Pipeline(Engine(tiny_spec(), device), workers=workers)

    found = read(pipeline.run(videos))

    assert found.keys() == expected.keys()
    for name, (ranges, features) in expected.items():
        result = found[name]
        assert isinstance(result, Features)
        np.testing.assert_array_equal(result.frame_range, ranges)
        np.testing.assert_allclose(result.arrays["features"], features, rtol=TINY)
    assert device.violations == []
    assert pipeline.stats.windows == sum(len(ranges) for ranges, _ in expected.values())
    assert pipeline.stats.videos == len(videos)
    assert pipeline.stats.frames == 4 + 37 + 8 + 5 + 61 + 12 + 4 + 23 + 9 + 16
    assert alive() == set()


def test_windows_of_different_videos_share_a_batch(videos: list[Job]) -> None:
    device = Device(2, 16)
    found = read(Pipeline(Engine(tiny_spec(), device), workers=2).run(videos))

    windows = sum(len(item.frame_range) for item in found.values() if isinstance(item, Features))
    assert all(count == 16 for count in device.counts[:-1])
    assert sum(device.counts) == windows


def test_the_device_is_kept_busy(videos: list[Job]) -> None:
    device = Device(3, 1, delay=0.03)
    read(Pipeline(Engine(tiny_spec(), device), workers=2).run(videos))

    assert device.most_in_flight == 3


def test_a_bad_video_ends_its_own_job_only(videos: list[Job], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(videos[4].path.read_bytes()[:-2000])
    short = make_video(tmp_path / "short.mp4", frames=3)
    jobs = [
        videos[0],
        Job(bad, "bad"),
        videos[1],
        Job(short, "short"),
        Job(tmp_path / "none", "none"),
        videos[2],
    ]
    found = read(Pipeline(Engine(tiny_spec(), Device(2, 4))).run(jobs))

    assert {name for name, item in found.items() if isinstance(item, VideoError)} == {"bad", "short", "none"}
    assert "--tail repeat" in str(found["short"])
    assert len(found) == 6


def test_windows_may_overlap_and_spread(videos: list[Job]) -> None:
    spec = tiny_spec()
    sampling = replace(spec.sampling, step=2, stride=3)
    found = read(Pipeline(Engine(spec, Device(2, 4)), sampling).run([videos[4]]))["v4"]

    assert isinstance(found, Features)
    assert found.frame_range.tolist() == [[first, first + 10] for first in range(0, 61 - 9, 2)]


@pytest.mark.parametrize("call", ["start", "wait"])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("workers", [1, 4])
def test_an_engine_that_fails_ends_the_run_with_its_reason(
    videos: list[Job], call: str, number: int, workers: int
) -> None:
    device = Device(2, 2, fail_at=(call, number))
    engine = Engine(tiny_spec(), device)

    with pytest.raises(EngineError, match=f"simulated: {call} failed"):
        read(Pipeline(engine, workers=workers).run(videos))

    assert alive() == set()
    engine.close()


@pytest.mark.parametrize("workers", [1, 4])
def test_videos_under_way_when_an_engine_fails_are_named_and_whole_ones_kept(
    videos: list[Job], expected: dict[str, tuple[NDArray[Any], NDArray[Any]]], workers: int
) -> None:
    begun: list[str] = []

    def jobs() -> Iterator[Job]:
        for job in videos:
            begun.append(job.name)
            yield job

    results: dict[str, Result] = {}
    engine = Engine(tiny_spec(), Device(2, 2, fail_at=("wait", 12)))

    def run() -> None:
        for result in Pipeline(engine, workers=workers).run(jobs()):
            results[result.job.name] = result

    with pytest.raises(EngineError, match=r"^simulated: wait failed$"):
        run()
    assert set(results) == set(begun)
    whole = {name for name, result in results.items() if result.rows is not None}
    assert 0 < len(whole) < len(results)
    for name, result in results.items():
        if result.rows is None:
            assert str(result.error) == f"{result.job.path}: simulated: wait failed"
            continue
        with result.rows as rows:
            features = rows.features(result.fps, {})
        np.testing.assert_allclose(features.arrays["features"], expected[name][1], rtol=TINY)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_can_be_given_up(videos: list[Job], after: int) -> None:
    device = Device(2, 1)
    engine = Engine(tiny_spec(), device)
    results = Pipeline(engine).run(videos)
    for _ in range(after):
        rows = next(results).rows
        assert rows is not None
        rows.close()
    results.close()  # type: ignore[attr-defined]  # run is a generator

    assert alive() == set()
    # Every slot is free again, so the engine serves another run.
    assert len(read(Pipeline(engine).run(videos))) == len(videos)


def test_an_error_of_the_list_of_jobs_ends_the_run(videos: list[Job]) -> None:
    def jobs() -> Iterator[Job]:
        yield from videos[:3]
        raise OSError("the list went away")

    for _ in range(20):
        with pytest.raises(OSError, match="the list went away"):
            read(Pipeline(Engine(tiny_spec(), Device(2, 4, delay=0)), workers=3).run(jobs()))
    assert alive() == set()


def test_a_defect_costs_one_video_and_is_reported(videos: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipeline_module.open_video

    def open_video(path: Path, *rest: Any) -> Any:
        if path == videos[1].path:
            raise ZeroDivisionError("a defect")
        return real(path, *rest)

    monkeypatch.setattr(pipeline_module, "open_video", open_video)
    found = read(Pipeline(Engine(tiny_spec(), Device(2, 4))).run(videos))

    assert "internal error, please report it: ZeroDivisionError: a defect" in str(found["v1"])
    assert sum(isinstance(item, Features) for item in found.values()) == len(videos) - 1


def test_far_more_videos_than_may_be_open(tmp_path: Path) -> None:
    """A long video at the front must neither make the run hold all that follow, nor stop it."""
    long = Job(make_video(tmp_path / "long.mp4", frames=400), "long")
    short = make_video(tmp_path / "short.mp4", frames=4)
    jobs = [long, *(Job(short, f"short{i}") for i in range(300))]
    found = read(Pipeline(Engine(tiny_spec(), Device(2, 256, delay=0)), workers=3).run(jobs))

    assert len(found) == 301
    assert all(isinstance(item, Features) for item in found.values())


def test_the_spec_says_what_fills_a_window_up(tmp_path: Path) -> None:
    spec: EngineSpec = tiny_spec(edges="zeros")
    spec = replace(spec, input=replace(spec.input, blank=(10, 20, 30)))
    job = Job(make_video(tmp_path / "short.mp4", frames=1), "short")
    found = read(Pipeline(Engine(spec, Device(2, 1))).run([job]))["short"]
    with open_video(job.path) as decoder:
        rgb = next(iter(decoder)).rgb()
        first = np.empty((SIZE, SIZE, 3), np.uint8)
        plan(spec.transform, *rgb.shape[:2]).apply(rgb, first)

    window = np.full((1, FRAMES, SIZE, SIZE, 3), (10, 20, 30), np.uint8)
    window[0, 0] = first
    assert isinstance(found, Features)
    np.testing.assert_allclose(found.arrays["features"], tiny_features(window), rtol=TINY)
    assert found.frame_range.tolist() == [[0, 1]]
