"""A network as it is traced: batch norm and constants folded, tensors in the precision of the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vfx_engines.spec import Precision

LowPrecision = Callable[[nn.Module, int], None]
"""A backbone's own rewriting for matrix units, given the frames of a window; fp32 goes without it."""


class _Affine(nn.Module):
    """Batch norm as a factor and a shift of each channel, in float32 whatever comes."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias.detach() - norm.running_mean * factor
        # Not buffers: half() must leave them in float32. A factor in half precision is as wrong as weights.
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
    """A copy of ``module``, batch norm and constants folded, its tensors in the precision of the graph.

    A part with a method ``fold_constants`` rewrites its weights itself: what is computed from weights alone
    would otherwise be computed in the graph, at every call.

    Args:
        module: in evaluation mode, float32.
        precision: fp16 makes the parameters half; what must stay float32 is the backbone's own code.
            bf16 keeps a float32 graph, which the engine runs in bf16.
        frames: frames of a window.
        rewrite: applied unless the precision is fp32.
        published_half: the weights were published in half precision. fp16 then leaves them as they are and
            batch norm beside them, where folding would round each of them anew.
    """
    module = copy.deepcopy(module)
    _fold_batch_norms(module, beside=published_half and precision == "fp16")
    _fold_constants(module)
    if rewrite is not None and precision != "fp32":
        rewrite(module, frames)
    return module.half() if precision == "fp16" else module


def _fold_batch_norms(module: nn.Module, beside: bool) -> None:
    """Fold in float32 what the module lists in ``BATCH_NORMS``: convolution's path to norm's path.

    ``beside`` the convolution, whose weights stay what they are, or into it.
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
    """Let each part that can compute once, in float32, what depends on its weights alone."""
    for part in list(module.modules()):
        fold = getattr(part, "fold_constants", None)
        if callable(fold):
            fold()
