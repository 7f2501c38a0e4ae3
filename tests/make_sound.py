"""Encode real sound files with PyAV, with a known value at every moment: a tone that swells and fades.

Each channel has the same tone at a different loudness, so the mean over channels shows if one is missing.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

HERTZ = 440.0
_CHANNELS = {"mono": 1, "stereo": 2, "5.1": 6, "7.1": 8}


def tone(times: NDArray[np.float64], layout: str = "mono", seconds: float = 2.0) -> NDArray[np.float64]:
    """The mean over the channels at these times (in seconds), in [-1, 1]."""
    return loudness(layout).mean() * _wave(times, seconds)


def loudness(layout: str) -> NDArray[np.float64]:
    """The loudness of each channel, ``[channels]``; 1 for the first."""
    return 1 / np.arange(1.0, _CHANNELS[layout] + 1)


def make_sound(
    path: Path,
    encoder: str = "pcm_s16le",
    *,
    rate: int = 16_000,
    layout: str = "mono",
    seconds: float = 2.0,
    delay: float = 0.0,
    video: bool = False,
    sample_format: str | None = None,
    gap: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Encode a tone into ``path``, whose suffix chooses the container.

    Args:
        path: the file to write.
        encoder: FFmpeg's name of the encoder.
        rate: sample rate in hertz.
        layout: ``mono``, ``stereo``, ``5.1`` or ``7.1``.
        seconds: length; 0 writes a stream without samples.
        delay: time of the first sample in seconds.
        video: whether to add a video stream of ten pictures per second, starting at 0.
        sample_format: sample format of the encoder, if not its default.
        gap: from this time on (in seconds), all times are later by this many seconds.
    """
    with av.open(f"file:{path}", "w") as out:
        stream = out.add_stream(encoder, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        if sample_format:
            stream.format = sample_format
        pictures = out.add_stream("mpeg4", rate=10) if video else None
        if pictures is not None:
            assert isinstance(pictures, av.VideoStream)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
            black = np.zeros((48, 64, 3), np.uint8)
            for number in range(int(10 * (seconds + delay))):
                frame = av.VideoFrame.from_ndarray(black, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                out.mux(pictures.encode(frame))
            out.mux(pictures.encode())
        count = int(seconds * rate)
        wave = loudness(layout)[:, None] * _wave(np.arange(count) / rate, seconds)
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        for first in range(0, count, 1024):
            # Interleaved, because PyAV cannot make a planar frame with eight channels.
            part = np.ascontiguousarray(wave[:, first : first + 1024].T).reshape(1, -1)
            sound = av.AudioFrame.from_ndarray(part, format="dbl", layout=layout)
            later = gap[1] if first >= gap[0] * rate else 0.0
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = first + int((delay + later) * rate)
            for converted in resampler.resample(sound):
                out.mux(stream.encode(converted))
        out.mux(stream.encode())
    return path


def _wave(times: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    swell = np.sin(np.pi * np.clip(times / max(seconds, 1e-9), 0, 1)) ** 2
    wave: NDArray[np.float64] = 0.8 * swell * np.sin(2 * np.pi * HERTZ * times)
    return wave
