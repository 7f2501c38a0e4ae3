"""Weights of 2D ResNets for PySlowFast's networks with one pathway.

Each 2D kernel is repeated over the frames that the video network's kernel spans, and divided by their number.
So a window of identical frames gives what the 2D network gives for that frame (Carreira and Zisserman, "Quo
Vadis, Action Recognition?", 2017; PySlowFast's ``CHECKPOINT_INFLATE``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vfx_engines.errors import CheckpointError
from vfx_export.fitting import Shapes

_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))\.(\w+)")
_STEM = re.compile(r"(conv|bn)1\.(\w+)")
_CLASSIFIER = "head.projection"


def inflated(state: Mapping[str, Tensor], wanted: Shapes, *, head: bool, file: str) -> dict[str, Tensor]:
    """The weights of a video network, made from those of a 2D network of the same depth.

    A classifier is only taken if it has PySlowFast's name and the network's length; ImageNet's is left out.
    Without one, the network's classifier is zeros, which are not used unless the head is exported.

    Args:
        state: weights with torchvision's keys, or with PySlowFast's keys and kernels of four axes.
        wanted: key -> shape of the video network's tensors.
        head: whether the classifier is needed.
        file: name of the file in messages.

    Raises:
        CheckpointError: there are no 2D kernels, or no classifier where one is needed.
    """
    found = {_key(key): value for key, value in state.items() if not key.startswith("fc.")}
    if not any(value.ndim == 4 for value in found.values()):
        raise CheckpointError(f"{file}: --inflate: no 2D convolutions inside; leave it out for video weights")
    out = {key: _over_time(value, wanted.get(key, ())) for key, value in found.items()}
    classifier = {key: shape for key, shape in wanted.items() if key.startswith(_CLASSIFIER)}
    if any(key not in out or tuple(out[key].shape) != shape for key, shape in classifier.items()):
        if head:
            raise CheckpointError(
                f"{file}: --inflate: no classifier of this network inside; leave --head out"
            )
        out |= {key: torch.zeros(shape) for key, shape in classifier.items()}
    return out


def _key(key: str) -> str:
    """PySlowFast's key for one of torchvision's; other keys are returned unchanged."""
    stem, block = _STEM.fullmatch(key), _BLOCK.fullmatch(key)
    if stem is not None:
        return f"s1.pathway0_stem.{stem[1]}.{stem[2]}"
    if block is None:
        return key
    layer, index, kind, number, shortcut, leaf = block.groups()
    if shortcut is not None:
        part = "branch1_bn" if shortcut == "1" else "branch1"
    else:
        part = f"branch2.{'abc'[int(number) - 1]}{'_bn' if kind == 'bn' else ''}"
    return f"s{int(layer) + 1}.pathway0_res{index}.{part}.{leaf}"


def _over_time(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if value.ndim != 4 or len(shape) != 5:
        return value
    return value.unsqueeze(2).repeat(1, 1, shape[2], 1, 1) / shape[2]
