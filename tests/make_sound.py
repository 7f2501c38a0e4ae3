"""Real sound files, encoded with PyAV, whose every moment is known: a tone that swells and fades.

Each channel is the same tone at another loudness, so the mean over channels tells when one is missing.
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
    """The mean over the channels at some times, in [-1, 1]."""
    return loudness(layout).mean() * _wave(times, seconds)


def loudness(layout: str) -> NDArray[np.float64]:
    """Of each channel, 1 for the first."""
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
        encoder: FFmpeg's name.
        rate: in hertz.
        layout: ``mono``, ``stereo``, ``5.1`` or ``7.1``.
        seconds: how long; 0 writes a stream without samples.
        delay: time of the first sample.
        video: a picture a tenth of a second, from 0, beside the sound.
        sample_format: of the encoder, if not its own first.
        gap: from when on, and by how many seconds, all times are later.
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
            # Interleaved: PyAV cannot make a planar frame of eight channels.
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
