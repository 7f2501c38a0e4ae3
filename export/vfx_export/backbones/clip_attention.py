"""CLIP's attention: for all tokens in the form that engines fuse, for one token with the fewest products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
"""Channels of a head, in every CLIP."""

# An eighth, exact in every precision: scaling the query's weights is scaling the query.
_SCALE = HEAD_WIDTH**-0.5


class SelfAttention(nn.Module):
    """Every token asks all tokens: one product for query, key and value, then MatMul, Softmax, MatMul.

    Args:
        width: channels of a token.
        causal: number of tokens where each asks itself and those before it alone; 0 where each asks all.
    """

    mask: Tensor | None

    def __init__(self, width: int, causal: int = 0) -> None:
        super().__init__()
        mask = torch.full((causal, causal), -torch.inf).triu(1) if causal else None
        self.register_buffer("mask", mask, persistent=False)
        self.heads = width // HEAD_WIDTH
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.folded = False

    def fold_constants(self) -> None:
        """Scale the weights of the query instead of the query."""
        for parameter in (self.in_proj_weight, self.in_proj_bias):
            query, key, value = parameter.detach().chunk(3)
            parameter.data = torch.cat([query * _SCALE, key, value])
        self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[batch, tokens, width]`` to tokens of the same shape."""
        tokens, width = x.shape[1:]
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.reshape(-1, tokens, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if not self.folded:
            q = q * _SCALE
        # scaled_dot_product_attention is traced to the same operators with shape arithmetic around them.
        scores = (q @ k.transpose(2, 3)).float()
        if self.mask is not None:
            scores = scores + self.mask.float()
        chances = scores.softmax(-1).to(v.dtype)
        mixed: Tensor = self.out_proj((chances @ v).transpose(1, 2).reshape(-1, tokens, width))
        return mixed


class OneQuery(nn.Module):
    """One token asks all tokens, and no key or value of any of them is made.

    The same sums in another order: the query goes through the keys' weights once, instead of every token,
    and the values' weights are applied to the weighted mean of the tokens. The keys' bias adds the same to
    all scores, which softmax does not see; nor does it see the query, which is taken from every token so
    that what all tokens share costs no digits. For 50 tokens this is a twentieth of the products, and
    they are made in float32 whatever the weights are.

    Args:
        query: weight ``[width, width]`` and bias ``[width]`` of the linear layer.
        key: its weight.
        value: its weight and bias.
    """

    query_weight: Tensor
    query_bias: Tensor
    key_weight: Tensor
    value_weight: Tensor
    value_bias: Tensor

    def __init__(self, query: tuple[Tensor, Tensor], key: Tensor, value: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        heads = (-1, HEAD_WIDTH, key.shape[1])
        self.register_buffer("query_weight", query[0] * _SCALE)
        self.register_buffer("query_bias", query[1] * _SCALE)
        self.register_buffer("key_weight", key.reshape(heads))
        self.register_buffer("value_weight", value[0].reshape(heads).transpose(1, 2).contiguous())
        self.register_buffer("value_bias", value[1])

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Its mixed value, float32 ``[batch, width]``.

        Args:
            query: the token that asks, float32 ``[batch, width]``.
            tokens: all tokens, float32 ``[batch, width, tokens]``.
        """
        heads, _, width = self.key_weight.shape
        q = F.linear(query, self.query_weight.float(), self.query_bias.float())
        asked = q.reshape(-1, heads, HEAD_WIDTH).transpose(0, 1) @ self.key_weight.float()
        chances = (asked.transpose(0, 1) @ (tokens - query[:, :, None])).softmax(-1)
        mean = chances @ tokens.transpose(1, 2)
        value = (mean.transpose(0, 1) @ self.value_weight.float()).transpose(0, 1)
        return value.reshape(-1, width) + self.value_bias.float()


class ClassAttention(nn.Module):
    """The class token alone asks all tokens: attention of a last layer, of which nothing else is used.

    Args:
        width: channels of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.folded: OneQuery | None = None

    def fold_constants(self) -> None:
        """Arrange the weights once."""
        self.folded = self._one_query()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[batch, tokens, width]`` to the first one, ``[batch, width]``."""
        attend = self.folded or self._one_query()
        tokens = x.float()
        mixed: Tensor = self.out_proj(attend(tokens[:, 0], tokens.transpose(1, 2)).to(x.dtype))
        return mixed

    def _one_query(self) -> OneQuery:
        weights, biases = self.in_proj_weight.detach().chunk(3), self.in_proj_bias.detach().chunk(3)
        return OneQuery((weights[0], biases[0]), weights[1], (weights[2], biases[2]))
