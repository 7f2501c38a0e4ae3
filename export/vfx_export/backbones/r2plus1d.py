"""R(2+1)D (Tran et al., "A Closer Look at Spatiotemporal Convolutions", 2018), cut at its pooled feature.

Keys are torchvision's, which moabitcoin/ig65m-pytorch also has. The two differ in batch norm's epsilon, and
in the number of channels between space and time in the second convolution of a stage's first block:
torchvision derives this number for both convolutions from the channels of the block, Caffe2 for each from its
own.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.packing import for_stem
from vfx_export.backbones.pixels import normalised

MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)


class _Factored(nn.Sequential):
    """A 3x3x3 convolution as one in space and one in time, with batch norm and ReLU between them."""

    BATCH_NORMS: ClassVar = {"0": "1"}

    def __init__(self, c_in: int, c_out: int, middle: int, stride: int, eps: float) -> None:
        super().__init__(
            nn.Conv3d(c_in, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(middle, eps),
            nn.ReLU(),
            nn.Conv3d(middle, c_out, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )


class _Unit(nn.Sequential):
    """A factored convolution, followed by batch norm."""

    BATCH_NORMS: ClassVar = {"0.3": "1"}

    def __init__(self, c_in: int, c_out: int, middle: int, stride: int, eps: float) -> None:
        super().__init__(_Factored(c_in, c_out, middle, stride, eps), nn.BatchNorm3d(c_out, eps))


class _Shortcut(nn.Sequential):
    """A 1x1x1 convolution and batch norm, for blocks that change the size."""

    BATCH_NORMS: ClassVar = {"0": "1"}

    def __init__(self, c_in: int, c_out: int, stride: int, eps: float) -> None:
        super().__init__(nn.Conv3d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm3d(c_out, eps))


class _Block(nn.Module):
    """A residual block of two factored convolutions."""

    random_gains: ClassVar = {"conv2.1": 0.25}

    def __init__(self, c_in: int, c_out: int, stride: int, eps: float, caffe2: bool) -> None:
        super().__init__()
        middle = _middle(c_in, c_out)
        self.conv1 = _Unit(c_in, c_out, middle, stride, eps)
        self.conv2 = _Unit(c_out, c_out, _middle(c_out, c_out) if caffe2 else middle, 1, eps)
        self.downsample = _Shortcut(c_in, c_out, stride, eps) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


def _middle(c_in: int, c_out: int) -> int:
    """Channels in the middle with which a factored convolution has as many weights as a 3x3x3 one."""
    return c_in * c_out * 27 // (c_in * 9 + 3 * c_out)


class _Stem(nn.Sequential):
    """The first factored convolution, 7x7 in space."""

    BATCH_NORMS: ClassVar = {"0": "1", "3": "4"}

    def __init__(self, eps: float) -> None:
        super().__init__(
            nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(45, eps),
            nn.ReLU(),
            nn.Conv3d(45, 64, (3, 1, 1), 1, (1, 0, 0), bias=False),
            nn.BatchNorm3d(64, eps),
            nn.ReLU(),
        )


class R2Plus1D(nn.Module):
    """R(2+1)D, from pixels to the 512-d feature.

    Args:
        depths: blocks in each of the four stages.
        eps: batch norm's epsilon.
        caffe2: take Caffe2's number of channels between space and time instead of torchvision's.
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    STEMS: ClassVar = ("stem.0",)

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        *,
        eps: float,
        caffe2: bool,
        classes: int = 400,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.head = head
        self.stem = _Stem(eps)
        channels = 64
        stages = []
        for stage, count in enumerate(depths):
            width = 64 << stage
            layers = [_Block(channels, width, 2 if stage else 1, eps, caffe2)]
            layers += [_Block(width, width, 1, eps, caffe2) for _ in range(count - 1)]
            stages.append(nn.Sequential(*layers))
            channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, published at 112x112.

        Returns:
            float32 ``[batch, 512]``; then float32 ``[batch, classes]``, before softmax.
        """
        # Before the permutation, which engines that compute with channels last can then drop.
        x = for_stem(self.stem[0], normalised(frames, MEAN, STD))
        x = x.to(self.fc.weight.dtype).permute(0, 4, 1, 2, 3)
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        features = x.float().mean((2, 3, 4))
        if not self.head:
            return (features,)
        return features, F.linear(features, self.fc.weight.float(), self.fc.bias.float())
