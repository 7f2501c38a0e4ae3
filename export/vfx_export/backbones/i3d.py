"""Inception-v1 I3D (Carreira & Zisserman, "Quo Vadis, Action Recognition?", 2017), cut at its feature.

Keys are those of hassony2/kinetics_i3d_pytorch and video_features. Batch norm's epsilon is PyTorch's 1e-5,
with which video_features runs these weights; hassony2 and piergiaj later changed to 1e-3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the four branches: 1x1x1; 1x1x1, then 3x3x3; 1x1x1, then 3x3x3; pool, then 1x1x1.
_MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}

Triple = tuple[int, int, int]


def _same_padding(kernel: Triple, stride: Triple) -> tuple[int, ...]:
    """TensorFlow's SAME padding for sizes that the stride divides, in F.pad's order: low, high of w, h, t."""
    pads: list[int] = []
    for k, s in zip(reversed(kernel), reversed(stride), strict=True):
        total = max(k - s, 0)
        pads += [total // 2, total - total // 2]
    return tuple(pads)


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    BATCH_NORMS: ClassVar = {"conv3d": "batch3d"}

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.pad = _same_padding((kernel, kernel, kernel), (stride, stride, stride))
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, stride, bias=False)
        self.batch3d: nn.Module = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.batch3d(self.conv3d(F.pad(x, self.pad))))


class _Pool(nn.Module):
    """Max pool with SAME padding. Its input is never negative, so padding with zeros changes no maximum."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.pad = _same_padding(kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        if len(set(self.pad)) == 1:
            return F.max_pool3d(x, self.kernel, self.stride, self.pad[0], ceil_mode=True)
        # If the stride divides the sizes, ceil mode alone gives the same windows, and saves a pass over
        # memory.
        if any(size % step for size, step in zip(x.shape[2:], self.stride, strict=True) if step > 1):
            x = F.pad(x, self.pad)
        return F.max_pool3d(x, self.kernel, self.stride, ceil_mode=True)


class _Mixed(nn.Module):
    """An Inception block: four parallel branches, concatenated along the channels."""

    def __init__(self, c_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        c0, c1, c2, c3, c4, c5 = widths
        self.branch_0 = _Unit(c_in, c0)
        self.branch_1 = nn.Sequential(_Unit(c_in, c1), _Unit(c1, c2, 3))
        self.branch_2 = nn.Sequential(_Unit(c_in, c3), _Unit(c3, c4, 3))
        self.branch_3 = nn.Sequential(_Pool((3, 3, 3), (1, 1, 1)), _Unit(c_in, c5))

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch_0, self.branch_1, self.branch_2, self.branch_3)
        return torch.cat([branch(x) for branch in branches], dim=1)


class _Head(nn.Module):
    """The classifier: a 1x1x1 convolution with bias."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        # It is linear, so it may follow the mean over time. In float32 for its sums of 1024 terms.
        assert self.conv3d.bias is not None
        weight, bias = self.conv3d.weight.float().flatten(1), self.conv3d.bias.float()
        return F.linear(features, weight, bias)


class I3D(nn.Module):
    """I3D, from pixels (or flow, see `features`) to the 1024-d feature.

    Args:
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
        channels: 3 for RGB, 2 for optical flow.
    """

    def __init__(self, classes: int = 400, head: bool = False, channels: int = 3) -> None:
        super().__init__()
        self.head = head
        self.channels = channels
        self.packed: Triple = (1, 1, 1)
        stem: OrderedDict[str, nn.Module] = OrderedDict(
            conv3d_1a_7x7=_Unit(channels, 64, 7, 2),
            maxPool3d_2a_3x3=_Pool((1, 3, 3), (1, 2, 2)),
            conv3d_2b_1x1=_Unit(64, 64),
            conv3d_2c_3x3=_Unit(64, 192, 3),
            maxPool3d_3a_3x3=_Pool((1, 3, 3), (1, 2, 2)),
        )
        pools = {
            "mixed_4b": _Pool((3, 3, 3), (2, 2, 2)),
            "mixed_5b": _Pool((2, 2, 2), (2, 2, 2)),
        }
        trunk = stem
        width = 192
        for name, widths in _MIXED.items():
            if name in pools:
                trunk[f"pool_before_{name}"] = pools[name]
            trunk[name] = _Mixed(width, widths)
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.order = tuple(trunk)
        for name, layer in trunk.items():
            self.add_module(name, layer)
        self.conv3d_0c_1x1 = _Head(classes)

    @property
    def _stem(self) -> _Unit:
        unit = self.get_submodule("conv3d_1a_7x7")
        assert isinstance(unit, _Unit)
        return unit

    def pack_stem(self, frames: int) -> None:
        """Rewrite the first convolution for matrix units: the same sums, over fewer taps with more channels.

        A 7x7x7 convolution of 3 channels with stride 2 equals a 4x4x4 convolution of 24 channels with stride
        1 over blocks of 2x2x2 pixels (the kernel's eighth tap is zero). Matrix units, which multiply 16 or 32
        channels at a time (AMX, tensor cores), are then nearly full instead of a tenth. In float32, the added
        zeros would only cost time. Batch norm must have been folded.

        Args:
            frames: frames of a window; if odd, blocks are 1x2x2.
        """
        unit = self._stem
        block = (2 if frames % 2 == 0 else 1, 2, 2)
        weight = unit.conv3d.weight.detach()
        for axis, size in enumerate(block):
            if size == 2:
                shape = list(weight.shape)
                shape[2 + axis] = 1
                weight = torch.cat([weight, weight.new_zeros(shape)], dim=2 + axis)
        out, channels, *kernel = weight.shape
        taps = (kernel[0] // block[0], kernel[1] // block[1], kernel[2] // block[2])
        weight = weight.reshape(out, channels, taps[0], block[0], taps[1], block[1], taps[2], block[2])
        weight = weight.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(out, -1, *taps)
        stride = (2 // block[0], 2 // block[1], 2 // block[2])
        conv = nn.Conv3d(weight.shape[1], out, taps, stride)
        conv.weight, conv.bias = nn.Parameter(weight), unit.conv3d.bias
        unit.conv3d = conv
        unit.pad = tuple(p for b in reversed(block) for p in ((1, 2) if b == 2 else (2, 3)))
        self.packed = block

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, 224, 224, 3]``, RGB, 0 to 255, at least 10 frames.

        Returns:
            float32 ``[batch, 1024]``; then float32 ``[batch, classes]``, before softmax.
        """
        # Scaled to [-1, 1] in float32 for all weights, because 2/255 is not exact in half precision.
        return self.features(frames, lambda x: x.float() * (2 / 255) - 1)

    def features(self, frames: Tensor, scaled: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        """As `forward`, for any input.

        Args:
            frames: ``[batch, time, 224, 224, channels]``, any dtype.
            scaled: converts them to float32 in [-1, 1]; applied in the layout of the first convolution.
        """
        time, height, width, c = *frames.shape[1:4], self.channels
        t, h, w = self.packed
        x = frames.reshape(-1, time // t, t, height // h, h, width // w, w, c)
        x = x.permute(0, 2, 4, 6, 7, 1, 3, 5).reshape(-1, t * h * w * c, time // t, height // h, width // w)
        x = scaled(x).to(self._stem.conv3d.weight.dtype)
        for name in self.order:
            x = getattr(self, name)(x)
        # As published: a pool of 2x7x7 with stride 1, then the mean over time.
        features = F.avg_pool3d(x.float(), (2, 7, 7), stride=1).flatten(2).mean(2)
        if not self.head:
            return (features,)
        return features, self.conv3d_0c_1x1(features)


def pack_i3d(module: nn.Module, frames: int) -> None:
    """`I3D.pack_stem`, in the form of `vfx_export.lowering.LowPrecision`."""
    assert isinstance(module, I3D)
    module.pack_stem(frames)
