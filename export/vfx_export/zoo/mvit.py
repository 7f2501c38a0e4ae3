"""MViT as PySlowFast trained it on Kinetics-400."""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.mvit import MViT
from vfx_export.backbones.mvit_plan import Block, Triple, from_shapes, published
from vfx_export.backbones.pixels import Colour, zero_blanks
from vfx_export.backbones.rev_mvit import RevMViT
from vfx_export.fitting import Shapes, unchanged
from vfx_export.labels import kinetics400
from vfx_export.model import Download, Model
from vfx_export.pyslowfast_config import trained_with

_GREY = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ZOO = "https://dl.fbaipublicfiles.com/pyslowfast"
_FILES_2 = f"{_ZOO}/model_zoo/mvitv2/pysf_video_models"


def _blocks_1(depth: int, frames: int, pooled: Triple, kernel: Triple | None) -> tuple[Block, ...]:
    return published(
        depth, (frames // 2, 56, 56), pooled, width=96, head_width=96, in_attention=False, kernel=kernel
    )


def _blocks_2(depth: int, frames: int, size: int, pooled: Triple, width: int) -> tuple[Block, ...]:
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


def _version_1(blocks: tuple[Block, ...], head: bool) -> nn.Module:
    return MViT(blocks, *_GREY, relative=False, head=head)


def _as_in_file(blocks: tuple[Block, ...], shapes: Shapes, head: bool) -> nn.Module:
    return _version_1(from_shapes(shapes, blocks[0].grid) or blocks, head)


def _version_2(blocks: tuple[Block, ...], colours: tuple[Colour, Colour], head: bool) -> nn.Module:
    return MViT(blocks, *colours, relative=True, head=head)


def _reversible(blocks: tuple[Block, ...], head: bool) -> nn.Module:
    return RevMViT(blocks, *_GREY, head=head)


def _row(
    name: str,
    config: str,
    download: Download,
    blocks: tuple[Block, ...],
    stride: int,
    short_side: int,
    bf16: float,
    colours: tuple[Colour, Colour] = _GREY,
) -> Model:
    frames, size = 2 * blocks[0].grid[0], 4 * blocks[0].grid[1]
    red, green, blue = (round(255 * value) for value in colours[0])
    return Model(
        name=name,
        source=f"PySlowFast configs/Kinetics/{config}.yaml",
        licence="not stated (PySlowFast's code: Apache-2.0)",
        download=download,
        network=partial(_version_2, blocks, colours),
        layouts=unchanged,
        sampling=Sampling(frames=frames, stride=stride, step=frames * stride),
        least_frames=frames,
        transform=Transform(
            Resize("short_side", short_side, short_side, "bilinear", antialias=False),
            Crop(size, size, "centre_ceil"),
        ),
        blank=(red, green, blue),
        feature=Output("features", (blocks[-1].leaves,)),
        labels=kinetics400,
        pools=True,
        config=trained_with(frames, stride, *colours),
        fixed_frames=True,
        # 16 to 48 blocks of attention, with 8 bits of mantissa.
        tolerances={"bf16": bf16},
        zero_blanks=zero_blanks,
    )


def _row_1(name: str, config: str, download: Download, blocks: tuple[Block, ...], stride: int) -> Model:
    return dataclasses.replace(
        _row(name, config, download, blocks, stride, 256, 2e-2),
        network=partial(_version_1, blocks),
        network_of=partial(_as_in_file, blocks),
    )


def _row_reversible(
    name: str, config: str, download: Download, blocks: tuple[Block, ...], stride: int
) -> Model:
    return dataclasses.replace(
        _row(name, config, download, blocks, stride, 256, 1.5e-2),
        network=partial(_reversible, blocks),
        # Two concatenated streams.
        feature=Output("features", (2 * blocks[-1].leaves,)),
    )


# Errors in bf16 with the parity kit's weights, the worst of the proof and the golden windows: version 1
# 1.0e-2, version 2 S 1.4e-2, B 1.3e-2, L 1.2e-2, reversible 7.5e-3. About twice as much is allowed. The
# features of different clips differ by 0.7 to 1.2.
ROWS = (
    _row_1(
        "mvit_b_16x4",
        "MVIT_B_16x4_CONV",
        Download(
            "https://drive.google.com/uc?id=194gJinVejq6A1FmySNKQ8vAN5-FOY-QL",
            dead="reported gone in 2023 (github.com/eladb3/ORViT, issue 13)",
        ),
        _blocks_1(16, 16, (1, 3, 14), (3, 3, 3)),
        stride=4,
    ),
    _row_1(
        "mvit_b_32x3",
        "MVIT_B_32x3_CONV",
        Download(f"{_ZOO}/model_zoo/mvit/k400.pyth"),
        _blocks_1(24, 32, (2, 5, 21), None),
        stride=3,
    ),
    _row(
        "mvitv2_s_16x4",
        "MVITv2_S_16x4",
        Download(f"{_FILES_2}/MViTv2_S_16x4_k400_f302660347.pyth"),
        _blocks_2(16, 16, 224, (1, 3, 14), 96),
        stride=4,
        short_side=256,
        bf16=3e-2,
    ),
    _row(
        "mvitv2_b_32x3",
        "MVITv2_B_32x3",
        Download(f"{_FILES_2}/MViTv2_B_32x3_k400_f304025456.pyth"),
        _blocks_2(24, 32, 224, (2, 5, 21), 96),
        stride=3,
        short_side=256,
        bf16=3e-2,
    ),
    _row(
        "mvitv2_l_40x3",
        "MVITv2_L_40x3_test",
        Download(f"{_FILES_2}/MViTv2_L_40x3_k400_f306903192.pyth"),
        _blocks_2(48, 40, 312, (2, 8, 44), 144),
        stride=3,
        short_side=312,
        bf16=2.5e-2,
        colours=_IMAGENET,
    ),
    _row_reversible(
        "rev_mvit_b_16x4",
        "REV_MVIT_B_16x4_CONV",
        Download(f"{_ZOO}/rev/REV_MVIT_B_16x4.pyth"),
        published(16, (8, 56, 56), (1, 3, 14), width=96, head_width=96, in_attention=True, kernel=(3, 3, 3)),
        stride=4,
    ),
)
