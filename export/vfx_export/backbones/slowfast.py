"""SlowFast (Feichtenhofer et al., "SlowFast Networks for Video Recognition", 2019), cut before its head.

A wide, slow pathway sees a few frames of a window; a narrow, fast one sees all of them. After the stem and
after each stage but the last, channels made from the fast pathway are concatenated to those of the slow one.
Keys are PySlowFast's, where ``pathway0`` is the slow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_engines.spec import Pool
from vfx_export.backbones.pixels import Pixels
from vfx_export.backbones.video_resnet import MEAN, STD, Head, Pathway, Stage, Stem
from vfx_export.backbones.window_pool import window_mean


def slow_frames(frames: int, alpha: int) -> list[int]:
    """Indices of the frames that the slow pathway sees, evenly spread from the first to the last.

    They are not every ``alpha``-th frame: of 32 frames, with alpha 4, they are 0, 4, 8, 13, 17, 22, 26, 31.
    PySlowFast truncates ``torch.linspace`` to whole numbers. This is the same float32 arithmetic, from both
    ends, without tensors, which would be computed in the graph.

    Args:
        frames: frames of the window, a multiple of ``alpha``.
        alpha: frames of the window for each that the slow pathway sees.
    """
    count, last = frames // alpha, np.float32(frames - 1)
    if count == 1:
        return [0]
    step = last / np.float32(count - 1)
    low = [int(step * np.float32(i)) for i in range(count // 2)]
    high = [int(last - step * np.float32(i)) for i in reversed(range(count - count // 2))]
    return low + high


class _Fusion(nn.Module):
    """A strided convolution over time, from the fast pathway to the slow one's frames; doubles channels."""

    BATCH_NORMS: ClassVar = {"conv_f2s": "bn"}

    def __init__(self, channels: int, span: int, alpha: int) -> None:
        super().__init__()
        pad = (span // 2, 0, 0)
        self.conv_f2s = nn.Conv3d(channels, 2 * channels, (span, 1, 1), (alpha, 1, 1), pad, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(2 * channels)

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        slow, fast = xs
        return [torch.cat([slow, F.relu(self.bn(self.conv_f2s(fast)))], dim=1), fast]


class SlowFast(nn.Module):
    """SlowFast, from pixels to the 2304-d feature: 2048 of the slow pathway and 256 of the fast one.

    Args:
        slow: the slow pathway.
        fast: the fast pathway.
        alpha: frames of the fast pathway for each frame of the slow one.
        span: frames that the convolutions between the pathways span.
        window: side of the head's pool on the last maps, see `window_mean`; None for the global mean.
        classes: length of the classifier, which is in the checkpoint whether it is exported or not.
        head: also output the classifier's logits.
    """

    STEMS: ClassVar = ("s1.pathway0_stem.conv", "s1.pathway1_stem.conv")
    MAPS: ClassVar = ("slow_map", "fast_map")

    def __init__(
        self,
        slow: Pathway,
        fast: Pathway,
        *,
        alpha: int,
        span: int,
        window: int | None = 7,
        classes: int = 400,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.alpha, self.window, self.with_logits = alpha, window, head
        self.pool: Pool = "head"
        self.pixels = Pixels(MEAN, STD)
        paths = (slow, fast)
        self.s1 = nn.ModuleDict({f"pathway{p}_stem": Stem(path) for p, path in enumerate(paths)})
        self.s1_fuse = _Fusion(fast.width, span, alpha)
        wide, narrow = slow.width + 2 * fast.width, fast.width
        self.s2 = Stage(0, paths, (wide, narrow))
        self.s2_fuse = _Fusion(4 * narrow, span, alpha)
        self.s3 = Stage(1, paths, (4 * wide, 4 * narrow))
        self.s3_fuse = _Fusion(8 * narrow, span, alpha)
        self.s4 = Stage(2, paths, (8 * wide, 8 * narrow))
        self.s4_fuse = _Fusion(16 * narrow, span, alpha)
        self.s5 = Stage(3, paths, (16 * wide, 16 * narrow))
        self.head = Head(32 * (slow.width + fast.width), classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, trained at 224x224, tested at
                256x256; ``time`` is a multiple of ``alpha``.

        Returns:
            float32 ``[batch, 2304]``, slow before fast; or, unpooled, the map of each pathway, ``[batch,
            2048, time / alpha, height / 32, width / 32]`` and ``[batch, 256, time, height / 32, width / 32]``
            (height / 16 and width / 16 where the last stage is dilated). Then float32 ``[batch, classes]``,
            before softmax or sigmoid.
        """
        # Frames are selected as floats, because TensorRT accepts bytes only in a cast.
        pixels = self.pixels(frames)
        picked = pixels.index_select(1, torch.tensor(slow_frames(frames.shape[1], self.alpha)))
        xs = [self.s1["pathway0_stem"](picked), self.s1["pathway1_stem"](pixels)]
        xs = self.s2(self.s1_fuse(xs))
        xs = self.s3(self.s2_fuse(xs))
        xs = self.s4(self.s3_fuse(xs))
        xs = self.s5(self.s4_fuse(xs))
        window = None if self.pool == "global" else self.window
        features = torch.cat([window_mean(x, window) for x in xs], dim=1)
        # The maps of the pathways differ in time and channels, so they cannot be one output.
        out = tuple(x.float() for x in xs) if self.pool == "none" else (features,)
        return (*out, self.head(features)) if self.with_logits else out
