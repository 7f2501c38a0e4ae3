"""What optical flow networks do to frames before and to fields after, at sizes known only at run time.

Rows and columns are gathered by index: on uint8 frames that costs next to nothing, and unlike padding
and slicing it asks nothing of a symbolic size that the tracer could not prove.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_up(size: int, multiple: int) -> int:
    """The next multiple, ``size`` itself where it is one."""
    return (size + multiple - 1) // multiple * multiple


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """``[batch, time, height, width, 3]`` with its edges repeated until both sides are multiples.

    Half of what is missing comes before; the odd row or column after.
    """
    for axis in (2, 3):
        size = frames.shape[axis]
        padded = rounded_up(size, multiple)
        index = torch.arange(padded, device=frames.device) - (padded - size) // 2
        frames = frames.index_select(axis, index.clamp(0, size - 1))
    return frames


def crop_centre(flow: Tensor, height: int, width: int) -> Tensor:
    """The middle of ``[..., height, width]``; what `pad_to_multiple` added is taken off exactly."""
    for axis, size in ((-2, height), (-1, width)):
        before = (flow.shape[axis] - size) // 2
        flow = flow.index_select(axis, torch.arange(size, device=flow.device) + before)
    return flow
