"""R(2+1)D as video_features runs it: torchvision's with 18 layers; those with 34, pretrained on IG-65M."""

from __future__ import annotations

from torch import nn

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.packing import pack_stem
from vfx_export.backbones.r2plus1d import R2Plus1D
from vfx_export.fitting import unchanged
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model


def _layers_18(head: bool) -> nn.Module:
    return R2Plus1D((2, 2, 2, 2), eps=1e-5, caffe2=False, head=head)


def _layers_34(head: bool) -> nn.Module:
    return R2Plus1D((3, 4, 6, 3), eps=1e-3, caffe2=True, head=head)


def _row(name: str, frames: int, source: str, licence: str, url: str) -> Model:
    return Model(
        name=name,
        source=source,
        licence=licence,
        # The name of the file ends with the first digits of its SHA-256.
        download=Download(url, sha256_prefix=url.removesuffix(".pth").rpartition("-")[2]),
        network=_layers_18 if "_18_" in name else _layers_34,
        layouts=unchanged,
        sampling=Sampling(frames=frames, stride=1, step=frames),
        least_frames=1,
        transform=Transform(
            Resize("exact", 128, 171, "bilinear", antialias=False), Crop(112, 112, "centre_round")
        ),
        blank=(110, 101, 96),
        feature=Output("r21d", (512,)),
        labels=kinetics400,
        low_precision=pack_stem,
    )


def _ig65m(frames: int, digits: str) -> Model:
    return _row(
        f"r2plus1d_34_{frames}_ig65m_ft_kinetics",
        frames,
        f"moabitcoin/ig65m-pytorch r2plus1d_34_clip{frames}_ft_kinetics_from_ig65m",
        "MIT",
        "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0/"
        f"r2plus1d_34_clip{frames}_ft_kinetics_from_ig65m-{digits}.pth",
    )


ROWS = (
    _row(
        "r2plus1d_18_16_kinetics",
        16,
        "torchvision R2Plus1D_18_Weights.KINETICS400_V1",
        "BSD-3-Clause",
        "https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth",
    ),
    _ig65m(32, "ade133f1"),
    _ig65m(8, "0aa0550b"),
)
