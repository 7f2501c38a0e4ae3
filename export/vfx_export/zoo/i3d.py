"""I3D as video_features runs it (Carreira & Zisserman, 2017)."""

from __future__ import annotations

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.i3d import I3D, pack_i3d
from vfx_export.fitting import rename_i3d
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model

ROWS = (
    Model(
        name="i3d",
        source="hassony2/kinetics_i3d_pytorch model_rgb.pth (DeepMind's rgb_imagenet, converted)",
        licence="MIT",
        download=Download(
            "https://github.com/hassony2/kinetics_i3d_pytorch/raw/master/model/model_rgb.pth",
            git_blob="2a7c22e23e6c74f50a0166ce61110bccd2ab48bb",
        ),
        network=lambda head: I3D(head=head),
        layouts=rename_i3d,
        sampling=Sampling(frames=64, stride=1, step=64, lead=1),
        least_frames=10,
        transform=Transform(
            Resize("short_side", 256, 256, "bilinear", antialias=True, other_side="truncate"),
            Crop(224, 224, "centre_floor"),
        ),
        blank=(128, 128, 128),
        feature=Output("rgb", (1024,)),
        labels=kinetics400,
        low_precision=pack_i3d,
    ),
)
