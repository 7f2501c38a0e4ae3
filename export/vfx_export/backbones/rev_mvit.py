"""Reversible MViT (Mangalam et al., "Reversible Vision Transformers", 2022), cut before its classifier.

Keys and arithmetic are PySlowFast's. There is no class token. Layers keep two streams, and add to each what
they compute from the other; only layers that shrink the grid merge the streams.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vfx_engines.spec import Pool
from vfx_export.backbones.clip_vit import LayerNorm
from vfx_export.backbones.mvit import Head, Perceptron, positions
from vfx_export.backbones.mvit_attention import EPS, PooledAttention
from vfx_export.backbones.mvit_patches import Patches
from vfx_export.backbones.mvit_plan import Block
from vfx_export.backbones.pixels import Colour, Pixels


class _Attention(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm = LayerNorm(block.width, EPS)
        self.attn = PooledAttention(block, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        attn, x = self.attn.arranged(), self.norm(x)
        return attn.of_grid(x, *attn.keys_values(x, None))


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width, EPS)
        self.mlp = Perceptron(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.norm(x))
        return out


class _Layer(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.F = _Attention(block)
        self.G = _Perceptron(block.attended)


class _Reversible(_Layer):
    """A layer that keeps both streams."""

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        x1 = x1 + self.F(x2)
        return x1, x2 + self.G(x1)


class _Transition(_Layer):
    """A layer that merges both streams into their mean, doubles its channels and quarters its tokens.

    The result is returned twice, as both streams.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self.res_proj = nn.Linear(block.width, block.attended)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        x = (x1 + x2) / 2
        x = self.F.attn.arranged().pooled_like_queries(self.res_proj(x)) + self.F(x)
        x = x + self.G(x)
        return x, x


class _Backbone(nn.Module):
    def __init__(self, blocks: tuple[Block, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Reversible(block) if block.queries == block.grid else _Transition(block) for block in blocks
        )

    def forward(self, x: Tensor) -> Tensor:
        x1 = x2 = x
        for layer in self.layers:
            x1, x2 = layer(x1, x2)
        return torch.cat([x1, x2], -1)


class RevMViT(nn.Module):
    """Reversible MViT, from pixels to the mean token that enters the classifier, both streams concatenated.

    Args:
        blocks: see `vfx_export.backbones.mvit_plan`.
        mean: mean of red, green and blue, in [0, 1].
        std: standard deviation of red, green and blue, likewise.
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    MAPS: ClassVar = ("tokens",)

    def __init__(
        self, blocks: tuple[Block, ...], mean: Colour, std: Colour, classes: int = 400, head: bool = False
    ) -> None:
        super().__init__()
        self.with_logits = head
        self.pixels = Pixels(mean, std)
        self.pool: Pool = "head"
        time, height, width = blocks[0].grid
        leaves = 2 * blocks[-1].leaves
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, blocks[0].width))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, time, blocks[0].width))
        self.places: Tensor | None
        self.register_buffer("places", None)
        self.patch_embed = Patches(blocks[0].width)
        self.rev_backbone = _Backbone(blocks)
        self.norm = LayerNorm(leaves, EPS)
        self.head = Head(leaves, classes)

    def fold_constants(self) -> None:
        """Add the positional embeddings of places and frames once, instead of in the graph."""
        self.places = positions(self.pos_embed_spatial, self.pos_embed_temporal).detach()

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, of the size that the blocks are
                for.

        Returns:
            float32 ``[batch, channels]``, the mean of all tokens; or, unpooled, ``[batch, tokens,
            channels]``, in the order of time, height and width. Then float32 ``[batch, classes]``, before
            softmax.
        """
        x = self.patch_embed(self.pixels(frames))
        places = self.places
        if places is None:
            places = positions(self.pos_embed_spatial, self.pos_embed_temporal)
        x = self.rev_backbone(x + places)
        tokens = self.norm(x.float())
        features = tokens.mean(1)
        out = tokens if self.pool == "none" else features
        return (out, self.head(features)) if self.with_logits else (out,)
