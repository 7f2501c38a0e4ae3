"""Preparing a network for tracing: folded batch norms and constants, tensors in the graph's precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vfx_engines.spec import Precision

LowPrecision = Callable[[nn.Module, int], None]
"""A backbone's own rewriting for matrix units, in place, given the frames of a window. Not used in fp32."""


class _Affine(nn.Module):
    """Batch norm as a factor and a shift for each channel, computed in float32 for any input."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias.detach() - norm.running_mean * factor
        # Not buffers, because half() must leave them in float32: a rounded factor is as bad as rounded
        # weights.
        shape = (-1, *(1 for _ in range(_SPATIAL[type(norm)])))
        self._factor, self._shift = factor.reshape(shape), shift.reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self._factor + self._shift).to(x.dtype)


_SPATIAL = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def lowered(
    module: nn.Module,
    precision: Precision,
    frames: int,
    rewrite: LowPrecision | None,
    published_half: bool = False,
) -> nn.Module:
    """A copy of ``module`` with batch norms and constants folded, and tensors in the graph's precision.

    Submodules with a method ``fold_constants`` rewrite their weights themselves. Otherwise, what depends only
    on weights would be computed in the graph, at every call.

    Args:
        module: in evaluation mode, float32.
        precision: fp16 makes the parameters half-precision; the backbone's code sees to what must stay
            float32. bf16 keeps a float32 graph, which the engine runs in bf16.
        frames: frames of a window.
        rewrite: applied unless the precision is fp32.
        published_half: whether the weights were published in half precision. In fp16 they are then kept as
            they are, with batch norm as a separate step, because folding would round each of them again.
    """
    module = copy.deepcopy(module)
    _fold_batch_norms(module, beside=published_half and precision == "fp16")
    _fold_constants(module)
    if rewrite is not None and precision != "fp32":
        rewrite(module, frames)
    return module.half() if precision == "fp16" else module


def _fold_batch_norms(module: nn.Module, beside: bool) -> None:
    """Fold, in float32, the batch norms that modules list in ``BATCH_NORMS`` (convolution's to norm's path).

    With ``beside``, a norm becomes a separate step and the convolution keeps its weights; otherwise it is
    folded into them.
    """
    for part in module.modules():
        for conv_name, norm_name in getattr(part, "BATCH_NORMS", {}).items():
            conv, norm = part.get_submodule(conv_name), part.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
            if beside:
                part.set_submodule(norm_name, _Affine(norm))
                continue
            part.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
            part.set_submodule(norm_name, nn.Identity())


def _fold_constants(module: nn.Module) -> None:
    """Let each submodule that can compute once, in float32, what depends only on its weights."""
    for part in list(module.modules()):
        fold = getattr(part, "fold_constants", None)
        if callable(fold):
            fold()
