"""ResNet (He et al., "Deep Residual Learning for Image Recognition", 2015), cut at its pooled feature.

Keys and arithmetic are torchvision's, so a bottleneck has its stride in the 3x3 convolution.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.pixels import normalised

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Depth -> blocks in each of the four stages, and whether they are bottlenecks.
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class _Shortcut(nn.Sequential):
    """A 1x1 convolution and batch norm, for blocks that change size or channels."""

    BATCH_NORMS: ClassVar = {"0": "1"}

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class _Basic(nn.Module):
    """A residual block of two 3x3 convolutions."""

    EXPANSION: ClassVar = 1
    BATCH_NORMS: ClassVar = {"conv1": "bn1", "conv2": "bn2"}
    random_gains: ClassVar = {"bn2": 0.25}

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.downsample = _Shortcut(c_in, width, stride) if stride > 1 or c_in != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class _Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions, with a quarter of the channels inside."""

    EXPANSION: ClassVar = 4
    BATCH_NORMS: ClassVar = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
    random_gains: ClassVar = {"bn3": 0.25}

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * width
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(c_out)
        self.downsample = _Shortcut(c_in, c_out, stride) if stride > 1 or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """ResNet, from the pixels of single frames to the 512-d or 2048-d feature.

    Args:
        depth: 18, 34, 50, 101 or 152.
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    BATCH_NORMS: ClassVar = {"conv1": "bn1"}

    def __init__(self, depth: int, classes: int = 1000, head: bool = False) -> None:
        super().__init__()
        self.head = head
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(64)
        counts, bottleneck = DEPTHS[depth]
        kind = _Bottleneck if bottleneck else _Basic
        channels = 64
        stages = []
        for stage, count in enumerate(counts):
            width = 64 << stage
            layers: list[nn.Module] = []
            for i in range(count):
                layers.append(kind(channels, width, 2 if i == 0 and stage > 0 else 1))
                channels = width * kind.EXPANSION
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, 1, height, width, 3]``, RGB, 0 to 255; height and width 32 or more.

        Returns:
            float32 ``[batch, 512]`` (depth 18 and 34) or ``[batch, 2048]``; then float32 ``[batch,
            classes]``, before softmax.
        """
        # Before the permutation, which engines that compute with channels last can then drop.
        x = normalised(frames.squeeze(1), MEAN, STD).to(self.fc.weight.dtype).permute(0, 3, 1, 2)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = x.float().mean((2, 3))
        if not self.head:
            return (features,)
        return features, F.linear(features, self.fc.weight.float(), self.fc.bias.float())
