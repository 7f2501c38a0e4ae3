"""I3D's flow stream on the flow of a network, as video_features runs it: from pixels to features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfx_export.backbones.i3d import I3D
from vfx_export.backbones.raft import RAFT

_CROP = 224


class FlowI3D(nn.Module):
    """Flow of the whole frames, its middle, in 8 bits as I3D was trained on it, and I3D's feature of that.

    Args:
        flow: a network of optical flow.
        head: give the classifier's logits too.
    """

    def __init__(self, flow: nn.Module, head: bool = False) -> None:
        super().__init__()
        self.flow = flow
        self.i3d = I3D(head=head, channels=2)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Features, and logits where the head is on.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, sides of 224 or more, at least 11 frames.

        Returns:
            float32 ``[batch, 1024]``, then float32 ``[batch, 400]`` before softmax.
        """
        # RAFT's border stays on before the crop: the published features were made so.
        flow = self.flow.padded_flow(frames) if isinstance(self.flow, RAFT) else self.flow(frames)
        for axis in (-2, -1):
            first = (flow.shape[axis] - _CROP) // 2
            flow = flow.index_select(axis, torch.arange(_CROP, device=flow.device) + first)
        return self.i3d.features(flow.permute(0, 1, 3, 4, 2), quantised)


def quantised(flow: Tensor) -> Tensor:
    """Flow in pixels to 8 bits and back, to [-1, 1]; beyond 20 pixels it is cut, and +20 becomes 256."""
    return torch.round(128 + (255 / 40) * flow.clamp(-20, 20)) * (2 / 255) - 1
