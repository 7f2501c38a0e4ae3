"""MViT's first convolution, computed over blocks of pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = (2, 4, 4)


class Patches(nn.Module):
    """A 3x7x7 convolution with stride 2x4x4, from pixels to tokens.

    It is computed as a 2x2x2 convolution with stride 1 over blocks of 2x4x4 pixels. The kernel gets one more
    tap of zeros at the start of each axis. The sums are the same, but over 96 channels instead of 3, which
    fill matrix units.

    Args:
        channels: channels of a token.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, channels, (3, 7, 7), _BLOCK, (1, 3, 3))
        self.folded: nn.Conv3d | None = None

    def fold_constants(self) -> None:
        """Rearrange the weights once, so that this is not part of the graph."""
        self.folded = self._packed()

    def forward(self, frames: Tensor) -> Tensor:
        """From normalised pixels, float32 ``[batch, time, height, width, 3]``, to tokens.

        Returns:
            ``[batch, tokens, channels]`` in the weights' dtype, in the order of time, height and width.
        """
        t, h, w = _BLOCK
        time, height, width = (size // block for size, block in zip(frames.shape[1:4], _BLOCK, strict=True))
        conv = self.folded or self._packed()
        x = frames.to(conv.weight.dtype).reshape(-1, time, t, height, h, width, w, 3)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, time, height, width, t * h * w * 3)
        x = conv.forward(F.pad(x, (0, 0, 1, 0, 1, 0, 1, 0)).permute(0, 4, 1, 2, 3))
        return x.permute(0, 2, 3, 4, 1).flatten(1, 3)

    def _packed(self) -> nn.Conv3d:
        t, h, w = _BLOCK
        weight = F.pad(self.proj.weight.detach(), (1, 0, 1, 0, 1, 0))
        channels = len(weight)
        weight = weight.reshape(channels, 3, 2, t, 2, h, 2, w).permute(0, 3, 5, 7, 1, 2, 4, 6)
        conv = nn.Conv3d(t * h * w * 3, channels, 2, device="meta")
        conv.weight = nn.Parameter(weight.reshape(channels, -1, 2, 2, 2))
        conv.bias = self.proj.bias
        return conv
