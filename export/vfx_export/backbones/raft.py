"""RAFT (Teed & Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", 2020), the large model.

Keys are those of princeton-vl/RAFT. The feature map of a frame is computed once for both of its pairs, the
context's contribution to the GRU once for all iterations, and only the last flow field is upsampled.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.correlation import LEVELS, RADIUS, Lookup
from vfx_export.backbones.frame_pairs import crop_centre, pad_to_multiple
from vfx_export.unrolling import repeated

ITERATIONS = 20
_STRIDE = 8
_HIDDEN = 128


class _InstanceNorm(nn.Module):
    """Normalises each channel of each frame, in float32, because its sums run over a whole frame."""

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x.float(), eps=1e-5).to(x.dtype)


def _norm(batch: bool, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch else _InstanceNorm()


class _Shortcut(nn.Sequential):
    """A strided 1x1 convolution and its norm."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, batch: bool) -> None:
        super().__init__(conv, norm)
        self.BATCH_NORMS = {"0": "1"} if batch else {}


class _Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, c_in: int, c_out: int, stride: int, batch: bool) -> None:
        super().__init__()
        self.BATCH_NORMS = {"conv1": "norm1", "conv2": "norm2"} if batch else {}
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1)
        self.norm1, self.norm2 = _norm(batch, c_out), _norm(batch, c_out)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            # Under two names, because the published files hold this norm twice.
            self.norm3 = _norm(batch, c_out)
            self.downsample = _Shortcut(nn.Conv2d(c_in, c_out, 1, stride), self.norm3, batch)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.downsample(x) + y)


class _Encoder(nn.Module):
    """From frames in [-1, 1] to 256 channels at an eighth of their height and width."""

    def __init__(self, batch: bool) -> None:
        super().__init__()
        self.BATCH_NORMS = {"conv1": "norm1"} if batch else {}
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.norm1 = _norm(batch, 64)
        channels = 64
        for i, (width, stride) in enumerate(((64, 1), (96, 2), (128, 2)), 1):
            blocks = (_Block(channels, width, stride, batch), _Block(width, width, 1, batch))
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            channels = width
        self.conv2 = nn.Conv2d(channels, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        for i in (1, 2, 3):
            x = self.get_submodule(f"layer{i}")(x)
        features: Tensor = self.conv2(x)
        return features


class _MotionEncoder(nn.Module):
    """From correlations and the present flow to 128 channels, of which the last two are the flow itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, 1, 1)
        self.convf1 = nn.Conv2d(2, 128, 7, 1, 3)
        self.convf2 = nn.Conv2d(128, 64, 3, 1, 1)
        self.conv = nn.Conv2d(256, 126, 3, 1, 1)

    def forward(self, flow: Tensor, correlations: Tensor) -> Tensor:
        c = F.relu(self.convc2(F.relu(self.convc1(correlations))))
        f = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([c, f], 1))), flow], 1)


class _HalfGRU(nn.Module):
    """One direction of the separable ConvGRU, along rows (1x5) or columns (5x1).

    The published convolutions take hidden state, context and motion as one input. Convolution is linear in
    its channels, so the contribution of the context, which is the same in every iteration, is computed once.

    Args:
        z: update gate.
        r: reset gate.
        q: candidate.
    """

    def __init__(self, z: nn.Conv2d, r: nn.Conv2d, q: nn.Conv2d) -> None:
        super().__init__()
        assert z.bias is not None
        assert r.bias is not None
        assert q.bias is not None
        self.padding = z.padding
        gates = torch.cat([z.weight, r.weight])
        hidden, context, motion = (slice(i * _HIDDEN, (i + 1) * _HIDDEN) for i in range(3))
        self.share_weight = nn.Parameter(torch.cat([gates[:, context], q.weight[:, context]]))
        self.share_bias = nn.Parameter(torch.cat([z.bias, r.bias, q.bias]))
        self.gates = nn.Parameter(torch.cat([gates[:, hidden], gates[:, motion]], 1))
        self.candidate = nn.Parameter(torch.cat([q.weight[:, hidden], q.weight[:, motion]], 1))

    def share(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The context's contribution to both gates, and to the candidate."""
        x = F.conv2d(context, self.share_weight, self.share_bias, padding=self.padding)
        return x[:, : 2 * _HIDDEN], x[:, 2 * _HIDDEN :]

    def forward(self, h: Tensor, motion: Tensor, share: tuple[Tensor, Tensor]) -> Tensor:
        x = F.conv2d(torch.cat([h, motion], 1), self.gates, padding=self.padding)
        z, r = torch.sigmoid(x + share[0]).chunk(2, 1)
        x = F.conv2d(torch.cat([r * h, motion], 1), self.candidate, padding=self.padding)
        return h + z * (torch.tanh(x + share[1]) - h)


class _GRU(nn.Module):
    """The separable ConvGRU, with its convolutions under the published keys."""

    def __init__(self) -> None:
        super().__init__()
        for gate in ("z", "r", "q"):
            self.add_module(f"conv{gate}1", nn.Conv2d(384, _HIDDEN, (1, 5), padding=(0, 2)))
            self.add_module(f"conv{gate}2", nn.Conv2d(384, _HIDDEN, (5, 1), padding=(2, 0)))
        self.packed: tuple[_HalfGRU, ...] = ()

    def fold_constants(self) -> None:
        """Replace the published weights by the form that `halves` uses, so that the graph holds no other."""
        rows, columns = self._halves()
        self.rows, self.columns = rows, columns
        self.packed = rows, columns
        for gate in ("z", "r", "q"):
            delattr(self, f"conv{gate}1")
            delattr(self, f"conv{gate}2")

    def halves(self) -> tuple[_HalfGRU, ...]:
        """The two directions: along rows, then along columns."""
        return self.packed or self._halves()

    def _halves(self) -> tuple[_HalfGRU, ...]:
        made = []
        for i in "12":
            z, r, q = (self.get_submodule(f"conv{gate}{i}") for gate in ("z", "r", "q"))
            assert isinstance(z, nn.Conv2d)
            assert isinstance(r, nn.Conv2d)
            assert isinstance(q, nn.Conv2d)
            made.append(_HalfGRU(z, r, q))
        return tuple(made)


class _FlowHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(_HIDDEN, 256, 3, 1, 1)
        self.conv2 = nn.Conv2d(256, 2, 3, 1, 1)

    def forward(self, h: Tensor) -> Tensor:
        delta: Tensor = self.conv2(F.relu(self.conv1(h)))
        return delta


class _Update(nn.Module):
    random_gains: ClassVar = {"flow_head.conv2": 0.25}

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _MotionEncoder()
        self.gru = _GRU()
        self.flow_head = _FlowHead()
        self.mask = nn.Sequential(
            nn.Conv2d(_HIDDEN, 256, 3, 1, 1), nn.ReLU(), nn.Conv2d(256, 9 * _STRIDE**2, 1)
        )


class RAFT(nn.Module):
    """RAFT with 20 iterations: optical flow between consecutive frames, at the frames' own size."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet = _Encoder(batch=False)
        self.cnet = _Encoder(batch=True)
        self.update_block = _Update()

    def forward(self, frames: Tensor) -> Tensor:
        """Flow from each frame to the next.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, at least two frames.

        Returns:
            float32 ``[batch, time - 1, 2, height, width]``: x, then y, in pixels.
        """
        height, width = frames.shape[2:4]
        return crop_centre(self.padded_flow(frames), height, width)

    def padded_flow(self, frames: Tensor) -> Tensor:
        """As `forward`, without removing the border that pads height and width to multiples of 8."""
        batch, time = frames.shape[:2]
        x = pad_to_multiple(frames, _STRIDE)
        x = x.permute(0, 1, 4, 2, 3).flatten(0, 1)
        x = (x.float() * (2 / 255) - 1).to(self.fnet.conv1.weight.dtype)
        features = self.fnet(x)
        features = features.reshape(batch, time, *features.shape[1:])
        first = x.reshape(batch, time, *x.shape[1:])[:, :-1].flatten(0, 1)
        flow = self._refined(features[:, :-1].flatten(0, 1), features[:, 1:].flatten(0, 1), self.cnet(first))
        return flow.reshape(batch, time - 1, *flow.shape[1:])

    def _refined(self, first: Tensor, second: Tensor, context: Tensor) -> Tensor:
        """Flow of pairs, float32 ``[pairs, 2, 8h, 8w]``, from features and context ``[pairs, 256, h, w]``."""
        update = self.update_block
        dtype = context.dtype
        # In float32 whatever the weights are, for sums of 256 products and positions in large frames.
        lookup = Lookup(first.float(), second.float())
        h = torch.tanh(context[:, :_HIDDEN])
        context = F.relu(context[:, _HIDDEN:])
        halves = [(half, half.share(context)) for half in update.gru.halves()]
        flow = torch.zeros_like(context[:, :2], dtype=torch.float32)

        def updated(h: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
            motion = update.encoder(flow.to(dtype), lookup(flow).to(dtype))
            for half, share in halves:
                h = half(h, motion, share)
            return h, flow + update.flow_head(h).float()

        h, flow = repeated(ITERATIONS, updated, (h, flow))
        return _upsampled(flow, update.mask(h).float())


def _upsampled(flow: Tensor, mask: Tensor) -> Tensor:
    """Convex upsampling: each pixel's flow is a weighted mean over its cell and the eight cells around it.

    Args:
        flow: ``[pairs, 2, h, w]``, in cells of 8x8 pixels.
        mask: ``[pairs, 9 * 64, h, w]``, weights before softmax.

    Returns:
        ``[pairs, 2, 8h, 8w]``, in pixels.
    """
    pairs, _, height, width = flow.shape
    weights = (0.25 * mask).reshape(pairs, 9, _STRIDE, _STRIDE, height, width).softmax(1)
    around = F.pad(_STRIDE * flow, (1, 1, 1, 1))
    near = [around[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    neighbours = torch.stack(near, 1)[:, :, :, None, None]
    fine = (weights[:, :, None] * neighbours).sum(1)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(pairs, 2, _STRIDE * height, _STRIDE * width)
