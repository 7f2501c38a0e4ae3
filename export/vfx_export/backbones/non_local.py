"""Non-local blocks (Wang et al., "Non-local Neural Networks", 2018), as in PySlowFast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class NonLocal:
    """Where a network has non-local blocks, and how these weight positions."""

    after: tuple[tuple[int, ...], ...]
    """For each stage, the indices of the residual blocks after which there is one."""
    weighing: Literal["softmax", "dot_product"]
    """See `NonLocalBlock`."""
    pool: Triple
    """Kernel and stride of the max pool before keys and values, in time, height and width."""


class NonLocalBlock(nn.Module):
    """Attention of every position to all positions of a pooled map, with a shortcut around it.

    Args:
        channels: channels of the map; half as many are used inside.
        weighing: how scores become weights: softmax of the scaled scores, or scores divided by the number of
            keys.
        pool: see `NonLocal`.
    """

    BATCH_NORMS: ClassVar = {"conv_out": "bn"}

    def __init__(self, channels: int, weighing: Literal["softmax", "dot_product"], pool: Triple) -> None:
        super().__init__()
        inner = channels // 2
        self.weighing, self.pool = weighing, pool
        self.scale = inner**-0.5
        self.folded = False
        # A product of three maps: an input that is ten times larger makes the output a thousand times larger.
        self.random_gains = {"bn": 0.25} if weighing == "softmax" else {"bn": 2.5e-3, "conv_theta": 1e-4}
        self.conv_theta = nn.Conv3d(channels, inner, 1)
        self.conv_phi = nn.Conv3d(channels, inner, 1)
        self.conv_g = nn.Conv3d(channels, inner, 1)
        self.conv_out = nn.Conv3d(inner, channels, 1)
        self.bn: nn.Module = nn.BatchNorm3d(channels)

    def fold_constants(self) -> None:
        """Scale the query's weights once, instead of the scores, which would overflow in half precision."""
        if self.weighing == "softmax":
            assert self.conv_theta.bias is not None
            self.conv_theta.weight.data = self.conv_theta.weight.data * self.scale
            self.conv_theta.bias.data = self.conv_theta.bias.data * self.scale
            self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        """From ``[batch, channels, time, height, width]`` to the same shape and dtype."""
        keys = F.max_pool3d(x, self.pool, self.pool) if max(self.pool) > 1 else x
        theta = self.conv_theta(x)
        query, key, value = (part.flatten(2) for part in (theta, self.conv_phi(keys), self.conv_g(keys)))
        if self.weighing == "softmax":
            if not self.folded:
                query = query * self.scale
            scores = (query.transpose(1, 2) @ key).float().softmax(-1).to(value.dtype)
        else:
            # Scaled before the product, whose sums would overflow in half precision. Multiplying keys with
            # values first would also be possible, but doubled the error in bf16.
            scores = query.transpose(1, 2) @ (key / key.shape[2])
        answer = value @ scores.transpose(1, 2)
        out: Tensor = x + self.bn(self.conv_out(answer.reshape(theta.shape)))
        return out
