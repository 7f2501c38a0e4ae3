"""CLIP's attention: for all tokens, in a form that engines fuse; for one token, with the fewest products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
"""Channels of a head, in every CLIP."""

# An eighth, which is exact in every precision, so the query's weights can be scaled instead of the query.
_SCALE = HEAD_WIDTH**-0.5


class SelfAttention(nn.Module):
    """Self-attention: one product for query, key and value, then MatMul, Softmax, MatMul.

    Args:
        width: channels of a token.
        causal: number of tokens, if each attends only to itself and those before it; 0 if each attends to
            all.
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
        """Scale the weights of the query once, instead of the query at every call."""
        for parameter in (self.in_proj_weight, self.in_proj_bias):
            query, key, value = parameter.detach().chunk(3)
            parameter.data = torch.cat([query * _SCALE, key, value])
        self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        """From tokens ``[batch, tokens, width]`` to tokens of the same shape."""
        tokens, width = x.shape[1:]
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.reshape(-1, tokens, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if not self.folded:
            q = q * _SCALE
        # scaled_dot_product_attention is traced to the same operators, but with shape arithmetic around them.
        scores = (q @ k.transpose(2, 3)).float()
        if self.mask is not None:
            scores = scores + self.mask.float()
        chances = scores.softmax(-1).to(v.dtype)
        mixed: Tensor = self.out_proj((chances @ v).transpose(1, 2).reshape(-1, tokens, width))
        return mixed


class OneQuery(nn.Module):
    """Attention with a single query, which computes neither keys nor values.

    These are the same sums in another order. The query is multiplied by the weights of the keys, so that no
    token has to be; and the weights of the values are applied once, to the weighted mean of the tokens. The
    bias of the keys is left out, because it adds the same number to all scores of a head, which softmax
    ignores. For the same reason, the query token may be subtracted from all tokens; so no digits are lost to
    what tokens have in common. For 50 tokens, this takes a twentieth of the multiplications. All are float32,
    whatever the weights.

    Args:
        query: weight ``[width, width]`` and bias ``[width]`` of the queries' linear layer.
        key: weight ``[width, width]`` of the keys' layer.
        value: weight and bias of the values' layer, of the same shapes.
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
        """The result of attention before its output layer, float32 ``[batch, width]``.

        Args:
            query: the token that attends, float32 ``[batch, width]``.
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
    """Attention of the class token only, for a last layer, whose other tokens are not used.

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
        """Rearrange the weights once, so that this is not part of the graph."""
        self.folded = self._one_query()

    def forward(self, x: Tensor) -> Tensor:
        """From tokens ``[batch, tokens, width]`` to the first of them, ``[batch, width]``."""
        attend = self.folded or self._one_query()
        tokens = x.float()
        mixed: Tensor = self.out_proj(attend(tokens[:, 0], tokens.transpose(1, 2)).to(x.dtype))
        return mixed

    def _one_query(self) -> OneQuery:
        weights, biases = self.in_proj_weight.detach().chunk(3), self.in_proj_bias.detach().chunk(3)
        return OneQuery((weights[0], biases[0]), weights[1], (weights[2], biases[2]))
