"""A decoded picture as its decoder left it: its planes, its orientation, and how to read its colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SurfaceFormat = Literal["nv12", "p016", "i420", "rgb"]
"""Layout of a picture. nv12: a plane of luma, and one of interleaved Cb and Cr at half the width and height,
8 bits. p016: the same with 16 bits, of which the upper ones are significant. i420: a plane each for luma, Cb
and Cr, the latter two at half the width and height. rgb: three bytes per pixel."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture is turned for display: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise (0, 90, 180, 270), ignoring any mirroring."""
        if self.transpose:
            return 90 if self.flip_y else 270
        return 180 if self.flip_y else 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Displayed height and width of a picture stored with this height and width."""
        return (width, height) if self.transpose else (height, width)


UPRIGHT = Orientation()


@dataclass(frozen=True, slots=True)
class Convention:
    """How to read a stream's colours, in FFmpeg's numbers (ITU-T H.273)."""

    matrix: int = 2
    """AVColorSpace: 1 is BT.709, 5 and 6 are BT.601, 9 is BT.2020; 2 is unspecified, which FFmpeg reads as
    BT.601."""
    full_range: bool = False
    """Whether luma runs from 0 to 255 instead of 16 to 235."""
    interpolate: bool = False
    """Whether to interpolate chroma according to its siting, in floating point. If False, each chroma sample
    counts for its 2x2 block; for 8 bits this is exactly FFmpeg's own conversion, and so what OpenCV, decord
    and PyAV give and what all published features were made from."""
    left: bool = True
    """Siting: chroma is on even columns (MPEG-2 and later), otherwise between two columns."""
    top: bool = False
    """Siting: chroma is on even rows, otherwise between two rows."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane, in host or device memory."""

    address: int
    pitch: int
    """Bytes from the start of one row to the next."""
    rows: int

    @property
    def size(self) -> int:
        """Bytes, including the padding after each row."""
        return self.pitch * self.rows


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture, not converted, resized or turned yet."""

    kind: SurfaceFormat
    planes: tuple[Plane, ...]
    height: int
    """Pixels as displayed, like ``width``."""
    width: int
    convention: Convention
    turn: Orientation
    on_device: bool
    """Whether the planes are in the memory of the GPU that decoded them, written on its default stream."""
    owner: object
    """Keeps the planes' memory valid for as long as somebody holds it."""
