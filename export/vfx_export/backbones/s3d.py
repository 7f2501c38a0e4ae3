"""S3D (Xie et al., "Rethinking Spatiotemporal Feature Learning", 2018), cut at its pooled feature.

Keys are those of kylemin/S3D and video_features, where layers are numbered in ``base``. The network has I3D's
Inception blocks, with 3x3x3 convolutions split into space and time. Batch norm's epsilon is 1e-3.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.packing import for_stem

_EPS = 1e-3

# Channels of the four branches: 1x1x1; 1x1x1, then separable; 1x1x1, then separable; pool, then 1x1x1.
_MIXED: dict[int, tuple[int, int, int, int, int, int]] = {
    5: (64, 96, 128, 16, 32, 32),
    6: (128, 128, 192, 32, 96, 64),
    8: (192, 96, 208, 16, 48, 64),
    9: (160, 112, 224, 24, 64, 64),
    10: (128, 128, 256, 24, 64, 64),
    11: (112, 144, 288, 32, 64, 64),
    12: (256, 160, 320, 32, 128, 128),
    14: (256, 160, 320, 32, 128, 128),
    15: (384, 192, 384, 48, 128, 128),
}


class _Basic(nn.Module):
    """A 1x1x1 convolution, batch norm, ReLU."""

    BATCH_NORMS: ClassVar = {"conv": "bn"}

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(c_in, c_out, 1, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(c_out, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Separable(nn.Module):
    """A convolution in space, then one in time, each with batch norm and ReLU."""

    BATCH_NORMS: ClassVar = {"conv_s": "bn_s", "conv_t": "bn_t"}

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        k, s, p = kernel, stride, kernel // 2
        self.conv_s = nn.Conv3d(c_in, c_out, (1, k, k), (1, s, s), (0, p, p), bias=False)
        self.bn_s: nn.Module = nn.BatchNorm3d(c_out, _EPS)
        self.conv_t = nn.Conv3d(c_out, c_out, (k, 1, 1), (s, 1, 1), (p, 0, 0), bias=False)
        self.bn_t: nn.Module = nn.BatchNorm3d(c_out, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_s(self.conv_s(x)))
        return F.relu(self.bn_t(self.conv_t(x)))


class _Mixed(nn.Module):
    """An Inception block: four parallel branches, concatenated along the channels."""

    def __init__(self, c_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        c0, c1, c2, c3, c4, c5 = widths
        self.branch0 = nn.Sequential(_Basic(c_in, c0))
        self.branch1 = nn.Sequential(_Basic(c_in, c1), _Separable(c1, c2))
        self.branch2 = nn.Sequential(_Basic(c_in, c3), _Separable(c3, c4))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), _Basic(c_in, c5))

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch0, self.branch1, self.branch2, self.branch3)
        return torch.cat([branch(x) for branch in branches], dim=1)


class S3D(nn.Module):
    """S3D, from pixels to the 1024-d feature.

    Args:
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    STEMS: ClassVar = ("base.0.conv_s",)

    def __init__(self, classes: int = 400, head: bool = False) -> None:
        super().__init__()
        self.head = head
        layers: dict[int, nn.Module] = {
            0: _Separable(3, 64, 7, 2),
            1: nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            2: _Basic(64, 64),
            3: _Separable(64, 192),
            4: nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            7: nn.MaxPool3d(3, 2, 1),
            13: nn.MaxPool3d(2, 2),
        }
        channels = 192
        for index, widths in _MIXED.items():
            layers[index] = _Mixed(channels, widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.base = nn.Sequential(*(layers[index] for index in range(len(layers))))
        self.fc = nn.Sequential(nn.Conv3d(channels, classes, 1))

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, at least 13 frames; published at
                224x224.

        Returns:
            float32 ``[batch, 1024]``; then float32 ``[batch, classes]``, before softmax.
        """
        classifier = self.fc[0]
        assert isinstance(classifier, nn.Conv3d)
        assert classifier.bias is not None
        # Scaled to [0, 1], without mean and deviation. Before the permutation, which engines that compute
        # with channels last can then drop.
        x = for_stem(self.get_submodule(self.STEMS[0]), frames.float() * (1 / 255))
        x = x.to(classifier.weight.dtype).permute(0, 4, 1, 2, 3)
        x = self.base(x)
        # As published: a pool of 2 x height x width with stride 1, then the mean over time.
        features = F.avg_pool3d(x.float(), (2, *x.shape[3:]), stride=1).flatten(2).mean(2)
        if not self.head:
            return (features,)
        # It is linear, so it may follow the mean over time. In float32 for its sums of 1024 terms.
        return features, F.linear(features, classifier.weight.float().flatten(1), classifier.bias.float())
