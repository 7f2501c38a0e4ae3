"""S3D as video_features runs it: at 25 frames per second, with pixels in [0, 1]."""

from __future__ import annotations

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.packing import pack_stem
from vfx_export.backbones.s3d import S3D
from vfx_export.fitting import unchanged
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model

ROWS = (
    Model(
        name="s3d",
        source="kylemin/S3D S3D_kinetics400.pt, as video_features keeps it",
        licence="MIT",
        download=Download(
            "https://github.com/v-iashin/video_features/raw/a2f61b7a4cf0ca6a2d91dcc2182f57e7cfd12664"
            "/models/s3d/checkpoint/S3D_kinetics400_torchified.pt",
            git_blob="65b27cbb412937b3dd705f4216cb822d679535df",
        ),
        network=lambda head: S3D(head=head),
        layouts=unchanged,
        sampling=Sampling(frames=64, stride=1, step=64, fps=25),
        least_frames=13,
        transform=Transform(
            Resize("short_side", 224, 224, "bilinear", antialias=False, grid="scale"),
            Crop(224, 224, "centre_round"),
        ),
        blank=(0, 0, 0),
        feature=Output("s3d", (1024,)),
        labels=kinetics400,
        low_precision=pack_stem,
    ),
)
