"""Write TorchScript archives like those of OpenAI's CLIP: a scripted module that holds any state dict."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class _Part(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def save_torchscript(state: Mapping[str, Tensor], path: Path) -> None:
    """Write ``state`` as the parameters and buffers of a scripted module."""
    root = _Part()
    for key, value in state.items():
        *names, leaf = key.split(".")
        part: nn.Module = root
        for name in names:
            if name not in part._modules:
                part.add_module(name, _Part())
            part = part.get_submodule(name)
        if value.is_floating_point():
            part.register_parameter(leaf, nn.Parameter(value))
        else:
            part.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated, but files made by it remain
        torch.jit.script(root).save(str(path))
