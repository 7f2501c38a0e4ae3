"""From uint8 pixels to what a network was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

Colour = tuple[float, float, float]


def normalised(frames: Tensor, mean: Colour, std: Colour) -> Tensor:
    """``(frames / 255 - mean) / std`` for each colour.

    In float32 whatever the weights are: means are not exact in half precision.

    Args:
        frames: uint8 ``[..., 3]``.
        mean: of red, green and blue, in [0, 1]; so is ``std``.
        std: likewise.
    """
    means = torch.tensor([255 * value for value in mean])
    scales = torch.tensor([1 / (255 * value) for value in std])
    return (frames.float() - means) * scales


def normalised_with_zeros(frames: Tensor, mean: float, std: float, blank: int) -> Tensor:
    """The same for one mean and one deviation of all colours, and exact zeros for frames that are blank.

    No pixel is the mean, so a window that reaches outside its video is filled with the nearest grey. A frame
    that is this grey throughout is taken for such a one: if it was filmed, it moves by half a level or less.

    Args:
        frames: uint8 ``[batch, time, height, width, 3]``.
        mean: in [0, 1], like ``std``.
        std: likewise.
        blank: every byte of a blank frame.
    """
    time, height, width = frames.shape[1:4]
    # Of bytes, and over one axis of a frame: OpenVINO took about 1.5 ms for 32 frames of 256x256, and several
    # times that for floats, or for a difference over five axes.
    flat = frames.reshape(-1, time, height * width * 3)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    means = torch.where((low == blank) & (high == blank), float(blank), 255 * mean)
    return ((flat.float() - means) * (1 / (255 * std))).reshape(-1, time, height, width, 3)
