"""Optical flow by PWC-Net (Sun et al., 2018), as video_features ran it."""

from __future__ import annotations

from vfx_engines.spec import Output, Sampling, Transform
from vfx_export.backbones.pwc import PWCNet
from vfx_export.model import Download, Model

PAIRS = 4
"""Pairs in a window. A frame's pyramid is computed once for both of its pairs, except between windows."""

ROWS = (
    Model(
        name="pwc_sintel",
        source="sniklaus/pytorch-pwc, as video_features kept it until bd827df (converted weights)",
        licence="non-commercial use only",
        download=Download(
            "https://github.com/v-iashin/video_features/raw/bd827df/models/pwc/checkpoints/pwc_net_sintel.pt",
            git_blob="003fc9d54635881f84758edb5c3fea5918e54f83",
        ),
        network=lambda head: PWCNet(),
        layouts=lambda state: state,
        sampling=Sampling(frames=PAIRS + 1, stride=1, step=PAIRS, edges="repeat"),
        least_frames=1,
        transform=Transform(),
        blank=(0, 0, 0),
        feature=Output("pwc", (PAIRS, 2, "height", "width"), per="pair"),
        labels=None,
        overlap=1,
        # The measured error is 1.6e-2 on the parity kit's frames. Two of its pairs differ by 0.46.
        tolerances={"bf16": 3e-2},
    ),
)
