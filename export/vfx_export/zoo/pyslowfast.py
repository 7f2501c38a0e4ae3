"""PySlowFast's model zoo: the rows of its ResNets, each described by a `Pathway` or two.

Windows are NUM_FRAMES and SAMPLING_RATE of a model's config. Crops are those of its test, taken in the
middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from vfx_engines.spec import Activation, Crop, Output, Precision, Resize, Sampling, Transform
from vfx_export.backbones.non_local import NonLocal
from vfx_export.backbones.packing import pack_stem
from vfx_export.backbones.pixels import zero_blanks
from vfx_export.backbones.slowfast import SlowFast
from vfx_export.backbones.video_resnet import BLANK, MEAN, STD, Pathway, VideoResNet
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model
from vfx_export.pyslowfast_config import Config, trained_with
from vfx_export.pyslowfast_keys import rename_pyslowfast

_ZOO = "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo"
_MULTIGRID = "https://dl.fbaipublicfiles.com/pyslowfast/pyslowfast/model_zoo/multigrid/model_zoo"
_LICENCE = "Apache-2.0 (of the repository; none is stated for the weights)"

_C2D = ((1,), (1,), (1,), (1,))
_I3D = ((3,), (3, 1), (3, 1), (1, 3))
_SLOW = ((1,), (1,), (3,), (3,))
_FAST = ((3,), (3,), (3,), (3,))
_NON_LOCAL = NonLocal(after=((), (1, 3), (1, 3, 5), ()), weighing="softmax", pool=(1, 2, 2))
_AVA = NonLocal(after=((), (), (6, 13, 20), ()), weighing="dot_product", pool=(2, 2, 2))
# Non-local blocks multiply three maps, each with the error of all layers before. In bf16, the error grows
# from 4e-3 to 1.7e-2 at the first of them, and from 9e-3 to 3.6e-2 at the last. So the last one stays
# float32, with the residual blocks around it. Measured with the parity kit's weights, on 32 frames:
#
#   in float32                    error at 224x224   error at 256x256   CPU-seconds per window of 224x224
#   nothing                       1.40e-2            1.44e-2            0.5
#   these                         5.0e-3             6.2e-3             0.7
#   only the non-local blocks     1.5e-2             -                  0.6
#   blocks 18 to 22               8e-3               1.1e-2             0.68
#   blocks 14 to 22               6e-3               1.02e-2            0.76
#   blocks 7 to 22                6e-3               5e-3               1.0
#   the whole stage               4e-3               9e-3               1.2
#   the two stages before it      1.1e-2             -                  0.73
#
# More float32 is sometimes worse, so part of these differences is chance.
_AVA_FLOAT32 = ("s4.pathway0_nonlocal20", *(f"s4.pathway0_res{i}" for i in range(16, 23)))


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
    classes: int = 400,
    frames_multiple: int = 1,
    config_says: Config,
    tolerances: Mapping[Precision, float] | None = None,
    float32: tuple[str, ...] = (),
    inflates: bool = False,
    activation: Activation = "softmax",
) -> Model:
    return Model(
        name=name,
        source=f"facebookresearch/SlowFast {config}",
        licence=_LICENCE,
        download=Download(url),
        network=network,
        layouts=rename_pyslowfast,
        sampling=Sampling(frames=frames, stride=stride, step=frames * stride, fps=fps),
        least_frames=least_frames,
        transform=Transform(
            Resize("short_side", crop, crop, "bilinear", antialias=False, other_side="truncate"),
            Crop(crop, crop, "centre_ceil"),
        ),
        blank=(BLANK, BLANK, BLANK),
        feature=Output("features", (length,)),
        low_precision=pack_stem,
        labels=kinetics400 if classes == 400 else None,
        classes=classes,
        frames_multiple=frames_multiple,
        pools=True,
        inflates=inflates,
        activation=activation,
        config={**trained_with(frames, stride, MEAN, STD), **config_says},
        tolerances=tolerances or {},
        float32=float32,
        zero_blanks=zero_blanks,
    )


def _one_pathway(name: str, path: Pathway, archs: tuple[str, ...], config: str, url: str) -> Model:
    """The row of a network with one pathway for Kinetics-400. Its name tells its windows: ``8x8``, ``4x16``.

    Args:
        name: name of the row.
        path: the network's pathway.
        archs: names of this architecture in PySlowFast's ``MODEL.ARCH``.
        config: the published config.
        url: URL of the checkpoint, relative to that of the zoo.
    """
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
        config_says={"MODEL.ARCH": archs},
        inflates=path.non_local is None,
    )


def _slowfast(
    name: str,
    config: str,
    url: str,
    *,
    frames: int = 32,
    alpha: int = 4,
    span: int = 7,
    window: int | None = 7,
    ava: bool = False,
    classes: int = 400,
    crop: int = 256,
    fps: float | None = 30,
) -> Model:
    depth = 101 if ava else 50
    slow = Pathway(1, _SLOW, depth=depth, dilated=ava, non_local=_AVA if ava else None)
    fast = Pathway(5, _FAST, width=8, depth=depth, dilated=ava)

    def network(head: bool) -> nn.Module:
        return SlowFast(slow, fast, alpha=alpha, span=span, window=window, classes=classes, head=head)

    return _row(
        name,
        config,
        url,
        network,
        frames=frames,
        stride=2,
        length=2304,
        least_frames=alpha,
        crop=crop,
        fps=fps,
        classes=classes,
        frames_multiple=alpha,
        # With 32 frames, the proof's error is 7e-3 (224x224) and 1.03e-2 (256x256).
        tolerances={"bf16": 2e-2} if ava else None,
        float32=_AVA_FLOAT32 if ava else (),
        # A window may have several of the classes of AVA (80) and Charades (157).
        activation="sigmoid" if classes in (80, 157) else "softmax",
        config_says={
            "SLOWFAST.ALPHA": (alpha,),
            "MULTIGRID.SHORT_CYCLE": ("true" if window is None and not ava else "false",),
        },
    )


ROWS = (
    _one_pathway(
        "c2d_nopool_8x8_r50",
        Pathway(1, _C2D),
        ("2d", "slow_c2d", "c2d_nopool"),
        "Kinetics/c2/C2D_NOPOOL_8x8_R50",
        "kinetics400/C2D_NOPOOL_8x8_R50.pkl",
    ),
    # The zoo lists this file as the initialisation of an AVA network of the Slow kind. Its name says C2D; if
    # it holds a Slow, its shapes do not fit, and the error says so.
    _one_pathway(
        "c2d_8x8_r50",
        Pathway(1, _C2D, pool=2),
        ("c2d",),
        "Kinetics/C2D_8x8_R50",
        "ava/pretrain/C2D_8x8_R50.pkl",
    ),
    _one_pathway(
        "i3d_8x8_r50",
        Pathway(5, _I3D, pool=2),
        ("i3d",),
        "Kinetics/c2/I3D_8x8_R50",
        "kinetics400/I3D_8x8_R50.pkl",
    ),
    _one_pathway(
        "i3d_nln_8x8_r50",
        Pathway(5, _I3D, pool=2, non_local=_NON_LOCAL),
        ("i3d",),
        "Kinetics/c2/I3D_NLN_8x8_R50",
        "kinetics400/I3D_NLN_8x8_R50.pkl",
    ),
    _one_pathway(
        "slow_4x16_r50",
        Pathway(1, _SLOW),
        ("slow",),
        "Kinetics/c2/SLOW_4x16_R50",
        "kinetics400/SLOWONLY_4x16_R50.pkl",
    ),
    _one_pathway(
        "slow_8x8_r50",
        Pathway(1, _SLOW),
        ("slow",),
        "Kinetics/c2/SLOW_8x8_R50",
        "kinetics400/SLOWONLY_8x8_R50.pkl",
    ),
    # 4x16 and 8x8 refer to the slow pathway. Windows have 32 frames, every second one of the video.
    _slowfast(
        "slowfast_4x16_r50",
        "Kinetics/c2/SLOWFAST_4x16_R50",
        f"{_ZOO}/kinetics400/SLOWFAST_4x16_R50.pkl",
        alpha=8,
        span=5,
    ),
    _slowfast(
        "slowfast_8x8_r50",
        "Kinetics/c2/SLOWFAST_8x8_R50",
        f"{_ZOO}/kinetics400/SLOWFAST_8x8_R50.pkl",
    ),
    # Trained at varying sizes, so the head takes the global mean at any size.
    _slowfast(
        "slowfast_8x8_r50_stepwise_multigrid",
        "Kinetics/SLOWFAST_8x8_R50_stepwise_multigrid",
        f"{_MULTIGRID}/Kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.pkl",
        window=None,
        crop=224,
    ),
    # Charades and SSv2 are read from images of frames, at any rate.
    _slowfast(
        "slowfast_16x8_r50_charades",
        "Charades/SLOWFAST_16x8_R50",
        f"{_MULTIGRID}/Charades/SLOWFAST_16x8_R50.pkl",
        frames=64,
        classes=157,
        fps=None,
    ),
    _slowfast(
        "slowfast_16x8_r50_charades_multigrid",
        "Charades/SLOWFAST_16x8_R50_multigrid",
        f"{_MULTIGRID}/Charades/SLOWFAST_16x8_R50_multigrid.pkl",
        frames=64,
        classes=157,
        fps=None,
        window=None,
    ),
    _slowfast(
        "slowfast_16x8_r50_ssv2",
        "SSv2/SLOWFAST_16x8_R50",
        f"{_MULTIGRID}/SSv2/SLOWFAST_16x8_R50.pkl",
        frames=64,
        classes=174,
        fps=None,
    ),
    _slowfast(
        "slowfast_16x8_r50_ssv2_multigrid",
        "SSv2/SLOWFAST_16x8_R50_multigrid",
        f"{_MULTIGRID}/SSv2/SLOWFAST_16x8_R50_multigrid.pkl",
        frames=64,
        classes=174,
        fps=None,
        window=None,
        crop=224,
    ),
    # The published head looks at boxes, which windows do not have. The feature is the global mean of its
    # input.
    _slowfast(
        "slowfast_16x8_r101_ava",
        "AVA/c2/SLOWFAST_64x2_R101_50_50",
        f"{_ZOO}/ava/SLOWFAST_64x2_R101_50_50.pkl",
        frames=64,
        span=5,
        window=None,
        ava=True,
        classes=80,
    ),
)
