"""Relative positions in attention, computed as part of the product of queries and keys.

To the score of a query and a key, MViTv2 adds the products of the query with three vectors, which depend on
the distance of the two in height, width and time. Here, each query gets these products as additional
channels, one for every row, column and frame of keys. Each key has a one in the channels of its own row,
column and frame, and zeros in the others. So the product of query and key already contains the sum, and
nothing as large as the scores needs to be gathered, added or written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.mvit_plan import Triple


class RelativePositions(nn.Module):
    """Adds channels for positions to queries and keys.

    Args:
        tables: vectors for distances in time, height and width, each ``[distances, channels]``.
        queries: grid of the queries.
        keys: grid of the keys.
    """

    time: Tensor
    rows: Tensor
    columns: Tensor
    ones: Tensor

    def __init__(self, tables: tuple[Tensor, Tensor, Tensor], queries: Triple, keys: Triple) -> None:
        super().__init__()
        self.grid = queries
        self.channels = sum(keys)
        """Number of channels that each query and key gets."""
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
        """Queries of the grid, ``[batch, heads, queries, channels]``, with channels for positions added."""
        heads, channels = q.shape[1], q.shape[3]
        t, h, w = self.grid
        rows = q.reshape(-1, h, w, channels) @ self.rows
        columns = q.reshape(-1, h, w, channels).transpose(1, 2) @ self.columns
        time = q.reshape(-1, t, h * w, channels) @ self.time
        parts = (time, rows, columns.transpose(1, 2))
        return torch.cat([q, *(part.reshape(-1, heads, t * h * w, part.shape[-1]) for part in parts)], -1)

    def of_keys(self, k: Tensor) -> Tensor:
        """Keys, ``[batch, heads, 1 + keys, channels]``, likewise; the class token's, the first, has none."""
        return F.pad(k, (0, self.channels)) + self.ones

    def of_class(self, q: Tensor) -> Tensor:
        """Queries of class tokens, which have no place, so that the added channels are zero."""
        return F.pad(q, (0, self.channels))


def _by_position(table: Tensor, queries: int, keys: int) -> Tensor:
    """The vector for each pair of places on one axis, ``[queries, channels, keys]``."""
    distances = 2 * max(queries, keys) - 1
    if len(table) != distances:
        table = F.interpolate(table.t()[None], size=distances, mode="linear", align_corners=False)[0].t()
    per_query, per_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
    places = torch.arange(queries)[:, None] * per_query - torch.arange(keys) * per_key
    return table[(places + (keys - 1) * per_key).long()].transpose(1, 2).contiguous()
