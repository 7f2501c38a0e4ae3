"""Decode the sound of a file: mono samples at the file's own rate, with their true times.

The samples are the 16-bit ones that ``ffmpeg FILE sound.wav`` writes, averaged over the channels, because
published audio features were made that way. Decoding stops at the first error, as it does for pictures.

Two kinds of damage cannot be detected. One leaves a valid bitstream: of random damage, AAC reports nearly
all, MP3 a third, and Opus, MP2 and plain PCM none (FLAC, WavPack and TrueAudio have checksums). The other is
the missing end of an Ogg file, or of an MP3 file without a Xing header, since they do not say how long they
are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from vfx_engines.errors import VideoError, shown
from vfx_runtime.video_file import (
    AUDIO_FORMATS,
    Unchanged,
    announced_mp3_size,
    announced_size,
    check_length,
    open_container,
    regular_file_size,
)

Samples = npt.NDArray[np.float32]

MAX_RATE = 400_000
"""Highest sample rate that is accepted, in hertz. A damaged header can claim any."""

_GAP = Fraction(1, 100)
"""By how many seconds a time stamp may exceed the count of samples before it is taken for a gap. Containers
round time stamps to a millisecond; a lost packet is 20 ms or more."""

_NO_GAP_SECONDS = 0.009
"""Below this, a difference computed in floats is no gap for certain. Fractions took a fifth of the decoder's
time."""

_PORTION_SECONDS = 0.25
"""Frames of 20 ms each are converted together, because NumPy takes longer to be called than for the work."""

_PLANES = 8
"""From this number of channels on, PyAV reads past the end of a planar frame's pointers, which raises an
exception or crashes."""

# These codecs have checksums, but FFmpeg fails on a wrong one only if told to.
_CHECKED = frozenset({"flac", "ac3", "eac3"})

# The headers of these formats give the exact length.
_EXACT = frozenset({"aiff", "au", "caf", "flac", "tta", "w64", "wav", "wv"})


@dataclass(frozen=True, slots=True)
class Sound:
    """Consecutive samples without a gap."""

    samples: Samples
    """Mono, float32 ``[n]`` in [-1, 1]."""
    first: int
    """Number of the first sample, counted from the start of the stream."""
    start: Fraction
    """When the first sample sounds, in seconds from the start of the file, as the ffmpeg tool counts."""


@dataclass(slots=True)
class _Held:
    """Frames that are converted together, because they have the same format and no gap between them."""

    first: int = 0
    start: Fraction = Fraction(0)
    kind: str = ""
    parts: list[npt.NDArray[Any]] = field(default_factory=list)
    """The samples of each frame, ``[channels, n]``."""

    def takes(self, kind: str, values: npt.NDArray[Any]) -> bool:
        """Whether a frame has the format of those that are held."""
        return kind == self.kind and len(values) == len(self.parts[-1])


class AudioDecoder:
    """The sound of one file, in portions of about a quarter of a second. Not for several threads.

    Args:
        path: a local file, even if it looks like a URL.

    Raises:
        VideoError: the file is missing, empty, truncated or not a regular file, or it has no sound that can
            be decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._name = shown(self._path)
        self._size = regular_file_size(self._path, self._name)
        self._unchanged = Unchanged.of(self._path, self._name)
        self._container = open_container(self._path, self._name, AUDIO_FORMATS)
        self._interleave: av.AudioResampler | None = None
        try:
            self._stream = _audio_stream(self._container, self._name)
            context = self._stream.codec_context
            context.thread_type = "NONE"
            if context.codec.canonical_name in _CHECKED:
                context.options = {"err_detect": "crccheck+explode"}
            announced = max(announced_size(self._path), announced_mp3_size(self._path))
            check_length(self._name, self._size, announced, self._stream)
            self._time_base = self._stream.time_base or Fraction(1, 1_000_000)
            self._origin = self._find_origin()
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise VideoError(f"{self._name}: its audio stream is empty; expected sound")
            self.rate = self._first.sample_rate
            if not 1 <= self.rate <= MAX_RATE:
                raise VideoError(
                    f"{self._name}: sound of {self.rate} Hz, expected up to {MAX_RATE}: its header is "
                    "damaged, or resample it"
                )
        except BaseException:
            self.close()
            raise
        self.count = 0
        """Number of samples decoded so far."""
        self._anchor = (0, self._time(self._first) or Fraction(0))
        self._anchor_seconds, self._tick_seconds = float(self._anchor[1]), float(self._time_base)

    @property
    def duration_seconds(self) -> float | None:
        """The duration that the file claims, in seconds; an estimate. None if it claims none."""
        if self._stream.duration is not None:
            return float(self._stream.duration * self._time_base)
        return self._container.duration / 1_000_000 if self._container.duration else None

    def __iter__(self) -> Iterator[Sound]:
        """Decode the file from start to end, once.

        Raises:
            VideoError: the sound is damaged at this point; nothing more follows.
        """
        frame, held, portion = self._first, _Held(), _PORTION_SECONDS * self.rate
        while frame is not None:
            if frame.sample_rate != self.rate:
                raise VideoError(
                    f"{self._name}: its sample rate changes from {self.rate} to {frame.sample_rate} Hz at "
                    f"{float(self._now()):.2f} s; re-encode it"
                )
            kind, values = self._values(frame)
            time = self._time_after_gap(frame)
            full = self.count - held.first >= portion
            if held.parts and (full or time is not None or not held.takes(kind, values)):
                yield self._sound(held)
                held.parts = []
            if time is not None:
                self._anchor, self._anchor_seconds = (self.count, time), float(time)
            if not held.parts:
                held = _Held(self.count, self._now(), kind)
            held.parts.append(values)
            self.count += values.shape[1]
            frame = next(self._frames, None)
        if held.parts:
            yield self._sound(held)
        self._check_end()

    def close(self) -> None:
        """Release the file."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _decode(self) -> Iterator[AudioFrame]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    raise self._damaged("a packet is broken")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise self._damaged("a packet is broken")
                    if frame.samples:
                        yield frame
        except av.FFmpegError as error:
            raise self._damaged(f"FFmpeg says: {error.strerror}") from None

    def _values(self, frame: AudioFrame) -> tuple[str, npt.NDArray[Any]]:
        """FFmpeg's name of the samples' format, without layout, and the samples, ``[channels, n]``."""
        kind, channels = frame.format.name.removesuffix("p"), len(frame.layout.channels)
        try:
            if frame.format.is_planar and channels >= _PLANES:
                frame = self._interleaved(frame, kind)
            planar = frame.format.is_planar
            values = frame.to_ndarray()
        except (ValueError, av.FFmpegError) as error:
            raise VideoError(
                f"{self._name}: cannot convert {frame.format.name} samples ({error}); re-encode it"
            ) from None
        return kind, values if planar else values.reshape(-1, channels).T

    def _sound(self, held: _Held) -> Sound:
        values = np.concatenate(held.parts, axis=1)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self._damaged("samples are not finite")
        mono: Samples = (_as_16_bit(values, held.kind).mean(axis=0) / 32768).astype(np.float32)
        return Sound(mono, held.first, held.start)

    def _interleaved(self, frame: AudioFrame, kind: str) -> AudioFrame:
        if self._interleave is None:
            self._interleave = av.AudioResampler(kind, frame.layout, frame.sample_rate)
        made = self._interleave.resample(frame)
        if [item.samples for item in made] != [frame.samples]:
            raise ValueError(f"{len(frame.layout.channels)} channels")
        return made[0]

    def _find_origin(self) -> int:
        """The container's start in ticks of the stream, which the ffmpeg tool subtracts from all times."""
        micro = Fraction(1, 1_000_000)
        start = (self._container.start_time or 0) * micro
        own = self._stream.start_time
        # The container's start is rounded to microseconds. If the sound starts first, its own ticks are
        # exact.
        if own is not None and abs(own * self._time_base - start) <= micro:
            return own
        return int((start / self._time_base + Fraction(1, 2)) // 1)

    def _time_after_gap(self, frame: AudioFrame) -> Fraction | None:
        """When the frame sounds, in seconds, if that is later than the count of samples says.

        Where times run backwards (joined recordings), we keep counting samples instead.
        """
        if frame.pts is None:
            return None
        sample, _ = self._anchor
        counted = self._anchor_seconds + (self.count - sample) / self.rate
        if (frame.pts - self._origin) * self._tick_seconds - counted < _NO_GAP_SECONDS:
            return None
        time = (frame.pts - self._origin) * self._time_base
        return time if time > self._now() + _GAP else None

    def _time(self, frame: AudioFrame) -> Fraction | None:
        return None if frame.pts is None else (frame.pts - self._origin) * self._time_base

    def _now(self) -> Fraction:
        """When the next sample sounds, in seconds, if no gap precedes it."""
        sample, start = self._anchor
        return start + Fraction(self.count - sample, self.rate)

    def _check_end(self) -> None:
        self._unchanged.check()
        announced, found = self.duration_seconds, self.count / self.rate
        if self._container.format.name in _EXACT and announced is not None and found < announced - 1e-3:
            raise VideoError(
                f"{self._name}: damaged or truncated: it announces {announced:.3f} s and has {found:.3f}: "
                "copy or download it again"
            )

    def _damaged(self, what: str) -> VideoError:
        where = f"at or after {float(self._now()):.2f} s" if hasattr(self, "_anchor") else "at its start"
        return VideoError(
            f"{self._name}: sound damaged {where}: {what}; get a whole copy, or re-encode it to accept the "
            "damage"
        )


def _as_16_bit(values: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    """Convert samples of FFmpeg's format ``kind`` to the range of ``s16``, as FFmpeg does; any dtype."""
    if kind in ("flt", "dbl"):
        rounded: npt.NDArray[Any] = np.rint(np.clip(values, -1, 1) * 32768.0).clip(-32768, 32767)
        return rounded
    if kind == "u8":
        return (values.astype(np.int32) - 128) * 256
    if kind == "s32":
        return values >> 16
    return values


def _audio_stream(container: InputContainer, name: str) -> AudioStream:
    """The audio stream that players would choose.

    Raises:
        VideoError: there is no audio stream, or no decoder for it.
    """
    stream = container.streams.best("audio")
    if stream is None:
        found = ", ".join(sorted({other.type for other in container.streams})) or "nothing"
        raise VideoError(f"{name}: no audio stream, found {found}; expected sound")
    assert isinstance(stream, AudioStream)
    if stream.codec_context is None:
        raise VideoError(f"{name}: no decoder for its audio codec; re-encode it, for example to AAC")
    return stream
