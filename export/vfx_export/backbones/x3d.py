"""X3D (Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition", 2020).

Cut after ``lin_5``, just before the classifier. Keys and arithmetic are PySlowFast's. All sizes have the same
numbers of channels; they differ in depth, frames and crop.

The depthwise 3x3x3 convolutions are left as they are. As three 1x3x3 convolutions over shifted frames, they
took 1.4 to 3.9 times as long in OpenVINO, and 2.2 to 6.6 times with time moved into the batch, in fp32 and
bf16. Padding the channels to a multiple of 16 gained nothing.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vfx_engines.spec import Pool
from vfx_export.backbones.pixels import Pixels

MEAN = (0.45, 0.45, 0.45)
STD = (0.225, 0.225, 0.225)

STEM = 24
"""Channels after the stem."""
WIDTHS = (24, 48, 96, 192)
"""Channels after each of the four stages."""
INNER = (54, 108, 216, 432)
"""Channels between the convolutions of a block, by stage."""
SQUEEZED = (8, 8, 16, 32)
"""Channels in the middle of squeeze-and-excitation, by stage."""
FEATURE = 2048
"""Length of the feature."""


class _Stem(nn.Module):
    """A convolution in space, then a depthwise one in time."""

    BATCH_NORMS: ClassVar = {"conv": "bn"}

    def __init__(self) -> None:
        super().__init__()
        self.conv_xy = nn.Conv3d(3, STEM, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.conv = nn.Conv3d(STEM, STEM, (5, 1, 1), 1, (2, 0, 0), groups=STEM, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(STEM)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.conv_xy(x))))


class _Mean(nn.Module):
    """Mean over all positions, in float32, because it sums up to 800,000 numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3, 4), keepdim=True).to(x.dtype)


class _SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: weights channels by what is in the whole window (Hu et al., 2017)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.mean = _Mean()
        self.fc1 = nn.Conv3d(channels, squeezed, 1)
        self.fc2 = nn.Conv3d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.fc2(F.relu(self.fc1(self.mean(x)))).sigmoid()
        return x * weights


class _Branch(nn.Module):
    """1x1x1, depthwise 3x3x3 and 1x1x1 convolutions."""

    BATCH_NORMS: ClassVar = {"a": "a_bn", "b": "b_bn", "c": "c_bn"}

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int, squeezed: int | None) -> None:
        super().__init__()
        self.a = nn.Conv3d(c_in, inner, 1, bias=False)
        self.a_bn: nn.Module = nn.BatchNorm3d(inner)
        self.b = nn.Conv3d(inner, inner, 3, (1, stride, stride), 1, groups=inner, bias=False)
        self.b_bn: nn.Module = nn.BatchNorm3d(inner)
        self.se = _SqueezeExcite(inner, squeezed) if squeezed else nn.Identity()
        self.c = nn.Conv3d(inner, c_out, 1, bias=False)
        self.c_bn: nn.Module = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b_bn(self.b(F.relu(self.a_bn(self.a(x)))))
        out: Tensor = self.c_bn(self.c(F.silu(self.se(x))))
        return out


class _Block(nn.Module):
    random_gains: ClassVar = {"branch2.c_bn": 0.25}

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int, squeezed: int | None) -> None:
        super().__init__()
        self.branch2 = _Branch(c_in, inner, c_out, stride, squeezed)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch2(x)
        return F.relu(x + out)


class _FirstBlock(_Block):
    """Halves height and width, so its shortcut is a convolution."""

    BATCH_NORMS: ClassVar = {"branch1": "branch1_bn"}

    def __init__(self, c_in: int, inner: int, c_out: int, squeezed: int) -> None:
        super().__init__(c_in, inner, c_out, 2, squeezed)
        self.branch1 = nn.Conv3d(c_in, c_out, 1, (1, 2, 2), bias=False)
        self.branch1_bn: nn.Module = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch2(x)
        return F.relu(self.branch1_bn(self.branch1(x)) + out)


class _Head(nn.Module):
    """The last two layers before the classifier, which in PySlowFast belong to the head, and the classifier.

    Args:
        window: side of the average pool: a 32nd of the crop that the network was trained on.
        classes: length of the classifier.
    """

    BATCH_NORMS: ClassVar = {"conv_5": "conv_5_bn"}

    def __init__(self, window: int, classes: int) -> None:
        super().__init__()
        self.window = window
        self.conv_5 = nn.Conv3d(WIDTHS[-1], INNER[-1], 1, bias=False)
        self.conv_5_bn: nn.Module = nn.BatchNorm3d(INNER[-1])
        self.lin_5 = nn.Conv3d(INNER[-1], FEATURE, 1, bias=False)
        self.projection = nn.Linear(FEATURE, classes)

    def forward(self, x: Tensor, pool: Pool) -> Tensor:
        x = F.relu(self.conv_5_bn(self.conv_5(x)))
        # In a crop larger than that of training, the window has several positions. Their mean is taken after
        # the ReLU, so it is not the mean of all positions.
        x = x.float().mean(2)
        window = x.shape[2:] if pool == "global" else (self.window, self.window)
        x = F.avg_pool2d(x, window, stride=1)
        x = F.linear(x.flatten(2).transpose(1, 2), self.lin_5.weight.float().flatten(1))
        return F.relu(x).mean(1)

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.projection.weight.float(), self.projection.bias.float())


class X3D(nn.Module):
    """X3D, from pixels to the 2048-d input of the classifier.

    Args:
        depths: blocks in each of the four stages.
        train_crop: side of the crop that it was trained on, in pixels, which sets the size of the last pool.
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    MAPS: ClassVar = ("map",)

    def __init__(
        self, depths: tuple[int, int, int, int], train_crop: int, classes: int = 400, head: bool = False
    ) -> None:
        super().__init__()
        self.with_logits = head
        self.pool: Pool = "head"
        self.pixels = Pixels(MEAN, STD)
        self.s1 = nn.ModuleDict({"pathway0_stem": _Stem()})
        channels = STEM
        stages = []
        for count, width, inner, squeezed in zip(depths, WIDTHS, INNER, SQUEEZED, strict=True):
            stage = nn.Sequential()
            stage.add_module("pathway0_res0", _FirstBlock(channels, inner, width, squeezed))
            for i in range(1, count):
                excite = squeezed if i % 2 == 0 else None
                stage.add_module(f"pathway0_res{i}", _Block(width, inner, width, 1, excite))
            channels = width
            stages.append(stage)
        self.s2, self.s3, self.s4, self.s5 = stages
        self.head = _Head(-(-train_crop // 32), classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255; height and width at least those
                of the training crop.

        Returns:
            float32 ``[batch, 2048]``; or, unpooled, the input of PySlowFast's head, ``[batch, 192, time,
            height / 32, width / 32]``. Then float32 ``[batch, classes]``, before softmax.
        """
        # Before the permutation, which engines that compute with channels last can then drop.
        x = self.pixels(frames).to(self.head.projection.weight.dtype).permute(0, 4, 1, 2, 3)
        x = self.s1["pathway0_stem"](x)
        x = self.s5(self.s4(self.s3(self.s2(x))))
        features: Tensor = self.head(x, self.pool)
        out = x.float() if self.pool == "none" else features
        if not self.with_logits:
            return (out,)
        return out, self.head.logits(features)
