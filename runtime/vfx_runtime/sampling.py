"""Which frames are used: the rule that brings a video to a frame rate, and the windows over it.

Both take frames one by one and hold at most what a window spans, so a video may have any length.
A *sample* is a frame after the frame rate was applied; windows count in samples.
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
    """What `resample` asks of a frame: when it appears, and when it ends, in seconds."""

    @property
    def start(self) -> Fraction | float:
        """Fractions keep ties exact; floats stand for the binary fraction that they are."""
        ...

    @property
    def end(self) -> Fraction | float:
        """Read of the last frame only."""
        ...


F = TypeVar("F", bound=TimedFrame)


@dataclass(frozen=True, slots=True)
class Held(Generic[F]):
    """A frame and the run of samples that show it. What is done to its pixels is done once."""

    frame: F
    first: int
    """Number of the first sample that shows it; the first frame's is 0."""
    count: int
    """Samples that show it, at least 1."""
    start: Fraction
    """When sample ``first`` appears, in seconds."""
    length: Fraction
    """How long one sample lasts: sample ``first + i`` ends at ``start + (i + 1) * length``."""


def rate(fps: float) -> Fraction:
    """The frame rate that ffmpeg reads in ``fps=<fps>``: the nearest fraction of 31-bit integers.

    23.976 is 2997/125, not 24000/1001. Source: av_d2q in ffmpeg's libavutil.

    Raises:
        UsageError: the rate is not above 0, or so low that the fraction is 0.
    """
    exact = Fraction(fps) if fps > 0 and math.isfinite(fps) else Fraction(0)
    near = exact.limit_denominator(_INT_MAX)
    if not near:
        raise UsageError(f"frame rate is {fps}, expected frames per second above 0, such as 25")
    return near if exact < 1 else 1 / (1 / exact).limit_denominator(_INT_MAX)


def resample(frames: Iterable[F], fps: float | None) -> Iterator[Held[F]]:
    """Choose the frames that show a video at another rate, as ffmpeg's fps filter does.

    Frame i belongs to tick ``round(start * fps)``, halves away from zero. Each tick from the first
    frame's to that of the last frame's end, which is not shown, shows the last frame that came at
    or before it: frames are dropped or repeated, never blended. A video that ends within half a
    tick of its start has no samples (ffmpeg: no output).

    Args:
        frames: In the order of presentation. Dropped ones are never touched but for their times.
        fps: Frames per second; None shows each frame once, for as long as it lasts.

    Yields:
        Each frame that is shown at all, as soon as the next one says for how long.
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
    """The tick nearest to a time; halves away from zero."""
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
    """One number per frame of the window, repeated at edges that repeat; -1 is a blank frame."""
    first: int
    """The first sample that is not blank; ``last`` is the last one."""
    last: int


class Windows:
    """The windows of one video, planned while its samples arrive.

    Each sample is announced to `add`, which gives the window that it completes; `finish` gives
    those that reach over the end. Of all samples so far, a window to come uses only such as
    `needs` names, from `floor` on: never more than `span` plus the sampling's lead.

    Args:
        sampling: which windows.
        fps: of the samples; read where the sampling has a target fps.
    """

    def __init__(self, sampling: Sampling, fps: float | None = None) -> None:
        self._sampling = sampling
        self._offsets: Sequence[int] = range(0, sampling.span, sampling.stride)
        if sampling.target_fps is not None and fps:
            length = max(1.0, sampling.stride * sampling.frames / sampling.target_fps * fps)
            self._offsets = truncated_linspace(0, length - 1, sampling.frames, math.ceil(length))
        self.span = self._offsets[-1] + 1
        """Samples from the first to the last of a window, both included."""
        self._offset = self._offsets[sampling.frames // 2] if sampling.anchor == "centre" else 0
        # Windows are numbered by their anchor; those that begin before a video are never whole.
        self._first = -(-self._offset // sampling.step) if sampling.edges == "drop" else 0
        self._lead = sampling.lead if sampling.edges == "drop" else int(sampling.seed is not None)
        self._next = self._first
        self._seen = 0

    def count(self, total: int) -> int:
        """Windows, and so rows, of a video of ``total`` samples.

        Whole windows alone: anchor ``k * step`` counts where ``lead`` more samples follow the last
        one, that is ``k * step - offset + span + lead <= total`` (I3D, 64 frames and one more: 64
        samples give none, 65 give one). With edges filled, from the start: until a window reaches
        the last sample (64 samples give one, 65 two), and none begins behind it; centred: one for
        each ``k * step`` below ``total``. With a seed, as the Decord-based extractor counts: none of a video
        shorter than a window, and not the last one where it ends with the video.
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
        """Whether a window uses the sample, if the video goes on long enough for that window.

        Args:
            sample: Any, also one not yet announced.
            last: Nothing comes after it. Where edges repeat it may fill a window on whose grid it
                does not lie; a caller that looks one frame ahead need not keep every frame for that.
        """
        if self._on_grid(sample):
            return True
        if not last or self._sampling.edges != "repeat":
            return False
        # Later windows end later, so the last one tells.
        final = self.count(sample + 1) - 1
        return self._start(final) + self.span - 1 > sample

    def add(self, sample: int) -> Window | None:
        """Announce the next sample, numbered from 0; the window that it completes, if any.

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
        """Announce all samples below ``seen``, where they come by the thousand; the windows they complete."""
        self._seen = max(self._seen, seen)
        while self._start(self._next) + self.span + self._lead <= self._seen:
            self._next += 1
            yield self._window(self._next - 1)

    def skip(self, sample: int) -> None:
        """Go on at a sample further on: nothing needs those between, so they were not even decoded.

        Raises:
            ValueError: a window needs one of them, or the end is needed to fill windows up.
        """
        if sample > self.floor or self._sampling.edges != "drop":
            raise ValueError(f"sample {sample} skips some that are needed from {self.floor} on")
        self._seen = max(self._seen, sample)

    def finish(self) -> Iterator[Window]:
        """Announce the end; the windows that it completes."""
        end = self._first + self.count(self._seen)
        while self._next < end:
            self._next += 1
            yield self._window(self._next - 1)

    @property
    def floor(self) -> int:
        """No window that is still to come uses a sample below this one."""
        return max(0, self._start(self._next))

    def _start(self, anchor: int) -> int:
        return anchor * self._sampling.step - self._offset

    def _on_grid(self, sample: int) -> bool:
        # Position i of the window with anchor k is sample k * step - offset + offsets[i].
        step, distance = self._sampling.step, sample + self._offset
        least = self._first * step
        return any(distance - i >= least and (distance - i) % step == 0 for i in self._offsets)

    def _window(self, anchor: int) -> Window:
        sampling, row = self._sampling, anchor - self._first
        start = self._start(anchor)
        stop = start + self.span
        grid: Sequence[int] = [start + offset for offset in self._offsets]
        if isinstance(self._offsets, range):
            grid = range(start, stop, sampling.stride)
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
        """The frames of a window that ends early, and some of them again until it is full."""
        missing = self._sampling.frames - len(real)
        if self._sampling.seed is None:
            return tuple(itertools.islice(itertools.cycle(real), self._sampling.frames))
        # The generator that numpy never changes: a seed gives the same frames with any version.
        drawn = np.random.RandomState(self._sampling.seed).randint(len(real), size=missing)
        return (*real, *(real[i] for i in drawn))


def truncated_linspace(start: float, end: float, count: int, most: int) -> tuple[int, ...]:
    """``count`` positions from start to end, both included, rounded down and within 0 to ``most``.

    In float32, from both ends to the middle, and each product and sum rounded once, as ``torch.linspace`` has
    them: a position that is whole but for rounding then comes out as PySlowFast's does.
    """
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(1, count - 1)))
    at = np.arange(count, dtype=np.float64)
    rising, falling = np.float64(first) + step * at, np.float64(last) - step * (count - 1 - at)
    positions = np.where(at < max(1, count // 2), rising, falling).astype(np.float32)
    return tuple(int(position) for position in np.clip(positions, 0, most))
