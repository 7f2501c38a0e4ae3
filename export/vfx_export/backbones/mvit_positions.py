"""Relative positions in attention as products that are part of query times key.

What MViTv2 adds to the score of a query and a key is the query times a vector for their distance in height,
plus one for width and one for time. Each query is given these numbers for every row, column and frame of
keys as channels more, and each key a one in the channels of its own row, column and frame. Then query times
key holds the sum, and nothing as large as the scores is ever gathered, added or written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.mvit_plan import Triple


class RelativePositions(nn.Module):
    """Channels for queries and keys.

    Args:
        tables: of time, height and width, ``[distances, channels]``.
        queries: their grid.
        keys: their grid.
    """

    time: Tensor
    rows: Tensor
    columns: Tensor
    ones: Tensor

    def __init__(self, tables: tuple[Tensor, Tensor, Tensor], queries: Triple, keys: Triple) -> None:
        super().__init__()
        self.grid = queries
        self.channels = sum(keys)
        """How many each query and key gets."""
        names = ("time", "rows", "columns")
        for name, table, places, others in zip(names, tables, queries, keys, strict=True):
            self.register_buffer(name, _by_position(table, places, others))
        own = [torch.eye(size) for size in keys]
        grids = [
            own[0][:, None, None].expand(*keys, -1),
            own[1][:, None].expand(*keys, -1),
            own[2].expand(*keys, -1),
        ]
        ones = F.pad(torch.cat(grids, -1).flatten(0, 2), (tables[0].shape[1], 0, 1, 0))
        self.register_buffer("ones", ones.to(tables[0]))

    def of_queries(self, q: Tensor) -> Tensor:
        """``[batch, heads, queries, channels]`` with the channels for positions added."""
        heads, channels = q.shape[1], q.shape[3]
        t, h, w = self.grid
        rows = q.reshape(-1, h, w, channels) @ self.rows
        columns = q.reshape(-1, h, w, channels).transpose(1, 2) @ self.columns
        time = q.reshape(-1, t, h * w, channels) @ self.time
        parts = (time, rows, columns.transpose(1, 2))
        return torch.cat([q, *(part.reshape(-1, heads, t * h * w, part.shape[-1]) for part in parts)], -1)

    def of_keys(self, k: Tensor) -> Tensor:
        """``[batch, heads, 1 + keys, channels]`` likewise; the first one, the class token, is nowhere."""
        return F.pad(k, (0, self.channels)) + self.ones

    def of_class(self, q: Tensor) -> Tensor:
        """A query that is nowhere."""
        return F.pad(q, (0, self.channels))


def _by_position(table: Tensor, queries: int, keys: int) -> Tensor:
    """``[queries, channels, keys]``: the vector for each pair of places on one axis."""
    distances = 2 * max(queries, keys) - 1
    if len(table) != distances:
        table = F.interpolate(table.t()[None], size=distances, mode="linear", align_corners=False)[0].t()
    per_query, per_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
    places = torch.arange(queries)[:, None] * per_query - torch.arange(keys) * per_key
    return table[(places + (keys - 1) * per_key).long()].transpose(1, 2).contiguous()
