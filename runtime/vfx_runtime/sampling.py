"""Decide which frames are used: convert a video to a frame rate, and lay windows over it.

Both take frames one by one and hold at most the span of a window, so a video may have any length. A *sample*
is a frame after conversion to the frame rate; windows count in samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Protocol, TypeVar

import numpy as np

from vfx_engines.errors import UsageError
from vfx_engines.spec import Sampling

_INT_MAX = 2**31 - 1


class TimedFrame(Protocol):
    """What `resample` needs to know about a frame: when it appears and when it ends, in seconds."""

    @property
    def start(self) -> Fraction | float:
        """When it appears. Fractions keep ties exact; a float counts as exactly the number that it stores."""
        ...

    @property
    def end(self) -> Fraction | float:
        """When it ends. With a target rate, only the last frame's is read."""
        ...


F = TypeVar("F", bound=TimedFrame)


@dataclass(frozen=True, slots=True)
class Held(Generic[F]):
    """A frame and the consecutive samples that show it, so that its pixels are processed only once."""

    frame: F
    first: int
    """Number of the first sample that shows the frame; 0 for the first frame."""
    count: int
    """Number of samples that show the frame, at least 1."""
    start: Fraction
    """When sample ``first`` appears, in seconds."""
    length: Fraction
    """How long one sample lasts: sample ``first + i`` ends at ``start + (i + 1) * length``."""


def rate(fps: float) -> Fraction:
    """The frame rate that ffmpeg understands by ``fps=<fps>``: the nearest fraction of 31-bit integers.

    23.976 is 2997/125, not 24000/1001. Source: av_d2q in ffmpeg's libavutil.

    Raises:
        UsageError: the rate is not above 0, not finite, or so low that the fraction is 0.
    """
    exact = Fraction(fps) if fps > 0 and math.isfinite(fps) else Fraction(0)
    near = exact.limit_denominator(_INT_MAX)
    if not near:
        raise UsageError(f"frame rate is {fps}, expected frames per second above 0, such as 25")
    return near if exact < 1 else 1 / (1 / exact).limit_denominator(_INT_MAX)


def resample(frames: Iterable[F], fps: float | None) -> Iterator[Held[F]]:
    """Choose the frames that show a video at another rate, as ffmpeg's fps filter does.

    Frame i belongs to tick ``round(start * fps)``, halves away from zero. The ticks run from that of the
    first frame to that of the last frame's end, exclusive. Each shows the latest frame at or before it:
    frames are dropped or repeated, never blended. A video that ends within half a tick of its start has no
    samples (ffmpeg gives no output).

    Args:
        frames: the frames, in presentation order. Of dropped frames only the times are read.
        fps: frames per second; None shows each frame once, for as long as it lasts.

    Yields:
        Each frame that is shown at all, as soon as the next one tells for how long.
    """
    if fps is None:
        for number, frame in enumerate(frames):
            start = Fraction(frame.start)
            yield Held(frame, number, 1, start, Fraction(frame.end) - start)
        return
    target = rate(fps)
    origin = tick = None
    current: F | None = None
    for frame in frames:
        due = _nearest(frame.start, target)
        if origin is None or tick is None:
            origin = tick = due
        elif current is not None and due > tick:
            yield Held(current, tick - origin, due - tick, tick / target, 1 / target)
            tick = due
        current = frame
    if current is not None and origin is not None and tick is not None:
        end = _nearest(current.end, target)
        if end > tick:
            yield Held(current, tick - origin, end - tick, tick / target, 1 / target)


def _nearest(seconds: Fraction | float, target: Fraction) -> int:
    """The tick nearest to a time, with halves rounded away from zero."""
    time = Fraction(seconds)
    top = 2 * abs(time.numerator) * target.numerator
    bottom = time.denominator * target.denominator
    tick = (top + bottom) // (2 * bottom)
    return tick if time >= 0 else -tick


@dataclass(frozen=True, slots=True)
class Window:
    """The samples of one window, and so of one row of features."""

    row: int
    samples: Sequence[int]
    """Number of the sample for each frame of the window; -1 stands for a blank frame."""
    first: int
    """Number of the first sample that is not blank."""
    last: int
    """Number of the last sample that is not blank."""


class Windows:
    """The windows of one video, planned while its samples arrive.

    Each sample is announced to `add`, which returns the window that it completes. `finish` gives the windows
    that reach beyond the end. Later windows only use samples for which `needs` is true, from `floor` on;
    these are never more than `span` plus the sampling's lead.

    Args:
        sampling: the sampling of the run.
        fps: frame rate of the samples; only used if the sampling has a target fps.
    """

    def __init__(self, sampling: Sampling, fps: float | None = None) -> None:
        self._sampling = sampling
        self._offsets: Sequence[int] = range(0, sampling.span, sampling.stride)
        if sampling.target_fps is not None and fps:
            length = max(1.0, sampling.stride * sampling.frames / sampling.target_fps * fps)
            self._offsets = truncated_linspace(0, length - 1, sampling.frames, math.ceil(length))
        self.span = self._offsets[-1] + 1
        """Number of samples from the first to the last of a window, both included."""
        self._offset = self._offsets[sampling.frames // 2] if sampling.anchor == "centre" else 0
        # Windows are numbered by their anchor. Those that begin before the video are never complete.
        self._first = -(-self._offset // sampling.step) if sampling.edges == "drop" else 0
        self._lead = sampling.lead if sampling.edges == "drop" else int(sampling.seed is not None)
        self._next = self._first
        self._seen = 0

    def count(self, total: int) -> int:
        """The number of windows, and so of rows, of a video with ``total`` samples.

        If edges are dropped, the window with anchor ``k * step`` counts if ``lead`` more samples follow its
        last one, that is, if ``k * step - offset + span + lead <= total`` (I3D takes 64 frames and one more:
        64 samples give no window, 65 give one).

        If edges are filled and windows start at their anchor, there are windows until one reaches the last
        sample (64 samples give one window, 65 give two), and none that begins after it. If windows are
        centred, there is one for each ``k * step`` below ``total``. With a seed, windows are counted like the
        Decord-based extractor does: a video shorter than a window has none, and a last window that ends
        exactly with the video is left out.
        """
        sampling = self._sampling
        if sampling.edges == "drop":
            room = total - self.span - self._lead + self._offset
            return max(0, room // sampling.step + 1 - self._first)
        anchors = -(-total // sampling.step)
        if sampling.anchor == "centre":
            return anchors
        windows = min(anchors, max(0, -(-(total - self.span) // sampling.step)) + 1)
        if sampling.seed is not None and total <= self._start(windows - 1) + self.span:
            if total < self.span:
                return 0
            windows -= self._start(windows - 1) + self.span == total
        return windows

    def needs(self, sample: int, last: bool = False) -> bool:
        """Whether a window uses the sample, if the video is long enough for that window.

        Args:
            sample: number of a sample, which may not be announced yet.
            last: whether it is the last one. If edges repeat, the last sample may fill a window even if it is
                not on that window's grid. A caller who looks one frame ahead can therefore drop frames that
                are on no grid.
        """
        if self._on_grid(sample):
            return True
        if not last or self._sampling.edges != "repeat":
            return False
        # Later windows end later, so it is enough to look at the last one.
        final = self.count(sample + 1) - 1
        return self._start(final) + self.span - 1 > sample

    def add(self, sample: int) -> Window | None:
        """Announce the next sample, numbered from 0.

        Returns:
            The window that it completes, or None.

        Raises:
            ValueError: a sample was left out or announced twice.
        """
        if sample != self._seen:
            raise ValueError(f"sample {self._seen} comes next, found {sample}")
        self._seen += 1
        end = self._start(self._next) + self.span
        if end + self._lead > self._seen:
            return None
        self._next += 1
        return self._window(self._next - 1)

    def advance(self, seen: int) -> Iterator[Window]:
        """Announce all samples below ``seen`` at once, for audio; yields the windows that they complete."""
        self._seen = max(self._seen, seen)
        while self._start(self._next) + self.span + self._lead <= self._seen:
            self._next += 1
            yield self._window(self._next - 1)

    def skip(self, sample: int) -> None:
        """Continue at a later sample, after the decoder skipped samples that no window needs.

        Raises:
            ValueError: a window needs one of the samples between, or edges are filled, so that every sample
                may be needed.
        """
        if sample > self.floor or self._sampling.edges != "drop":
            raise ValueError(f"sample {sample} skips some that are needed from {self.floor} on")
        self._seen = max(self._seen, sample)

    def finish(self) -> Iterator[Window]:
        """Announce the end of the video; yields the windows that are left."""
        end = self._first + self.count(self._seen)
        while self._next < end:
            self._next += 1
            yield self._window(self._next - 1)

    @property
    def floor(self) -> int:
        """The number below which no later window uses a sample."""
        return max(0, self._start(self._next))

    def _start(self, anchor: int) -> int:
        return anchor * self._sampling.step - self._offset

    def _on_grid(self, sample: int) -> bool:
        # Position i of the window with anchor k is the sample k * step - offset + offsets[i].
        step, distance = self._sampling.step, sample + self._offset
        least = self._first * step
        return any(distance - i >= least and (distance - i) % step == 0 for i in self._offsets)

    def _window(self, anchor: int) -> Window:
        sampling, row = self._sampling, anchor - self._first
        start = self._start(anchor)
        stop = start + self.span
        grid: Sequence[int] = (
            range(start, stop, sampling.stride)
            if isinstance(self._offsets, range)
            else [start + offset for offset in self._offsets]
        )
        end = self._seen - 1
        if start >= 0 and stop - 1 <= end:
            return Window(row, grid, start, stop - 1)
        if sampling.edges == "repeat":
            samples = tuple(min(max(sample, 0), end) for sample in grid)
            return Window(row, samples, samples[0], samples[-1])
        real = [sample for sample in grid if 0 <= sample <= end]
        if sampling.edges == "loop":
            return Window(row, self._looped(real), real[0], real[-1])
        samples = tuple(sample if 0 <= sample <= end else -1 for sample in grid)
        return Window(row, samples, real[0], real[-1])

    def _looped(self, real: list[int]) -> Sequence[int]:
        """The samples of a window that ends early, followed by some of them again until it is full."""
        missing = self._sampling.frames - len(real)
        if self._sampling.seed is None:
            return tuple(itertools.islice(itertools.cycle(real), self._sampling.frames))
        # NumPy never changes this generator, so a seed gives the same frames with any version.
        drawn = np.random.RandomState(self._sampling.seed).randint(len(real), size=missing)
        return (*real, *(real[i] for i in drawn))


def truncated_linspace(start: float, end: float, count: int, most: int) -> tuple[int, ...]:
    """``count`` positions from ``start`` to ``end`` inclusive, rounded down and clipped to 0 to ``most``.

    Computed like ``torch.linspace``: in float32, from both ends towards the middle, with each product and sum
    rounded once. So a position that should be whole is rounded the same way as in PySlowFast.
    """
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(1, count - 1)))
    at = np.arange(count, dtype=np.float64)
    rising, falling = np.float64(first) + step * at, np.float64(last) - step * (count - 1 - at)
    positions = np.where(at < max(1, count // 2), rising, falling).astype(np.float32)
    return tuple(int(position) for position in np.clip(positions, 0, most))
