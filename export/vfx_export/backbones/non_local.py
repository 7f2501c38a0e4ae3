"""Non-local blocks (Wang et al., "Non-local Neural Networks", 2018), as PySlowFast has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class NonLocal:
    """Where the blocks of a network stand, and how they weigh positions."""

    after: tuple[tuple[int, ...], ...]
    """Of each stage, the residual blocks that one follows."""
    weighing: Literal["softmax", "dot_product"]
    pool: Triple
    """Kernel and stride, in time, height and width, of the max pool before keys and values."""


class NonLocalBlock(nn.Module):
    """Every position asks all positions of a pooled map, and adds what they answer.

    Args:
        channels: of the map; inside there are half as many.
        weighing: softmax of the scaled scores, or the scores over the number of keys.
        pool: see `NonLocal`.
    """

    BATCH_NORMS: ClassVar = {"conv_out": "bn"}

    def __init__(self, channels: int, weighing: Literal["softmax", "dot_product"], pool: Triple) -> None:
        super().__init__()
        inner = channels // 2
        self.weighing, self.pool = weighing, pool
        self.scale = inner**-0.5
        self.folded = False
        # A product of three maps: what goes in ten times larger comes out a thousand times larger.
        self.random_gains = {"bn": 0.25} if weighing == "softmax" else {"bn": 2.5e-3, "conv_theta": 1e-4}
        self.conv_theta = nn.Conv3d(channels, inner, 1)
        self.conv_phi = nn.Conv3d(channels, inner, 1)
        self.conv_g = nn.Conv3d(channels, inner, 1)
        self.conv_out = nn.Conv3d(inner, channels, 1)
        self.bn: nn.Module = nn.BatchNorm3d(channels)

    def fold_constants(self) -> None:
        """Scale the weights of the query instead of the scores, which half precision could not hold."""
        if self.weighing == "softmax":
            assert self.conv_theta.bias is not None
            self.conv_theta.weight.data = self.conv_theta.weight.data * self.scale
            self.conv_theta.bias.data = self.conv_theta.bias.data * self.scale
            self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, time, height, width]`` to the same shape."""
        keys = F.max_pool3d(x, self.pool, self.pool) if max(self.pool) > 1 else x
        theta = self.conv_theta(x)
        query, key, value = (part.flatten(2) for part in (theta, self.conv_phi(keys), self.conv_g(keys)))
        if self.weighing == "softmax":
            if not self.folded:
                query = query * self.scale
            scores = (query.transpose(1, 2) @ key).float().softmax(-1).to(value.dtype)
        else:
            # Scaled before the product, whose sums half precision could not hold. Keys could meet values
            # first, but in bf16 that doubled the error.
            scores = query.transpose(1, 2) @ (key / key.shape[2])
        answer = value @ scores.transpose(1, 2)
        out: Tensor = x + self.bn(self.conv_out(answer.reshape(theta.shape)))
        return out
