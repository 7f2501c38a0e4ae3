"""What each block of an MViT does to its tokens, from a published config or the shapes in a checkpoint.

The published configs of MViTv1 do not fit all published files: kernels and depth differ, and some pools are
missing. Names and shapes of the tensors tell these differences. Strides are not among them, but follow from
the blocks in which queries are pooled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Triple = tuple[int, int, int]

FINEST_KEYS: Triple = (1, 8, 8)
"""Stride of keys and values in the first block, in time, height and width. It shrinks as the grid of tokens
does, so that all blocks have the same number of keys."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block. Its tokens form a grid in time, height and width; there may be a class token besides."""

    grid: Triple
    """Grid of the tokens that enter."""
    width: int
    """Channels of the tokens that enter."""
    attended: int
    """Channels within and after attention."""
    leaves: int
    """Channels of the tokens that leave."""
    head_width: int
    """Channels of an attention head."""
    query_stride: Triple
    """Stride with which queries are pooled."""
    query_kernel: Triple | None
    """Kernel of the convolution that pools queries; None if there is none."""
    key_stride: Triple
    """Stride with which keys and values are pooled."""
    key_kernel: Triple | None
    """Kernel of the convolutions that pool keys and values; None if there are none."""
    rows: int = 0
    """Rows of the tables of relative height and width, as in the checkpoint. They were computed from sizes
    that are rounded down where convolutions round up, so there may be fewer rows than needed."""

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.attended // self.head_width

    @property
    def queries(self) -> Triple:
        """Grid of the queries, and so of the tokens that leave."""
        return _strided(self.grid, self.query_stride)

    @property
    def keys(self) -> Triple:
        """Grid of the keys and values."""
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
    """The blocks of a published config.

    Args:
        depth: number of blocks.
        patches: grid of the tokens that enter the first block.
        pooled: indices of the blocks that halve the grid in height and width.
        width: channels that enter the first block. Channels and heads double at every pooled block.
        head_width: channels of an attention head.
        in_attention: whether channels double in the attention of a pooled block (version 2), or in the
            perceptron of the block before (version 1).
        kernel: kernel of all pools; None for kernels just larger than the stride.
        query_everywhere: whether queries also go through a convolution in blocks that keep the grid.
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
    """The blocks of a checkpoint of version 1; None if keys and shapes are not those of one.

    Args:
        shapes: key -> shape of the checkpoint's tensors.
        patches: grid of the tokens that enter the first block.
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
    """The grid after a pool. All kernels are odd and padded by half, so sizes are divided and rounded up."""
    t, h, w = ((size - 1) // step + 1 for size, step in zip(grid, stride, strict=True))
    return t, h, w


def _coarsened(keys: Triple, queries: Triple) -> Triple:
    t, h, w = (max(1, key // query) for key, query in zip(keys, queries, strict=True))
    return t, h, w


def _covering(stride: Triple) -> Triple:
    t, h, w = (step + 1 if step > 1 else 1 for step in stride)
    return t, h, w
