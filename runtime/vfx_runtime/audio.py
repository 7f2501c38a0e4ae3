"""Windows of sound for engines that take audio, each with its position in the file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vfx_engines.errors import UsageError, VideoError, shown
from vfx_engines.spec import EngineSpec, Sampling
from vfx_runtime.audio_resampler import Resampler
from vfx_runtime.sampling import Window, Windows

if TYPE_CHECKING:
    from vfx_runtime.audio_decoder import AudioDecoder

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SoundWindow:
    """The samples that one row of features is computed from."""

    samples: Samples
    """float32 ``[sampling.frames]`` in [-1, 1], mono, at the engine's sample rate."""
    frame_range: tuple[int, int]
    """Number of the first sample, and of the last one plus 1, counted at the file's sample rate."""
    timestamps_ms: tuple[float, float]
    """When the first sample begins and when the last one ends, in milliseconds."""


def check_audio(spec: EngineSpec, sampling: Sampling) -> None:
    """Check that this runtime can feed an audio engine.

    Args:
        spec: the engine's spec.
        sampling: the sampling of the run.

    Raises:
        UsageError: the spec has no integer sample rate, the input is not float32 ``[batch,
            sampling.frames]``, or the run asks for another rate than the engine's.
    """
    rate = spec.sampling.fps
    if rate is None or rate != int(rate):
        raise UsageError(
            f"{spec.model} takes sound, and its spec has no sample rate: set sampling.fps, in Hz"
        )
    if spec.input.dtype != "float32" or spec.input.shape[1:] != (sampling.frames,):
        raise UsageError(
            f"{spec.model} takes {spec.input.dtype} {list(spec.input.shape)}, and this vfx runs engines of "
            f"sound that take float32 ['batch', {sampling.frames}]"
        )
    if sampling.fps != rate:
        asked = "source" if sampling.fps is None else f"{sampling.fps:g}"
        raise UsageError(
            f"fps {asked}: {spec.model} takes sound at {rate:g} Hz, to which every file is resampled"
        )


def sound_windows(
    path: Path,
    spec: EngineSpec,
    sampling: Sampling,
    progress: Callable[[int, float], None] = lambda samples, share: None,
) -> Iterator[SoundWindow]:
    """Decode a file's sound and cut it into windows. At most a window and a second of sound are held.

    Args:
        path: a sound or video file.
        spec: the spec of an engine that `check_audio` accepts.
        sampling: the sampling of the run; its counts are in samples at the engine's rate.
        progress: called with the number of samples decoded since the last call, and the share of the file
            that is done (0 to 1).

    Raises:
        VideoError: the file has no sound, is damaged, or is too short for one window.
    """
    # Imported here because loading FFmpeg's libraries takes time, which a command that only prints its help
    # should not spend.
    from vfx_runtime.audio_decoder import AudioDecoder

    assert sampling.fps is not None
    target = int(sampling.fps)
    planner = Windows(sampling)
    rows = 0
    with AudioDecoder(path) as decoder:
        line = _TimeLine(decoder.rate, target)
        expected = decoder.duration_seconds
        held = _Held(spec.input.blank[0])
        for samples in _resampled(decoder, line, progress, expected):
            held.append(samples)
            for window in planner.advance(held.end):
                rows += 1
                yield line.placed(window, held.take(window))
            held.forget(planner.floor)
            line.forget(planner.floor)
        for window in planner.finish():
            rows += 1
            yield line.placed(window, held.take(window))
    if not rows:
        raise VideoError(
            f"{shown(path)}: {held.end / target:.3f} s of sound, a window of {spec.model} needs "
            f"{(sampling.span + sampling.lead) / target:.3f}: use --tail zeros to fill it up"
        )


def _resampled(
    decoder: AudioDecoder,
    line: _TimeLine,
    progress: Callable[[int, float], None],
    expected: float | None,
) -> Iterator[Samples]:
    resampler = Resampler(decoder.rate, line.target) if decoder.rate != line.target else None
    for sound in decoder:
        line.note(sound.first, sound.start)
        progress(len(sound.samples), min(1.0, float(sound.start) / expected) if expected else 0.0)
        yield resampler.push(sound.samples) if resampler else sound.samples
    line.end = decoder.count
    if resampler:
        yield resampler.finish()


class _Held:
    """The samples that later windows may still need."""

    def __init__(self, blank: int) -> None:
        self._blank = np.float32(blank)
        self._samples = np.empty(0, np.float32)
        self._base = 0

    @property
    def end(self) -> int:
        """Number of the next sample to be appended."""
        return self._base + len(self._samples)

    def append(self, samples: Samples) -> None:
        if len(samples):
            self._samples = np.concatenate([self._samples, samples])

    def take(self, window: Window) -> Samples:
        numbers = window.samples
        if isinstance(numbers, range):
            return self._samples[numbers.start - self._base : numbers.stop - self._base : numbers.step]
        index = np.array(numbers)
        taken = self._samples[np.maximum(index - self._base, 0)]
        return np.where(index < 0, self._blank, taken)

    def forget(self, floor: int) -> None:
        """Drop the samples before ``floor``."""
        drop = min(max(0, floor - self._base), len(self._samples))
        self._samples, self._base = self._samples[drop:], self._base + drop


class _TimeLine:
    """When each sample sounds: by the file's own time stamps, and in between by counting samples."""

    def __init__(self, rate: int, target: int) -> None:
        self.rate, self.target = rate, target
        self.end: int | None = None
        """Number of samples in the file, once all are decoded."""
        self._firsts: list[int] = []
        self._starts: list[Fraction] = []

    def note(self, first: int, start: Fraction) -> None:
        """Record that sample ``first`` of the file sounds at ``start`` seconds."""
        if not self._firsts or start != self._starts[-1] + Fraction(first - self._firsts[-1], self.rate):
            self._firsts.append(first)
            self._starts.append(start)

    def placed(self, window: Window, samples: Samples) -> SoundWindow:
        first, last = (Fraction(n * self.rate, self.target) for n in (window.first, window.last + 1))
        stop = -(-last.numerator // last.denominator)
        return SoundWindow(
            samples,
            (int(first), stop if self.end is None else min(stop, self.end)),
            (float(self._at(first) * 1000), float(self._at(last, ends=True) * 1000)),
        )

    def forget(self, floor: int) -> None:
        """Drop what is known only about samples before ``floor``, counted at the engine's rate."""
        known = max(0, bisect_right(self._firsts, floor * self.rate / self.target) - 1)
        del self._firsts[:known], self._starts[:known]

    def _at(self, sample: Fraction, *, ends: bool = False) -> Fraction:
        """Seconds at which a position between the file's samples sounds.

        At a gap that is two times: ``ends`` asks for the one before the gap rather than the one after it.
        """
        before = bisect_right(self._firsts, sample) - 1
        if ends and before > 0 and self._firsts[before] == sample:
            before -= 1
        before = max(0, before)
        return self._starts[before] + (sample - self._firsts[before]) / self.rate
