"""X3D as PySlowFast trained it on Kinetics-400."""

from __future__ import annotations

from functools import partial

from torch import nn

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.pixels import zero_blanks
from vfx_export.backbones.x3d import FEATURE, MEAN, STD, X3D
from vfx_export.fitting import unchanged
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model
from vfx_export.pyslowfast_config import trained_with

_SMALL = (3, 5, 11, 7)
_LARGE = (5, 10, 25, 15)


def _network(depths: tuple[int, int, int, int], train_crop: int, head: bool) -> nn.Module:
    return X3D(depths, train_crop, head=head)


def _row(
    size: str,
    depths: tuple[int, int, int, int],
    frames: int,
    stride: int,
    train_crop: int,
    test_crop: int,
    bf16: float,
) -> Model:
    return Model(
        name=f"x3d_{size}",
        source=f"PySlowFast configs/Kinetics/X3D_{size.upper()}.yaml",
        licence="not stated (PySlowFast's code: Apache-2.0)",
        download=Download(f"https://dl.fbaipublicfiles.com/pyslowfast/x3d_models/x3d_{size}.pyth"),
        network=partial(_network, depths, train_crop),
        layouts=unchanged,
        sampling=Sampling(frames=frames, stride=stride, step=frames * stride),
        least_frames=1,
        transform=Transform(
            Resize("short_side", test_crop, test_crop, "bilinear", antialias=False),
            Crop(test_crop, test_crop, "centre_ceil"),
        ),
        blank=(115, 115, 115),
        feature=Output("features", (FEATURE,)),
        labels=kinetics400,
        pools=True,
        config=trained_with(frames, stride, MEAN, STD),
        # Swish in 26 or more blocks, with 8 bits of mantissa.
        tolerances={"bf16": bf16},
        zero_blanks=zero_blanks,
        float32=("se.mean", "se.fc1", "se.fc2"),
    )


# Errors in bf16 with the parity kit's weights, the worst of the proof and the golden windows: XS 1.3e-2, S
# 6e-3, M 8e-3, L 5e-3. About twice as much is allowed, also for the unpooled map of XS (2.4e-2).
#
# The gates of squeeze-and-excitation stay float32. With them in bf16, M had an error of 0.20 for one input of
# the proof, and of 2.1e-2 for its golden windows. With these weights, the last gates are sigmoids of numbers
# in the hundreds, which are sums of terms three times as large, and 8 bits move such a number near zero by up
# to 1.5. In float32 the gates cost nothing measurable (0.19 CPU-seconds per window).
ROWS = (
    _row("xs", _SMALL, 4, 12, 160, 182, 3e-2),
    _row("s", _SMALL, 13, 6, 160, 182, 1.3e-2),
    _row("m", _SMALL, 16, 5, 224, 256, 2e-2),
    _row("l", _LARGE, 16, 5, 312, 356, 1e-2),
)
