"""I3D as video_features runs it (Carreira & Zisserman, 2017)."""

from __future__ import annotations

from vfx_engines.spec import Crop, Output, Precision, Resize, Sampling, Transform
from vfx_export.backbones.flow_i3d import FlowI3D
from vfx_export.backbones.i3d import I3D, pack_i3d
from vfx_export.fitting import rename_i3d
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model, Part
from vfx_export.zoo import pwc, raft

_FLOW = Download(
    "https://github.com/hassony2/kinetics_i3d_pytorch/raw/master/model/model_flow.pth",
    git_blob="5d552d2206f41089c428b0d9d8de3b1fccc85b5a",
)


# Before I3D, flow is rounded to whole grey levels. Where a millionth of a pixel decides, the file and the
# module round differently. The measured error is 4.8e-4 in fp32 (64 pairs of noise, random weights).
_ROUNDED_FLOW: dict[Precision, float] = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 3e-2}


def _flow_row(name: str, flow: Model) -> Model:
    """The row of I3D's flow stream, on top of the flow network of another row."""
    return Model(
        name=name,
        source="hassony2/kinetics_i3d_pytorch model_flow.pth (DeepMind's flow_imagenet, converted), on flow "
        f"of {flow.source}",
        licence=f"MIT (I3D), {flow.licence} (flow)",
        download=flow.download,
        network=lambda head: FlowI3D(flow.network(False), head=head),
        layouts=flow.layouts,
        sampling=Sampling(frames=65, stride=1, step=64),
        least_frames=10,
        transform=Transform(
            Resize("short_side", 256, 256, "bilinear", antialias=True, other_side="truncate")
        ),
        blank=(128, 128, 128),
        feature=Output("flow", (1024,)),
        labels=kinetics400,
        overlap=1,
        parts=(Part("flow", flow.download, flow.layouts), Part("i3d", _FLOW, rename_i3d)),
        tolerances=_ROUNDED_FLOW,
    )


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
    _flow_row("i3d_flow_raft", raft.ROWS[0]),
    _flow_row("i3d_flow_pwc", pwc.ROWS[0]),
)
