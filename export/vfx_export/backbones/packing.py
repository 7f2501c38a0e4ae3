"""First convolutions rewritten for matrix units: over pairs of columns, with 6 input channels instead of 3.

A 7x7 convolution with stride 2 gives the same sums as a 7x4 convolution with stride 2x1 over pairs of columns
(the kernel gets an eighth column of zeros). With channels last, pairs of columns are adjacent in memory, so
pairing moves no byte. Blocks of 2x2 pixels are not adjacent, and save less than pairs.

Times in OpenVINO, in bf16 on AMX: the stem of S3D takes 149 ms as published, 112 ms in blocks of 2x2, and 79
ms in pairs. Stems that span 5 frames gain as much (8 frames of 256x256 to 64 channels: from 199 to 72 ms; 32
frames to 8 channels: from 82 to 36 ms). ResNet's stem would become slower, 3.1 instead of 2.0 ms, because
OpenVINO has a special kernel for two-dimensional convolutions of 3 channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PairedColumns(nn.Module):
    """A stem's convolution over pairs of columns, as `for_stem` arranges them.

    Args:
        conv: a convolution of 3 channels, with batch norm folded in: 7x7 in space, an odd number of frames,
            stride 1x2x2.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        span = conv.kernel_size[0]
        form = conv.in_channels, conv.kernel_size, conv.stride, conv.padding
        assert form == (3, (span, 7, 7), (1, 2, 2), (span // 2, 3, 3))
        # Output o reads columns 2o-3 to 2o+3. They are in pairs o-2 to o+1, which begin one column earlier.
        weight = F.pad(conv.weight.detach(), (1, 0)).reshape(-1, 3, span, 7, 4, 2)
        weight = weight.permute(0, 5, 1, 2, 3, 4).reshape(-1, 6, span, 7, 4)
        self.conv = nn.Conv3d(6, conv.out_channels, (span, 7, 4), (1, 2, 1), (span // 2, 3, 0))
        self.conv.weight, self.conv.bias = nn.Parameter(weight), conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's output, at half the height and width of the frames.

        Args:
            x: ``[batch, 6, time, height, ceil(width / 2)]``.

        Returns:
            ``[batch, channels, time, ceil(height / 2), ceil(width / 2)]``.
        """
        out: Tensor = self.conv(F.pad(x, (2, 1)))
        return out


def for_stem(stem: nn.Module, pixels: Tensor) -> Tensor:
    """Arrange normalised pixels for the first convolution, with channels last.

    Args:
        stem: the convolution, packed or not.
        pixels: ``[batch, time, height, width, 3]``.

    Returns:
        ``pixels`` itself; for `PairedColumns`, ``[batch, time, height, ceil(width / 2), 6]``.
    """
    if not isinstance(stem, PairedColumns):
        return pixels
    time, height, width = pixels.shape[1:4]
    if width % 2:
        pixels = F.pad(pixels, (0, 0, 0, 1))
    return pixels.reshape(-1, time, height, -(-width // 2), 6)


def pack_stem(module: nn.Module, frames: int) -> None:
    """Pack the convolutions that a network names in ``STEMS``, in place.

    In the form of `vfx_export.lowering.LowPrecision`; ``frames`` is not used.
    """
    for path in module.STEMS:  # type: ignore[union-attr]  # a tuple of names
        conv = module.get_submodule(path)
        assert isinstance(conv, nn.Conv3d)
        module.set_submodule(path, PairedColumns(conv))
