"""The interface of a decoder: frames in presentation order, with their true times.

`vfx_runtime.pyav_decoder` implements it, on CPUs and on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from vfx_runtime.picture import Picture

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known about a video before it is decoded."""

    width: int
    """Pixels as displayed, that is, after `rotation`."""
    height: int
    """Pixels as displayed."""
    fps: float
    """Average frame rate; 0 if the file does not tell."""
    frames: int | None
    """Number of frames that the file claims, or its duration times its rate; an estimate."""
    duration_seconds: float | None
    """Duration that the file claims; an estimate."""
    codec: str
    """FFmpeg's name of the codec, such as ``h264``."""
    rotation: int
    """Degrees (0, 90, 180, 270) by which stored pictures are rotated counter-clockwise for display."""
    on_gpu: bool
    """Whether a GPU decodes the video, so that its pictures are in device memory."""


class Frame(Protocol):
    """One frame of a video."""

    @property
    def index(self) -> int:
        """Number in presentation order, from 0."""
        ...

    @property
    def start(self) -> Fraction:
        """When the frame appears, in seconds from the start of the file, counted as the ffmpeg tool does."""
        ...

    @property
    def end(self) -> Fraction:
        """When the next frame appears, in seconds; for the last frame, when it ends."""
        ...

    def rgb(self) -> Pixels:
        """Convert the frame to RGB: uint8 ``[height, width, 3]``, 0 to 255.

        Nothing is converted until this is called, and each call converts again. Rows may be padded (strides
        larger than a row). Only call it on the thread that reads the decoder.

        Raises:
            VideoError: the pixel format cannot be converted.
        """
        ...

    def picture(self) -> Picture:
        """The frame as decoded, for a GPU to convert, resize and crop in one pass.

        Formats that our GPU code would not convert exactly as `rgb` does are converted to RGB here.

        Raises:
            VideoError: the pixel format cannot be converted.
        """
        ...


class Decoder(Protocol):
    """The frames of one video, each given once, in presentation order. Not for several threads."""

    @property
    def info(self) -> VideoInfo:
        """What is known about the video."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """The decoder itself."""
        ...

    def __next__(self) -> Frame:
        """The next frame.

        Raises:
            VideoError: the video is damaged at this point; no more frames follow.
        """
        ...

    def skip_to(self, index: int) -> None:
        """Skip to the last frame at or before ``index`` that can be decoded without those before it.

        If that gains nothing, nothing happens, so frames before ``index`` may still follow. Indices, times
        and pixels of the frames that follow are the same as without a skip.
        """
        ...

    def close(self) -> None:
        """Close the file. Frames that were already given remain valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
