"""Padding frames for optical flow networks, and cropping flow fields, at sizes known only at run time.

Rows and columns are gathered by index. On uint8 frames this costs almost nothing, and unlike padding and
slicing it needs no facts about symbolic sizes, which the tracer could not prove.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_up(size: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not less than ``size``."""
    return (size + multiple - 1) // multiple * multiple


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Repeat the edges of frames until height and width are multiples.

    Half of the missing rows and columns are added before, half after; an odd one is added after.

    Args:
        frames: ``[batch, time, height, width, 3]``.
        multiple: what height and width should be multiples of.
    """
    for axis in (2, 3):
        size = frames.shape[axis]
        padded = rounded_up(size, multiple)
        index = torch.arange(padded, device=frames.device) - (padded - size) // 2
        frames = frames.index_select(axis, index.clamp(0, size - 1))
    return frames


def crop_centre(flow: Tensor, height: int, width: int) -> Tensor:
    """The middle of a field ``[..., rows, columns]``, ``[..., height, width]``; undoes `pad_to_multiple`."""
    for axis, size in ((-2, height), (-1, width)):
        before = (flow.shape[axis] - size) // 2
        flow = flow.index_select(axis, torch.arange(size, device=flow.device) + before)
    return flow
