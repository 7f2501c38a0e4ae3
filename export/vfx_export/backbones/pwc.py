"""PWC-Net (Sun et al., "PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume", 2018).

Keys are those of sniklaus/pytorch-pwc before its modules were renamed. The pyramid of a frame is computed
once for both of its pairs. The cost volume, a CUDA kernel in the published code, consists of plain operators
here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.frame_pairs import rounded_up

_MULTIPLE = 64
_RADIUS = 4
_NAMES = ("One", "Two", "Thr", "Fou", "Fiv", "Six")
_WIDTHS = (16, 32, 64, 96, 128, 196)
_DENSE = (128, 128, 96, 64, 32)
_WARP_SCALES = {"Fiv": 0.625, "Fou": 1.25, "Thr": 2.5, "Two": 5.0}
"""Factor from flow in units of 20 pixels of the frame to pixels of the level that is warped by it."""


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


class _Extractor(nn.Module):
    """From frames in [0, 1], BGR, to six levels of features; the first is half as high and wide."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, width in zip(_NAMES, _WIDTHS, strict=True):
            layers: list[nn.Module] = []
            for stride in (2, 1, 1):
                layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.LeakyReLU(0.1)]
                channels = width
            self.add_module(f"module{name}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = {}
        for name in _NAMES:
            x = self.get_submodule(f"module{name}")(x)
            levels[name] = x
        return levels


class _Decoder(nn.Module):
    """The flow of one level, from the cost volume, the first frame's features and the coarser level."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.level = name
        channels = (2 * _RADIUS + 1) ** 2
        if name != "Six":
            coarser = _NAMES[_NAMES.index(name) + 1]
            self.moduleUpflow = nn.ConvTranspose2d(2, 2, 4, 2, 1)
            self.moduleUpfeat = nn.ConvTranspose2d(_dense_channels(coarser), 2, 4, 2, 1)
            channels += _WIDTHS[_NAMES.index(name)] + 4
        for part, width in zip(_NAMES, (*_DENSE, 2), strict=True):
            conv = nn.Conv2d(channels, width, 3, 1, 1)
            self.add_module(f"module{part}", nn.Sequential(conv) if width == 2 else _activated(conv))
            channels += width

    def forward(
        self, first: Tensor, second: Tensor, coarser: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Flow ``[pairs, 2, h, w]`` and dense features; ``coarser``: those of the coarser level, if any."""
        if coarser is None:
            x = _leaky(cost_volume(first, second))
        else:
            flow = self.moduleUpflow(coarser[0])
            features = self.moduleUpfeat(coarser[1])
            volume = _leaky(cost_volume(first, warped(second, flow * _WARP_SCALES[self.level])))
            x = torch.cat([volume, first, flow, features], 1)
        for part in _NAMES[:-1]:
            x = torch.cat([self.get_submodule(f"module{part}")(x), x], 1)
        flow = self.get_submodule("moduleSix")(x)
        return flow, x


def _activated(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.LeakyReLU(0.1))


def _dense_channels(name: str) -> int:
    own = 0 if name == "Six" else _WIDTHS[_NAMES.index(name)] + 4
    return (2 * _RADIUS + 1) ** 2 + own + sum(_DENSE)


class _Refiner(nn.Module):
    """Dilated convolutions, from the finest level's features to a correction of its flow."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = _dense_channels("Two")
        for width, dilation in zip((128, 128, 128, 96, 64, 32, 2), (1, 2, 4, 8, 16, 1, 1), strict=True):
            layers += [nn.Conv2d(channels, width, 3, 1, dilation, dilation), nn.LeakyReLU(0.1)]
            channels = width
        self.moduleMain = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        correction: Tensor = self.moduleMain(x)
        return correction


class PWCNet(nn.Module):
    """PWC-Net: optical flow between consecutive frames, at the frames' own size."""

    def __init__(self) -> None:
        super().__init__()
        self.moduleExtractor = _Extractor()
        for name in _NAMES[1:]:
            self.add_module(f"module{name}", _Decoder(name))
        self.moduleRefiner = _Refiner()

    def forward(self, frames: Tensor) -> Tensor:
        """Flow from each frame to the next.

        Args:
            frames: uint8 ``[batch, time, height, width, 3]``, RGB, 0 to 255, at least two frames.

        Returns:
            float32 ``[batch, time - 1, 2, height, width]``: x, then y, in pixels.
        """
        batch, time, height, width = frames.shape[:4]
        size = rounded_up(height, _MULTIPLE), rounded_up(width, _MULTIPLE)
        x = frames.flip(-1).permute(0, 1, 4, 2, 3).flatten(0, 1).float() * (1 / 255)
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = x.to(next(self.moduleRefiner.parameters()).dtype)
        flow = self._quarter_flow(self.moduleExtractor(x), batch)
        # To pixels of the frames: the network's unit is 20 pixels, and the next line undoes the resizing.
        flow = 20 * F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        flow = torch.cat([flow[:, :1] * (width / size[1]), flow[:, 1:] * (height / size[0])], 1)
        return flow.reshape(batch, time - 1, *flow.shape[1:])

    def _quarter_flow(self, levels: dict[str, Tensor], batch: int) -> Tensor:
        """Refined flow at a quarter of the frames' size, float32 ``[pairs, 2, h, w]``."""
        coarser: tuple[Tensor, Tensor] | None = None
        for name in reversed(_NAMES[1:]):
            level = levels[name]
            level = level.reshape(batch, -1, *level.shape[1:])
            first, second = level[:, :-1].flatten(0, 1), level[:, 1:].flatten(0, 1)
            coarser = self.get_submodule(f"module{name}")(first, second, coarser)
        assert coarser is not None
        correction: Tensor = self.moduleRefiner(coarser[1]).float()
        return coarser[0].float() + correction


def cost_volume(first: Tensor, second: Tensor) -> Tensor:
    """Mean over channels of the products of each pixel with the 9x9 pixels around its place.

    A row of the first frame times a row of the second is a matrix product, in which nine diagonals are
    wanted. If it is read with rows that are longer by one, diagonals become columns. This is done for nine
    rows at once. It takes ten times the multiplications of the definition, but on matrix units, and never
    holds a product of whole feature maps in memory. In float32, because its sums have up to 196 terms.

    Args:
        first: ``[pairs, channels, h, w]``.
        second: of the same shape.

    Returns:
        ``[pairs, 81, h, w]`` in the dtype of ``first``, ordered by y offset from -4 to 4, then x offset; zero
        beyond the edge.
    """
    pairs, channels, height, width = first.shape
    around = F.pad(second.float(), (_RADIUS,) * 4)
    offsets = 2 * _RADIUS + 1
    rows = torch.stack([around[:, :, y : y + height] for y in range(offsets)], 1)
    rows = rows.permute(0, 1, 3, 2, 4)
    own = (first.float() * (1 / channels)).permute(0, 2, 3, 1)[:, None]
    products = torch.matmul(own, rows).flatten(3)
    skewed = F.pad(products, (0, width)).reshape(pairs, offsets, height, width, width + offsets)
    volume = skewed[..., :offsets].permute(0, 1, 4, 2, 3)
    return volume.reshape(pairs, offsets**2, height, width).to(first.dtype)


def warped(features: Tensor, flow: Tensor) -> Tensor:
    """Features of the second frame, moved by the flow to their places in the first.

    Positions are float32, because in half precision they would be off by whole pixels in a large frame.

    Args:
        features: ``[pairs, channels, h, w]``.
        flow: ``[pairs, 2, h, w]``, x then y, in pixels of the map.

    Returns:
        ``[pairs, channels, h, w]`` in the dtype of ``features``; zero where a sample leaves the map.
    """
    height, width = features.shape[2:]
    x = torch.arange(width, device=flow.device).float() + flow[:, 0].float()
    y = torch.arange(height, device=flow.device).float()[:, None] + flow[:, 1].float()
    grid = torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], 3)
    sampled = F.grid_sample(features.float(), grid, "bilinear", "zeros", align_corners=True)
    # The share of a bilinear sample that is inside the map; saves sampling a map of ones.
    inside = torch.minimum(x + 1, width - x).clamp(0, 1) * torch.minimum(y + 1, height - y).clamp(0, 1)
    return (sampled * (inside > 0.999)[:, None].float()).to(features.dtype)
