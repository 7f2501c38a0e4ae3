"""PySlowFast's ResNets with one pathway: C2D, I3D, I3D non-local and Slow, cut before the classifier.

They differ in which convolutions span time (Wang et al., "Non-local Neural Networks", 2018; Feichtenhofer et
al., "SlowFast Networks for Video Recognition", 2019), which `Pathway` describes. Keys are PySlowFast's, such
as ``s2.pathway0_res0.branch2.a.weight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vfx_engines.spec import Pool
from vfx_export.backbones.non_local import NonLocal, NonLocalBlock
from vfx_export.backbones.packing import for_stem
from vfx_export.backbones.pixels import Pixels
from vfx_export.backbones.window_pool import window_mean

MEAN = (0.45, 0.45, 0.45)
STD = (0.225, 0.225, 0.225)
BLANK = 115
"""The level (0 to 255) nearest to the mean."""

DEPTHS: dict[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks in each of the four stages, by depth."""

# In every network of the zoo, only this many blocks at the start of each stage may span time.
_TEMPORAL_BLOCKS = (3, 4, 6, 3)


@dataclass(frozen=True, slots=True)
class Pathway:
    """A ResNet over video: how wide it is, and which of its convolutions span time."""

    stem: int
    """Frames that the first convolution spans."""
    stages: tuple[tuple[int, ...], ...]
    """For each of the four stages, the frames that the first convolution of its blocks spans. Blocks take
    these values in turn."""
    width: int = 64
    """Channels after the stem."""
    depth: int = 50
    """50 or 101, see `DEPTHS`."""
    pool: int = 1
    """Kernel and stride in time of the max pool after the first stage; 1 for none."""
    dilated: bool = False
    """Whether the last stage keeps height and width, and has dilated 3x3 convolutions instead of a stride."""
    non_local: NonLocal | None = None
    """The network's non-local blocks; None if it has none."""

    def spans(self, stage: int) -> tuple[int, ...]:
        """Frames that the first convolution of each block in a stage (0 to 3) spans."""
        turns, temporal = self.stages[stage], _TEMPORAL_BLOCKS[stage]
        count = DEPTHS[self.depth][stage]
        return tuple(turns[i % len(turns)] if i < temporal else 1 for i in range(count))


class Stem(nn.Module):
    """The first convolution, 7x7 in space, with batch norm and ReLU, and a max pool."""

    BATCH_NORMS: ClassVar = {"conv": "bn"}

    def __init__(self, path: Pathway) -> None:
        super().__init__()
        t = path.stem
        self.conv = nn.Conv3d(3, path.width, (t, 7, 7), (1, 2, 2), (t // 2, 3, 3), bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(path.width)

    def forward(self, x: Tensor) -> Tensor:
        """From normalised pixels to the stem's map.

        Args:
            x: float32 ``[batch, time, height, width, 3]``.

        Returns:
            ``[batch, channels, time, height / 4, width / 4]``, in the weights' dtype.
        """
        # Both before the permutation, which engines that compute with channels last can then drop.
        x = for_stem(self.conv, x)
        x = x.to(next(self.conv.parameters()).dtype).permute(0, 4, 1, 2, 3)
        return F.max_pool3d(F.relu(self.bn(self.conv(x))), (1, 3, 3), (1, 2, 2), (0, 1, 1))


class _Branch(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, of which the first may span time and the second has the stride."""

    BATCH_NORMS: ClassVar = {"a": "a_bn", "b": "b_bn", "c": "c_bn"}
    random_gains: ClassVar = {"c_bn": 0.25}

    def __init__(self, c_in: int, c_out: int, span: int, stride: int, dilation: int) -> None:
        super().__init__()
        inner = c_out // 4
        self.a = nn.Conv3d(c_in, inner, (span, 1, 1), 1, (span // 2, 0, 0), bias=False)
        self.a_bn: nn.Module = nn.BatchNorm3d(inner)
        steps, pads = (1, stride, stride), (0, dilation, dilation)
        self.b = nn.Conv3d(inner, inner, (1, 3, 3), steps, pads, (1, dilation, dilation), bias=False)
        self.b_bn: nn.Module = nn.BatchNorm3d(inner)
        self.c = nn.Conv3d(inner, c_out, 1, bias=False)
        self.c_bn: nn.Module = nn.BatchNorm3d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a_bn(self.a(x)))
        x = F.relu(self.b_bn(self.b(x)))
        out: Tensor = self.c_bn(self.c(x))
        return out


class _Block(nn.Module):
    """A residual block: a branch with a shortcut around it."""

    def __init__(self, c_in: int, c_out: int, span: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.branch1: nn.Conv3d | None = None
        if stride > 1 or c_in != c_out:
            self.branch1 = nn.Conv3d(c_in, c_out, 1, (1, stride, stride), bias=False)
            self.branch1_bn: nn.Module = nn.BatchNorm3d(c_out)
        self.branch2 = _Branch(c_in, c_out, span, stride, dilation)

    @property
    def BATCH_NORMS(self) -> dict[str, str]:
        return {"branch1": "branch1_bn"} if self.branch1 is not None else {}

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.branch1 is None else self.branch1_bn(self.branch1(x))
        return F.relu(shortcut + self.branch2(x))


class Stage(nn.Module):
    """One of the four stages, for one pathway or several.

    Args:
        stage: 0 to 3.
        paths: the pathways.
        channels: channels that enter each of them.
    """

    def __init__(self, stage: int, paths: Sequence[Pathway], channels: Sequence[int]) -> None:
        super().__init__()
        self.order: list[list[str]] = []
        for p, (path, c_in) in enumerate(zip(paths, channels, strict=True)):
            c_out = path.width * 4 << stage
            dilated = path.dilated and stage == 3
            names = []
            for i, span in enumerate(path.spans(stage)):
                names.append(f"pathway{p}_res{i}")
                stride = 2 if i == 0 and stage > 0 and not dilated else 1
                self.add_module(
                    names[-1], _Block(c_out if i else c_in, c_out, span, stride, 2 if dilated else 1)
                )
                extra = path.non_local
                if extra is not None and i in extra.after[stage]:
                    names.append(f"pathway{p}_nonlocal{i}")
                    self.add_module(names[-1], NonLocalBlock(c_out, extra.weighing, extra.pool))
            self.order.append(names)

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """From a map of each pathway, ``[batch, channels, time, height, width]``, to the next map of each."""
        out = []
        for x, names in zip(xs, self.order, strict=True):
            for name in names:
                x = self.get_submodule(name)(x)
            out.append(x)
        return out


class Head(nn.Module):
    """The classifier. It is linear, so it may follow the mean over positions.

    Args:
        length: length of the feature.
        classes: number of classes.
    """

    def __init__(self, length: int, classes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(length, classes)

    def forward(self, features: Tensor) -> Tensor:
        """From float32 ``[batch, length]`` to float32 ``[batch, classes]``, before softmax or sigmoid."""
        return F.linear(features, self.projection.weight.float(), self.projection.bias.float())


class VideoResNet(nn.Module):
    """A ResNet with one pathway, from pixels to the 2048-d feature.

    Args:
        path: width, depth and convolutions of the network.
        window: side of the head's pool on the last map, see `window_mean`; None for the global mean.
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    STEMS: ClassVar = ("s1.pathway0_stem.conv",)
    MAPS: ClassVar = ("map",)

    def __init__(
        self, path: Pathway, *, window: int | None = 7, classes: int = 400, head: bool = False
    ) -> None:
        super().__init__()
        self.path, self.window, self.with_logits = path, window, head
        self.pool: Pool = "head"
        self.s1 = nn.ModuleDict({"pathway0_stem": Stem(path)})
        self.pixels = Pixels(MEAN, STD)
        w = path.width
        self.s2, self.s3, self.s4, self.s5 = (
            Stage(i, [path], [c]) for i, c in enumerate((w, 4 * w, 8 * w, 16 * w))
        )
        self.head = Head(32 * w, classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, trained at 224x224, tested at
                256x256.

        Returns:
            float32 ``[batch, 2048]``; or, unpooled, ``[batch, 2048, time / pool, height / 32, width / 32]``.
            Then float32 ``[batch, classes]``, before softmax.
        """
        (x,) = self.s2([self.s1["pathway0_stem"](self.pixels(frames))])
        if self.path.pool > 1:
            x = F.max_pool3d(x, (self.path.pool, 1, 1), (self.path.pool, 1, 1))
        (x,) = self.s5(self.s4(self.s3([x])))
        features = window_mean(x, None if self.pool == "global" else self.window)
        out = x.float() if self.pool == "none" else features
        return (out, self.head(features)) if self.with_logits else (out,)
