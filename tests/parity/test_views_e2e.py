"""Test-time views of real videos against PySlowFast's rules, computed here from the decoded frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import Exports, heavy, relative, rows_apart
from parity_kit import video
from tolerances import END_TO_END, ROUNDED_RESIZE
from vfx_runtime import Views, extract

NAME, FRAMES, STRIDE, CROP = "slow_4x16_r50", 4, 16, 256


def clips(path: Path, views: int) -> Any:
    """Normalised clips, view by view and crop by crop: float32 [views * 3, 4, 256, 256, 3]."""
    import av
    import torch
    import torch.nn.functional as F

    with av.open(path) as container:
        fps = float(container.streams.video[0].average_rate or 0)
        frames = [
            frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)
        ]
    length = max(1.0, STRIDE * FRAMES / 30 * fps)
    made = []
    for view in range(views):
        start = max(len(frames) - length, 0) * view / views
        places = torch.linspace(start, start + length - 1, FRAMES).clamp(0, len(frames) - 1).long()
        clip = torch.from_numpy(np.stack([frames[place] for place in places]))
        clip = ((clip.float() / 255 - 0.45) / 0.225).permute(0, 3, 1, 2)
        height, width = clip.shape[2:]
        assert height < width, "both videos lie"
        wide = math.floor(width / height * CROP)
        clip = F.interpolate(clip, (CROP, wide), mode="bilinear", align_corners=False)
        for left in (0, math.ceil((wide - CROP) / 2), wide - CROP):
            made.append(clip[..., left : left + CROP].permute(0, 2, 3, 1))
    return torch.stack(made)


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("v_GGSY1Qvo990.mp4", 2),
        ("v_ZNVhz7ctTq0_6f.mp4", 1),  # a tenth of a clip: the last frame again and again
        heavy("v_ZNVhz7ctTq0.mp4", 10),
    ],
)
def test_views_are_pyslowfasts(pyslowfast: Exports, name: str, views: int) -> None:
    import torch

    from vfx_export.catalogue import find

    module: Any = find(NAME).network(True).eval()
    module.load_state_dict(pyslowfast.state(NAME))
    module.pixels = torch.nn.Identity()  # the clips are floats that were never rounded
    with torch.no_grad():
        both = [module(part) for part in clips(video(name), views).split(3)]
    want, logits = (torch.cat(parts) for parts in zip(*both, strict=True))

    engine = pyslowfast(NAME, "fp32")
    kept = extract(video(name), engine, views=Views(views, 3, keep=True))
    assert rows_apart(kept.arrays["features"], want.numpy()) < ROUNDED_RESIZE

    averaged = extract(video(name), engine, views=Views(views, 3))
    assert rows_apart(averaged.arrays["features"], want.mean(0, keepdim=True).numpy()) < ROUNDED_RESIZE
    # Its tests add up probabilities of views, and not what they are made of.
    got = torch.from_numpy(averaged.arrays["logits"]).softmax(1)
    own = torch.from_numpy(kept.arrays["logits"]).softmax(1).mean(0, keepdim=True)
    assert relative(got.numpy(), own.numpy()) < END_TO_END
    assert relative(got.numpy(), logits.softmax(1).mean(0, keepdim=True).numpy()) < ROUNDED_RESIZE
