"""Read how a stored picture must be rotated and mirrored for display, and do it."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

from vfx_runtime.decode import Pixels
from vfx_runtime.picture import UPRIGHT, Orientation


def orientation(picture: VideoFrame) -> Orientation:
    """The orientation in a frame's display matrix (ISO/IEC 14496-12, 8.3.2); oblique angles are ignored."""
    try:
        side_data: list[Any] = list(picture.side_data)  # PyAV's annotation says str
        data = [item for item in side_data if item.type is SideDataType.DISPLAYMATRIX]
    except ValueError:
        # PyAV fails on kinds of side data that it does not know. Then only the angle can be had from it.
        quarter = round(picture.rotation / 90) % 4
        return Orientation(quarter % 2 == 1, quarter in (2, 3), quarter in (1, 2))
    if not data:
        return UPRIGHT
    matrix = np.frombuffer(bytes(data[0]), np.int32)
    a, b, c, d = (int(matrix[at]) for at in (0, 1, 3, 4))
    if abs(a) + abs(d) > 50 * (abs(b) + abs(c)):
        return Orientation(False, a < 0, d < 0)
    if abs(b) + abs(c) > 50 * (abs(a) + abs(d)):
        return Orientation(True, c < 0, b < 0)
    return UPRIGHT


def displayed(image: Pixels, turn: Orientation) -> Pixels:
    """Turn ``image``, uint8 ``[height, width, 3]``, for display. If it changes, the result is contiguous."""
    if turn == UPRIGHT:
        return image
    if turn.transpose:
        image = image.transpose(1, 0, 2)
    if turn.flip_x:
        image = image[:, ::-1]
    if turn.flip_y:
        image = image[::-1]
    return np.ascontiguousarray(image)
