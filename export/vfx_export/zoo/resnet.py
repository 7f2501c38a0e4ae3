"""ResNet as video_features runs it: torchvision's first ImageNet weights, frame by frame."""

from __future__ import annotations

from torch import nn

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.resnet import ResNet
from vfx_export.fitting import unchanged
from vfx_export.labels import imagenet1k
from vfx_export.model import Download, Model


def _row(depth: int, digits: str, length: int) -> Model:
    def network(head: bool) -> nn.Module:
        return ResNet(depth, head=head)

    return Model(
        name=f"resnet{depth}",
        source=f"torchvision ResNet{depth}_Weights.IMAGENET1K_V1",
        licence="BSD-3-Clause",
        download=Download(
            f"https://download.pytorch.org/models/resnet{depth}-{digits}.pth", sha256_prefix=digits
        ),
        network=network,
        layouts=unchanged,
        sampling=Sampling(frames=1, stride=1, step=1),
        least_frames=1,
        transform=Transform(
            Resize("short_side", 256, 256, "bilinear", antialias=True, other_side="truncate"),
            Crop(224, 224, "centre_round"),
        ),
        blank=(124, 116, 104),
        feature=Output("resnet", (length,), per="frame"),
        labels=imagenet1k,
        fixed_frames=True,
    )


ROWS = (
    _row(18, "f37072fd", 512),
    _row(34, "b627a593", 512),
    _row(50, "0676ba61", 2048),
    _row(101, "63fe2227", 2048),
    _row(152, "394f9c45", 2048),
)
