"""First convolutions in space for matrix units: columns in pairs, so 6 channels deep and not 3.

A 7x7 convolution with stride 2 gives the same sums as a 7x4 one with stride 2x1 over pairs of columns (the
kernel gets an eighth column of zeros). Pairs of columns lie side by side in pixels that have their
channels last, so pairing moves no byte; blocks of 2x2, which lie apart, cost more than they save.
OpenVINO, bf16 on AMX, stem of S3D: 149 ms plain, 112 in blocks of 2x2, 79 in pairs. Two-dimensional
convolutions (ResNet) have a kernel of their own for 3 channels there, and lose by it: 2.0 to 3.1 ms. Stems
that span 5 frames gain as much (8 frames of 256x256 to 64 channels: 199 to 72 ms; 32 frames to 8: 82 to 36).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PairedColumns(nn.Module):
    """A convolution of 7x7 and an odd number of frames, with stride 1x2x2, over what `for_stem` gives.

    Args:
        conv: of 3 channels, with batch norm folded in.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        span = conv.kernel_size[0]
        form = conv.in_channels, conv.kernel_size, conv.stride, conv.padding
        assert form == (3, (span, 7, 7), (1, 2, 2), (span // 2, 3, 3))
        # Output o reads columns 2o-3 to 2o+3, which lie in the pairs o-2 to o+1: the first column is added.
        weight = F.pad(conv.weight.detach(), (1, 0)).reshape(-1, 3, span, 7, 4, 2)
        weight = weight.permute(0, 5, 1, 2, 3, 4).reshape(-1, 6, span, 7, 4)
        self.conv = nn.Conv3d(6, conv.out_channels, (span, 7, 4), (1, 2, 1), (span // 2, 3, 0))
        self.conv.weight, self.conv.bias = nn.Parameter(weight), conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Like the convolution's: ``[batch, 6, time, height, ceil(width / 2)]`` to half of both sides."""
        out: Tensor = self.conv(F.pad(x, (2, 1)))
        return out


def for_stem(stem: nn.Module, pixels: Tensor) -> Tensor:
    """Normalised pixels, channels still last, as the first convolution takes them.

    Args:
        stem: the convolution, packed or not.
        pixels: ``[batch, time, height, width, 3]``.

    Returns:
        The same, or for `PairedColumns` ``[batch, time, height, ceil(width / 2), 6]``.
    """
    if not isinstance(stem, PairedColumns):
        return pixels
    time, height, width = pixels.shape[1:4]
    if width % 2:
        pixels = F.pad(pixels, (0, 0, 0, 1))
    return pixels.reshape(-1, time, height, -(-width // 2), 6)


def pack_stem(module: nn.Module, frames: int) -> None:
    """Pack the convolutions whose paths the network gives as ``STEMS``, as the catalogue calls it."""
    for path in module.STEMS:  # type: ignore[union-attr]  # a tuple of names
        conv = module.get_submodule(path)
        assert isinstance(conv, nn.Conv3d)
        module.set_submodule(path, PairedColumns(conv))
