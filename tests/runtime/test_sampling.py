from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vfx_engines.errors import UsageError
from vfx_engines.spec import Sampling
from vfx_runtime.sampling import Held, Window, Windows, rate, resample

VIDEO = Path(__file__).parents[3] / "shared/videos/v_GGSY1Qvo990.mp4"


@dataclass(frozen=True)
class Tick:
    index: int
    start: Fraction
    end: Fraction


def stream(pts: list[int], duration: int, time_base: Fraction) -> list[Tick]:
    ends = [*pts[1:], pts[-1] + duration]
    return [
        Tick(i, start * time_base, end * time_base)
        for i, (start, end) in enumerate(zip(pts, ends, strict=True))
    ]


def shown(frames: list[Tick], fps: float) -> list[int]:
    """Index of the frame that each sample shows; asserts that the samples are numbered without a gap."""
    numbers: list[int] = []
    for held in resample(frames, fps):
        assert held.first == len(numbers)
        assert held.count >= 1
        numbers += [held.frame.index] * held.count
    return numbers


def ffmpeg(pts: list[int], duration: int, time_base: Fraction, fps: str) -> tuple[list[int], list[Fraction]]:
    """Indices and times of the frames that FFmpeg's fps filter emits; each picture's value is its index."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=4, height=1, format=av.VideoFormat("gray"), time_base=time_base)
    chosen, sink = graph.add("fps", f"fps={fps}"), graph.add("buffersink")
    source.link_to(chosen)
    chosen.link_to(sink)
    graph.configure()
    numbers: list[int] = []
    times: list[Fraction] = []

    def drain() -> None:
        while True:
            try:
                frame = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(frame, av.VideoFrame)
            assert frame.pts is not None
            assert frame.time_base is not None
            numbers.append(int(frame.to_ndarray().view("<u4")[0, 0]))
            times.append(Fraction(frame.pts) * frame.time_base)

    for number, at in enumerate(pts):
        picture = np.array([[number]], "<u4").view(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="gray")
        frame.pts, frame.time_base, frame.duration = at, time_base, duration
        graph.push(frame)
        drain()
    graph.push(None)
    drain()
    return numbers, times


def agree(pts: list[int], duration: int, time_base: Fraction, fps: float) -> None:
    frames = stream(pts, duration, time_base)
    held = list(resample(frames, fps))
    numbers, times = ffmpeg(pts, duration, time_base, repr(fps))
    assert shown(frames, fps) == numbers
    assert [h.start + i * h.length for h in held for i in range(h.count)] == times


@pytest.mark.parametrize("fps", [0.5, 1.0, 7.3, 12.5, 23.976, 25.0, 29.97, 30.0, 59.94, 100.0])
@pytest.mark.parametrize(
    ("pts", "duration", "time_base"),
    [
        pytest.param([i * 512 for i in range(90)], 512, Fraction(1, 15360), id="constant 30"),
        pytest.param([i * 1001 for i in range(90)], 1001, Fraction(1, 30000), id="constant 29.97"),
        pytest.param([i * 20 for i in range(60)], 20, Fraction(1, 1000), id="ties at 25"),
        pytest.param([777 + i * 40 for i in range(60)], 40, Fraction(1, 1000), id="starts late"),
        pytest.param([i * 40 - 490 for i in range(60)], 40, Fraction(1, 1000), id="starts before 0"),
        pytest.param([0, 33, 34, 400, 410, 411, 990], 5, Fraction(1, 1000), id="variable"),
        pytest.param([0, 40, 40, 40, 80, 120, 120], 40, Fraction(1, 1000), id="duplicate times"),
        pytest.param([0, 80, 40, 160, 120, 200], 40, Fraction(1, 1000), id="times that fall"),
        pytest.param([0, 40, 60_000, 60_040], 40, Fraction(1, 1000), id="a gap of a minute"),
        pytest.param([0], 40, Fraction(1, 1000), id="one frame"),
        pytest.param([500], 0, Fraction(1, 1000), id="one frame without duration"),
    ],
)
def test_frames_are_chosen_as_ffmpeg_chooses_them(
    pts: list[int], duration: int, time_base: Fraction, fps: float
) -> None:
    agree(pts, duration, time_base, fps)


@settings(max_examples=150, deadline=None)
@given(
    first=st.integers(-5000, 5000),
    steps=st.lists(st.integers(0, 400), max_size=40),
    duration=st.integers(0, 400),
    time_base=st.sampled_from([Fraction(1, 1000), Fraction(1, 600), Fraction(1001, 240_000)]),
    fps=st.one_of(
        st.sampled_from([0.1, 1.0, 12.5, 23.976, 25.0, 29.97, 50.0]),
        st.floats(0.05, 60, allow_nan=False),
    ),
)
def test_any_stream_is_sampled_as_ffmpeg_samples_it(
    first: int, steps: list[int], duration: int, time_base: Fraction, fps: float
) -> None:
    pts = [first]
    for step in steps:
        pts.append(pts[-1] + step)
    agree(pts, duration, time_base, fps)


@pytest.mark.parametrize(
    ("fps", "fraction"),
    [(29.97, (2997, 100)), (23.976, (2997, 125)), (25, (25, 1)), (0.1, (1, 10)), (19.62, (981, 50))],
)
def test_rates_are_the_fractions_that_were_meant(fps: float, fraction: tuple[int, int]) -> None:
    assert rate(fps) == Fraction(*fraction)


@pytest.mark.parametrize("fps", [0.0, -1.0, 1e-12, float("nan"), float("inf")])
def test_impossible_rates_are_refused_in_one_line(fps: float) -> None:
    with pytest.raises(UsageError, match="expected frames per second above 0"):
        rate(fps)


def test_without_a_rate_each_frame_is_shown_for_as_long_as_it_lasts() -> None:
    frames = stream([3, 5, 10], 4, Fraction(1, 10))
    assert list(resample(frames, None)) == [
        Held(frames[0], 0, 1, Fraction(3, 10), Fraction(2, 10)),
        Held(frames[1], 1, 1, Fraction(5, 10), Fraction(5, 10)),
        Held(frames[2], 2, 1, Fraction(10, 10), Fraction(4, 10)),
    ]


def test_no_frames_give_no_samples() -> None:
    assert list(resample(list[Tick](), 25)) == []
    assert list(resample(list[Tick](), None)) == []


def test_a_frame_is_given_as_soon_as_the_next_one_is_known() -> None:
    taken = 0

    def frames() -> Iterator[Tick]:
        nonlocal taken
        for frame in stream([i * 40 for i in range(1000)], 40, Fraction(1, 1000)):
            taken += 1
            yield frame

    samples = resample(frames(), 25.0)
    next(samples)
    assert taken == 2


@pytest.fixture(scope="module")
def real_frames() -> list[Tick]:
    if not VIDEO.exists():
        pytest.skip(f"{VIDEO} is not here")
    with av.open(VIDEO) as container:
        video = container.streams.video[0]
        time_base, length = video.time_base, video.duration
        pts = sorted(packet.pts for packet in container.demux(video) if packet.pts is not None)
    assert time_base is not None
    assert length is not None
    # The stream ends one tick after its last frame starts, though FFmpeg 8 gives that packet the
    # duration of the others. FFmpeg 5, which made the reference, gave it its own.
    return stream(pts, length - pts[-1], time_base)


@pytest.mark.parametrize(("fps", "samples"), [(25, 451), (20, 361), (15, 271), (5, 90), (3, 54), (1, 18)])
def test_the_reference_video_has_the_reference_number_of_samples(
    real_frames: list[Tick], fps: float, samples: int
) -> None:
    assert len(shown(real_frames, fps)) == samples


@pytest.mark.parametrize(
    ("fps", "frames", "step", "rows"), [(None, 64, 64, 5), (None, 24, 12, 28), (25, 64, 64, 7)]
)
def test_the_reference_video_has_the_reference_number_of_rows(
    real_frames: list[Tick], fps: float | None, frames: int, step: int, rows: int
) -> None:
    planned = Windows(Sampling(frames, stride=1, step=step, lead=1))
    total = sum(held.count for held in resample(real_frames, fps))
    windows = [window for n in range(total) if (window := planned.add(n)) is not None]
    assert [window.row for window in windows] == list(range(rows))
    assert list(planned.finish()) == []
    assert planned.count(total) == rows


def every_window(sampling: Sampling, total: int) -> list[Window]:
    """All windows of a video whose length is known, straight from the definition: a slow reference."""
    windows: list[Window] = []
    for anchor in range(0, total, sampling.step):
        middle = sampling.frames // 2 if sampling.anchor == "centre" else 0
        grid = [anchor + (i - middle) * sampling.stride for i in range(sampling.frames)]
        if sampling.edges == "drop":
            if grid[0] < 0 or grid[-1] + sampling.lead >= total:
                continue
        elif sampling.anchor == "start" and anchor - sampling.step + sampling.span >= total and windows:
            break
        inside = [n for n in grid if 0 <= n < total]
        if sampling.edges == "repeat":
            grid = [min(max(n, 0), total - 1) for n in grid]
            inside = grid
        elif sampling.edges == "loop":
            grid = (inside * sampling.frames)[: sampling.frames]
        elif sampling.edges == "zeros":
            grid = [n if 0 <= n < total else -1 for n in grid]
        windows.append(Window(len(windows), grid, min(inside), max(inside)))
    return windows


samplings = st.builds(
    lambda anchor_and_edges, **rest: Sampling(anchor=anchor_and_edges[0], edges=anchor_and_edges[1], **rest),
    st.sampled_from(
        [("start", "loop"), *product(("start", "centre"), ("drop", "repeat", "zeros"))],
    ),
    frames=st.integers(1, 9),
    stride=st.integers(1, 5),
    step=st.integers(1, 25),
    lead=st.integers(0, 3),
)


@settings(max_examples=600, deadline=None)
@given(sampling=samplings, total=st.integers(0, 90))
@example(sampling=Sampling(4, 2, 8, edges="repeat"), total=4)
@example(sampling=Sampling(1, 1, 20, edges="zeros"), total=21)
def test_windows_are_those_of_the_definition(sampling: Sampling, total: int) -> None:
    expected = every_window(sampling, total)
    planner, found = Windows(sampling), []
    kept: set[int] = set()
    for n in range(total):
        if planner.needs(n, last=n == total - 1):
            kept.add(n)
        window = planner.add(n)
        if window is not None:
            found.append(window)
            assert set(window.samples) - {-1} <= kept
        kept = {k for k in kept if k >= planner.floor}
        assert len(kept) <= sampling.span + sampling.lead
    for window in planner.finish():
        found.append(window)
        assert set(window.samples) - {-1} <= kept
        kept = {k for k in kept if k >= planner.floor}
    as_lists = [Window(w.row, list(w.samples), w.first, w.last) for w in found]
    assert as_lists == expected
    assert Windows(sampling).count(total) == len(expected)


@settings(max_examples=300, deadline=None)
@given(sampling=samplings, sample=st.integers(0, 60))
def test_needed_is_what_a_long_video_uses_and_nothing_else(sampling: Sampling, sample: int) -> None:
    long = every_window(sampling, sample + 300)
    assert Windows(sampling).needs(sample) == any(sample in window.samples for window in long)
    ended = any(sample in window.samples for window in every_window(sampling, sample + 1))
    if Windows(sampling).needs(sample):
        assert Windows(sampling).needs(sample, last=True)
    else:
        assert Windows(sampling).needs(sample, last=True) == ended


def test_samples_between_sparse_windows_are_not_needed() -> None:
    planner = Windows(Sampling(frames=3, stride=2, step=10))
    assert [n for n in range(20) if planner.needs(n)] == [0, 2, 4, 10, 12, 14]


def test_windows_of_long_videos_are_ranges_not_lists() -> None:
    planner = Windows(Sampling(frames=64, stride=1, step=64, lead=1))
    windows = [window for n in range(1000) if (window := planner.add(n))]
    assert windows[-1].samples == range(14 * 64, 15 * 64)
    assert all(b.first - a.first == 64 for a, b in pairwise(windows))


def test_a_sample_left_out_is_noticed() -> None:
    planner = Windows(Sampling(frames=2, stride=1, step=2))
    planner.add(0)
    with pytest.raises(ValueError, match="sample 1 comes next, found 2"):
        planner.add(2)
