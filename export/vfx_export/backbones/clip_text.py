"""CLIP's text encoder, from token ids to the text's embedding.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. Keys are
those of OpenAI's checkpoints (github.com/openai/CLIP).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vfx_export.backbones.clip_vit import Block, LayerNorm

CONTEXT = 77
"""Tokens of a text, with the markers of its start and end."""
VOCABULARY = 49408
LAYERS = 12


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, causal=CONTEXT) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resblocks(x)
        return x


class CLIPText(nn.Module):
    """The text encoder; what it gives is not normalised.

    Args:
        width: channels of a token.
        length: of the embedding.
        layers: blocks.
    """

    def __init__(self, width: int, length: int, layers: int = LAYERS) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(CONTEXT, width))
        self.text_projection = nn.Parameter(torch.zeros(width, length))
        # Natural logarithm of what cosines are multiplied by; where CLIP's training began.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.transformer = _Transformer(width, layers)
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.ln_final = LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """The embedding of the marker that ends a text, which has seen all of it.

        Args:
            tokens: int32 ``[batch, 77]``, from `vfx_runtime.tokenizer`; the end's id is the largest.

        Returns:
            float32 ``[batch, length]``.
        """
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding)
        end = tokens.argmax(1)[:, None, None].expand(-1, 1, x.shape[2])
        feature: Tensor = self.ln_final(x.gather(1, end)[:, 0].float()) @ self.text_projection.float()
        return (feature,)
