"""What each block of an MViT does to its tokens, read off the shapes of a checkpoint.

The published configs of MViTv1 do not fit all published files (kernels, pools that are not there, depth),
but names and shapes of the tensors say all that differs. What they cannot say, strides, follows from where
the query is pooled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Triple = tuple[int, int, int]

FINEST_KEYS: Triple = (1, 8, 8)
"""Stride of keys and values in the first block: as the grid of queries shrinks it does, so that attention
always has as many keys."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block. Tokens are a grid in time, height and width, and perhaps a class token."""

    grid: Triple
    """Tokens that enter."""
    width: int
    """Channels that enter."""
    attended: int
    """Channels within and after attention."""
    leaves: int
    """Channels that leave."""
    head_width: int
    """Channels of a head."""
    query_stride: Triple
    query_kernel: Triple | None
    """Of the convolution that pools queries; None where there is none."""
    key_stride: Triple
    key_kernel: Triple | None
    """Of those of keys and of values."""
    rows: int = 0
    """Rows of the tables of relative height and width, as the checkpoint has them. They were counted with
    sizes rounded down where convolutions round up, so there may be fewer than are needed."""

    @property
    def heads(self) -> int:
        """Heads of attention."""
        return self.attended // self.head_width

    @property
    def queries(self) -> Triple:
        """Grid of tokens that leaves."""
        return _strided(self.grid, self.query_stride)

    @property
    def keys(self) -> Triple:
        """Grid of keys."""
        return _strided(self.grid, self.key_stride)


def published(
    depth: int,
    patches: Triple,
    pooled: tuple[int, int, int],
    *,
    width: int,
    head_width: int,
    in_attention: bool,
    kernel: Triple | None,
    query_everywhere: bool = False,
) -> tuple[Block, ...]:
    """The blocks as the published config has them.

    Args:
        depth: number of blocks.
        patches: grid of tokens that enters the first one.
        pooled: blocks that halve the grid of queries in height and width.
        width: channels that enter the first one; those and the heads double at every pooled block.
        head_width: channels of a head.
        in_attention: whether channels double within the pooled block's attention (version 2), or in the
            perceptron of the block before (version 1).
        kernel: of all pools; None for one that covers its stride.
        query_everywhere: whether queries go through a convolution in blocks that do not shrink the grid, too.
    """
    widths = [width << sum(block <= i for block in pooled) for i in range(depth + 1)]
    blocks: list[Block] = []
    grid, finer = patches, FINEST_KEYS
    counted = patches[1]
    for i in range(depth):
        attended = widths[i] if in_attention else (blocks[-1].leaves if blocks else width)
        stride: Triple = (1, 2, 2) if i in pooled else (1, 1, 1)
        finer = _coarsened(finer, stride)
        has_query = i in pooled or query_everywhere
        has_key = kernel is not None or finer != (1, 1, 1)
        block = Block(
            grid=grid,
            width=blocks[-1].leaves if blocks else width,
            attended=attended,
            leaves=attended if in_attention or i == depth - 1 else widths[i + 1],
            head_width=head_width,
            query_stride=stride,
            query_kernel=(kernel or _covering(stride)) if has_query else None,
            key_stride=finer,
            key_kernel=(kernel or _covering(finer)) if has_key else None,
            rows=2 * max(counted // stride[1], counted // finer[1]) - 1,
        )
        blocks.append(block)
        grid, counted = block.queries, counted // stride[1]
    return tuple(blocks)


def from_shapes(shapes: Mapping[str, tuple[int, ...]], patches: Triple) -> tuple[Block, ...] | None:
    """The blocks of a version 1 file; None where keys and shapes are not those of one.

    Args:
        shapes: shape of each tensor by key.
        patches: grid of tokens that enters the first block.
    """
    numbers = {int(match[1]) for key in shapes if (match := re.match(r"blocks\.(\d+)\.", key))}
    blocks: list[Block] = []
    grid, finer = patches, FINEST_KEYS
    for i in range(len(numbers)):
        attn = f"blocks.{i}.attn"
        try:
            width = shapes[f"{attn}.qkv.weight"][1]
            leaves = shapes[f"blocks.{i}.mlp.fc2.weight"][0]
            head_width = shapes["blocks.0.attn.pool_k.weight"][0]
            kernels = [shapes.get(f"{attn}.pool_{name}.weight") for name in "qkv"]
            query, key, _ = (None if found is None else (found[2], found[3], found[4]) for found in kernels)
        except (KeyError, IndexError):
            return None
        stride: Triple = (1, 2, 2) if query else (1, 1, 1)
        finer = _coarsened(finer, stride)
        block = Block(grid, width, width, leaves, head_width, stride, query, finer, key)
        if width % head_width or (key is None and finer != (1, 1, 1)):
            return None
        blocks.append(block)
        grid = block.queries
    return tuple(blocks) or None


def _strided(grid: Triple, stride: Triple) -> Triple:
    """Every kernel is odd and padded by half of it, or is as long as the stride is even plus one."""
    t, h, w = ((size - 1) // step + 1 for size, step in zip(grid, stride, strict=True))
    return t, h, w


def _coarsened(keys: Triple, queries: Triple) -> Triple:
    t, h, w = (max(1, key // query) for key, query in zip(keys, queries, strict=True))
    return t, h, w


def _covering(stride: Triple) -> Triple:
    t, h, w = (step + 1 if step > 1 else 1 for step in stride)
    return t, h, w
