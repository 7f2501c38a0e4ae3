"""What every decoder gives: frames in presentation order, with their true times.

`vfx_runtime.pyav_decoder` meets this protocol, on a CPU and on a GPU.
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
    """What is known of a video before it is decoded."""

    width: int
    """Pixels, as displayed: after `rotation`."""
    height: int
    fps: float
    """Average rate; 0 where the file does not tell."""
    frames: int | None
    """What the file announces, or its duration times its rate; an estimate."""
    duration_seconds: float | None
    codec: str
    """FFmpeg's name of the codec, such as ``h264``."""
    rotation: int
    """Degrees (0, 90, 180, 270) that stored pictures are turned counter-clockwise for display."""
    on_gpu: bool
    """Whether a GPU decodes it, and pictures lie in its memory."""


class Frame(Protocol):
    """One frame of a video."""

    @property
    def index(self) -> int:
        """Number in presentation order, from 0."""
        ...

    @property
    def start(self) -> Fraction:
        """When it appears, in seconds from the start of the file, as the ffmpeg tool counts."""
        ...

    @property
    def end(self) -> Fraction:
        """When the next frame appears; for the last frame, when it ends."""
        ...

    def rgb(self) -> Pixels:
        """Convert the frame: uint8 [height, width, 3], RGB, 0 to 255.

        Nothing is converted until this is called, and each call converts again. Rows may lie further
        apart than their length. Call it on the thread that reads the decoder.

        Raises:
            VideoError: the pixel format cannot be converted.
        """
        ...

    def picture(self) -> Picture:
        """The frame as it was decoded, for a GPU to convert, resize and crop in one pass.

        What a GPU would not convert as `rgb` does to the bit is given as RGB, converted here.

        Raises:
            VideoError: the pixel format cannot be converted.
        """
        ...


class Decoder(Protocol):
    """The frames of one video, each given once, in presentation order. One thread may read it."""

    @property
    def info(self) -> VideoInfo:
        """What is known of the video."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """The decoder itself."""
        ...

    def __next__(self) -> Frame:
        """The next frame.

        Raises:
            VideoError: the video is damaged here; no more frames follow.
        """
        ...

    def skip_to(self, index: int) -> None:
        """Go on at the last frame, not after `index`, that can be reached without decoding to it.

        Where nothing is gained nothing happens: frames before `index` may still follow. Numbers,
        times and pixels of the frames that follow are the same as without a skip.
        """
        ...

    def close(self) -> None:
        """Release the file. Frames already given remain valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
