"""Draw optical flow: direction as hue, length as saturation, one PNG for each pair of frames.

The colour wheel is from Baker et al., "A Database and Evaluation Methodology for Optical Flow", 2011, section
4.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfx_engines.errors import OutputError, shown

Pixels = NDArray[np.uint8]

# (steps, change of RGB): from red through yellow, green, cyan, blue and magenta back to red. The numbers of
# steps follow how many hues the eye can tell apart.
_STEPS = (
    (15, (0, 1, 0)),
    (6, (-1, 0, 0)),
    (4, (0, 0, 1)),
    (11, (0, -1, 0)),
    (13, (1, 0, 0)),
    (6, (0, 0, -1)),
)


@cache
def _wheel() -> NDArray[np.float64]:
    """RGB colours of 55 directions, float64 ``[55, 3]``, 0 to 1."""
    colour = np.array([1.0, 0.0, 0.0])
    colours = []
    for count, change in _STEPS:
        for step in range(count):
            colours.append(colour + np.array(change) * step / count)
        colour = colour + np.array(change)
    return np.array(colours)


def flow_picture(flow: NDArray[np.float32], longest: float | None = None) -> Pixels:
    """Draw a flow field: white where nothing moves, red to the right, yellow downwards.

    Args:
        flow: float32 ``[2, height, width]``, pixels to the right and pixels downwards.
        longest: length in pixels that gets the full colour; None takes the longest vector of the field.

    Returns:
        uint8 ``[height, width, 3]``, RGB. Longer vectors, and those that are not finite, are darkened.
    """
    x, y = (np.nan_to_num(part.astype(np.float64), nan=np.inf) for part in flow)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    length = np.hypot(x, y)
    unit = longest if longest is not None else float(length.max(initial=0))
    share = length / unit if unit > 0 else length
    wheel = _wheel()
    place = np.arctan2(y, x) / (2 * np.pi) % 1 * len(wheel)
    below = place.astype(int) % len(wheel)
    part = (place - np.floor(place))[..., None]
    colour = wheel[below] * (1 - part) + wheel[(below + 1) % len(wheel)] * part
    inside = (share <= 1) & finite
    colour = np.where(inside[..., None], 1 - share[..., None] * (1 - colour), colour * 0.75)
    picture: Pixels = np.rint(colour * 255).astype(np.uint8)
    return picture


def write_flow_pictures(flows: Iterable[NDArray[np.float32]], folder: Path) -> None:
    """Write ``folder/000000.png`` and so on, one picture for each flow field.

    Args:
        flows: each float32 ``[2, height, width]``, see `flow_picture`.
        folder: created if missing.

    Raises:
        OutputError: the folder cannot be written to.
    """
    # Imported here because loading FFmpeg's libraries takes time, which a command that only prints its help
    # should not spend.
    import av
    from av.video.codeccontext import VideoCodecContext

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, flow in enumerate(flows):
            picture = flow_picture(flow)
            encoder = av.CodecContext.create("png", "w")
            assert isinstance(encoder, VideoCodecContext)
            encoder.height, encoder.width = picture.shape[:2]
            encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 25)
            packets = encoder.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
            packets += encoder.encode(None)
            (folder / f"{number:06}.png").write_bytes(b"".join(bytes(packet) for packet in packets))
    except OSError as error:
        raise OutputError(f"{shown(folder)}: cannot be written: {error.strerror}") from None
