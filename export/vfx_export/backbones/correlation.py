"""RAFT's correlation pyramid: what each pixel of the first frame finds around its place in the second.

The published code samples each level with `grid_sample`. The 81 samples of a level are at whole steps from
each other, so they share one fraction: 10x10 values are gathered and blended twice, for all levels at
once. In OpenVINO that takes a fifth of GridSample's time, and it needs no division by the size of a
level, which makes NaN of a level of one pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 4
RADIUS = 4


class Lookup:
    """All-pairs correlations of two feature maps, float32 ``[pairs, channels, height, width]`` each."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        channels, height, width = first.shape[1:]
        levels = [second]
        for _ in range(LEVELS - 1):
            # Pooling commutes with the product: the second frame is pooled, not all pairs.
            levels.append(F.avg_pool2d(levels[-1], 2))
        self._sizes = [(level.shape[2], level.shape[3]) for level in levels]
        near = torch.cat([level.flatten(2) for level in levels], 2)
        self._volume = torch.matmul(first.flatten(2).transpose(1, 2) * channels**-0.5, near)
        # Where each pixel's row of the flat volume begins.
        pairs, pixels, row = self._volume.shape
        self._rows = (torch.arange(pairs * pixels) * row).reshape(pairs, 1, pixels)
        y, x = torch.arange(height)[:, None], torch.arange(width)
        self._places = torch.stack([x.expand(height, width), y.expand(height, width)]).flatten(1).float()

    def __call__(self, flow: Tensor) -> Tensor:
        """Correlations around each pixel's place.

        Args:
            flow: ``[pairs, 2, height, width]``, x then y, in pixels of the feature maps.

        Returns:
            ``[pairs, 4 * 81, height, width]``: level, then x from -4 to 4, then y.
        """
        pairs, _, height, width = flow.shape
        places = self._places + flow.flatten(2)
        steps = torch.arange(-RADIUS, RADIUS + 2)[:, None]
        start = 0
        columns, rows, inside_x, inside_y, fractions = [], [], [], [], []
        for level, (h, w) in enumerate(self._sizes):
            place = places * 0.5**level
            whole = place.floor()
            fractions.append(place - whole)
            x, y = ((whole[:, i : i + 1].long() + steps) for i in (0, 1))
            inside_x.append((x >= 0) & (x < w))
            inside_y.append((y >= 0) & (y < h))
            columns.append(x.clamp(0, w - 1))
            rows.append(y.clamp(0, h - 1) * w + (start + self._rows))
            start += h * w
        index = torch.stack(columns, 1)[:, :, :, None] + torch.stack(rows, 1)[:, :, None]
        inside = torch.stack(inside_x, 1)[:, :, :, None] & torch.stack(inside_y, 1)[:, :, None]
        values = self._volume.flatten().index_select(0, index.flatten()).reshape(index.shape) * inside.float()
        fraction = torch.stack(fractions, 1)
        fx, fy = fraction[:, :, 0, None, None], fraction[:, :, 1, None, None]
        values = values[:, :, :-1] + fx * (values[:, :, 1:] - values[:, :, :-1])
        values = values[:, :, :, :-1] + fy * (values[:, :, :, 1:] - values[:, :, :, :-1])
        return values.reshape(pairs, -1, height, width)
