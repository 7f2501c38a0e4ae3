"""PySlowFast's model zoo: its ResNets, as rows over what `Pathway` says of each.

Windows are a config's NUM_FRAMES and SAMPLING_RATE, crops those of its test with the crop in the middle.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.non_local import NonLocal
from vfx_export.backbones.video_resnet import Pathway, VideoResNet
from vfx_export.fitting import unchanged
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model

_ZOO = "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo"
_LICENCE = "Apache-2.0 (of the repository; none is stated for the weights)"

_C2D = ((1,), (1,), (1,), (1,))
_I3D = ((3,), (3, 1), (3, 1), (1, 3))
_SLOW = ((1,), (1,), (3,), (3,))
_NON_LOCAL = NonLocal(after=((), (1, 3), (1, 3, 5), ()), weighing="softmax", pool=(1, 2, 2))


def _row(
    name: str,
    config: str,
    url: str,
    network: Callable[[bool], nn.Module],
    *,
    frames: int,
    stride: int,
    length: int,
    least_frames: int = 1,
    crop: int = 256,
    fps: float | None = 30,
) -> Model:
    return Model(
        name=name,
        source=f"facebookresearch/SlowFast {config}",
        licence=_LICENCE,
        download=Download(url),
        network=network,
        layouts=unchanged,
        sampling=Sampling(frames=frames, stride=stride, step=frames * stride, fps=fps),
        least_frames=least_frames,
        transform=Transform(
            Resize("short_side", crop, crop, "bilinear", antialias=False, other_side="truncate"),
            Crop(crop, crop, "centre_ceil"),
        ),
        blank=(115, 115, 115),
        feature=Output("features", (length,)),
        labels=kinetics400,
    )


def _one_pathway(name: str, path: Pathway, config: str, url: str) -> Model:
    """A network of Kinetics-400; its windows are in its name."""
    frames, stride = map(int, name.split("_")[-2].split("x"))

    def network(head: bool) -> nn.Module:
        return VideoResNet(path, head=head)

    return _row(
        name,
        config,
        f"{_ZOO}/{url}",
        network,
        frames=frames,
        stride=stride,
        length=2048,
        least_frames=path.pool,
    )


ROWS = (
    _one_pathway(
        "c2d_nopool_8x8_r50",
        Pathway(1, _C2D),
        "Kinetics/c2/C2D_NOPOOL_8x8_R50",
        "kinetics400/C2D_NOPOOL_8x8_R50.pkl",
    ),
    # The zoo lists this file as what an AVA network of the kind Slow began with. Its name says C2D; if it
    # holds a Slow, shapes do not fit and the error says so.
    _one_pathway(
        "c2d_8x8_r50",
        Pathway(1, _C2D, pool=2),
        "Kinetics/C2D_8x8_R50",
        "ava/pretrain/C2D_8x8_R50.pkl",
    ),
    _one_pathway(
        "i3d_8x8_r50",
        Pathway(5, _I3D, pool=2),
        "Kinetics/c2/I3D_8x8_R50",
        "kinetics400/I3D_8x8_R50.pkl",
    ),
    _one_pathway(
        "i3d_nln_8x8_r50",
        Pathway(5, _I3D, pool=2, non_local=_NON_LOCAL),
        "Kinetics/c2/I3D_NLN_8x8_R50",
        "kinetics400/I3D_NLN_8x8_R50.pkl",
    ),
    _one_pathway(
        "slow_4x16_r50",
        Pathway(1, _SLOW),
        "Kinetics/c2/SLOW_4x16_R50",
        "kinetics400/SLOWONLY_4x16_R50.pkl",
    ),
    _one_pathway(
        "slow_8x8_r50",
        Pathway(1, _SLOW),
        "Kinetics/c2/SLOW_8x8_R50",
        "kinetics400/SLOWONLY_8x8_R50.pkl",
    ),
)
