"""MViT as PySlowFast trained it on Kinetics-400."""

from __future__ import annotations

from functools import partial

from torch import nn

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.mvit import MViT
from vfx_export.backbones.mvit_plan import Block, published
from vfx_export.backbones.pixels import Colour
from vfx_export.fitting import unchanged
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model

_GREY = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ZOO = "https://dl.fbaipublicfiles.com/pyslowfast"
_VERSION_2 = f"{_ZOO}/model_zoo/mvitv2/pysf_video_models"


def _version_2(depth: int, frames: int, size: int, pooled: tuple[int, int, int], width: int) -> tuple[Block, ...]:
    return published(
        depth,
        (frames // 2, size // 4, size // 4),
        pooled,
        width=width,
        head_width=width if width == 96 else width // 2,
        in_attention=True,
        kernel=(3, 3, 3),
        query_everywhere=True,
    )


def _network(blocks: tuple[Block, ...], mean: Colour, std: Colour, relative: bool, head: bool) -> nn.Module:
    return MViT(blocks, mean, std, relative=relative, head=head)


def _row(
    name: str,
    config: str,
    url: str,
    blocks: tuple[Block, ...],
    stride: int,
    short_side: int,
    colours: tuple[Colour, Colour] = _GREY,
    relative: bool = True,
) -> Model:
    frames, size = 2 * blocks[0].grid[0], 4 * blocks[0].grid[1]
    red, green, blue = (round(255 * value) for value in colours[0])
    return Model(
        name=name,
        source=f"PySlowFast configs/Kinetics/{config}.yaml",
        licence="not stated (PySlowFast's code: Apache-2.0)",
        download=Download(url),
        network=partial(_network, blocks, *colours, relative),
        layouts=unchanged,
        sampling=Sampling(frames=frames, stride=stride, step=frames * stride),
        least_frames=frames,
        transform=Transform(
            Resize("short_side", short_side, short_side, "bilinear", antialias=False),
            Crop(size, size, "centre_floor"),
        ),
        blank=(red, green, blue),
        feature=Output("features", (blocks[-1].leaves,)),
        labels=kinetics400,
        fixed_frames=True,
    )


ROWS = (
    _row(
        "mvitv2_s_16x4",
        "MVITv2_S_16x4",
        f"{_VERSION_2}/MViTv2_S_16x4_k400_f302660347.pyth",
        _version_2(16, 16, 224, (1, 3, 14), 96),
        4,
        256,
    ),
    _row(
        "mvitv2_b_32x3",
        "MVITv2_B_32x3",
        f"{_VERSION_2}/MViTv2_B_32x3_k400_f304025456.pyth",
        _version_2(24, 32, 224, (2, 5, 21), 96),
        3,
        256,
    ),
    _row(
        "mvitv2_l_40x3",
        "MVITv2_L_40x3_test",
        f"{_VERSION_2}/MViTv2_L_40x3_k400_f306903192.pyth",
        _version_2(48, 40, 312, (2, 8, 44), 144),
        3,
        312,
        _IMAGENET,
    ),
)
