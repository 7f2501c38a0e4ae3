"""A decoded picture as its decoder left it: its planes, how it is turned, and how its colours are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SurfaceFormat = Literal["nv12", "p016", "i420", "rgb"]
"""nv12: luma, then Cb and Cr in turns, half as many each way, 8 bits. p016: the same in 16 bits, the
significant ones on top. i420: luma, Cb and Cr in a plane each. rgb: three bytes a pixel."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture is turned for display: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise, leaving a mirroring aside."""
        if self.transpose:
            return 90 if self.flip_y else 270
        return 180 if self.flip_y else 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as displayed, of a picture stored with these."""
        return (width, height) if self.transpose else (height, width)


UPRIGHT = Orientation()


@dataclass(frozen=True, slots=True)
class Convention:
    """How a stream's colours are to be read, in FFmpeg's numbers (ITU-T H.273)."""

    matrix: int = 2
    """AVColorSpace: 1 BT.709, 5 and 6 BT.601, 9 BT.2020, 2 not told, which FFmpeg reads as BT.601."""
    full_range: bool = False
    """Whether luma runs from 0 to 255 instead of 16 to 235."""
    interpolate: bool = False
    """Chroma between its neighbours by its siting, in real numbers; False takes each sample for its 2x2
    block. On 8 bits that is then FFmpeg's own conversion to the bit, and with it what OpenCV, decord and
    PyAV give, and what all published features were made of."""
    left: bool = True
    """Siting: chroma on even columns (MPEG-2 and later), else between two."""
    top: bool = False
    """Siting: chroma on even rows, else between two."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane, in host or device memory."""

    address: int
    pitch: int
    """Bytes from row to row."""
    rows: int

    @property
    def size(self) -> int:
        """Bytes, the room behind each row included."""
        return self.pitch * self.rows


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture."""

    kind: SurfaceFormat
    planes: tuple[Plane, ...]
    height: int
    """As displayed, like ``width``."""
    width: int
    convention: Convention
    turn: Orientation
    on_device: bool
    """Whether the planes lie in the memory of the GPU that decoded it; its default stream wrote them."""
    owner: object
    """Keeps the planes where they are for as long as somebody holds it."""
