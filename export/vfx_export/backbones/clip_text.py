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
"""Tokens of a text, including the markers of its start and end."""
VOCABULARY = 49408
"""Number of token ids."""
LAYERS = 12
"""Blocks of the text encoder, in every CLIP of the catalogue."""


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, causal=CONTEXT) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resblocks(x)
        return x


class CLIPText(nn.Module):
    """CLIP's text encoder, from token ids to an embedding, which is not normalised.

    Args:
        width: channels of a token.
        length: length of the embedding.
        layers: number of blocks.
    """

    def __init__(self, width: int, length: int, layers: int = LAYERS) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(CONTEXT, width))
        self.text_projection = nn.Parameter(torch.zeros(width, length))
        # Natural logarithm of the factor of cosines. This is the value with which CLIP's training began.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.transformer = _Transformer(width, layers)
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.ln_final = LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """The embedding at the marker that ends a text, which has attended to the whole text.

        Args:
            tokens: int32 ``[batch, 77]``, from `vfx_runtime.tokenizer`. The marker of the end has the largest
                id.

        Returns:
            float32 ``[batch, length]``.
        """
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding)
        end = tokens.argmax(1)[:, None, None].expand(-1, 1, x.shape[2])
        feature: Tensor = self.ln_final(x.gather(1, end)[:, 0].float()) @ self.text_projection.float()
        return (feature,)
