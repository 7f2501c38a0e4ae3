"""I3D's flow stream on top of a flow network, as video_features runs it: from pixels to features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfx_export.backbones.i3d import I3D
from vfx_export.backbones.raft import RAFT
from vfx_export.chunks import Chunked, Chunks

_CROP = 224

PAIRS_AT_ONCE = 8
"""Most pairs of frames in a chunk. Larger chunks would only save the few frames that neighbours share."""


class FlowI3D(nn.Module, Chunked):
    """Flow of whole frames, cropped to the middle, quantised to 8 bits as in I3D's training, then I3D on it.

    Args:
        flow: a network for optical flow.
        head: also output the classifier's logits.
    """

    def __init__(self, flow: nn.Module, head: bool = False) -> None:
        super().__init__()
        self.flow = flow
        self.i3d = I3D(head=head, channels=2)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature; with ``head``, also the logits.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, at least 11 frames, height and
                width 224 or more.

        Returns:
            float32 ``[batch, 1024]``; then float32 ``[batch, 400]``, before softmax.
        """
        return self.chunks(frames.shape[1])(frames)

    def chunks(self, frames: int) -> Chunks:
        """Flow in chunks of at most `PAIRS_AT_ONCE` pairs, of equal size; then I3D on the whole window."""
        pairs = frames - 1
        count = -(-pairs // PAIRS_AT_ONCE)
        size = -(-pairs // count)
        starts = tuple(min(i * size, pairs - size) for i in range(count))
        return Chunks(starts, size + 1, _MiddleFlow(self.flow), _FlowFeatures(self.i3d, pairs))


class _MiddleFlow(nn.Module):
    """From uint8 frames ``[batch, time, height, width, 3]`` to flow ``[batch, time - 1, 2, 224, 224]``."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, frames: Tensor) -> Tensor:
        # RAFT's border is not removed before the crop, as in the published features.
        flow: Tensor = self.flow.padded_flow(frames) if isinstance(self.flow, RAFT) else self.flow(frames)
        for axis in (-2, -1):
            first = (flow.shape[axis] - _CROP) // 2
            flow = flow.index_select(axis, torch.arange(_CROP, device=flow.device) + first)
        return flow


class _FlowFeatures(nn.Module):
    """From the flow of all chunks, ``[chunks, batch, pairs of a chunk, 2, 224, 224]``, to I3D's outputs."""

    def __init__(self, i3d: I3D, pairs: int) -> None:
        super().__init__()
        self.i3d = i3d
        self.pairs = pairs

    def forward(self, flow: Tensor) -> tuple[Tensor, ...]:
        chunks, _, size = flow.shape[:3]
        flow = flow.transpose(0, 1).flatten(1, 2)
        # The last chunk ends with the window, so its first pairs may be in the chunk before too.
        twice = chunks * size - self.pairs
        if twice:
            keep = torch.arange(self.pairs, device=flow.device)
            flow = flow.index_select(1, keep + twice * (keep >= (chunks - 1) * size))
        return self.i3d.features(flow.permute(0, 1, 3, 4, 2), quantised)


def quantised(flow: Tensor) -> Tensor:
    """Flow in pixels, clipped to -20 to 20, quantised to whole levels of 0 to 256, then scaled to [-1, 1].

    As in the published code, +20 is rounded to level 256, which becomes a little more than 1.
    """
    return torch.round(128 + (255 / 40) * flow.clamp(-20, 20)) * (2 / 255) - 1
