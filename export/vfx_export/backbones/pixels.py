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
