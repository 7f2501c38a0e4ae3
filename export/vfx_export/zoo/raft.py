"""Optical flow by RAFT (Teed & Deng, 2020), as video_features runs it."""

from __future__ import annotations

from vfx_engines.spec import Output, Sampling, Transform
from vfx_export.backbones.raft import RAFT
from vfx_export.model import Download, Model

PAIRS = 4
"""Pairs in a window. A frame's feature map is computed once for both of its pairs, except between windows."""


def _row(name: str, trained_on: str, git_blob: str) -> Model:
    return Model(
        name=f"raft_{name}",
        source=f"princeton-vl/RAFT raft-{name}.pth ({trained_on}), as video_features keeps it",
        licence="BSD-3-Clause",
        download=Download(
            f"https://github.com/v-iashin/video_features/raw/master/models/raft/checkpoints/raft-{name}.pth",
            git_blob=git_blob,
        ),
        network=lambda head: RAFT(),
        layouts=lambda state: state,
        sampling=Sampling(frames=PAIRS + 1, stride=1, step=PAIRS, edges="repeat"),
        least_frames=1,
        transform=Transform(),
        blank=(128, 128, 128),
        feature=Output("raft", (PAIRS, 2, "height", "width"), per="pair"),
        labels=None,
        overlap=1,
        smallest_side=57,  # padded to 64; an eighth of that, 8, is halved to 1 pixel by the pyramid
    )


ROWS = (
    _row("sintel", "FlyingChairs, FlyingThings, Sintel", "e9ace903040d51abc4e0e6463a4072da78cedb9b"),
    _row("kitti", "FlyingChairs, FlyingThings, KITTI", "ddf86d90a4cbd729f08e59950fbb502fdf0d0fd2"),
)
