"""MViT (Fan et al., "Multiscale Vision Transformers", 2021; Li et al., "MViTv2", 2022).

Cut before the classifier. Keys and arithmetic are PySlowFast's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_engines.spec import Pool
from vfx_export.backbones.clip_vit import LayerNorm
from vfx_export.backbones.mvit_attention import EPS, PooledAttention
from vfx_export.backbones.mvit_patches import Patches
from vfx_export.backbones.mvit_plan import Block, Triple
from vfx_export.backbones.pixels import Colour, Pixels


class Perceptron(nn.Module):
    """Two linear layers with GELU between them, and four times as many channels inside.

    Args:
        width: channels of the tokens that enter.
        leaves: channels of the tokens that leave.
    """

    def __init__(self, width: int, leaves: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, leaves)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[..., width]`` to ``[..., leaves]``."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def pooled_tokens(x: Tensor, grid: Triple) -> Tensor:
    """Max pool of tokens over 3x3 places, with stride 2 in height and width.

    Args:
        x: tokens ``[batch, tokens, channels]``.
        grid: their grid in time, height and width.

    Returns:
        ``[batch, tokens, channels]``, with height and width of the grid halved and rounded up.
    """
    t, h, w = grid
    channels = x.shape[2]
    x = x.reshape(-1, h, w, channels).permute(0, 3, 1, 2)
    x = F.max_pool2d(x, 3, 2, 1).permute(0, 2, 3, 1)
    return x.reshape(-1, t * x.shape[1] * x.shape[2], channels)


class _Block(nn.Module):
    """Attention, then a perceptron, each with a norm before it and a shortcut around it."""

    def __init__(self, block: Block, relative: bool) -> None:
        super().__init__()
        self.block = block
        self.norm1 = LayerNorm(block.width, EPS)
        self.attn = PooledAttention(block, relative=relative, residual=relative)
        self.norm2 = LayerNorm(block.attended, EPS)
        self.mlp = Perceptron(block.attended, block.leaves)
        if block.leaves != block.width:
            # In the shortcut around the attention (version 2) or the perceptron (version 1); both give it the
            # normalised input.
            self.proj = nn.Linear(block.width, block.leaves)

    def forward(self, grid: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """The next grid and class token, ``[batch, tokens, channels]`` and ``[batch, 1, channels]``."""
        attn = self.attn.arranged()
        normed, normed_first = self.norm1(grid), self.norm1(first)
        k, v = attn.keys_values(normed, normed_first)
        shortcut = self._shortcut(grid, normed)
        if self.block.queries != self.block.grid:
            shortcut = pooled_tokens(shortcut, self.block.grid)
        grid = self._widened(shortcut + attn.of_grid(normed, k, v))
        return grid, self._class(attn.of_class(normed_first, k, v), first, normed_first)

    def last(self, grid: Tensor, first: Tensor) -> Tensor:
        """Only the next class token, for the last block."""
        attn = self.attn.arranged()
        normed_first = self.norm1(first)
        k, v = attn.keys_values(self.norm1(grid), normed_first)
        return self._class(attn.of_class(normed_first, k, v), first, normed_first)

    def _class(self, mixed: Tensor, first: Tensor, normed: Tensor) -> Tensor:
        return self._widened(self._shortcut(first, normed) + mixed)

    def _shortcut(self, x: Tensor, normed: Tensor) -> Tensor:
        return self.proj(normed) if self.block.attended != self.block.width else x

    def _widened(self, x: Tensor) -> Tensor:
        """The perceptron with its norm and shortcut."""
        normed = self.norm2(x)
        out: Tensor = self.mlp(normed)
        return out + (self.proj(normed) if self.block.leaves != self.block.attended else x)


class Head(nn.Module):
    """The classifier.

    Args:
        width: length of the feature.
        classes: number of classes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """From float32 ``[batch, width]`` to ``[batch, classes]``, in float32 whatever the weights are."""
        return F.linear(features, self.projection.weight.float(), self.projection.bias.float())


class MViT(nn.Module):
    """MViT, from pixels to the class token that enters the classifier.

    Args:
        blocks: see `vfx_export.backbones.mvit_plan`.
        mean: mean of red, green and blue, in [0, 1].
        std: standard deviation of red, green and blue, likewise.
        relative: version 2, whose attention has relative positions and adds the pooled query to its result.
            Otherwise version 1, which adds absolute positions to the tokens.
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    MAPS: ClassVar = ("tokens",)

    def __init__(
        self,
        blocks: tuple[Block, ...],
        mean: Colour,
        std: Colour,
        *,
        relative: bool,
        classes: int = 400,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.with_logits = head
        self.pixels = Pixels(mean, std)
        self.pool: Pool = "head"
        time, height, width = blocks[0].grid
        channels = blocks[0].width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.absolute = not relative
        if self.absolute:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, channels))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, time, channels))
            self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, channels))
        self.places: Tensor | None
        self.register_buffer("places", None)
        self.patch_embed = Patches(channels)
        self.blocks = nn.ModuleList(_Block(block, relative) for block in blocks)
        self.norm = LayerNorm(blocks[-1].leaves, EPS)
        self.head = Head(blocks[-1].leaves, classes)

    def fold_constants(self) -> None:
        """Add the positional embeddings of places and frames once, instead of in the graph."""
        if self.absolute:
            self.places = positions(self.pos_embed_spatial, self.pos_embed_temporal).detach()

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, of the size that the blocks are
                for.

        Returns:
            float32 ``[batch, channels]``: the class token, or with a global pool the normalised mean of all
            other tokens (PySlowFast's USE_MEAN_POOLING). Or, unpooled, ``[batch, tokens, channels]``: the
            class token, then the grid in the order of time, height and width. Then float32 ``[batch,
            classes]``, before softmax.
        """
        grid = self.patch_embed(self.pixels(frames))
        first: Tensor = self.cls_token
        if self.absolute:
            places = self.places
            if places is None:
                places = positions(self.pos_embed_spatial, self.pos_embed_temporal)
            grid = grid + places
            first = first + self.pos_embed_class
        # Adding zero times a token expands the class token to the batch, without shape arithmetic in the
        # graph.
        first = grid[:, :1] * 0 + first
        *blocks, last = self.blocks
        for block in blocks:
            grid, first = block(grid, first)
        assert isinstance(last, _Block)
        if self.pool == "head":
            out = features = self.norm(last.last(grid, first)[:, 0].float())
        else:
            grid, first = last(grid, first)
            if self.pool == "global":
                out = features = self.norm(grid.float().mean(1))
            else:
                out = self.norm(torch.cat([first, grid], 1).float())
                features = out[:, 0]
        return (out, self.head(features)) if self.with_logits else (out,)


def positions(spatial: Tensor, temporal: Tensor) -> Tensor:
    """The positional embedding of every token, ``[1, tokens, channels]``.

    Args:
        spatial: embeddings of the places in a frame, ``[1, height * width, channels]``.
        temporal: embeddings of the frames, ``[1, time, channels]``.
    """
    return (spatial[:, None] + temporal[:, :, None]).flatten(1, 2)
