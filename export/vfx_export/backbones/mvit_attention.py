"""MViT's attention, in which queries, keys and values are first pooled on the grid of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfx_export.backbones.clip_vit import LayerNorm
from vfx_export.backbones.mvit_plan import Block, Triple
from vfx_export.backbones.mvit_positions import RelativePositions

EPS = 1e-6
"""Epsilon of all norms of an MViT."""


class PooledAttention(nn.Module):
    """The attention of one block, with its weights under the published keys.

    Args:
        block: grids, channels and pools of the block.
        bias: whether query, key and value have a bias.
        relative: whether there are tables of relative positions (version 2).
        residual: whether the pooled query is added to the result (version 2).
    """

    def __init__(
        self, block: Block, *, bias: bool = True, relative: bool = False, residual: bool = False
    ) -> None:
        super().__init__()
        self.block, self.residual = block, residual
        if relative:
            for axis, rows in (("h", block.rows), ("w", block.rows), ("t", 2 * block.grid[0] - 1)):
                table = nn.Parameter(torch.zeros(rows, block.head_width))
                self.register_parameter(f"rel_pos_{axis}", table)
        self.qkv = nn.Linear(block.width, 3 * block.attended, bias=bias)
        self.proj = nn.Linear(block.attended, block.attended)
        kernels = (block.query_kernel, block.key_kernel, block.key_kernel)
        for name, kernel in zip("qkv", kernels, strict=True):
            if kernel is not None:
                conv = nn.Conv3d(
                    block.head_width, block.head_width, kernel, groups=block.head_width, bias=False
                )
                self.add_module(f"pool_{name}", conv)
                self.add_module(f"norm_{name}", LayerNorm(block.head_width, EPS))
        self.relative = relative
        self.folded: Folded | None = None

    def fold_constants(self) -> None:
        """Rearrange the weights once, so that this is not part of the graph."""
        self.folded = Folded(self)

    def arranged(self) -> Folded:
        """The same attention with rearranged weights, which computes it."""
        return self.folded or Folded(self)


class Folded(nn.Module):
    """The computation of `PooledAttention`.

    The grid of tokens, ``[batch, tokens, channels]``, and the class token, ``[batch, 1, channels]``, are
    separate tensors. If they were one, every pool would have to split them, which copies all tokens.
    """

    def __init__(self, of: PooledAttention) -> None:
        super().__init__()
        block = self.block = of.block
        self.residual = of.residual
        scale, attended = block.head_width**-0.5, block.attended
        weight = of.qkv.weight.detach()
        bias = torch.zeros(3 * attended).to(weight) if of.qkv.bias is None else of.qkv.bias.detach()
        self.query = _linear(weight[:attended], bias[:attended])
        weight, bias = weight[attended:], bias[attended:]
        self.norms = nn.ModuleDict()
        for name in "qkv":
            norm = getattr(of, f"norm_{name}", None)
            if norm is not None:
                self.norms[name] = _scaled(norm, scale if name == "k" else 1.0)
        if "k" not in self.norms:
            scales = torch.tensor([scale, 1.0]).to(weight).repeat_interleave(attended)
            weight, bias = weight * scales[:, None], bias * scales
        self.key_value = _linear(weight, bias)
        self.query_pool = _pool(of, "q", block.query_stride) if "q" in self.norms else None
        self.key_value_pool = _pool(of, "kv", block.key_stride) if "k" in self.norms else None
        self.out = _linear(of.proj.weight.detach(), of.proj.bias.detach())
        self.positions: RelativePositions | None = None
        if of.relative:
            time, rows, columns = (of.get_parameter(f"rel_pos_{axis}").detach() for axis in "thw")
            self.positions = RelativePositions((time, rows, columns), block.queries, block.keys)

    def keys_values(self, grid: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys, scaled and with positions, and values: ``[batch, heads, 1 + keys, channels]``.

        Args:
            grid: tokens of the grid, ``[batch, tokens, channels]``.
            first: the class token, ``[batch, 1, channels]``, whose key and value come first; None without
                one.
        """
        kv = self._pooled(self.key_value(grid), self.key_value_pool)
        if first is not None:
            kv = torch.cat([self.key_value(first), kv], 1)
        k, v = (self._heads(part, name) for part, name in zip(kv.chunk(2, -1), "kv", strict=True))
        return (self.positions.of_keys(k) if self.positions else k), v

    def of_grid(self, grid: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Result of attention for the grid's tokens, ``[batch, queries, channels]``."""
        q = self._heads(self._pooled(self.query(grid), self.query_pool), "q")
        mixed = _mix(self.positions.of_queries(q) if self.positions else q, k, v)
        return self._joined(mixed + q if self.residual else mixed)

    def of_class(self, first: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Result of attention for the class token, ``[batch, 1, channels]``."""
        q = self._heads(self.query(first), "q")
        return self._joined(_mix(self.positions.of_class(q) if self.positions else q, k, v))

    def pooled_like_queries(self, x: Tensor) -> Tensor:
        """Tokens ``[batch, tokens, channels]`` after the pool and norm of queries."""
        return self._heads(self._pooled(x, self.query_pool), "q").transpose(1, 2).flatten(2)

    def _pooled(self, x: Tensor, pool: nn.Conv3d | None) -> Tensor:
        if pool is None:
            return x
        # Reshaped before the permutation, which engines that compute with channels last can then drop.
        x = pool(x.reshape(-1, *self.block.grid, x.shape[2]).permute(0, 4, 1, 2, 3))
        return x.permute(0, 2, 3, 4, 1).flatten(1, 3)

    def _heads(self, x: Tensor, name: str) -> Tensor:
        tokens = x.shape[1]
        x = x.reshape(-1, tokens, self.block.heads, self.block.head_width)
        if name in self.norms:
            x = self.norms[name](x)
        return x.transpose(1, 2)

    def _joined(self, x: Tensor) -> Tensor:
        tokens = x.shape[2]
        out: Tensor = self.out(x.transpose(1, 2).reshape(-1, tokens, self.block.attended))
        return out


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3)).float().softmax(-1).to(v.dtype) @ v


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(1, 1, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    return linear


def _scaled(norm: LayerNorm, scale: float) -> LayerNorm:
    scaled = LayerNorm(norm.normalized_shape, EPS, device="meta")
    scaled.weight = nn.Parameter(norm.weight.detach() * scale)
    scaled.bias = nn.Parameter(norm.bias.detach() * scale)
    return scaled


def _pool(of: PooledAttention, names: str, stride: Triple) -> nn.Conv3d:
    """One depthwise convolution for all heads, and for keys and values together, as adjacent channels."""
    weights = (of.get_parameter(f"pool_{name}.weight").detach() for name in names)
    weight = torch.cat([weight.repeat(of.block.heads, 1, 1, 1, 1) for weight in weights])
    channels, _, *(t, h, w) = weight.shape
    kernel, half = (t, h, w), (t // 2, h // 2, w // 2)
    conv = nn.Conv3d(channels, channels, kernel, stride, half, groups=channels, bias=False, device="meta")
    conv.weight = nn.Parameter(weight)
    return conv
