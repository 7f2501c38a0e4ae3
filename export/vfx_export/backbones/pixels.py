"""Normalisation: from uint8 pixels to the numbers that a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Colour = tuple[float, float, float]
"""Numbers for red, green and blue."""


def normalised(frames: Tensor, mean: Colour, std: Colour) -> Tensor:
    """``(frames / 255 - mean) / std`` for each colour.

    In float32 whatever the weights are, because means are not exact in half precision.

    Args:
        frames: uint8 ``[..., 3]``, RGB, 0 to 255.
        mean: mean of red, green and blue, in [0, 1].
        std: standard deviation of red, green and blue, likewise.

    Returns:
        float32 of the same shape.
    """
    means = torch.tensor([255 * value for value in mean])
    scales = torch.tensor([1 / (255 * value) for value in std])
    return (frames.float() - means) * scales


class Pixels(nn.Module):
    """As `normalised`, and on request with exact zeros for blank frames.

    No byte equals the mean, so windows that reach outside a video are filled with frames of the nearest
    level. If ``exact_zeros`` is set, frames that are this level throughout become zeros. If such a frame was
    really filmed, this changes it by half a level at most.

    Args:
        mean: mean of red, green and blue, in [0, 1].
        std: standard deviation of red, green and blue, likewise.
    """

    def __init__(self, mean: Colour, std: Colour) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.exact_zeros = False

    def forward(self, frames: Tensor) -> Tensor:
        """From uint8 ``[batch, time, height, width, 3]`` to float32 of the same shape."""
        if not self.exact_zeros:
            return normalised(frames, self.mean, self.std)
        time, height, width = frames.shape[1:4]
        blank = [round(255 * value) for value in self.mean]
        # As floats, because TensorRT accepts bytes only in a cast. With a frame as one axis, OpenVINO takes
        # about 4 ms for 32 frames of 256x256, and several times that with three axes. (On bytes, it would
        # take 1.5 ms.)
        levels = frames.float() - _colours(blank)
        flat = levels.reshape(-1, time, height * width * 3)
        found = (flat.amin(2) == 0) & (flat.amax(2) == 0)
        rest = _colours([255 * value - level for value, level in zip(self.mean, blank, strict=True)])
        rest = torch.where(found.reshape(-1, time, 1, 1, 1), 0.0, rest)
        return (levels - rest) * _colours([1 / (255 * value) for value in self.std])


def zero_blanks(module: nn.Module) -> None:
    """Make a network treat blank frames as zeros after normalisation, in all its `Pixels`."""
    for part in module.modules():
        if isinstance(part, Pixels):
            part.exact_zeros = True


def _colours(values: Sequence[float]) -> Tensor:
    """The values as a tensor; a single number if all are the same, with which engines are faster."""
    return torch.tensor(values if len(set(values)) > 1 else values[0], dtype=torch.float32)
