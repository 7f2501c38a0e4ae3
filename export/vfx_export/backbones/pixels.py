"""From uint8 pixels to what a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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


class Pixels(nn.Module):
    """What `normalised` gives, and on request exact zeros for frames that are blank.

    No pixel is the mean, so a window that reaches outside its video is filled with the nearest level. A frame
    that is this throughout is then taken for such a one: if it was filmed, it moves by half a level or less.

    Args:
        mean: of red, green and blue, in [0, 1]; so is ``std``.
        std: likewise.
    """

    def __init__(self, mean: Colour, std: Colour) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.exact_zeros = False

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 ``[batch, time, height, width, 3]`` to float32 of that shape."""
        if not self.exact_zeros:
            return normalised(frames, self.mean, self.std)
        time, height, width = frames.shape[1:4]
        blank = [round(255 * value) for value in self.mean]
        # TensorRT takes bytes for nothing but a cast. Over one axis of a frame: OpenVINO takes about 4 ms for
        # 32 frames of 256x256, and several times that over three. (Of bytes it would be 1.5 ms.)
        levels = frames.float() - _colours(blank)
        flat = levels.reshape(-1, time, height * width * 3)
        found = (flat.amin(2) == 0) & (flat.amax(2) == 0)
        rest = _colours([255 * value - level for value, level in zip(self.mean, blank, strict=True)])
        rest = torch.where(found.reshape(-1, time, 1, 1, 1), 0.0, rest)
        return (levels - rest) * _colours([1 / (255 * value) for value in self.std])


def zero_blanks(module: nn.Module) -> None:
    """Let a network take blank frames for zeros."""
    for part in module.modules():
        if isinstance(part, Pixels):
            part.exact_zeros = True


def _colours(values: Sequence[float]) -> Tensor:
    """One number where all are the same: engines are faster with it than with an axis of three."""
    return torch.tensor(values if len(set(values)) > 1 else values[0], dtype=torch.float32)
