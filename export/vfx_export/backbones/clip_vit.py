"""CLIP's vision transformers, from pixels to the image's embedding.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. Keys are
those of OpenAI's checkpoints (github.com/openai/CLIP).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.clip_attention import ClassAttention, SelfAttention

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue, in [0, 1], in CLIP's training."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""


class LayerNorm(nn.LayerNorm):
    """Layer norm, computed in float32 whatever the weights are, as OpenAI runs it."""

    def forward(self, x: Tensor) -> Tensor:
        """The normalised tensor, in the dtype of ``x``."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        # QuickGELU.
        out: Tensor = self.c_proj(x * torch.sigmoid(1.702 * x))
        return out


class Block(nn.Module):
    """Attention, then a perceptron, each with a norm before it and a shortcut around it.

    Args:
        width: channels of a token.
        last: return only the class token.
        causal: number of tokens, if each attends only to itself and those before it; 0 if it attends to all.
    """

    def __init__(self, width: int, last: bool = False, causal: int = 0) -> None:
        super().__init__()
        self.last = last
        self.attn: nn.Module = ClassAttention(width) if last else SelfAttention(width, causal)
        self.ln_1 = LayerNorm(width)
        self.mlp = _Perceptron(width)
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """From tokens ``[batch, tokens, width]`` to the same shape; in the last block, ``[batch, width]``."""
        attended: Tensor = self.attn(self.ln_1(x))
        x = (x[:, 0] if self.last else x) + attended
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, last=i == layers - 1) for i in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resblocks(x)
        return x


class _Embedding(nn.Module):
    """From pixels to tokens in one product: normalisation, patches, class token and positional embedding."""

    weight: Tensor
    table: Tensor

    def __init__(self, patches: Tensor, first: Tensor, positions: Tensor) -> None:
        super().__init__()
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        weight = patches.permute(0, 2, 3, 1) / std
        bias = (weight * (128 / 255 - mean)).sum((1, 2, 3))
        # For pixels as x / 64 - 2, which is exact even in bf16.
        self.register_buffer("weight", (weight * (64 / 255)).flatten(1))
        self.register_buffer(
            "table", positions + torch.cat([first[None], bias.expand(len(positions) - 1, -1)])
        )

    def forward(self, frames: Tensor, patch: int) -> Tensor:
        height, width = frames.shape[2:4]
        rows, columns = height // patch, width // patch
        # Rearranged while pixels are still single bytes, rather than floats of two or four bytes.
        x = frames.reshape(-1, rows, patch, columns, patch, 3).transpose(2, 3)
        x = x.reshape(-1, rows * columns, patch * patch * 3)
        x = F.linear(x.to(self.weight.dtype) * (1 / 64) - 2, self.weight)
        return F.pad(x, (0, 0, 1, 0)) + self.table


class _Vision(nn.Module):
    def __init__(self, size: int, patch: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.patch = patch
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.zeros(width, length))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = LayerNorm(width)
        self.transformer = _Transformer(width, layers)
        self.ln_post = LayerNorm(width)
        self.folded: _Embedding | None = None

    def fold_constants(self) -> None:
        """Compute the tables of the embedding once, instead of in the graph."""
        self.folded = self._embedding()

    def forward(self, frames: Tensor) -> Tensor:
        embed = self.folded or self._embedding()
        x = self.transformer(self.ln_pre(embed(frames, self.patch)))
        feature: Tensor = self.ln_post(x.float()) @ self.proj.float()
        return feature

    def _embedding(self) -> _Embedding:
        parameters = (self.conv1.weight, self.class_embedding, self.positional_embedding)
        return _Embedding(*(parameter.detach() for parameter in parameters))


class CLIPViT(nn.Module):
    """CLIP's image encoder, from pixels to the embedding that is compared with that of a text.

    The embedding is not normalised.

    Args:
        size: height and width of a frame, in pixels.
        patch: height and width of a patch, in pixels.
        width: channels of a token.
        layers: number of blocks.
        length: length of the embedding.
    """

    def __init__(self, size: int, patch: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.visual = _Vision(size, patch, width, layers, length)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The embedding.

        Args:
            frames: uint8 ``[batch, 1, size, size, 3]``, RGB, 0 to 255.

        Returns:
            float32 ``[batch, length]``.
        """
        return (self.visual(frames),)
