"""What PySlowFast's files and names say, and do not mean.

The rest of the traps have tests where their code has them: pools in tests/parity/test_video_resnet.py and
test_pools.py, containers in test_caffe2.py, missing key pools in tests/parity/test_mvit.py, slow frames in
test_video_resnet.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vfx_engines.errors import CheckpointError
from vfx_export.backbones.slowfast import slow_frames
from vfx_export.catalogue import find
from vfx_export.exporting import _load
from vfx_export.fitting import key_shapes
from vfx_export.pyslowfast_config import check_config


def config(**options: object) -> str:
    """As yacs dumps it: ``DATA__NUM_FRAMES=8`` is an option of the group DATA."""
    groups: dict[str, list[str]] = {}
    for name, value in options.items():
        group, _, option = name.partition("__")
        groups.setdefault(group, []).append(f"  {option}: {value}")
    return "".join(f"{group}:\n" + "\n".join(lines) + "\n" for group, lines in groups.items())


def fits(name: str, text: str) -> bool:
    row = find(name)
    try:
        check_config(text, row.config, model=name, file="a.pyth")
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("suffix", ["pkl", "pyth", "pt"])
def test_the_suffix_says_nothing_of_the_container(tmp_path: Path, suffix: str) -> None:
    """Multigrid's and AVA's ``.pkl`` are said to be torch's; Caffe2's come under any name."""
    import pickle

    import numpy as np

    row = find("slow_4x16_r50")
    state = {key: torch.full(shape, 0.5) for key, shape in key_shapes(row.network(False)).items()}
    torch.save({"epoch": 3, "model_state": state, "optimizer_state": {}}, tmp_path / f"a.{suffix}")
    module, _ = _load(row, False, [tmp_path / f"a.{suffix}"])
    assert bool((module.state_dict()["head.projection.bias"] == 0.5).all())
    blobs = {"conv1_w": np.ones((64, 3, 1, 7, 7), np.float32), "res_conv1_bn_riv": np.ones(64, np.float32)}
    (tmp_path / f"b.{suffix}").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    with pytest.raises(
        CheckpointError, match=r"does not fit slow_4x16_r50: 265 missing \(s1.pathway0_stem.bn"
    ):
        _load(row, False, [tmp_path / f"b.{suffix}"])


def test_no_tensor_is_left_random_without_a_word(tmp_path: Path) -> None:
    """PySlowFast loads what fits and logs the rest: a Slow in place of a C2D would keep random layers."""
    slow = find("slow_8x8_r50")
    state = {key: torch.zeros(shape) for key, shape in key_shapes(slow.network(False)).items()}
    torch.save({"model_state": state}, tmp_path / "C2D_8x8_R50.pkl")
    with pytest.raises(CheckpointError, match=r"does not fit c2d_8x8_r50: 9 misshapen"):
        _load(find("c2d_8x8_r50"), False, [tmp_path / "C2D_8x8_R50.pkl"])
    del state["s5.pathway0_res2.branch2.c_bn.running_var"]
    torch.save(state, tmp_path / "slow.pyth")
    with pytest.raises(CheckpointError, match=r"does not fit slow_8x8_r50: 1 missing"):
        _load(slow, False, [tmp_path / "slow.pyth"])


def test_c2d_without_its_pool_is_published_as_a_class_that_is_gone() -> None:
    published = config(MODEL__ARCH="c2d", MODEL__MODEL_NAME="ResNet_nopool")
    with_pool = config(MODEL__ARCH="c2d", MODEL__MODEL_NAME="ResNet")
    assert [fits("c2d_nopool_8x8_r50", text) for text in (published, with_pool)] == [True, False]
    assert [fits("c2d_8x8_r50", text) for text in (published, with_pool)] == [False, True]


def test_the_class_token_of_rev_mvits_config_is_not_there(tmp_path: Path) -> None:
    row = find("rev_mvit_b_16x4")
    with torch.device("meta"):
        shapes = key_shapes(row.network(False))
    assert "cls_token" not in shapes
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    cfg = config(DATA__NUM_FRAMES=16, DATA__SAMPLING_RATE=4, MODEL__ARCH="slow", MVIT__CLS_EMBED_ON="true")
    torch.save({"model_state": state, "cfg": cfg}, tmp_path / "a.pyth")
    _load(row, False, [tmp_path / "a.pyth"])
    torch.save({"model_state": {**state, "cls_token": torch.zeros(1, 1, 96)}}, tmp_path / "b.pyth")
    with pytest.raises(CheckpointError, match=r"1 unknown \(cls_token\)"):
        _load(row, False, [tmp_path / "b.pyth"])


@pytest.mark.parametrize("name", ["slowfast_16x8_r50_charades", "slowfast_16x8_r50_ssv2"])
def test_reversed_channels_are_of_a_reader_and_not_of_the_network(name: str) -> None:
    """REVERSE_INPUT_CHANNEL turns what OpenCV read into RGB: the network takes RGB, as all of them."""
    text = config(DATA__NUM_FRAMES=64, DATA__SAMPLING_RATE=2, DATA__REVERSE_INPUT_CHANNEL="true")
    assert fits(name, text)


@pytest.mark.parametrize("name", ["slow_4x16_r50", "slowfast_16x8_r50_charades", "x3d_xs"])
def test_pixels_are_red_green_blue(name: str) -> None:
    """With weights of the first channel alone, red is all that a network sees."""
    row = find(name)
    stem = row.network(False).eval().get_submodule("s1")["pathway0_stem"]
    first = stem.conv_xy if name == "x3d_xs" else stem.conv
    with torch.no_grad():
        first.weight[:, 1:] = 0
    grey = torch.full((1, 4, 32, 32, 3), 115, dtype=torch.uint8)

    def seen(channel: int | None) -> torch.Tensor:
        frames = grey.clone()
        if channel is not None:
            frames[..., channel] = 255
        if name == "x3d_xs":
            from vfx_export.backbones.pixels import normalised
            from vfx_export.backbones.x3d import MEAN, STD

            return stem(normalised(frames, MEAN, STD).permute(0, 4, 1, 2, 3))
        return stem(frames)

    with torch.no_grad():
        still, red, green, blue = (seen(channel) for channel in (None, 0, 1, 2))
    assert torch.equal(still, green)
    assert torch.equal(still, blue)
    assert not torch.equal(still, red)


def test_8x8_is_of_the_slow_pathway() -> None:
    """A window is 32 frames; 8 of them are the slow pathway's."""
    row = find("slowfast_8x8_r50")
    assert (row.sampling.frames, row.sampling.stride, len(slow_frames(32, 4))) == (32, 2, 8)
    assert not fits(row.name, config(DATA__NUM_FRAMES=8, DATA__SAMPLING_RATE=8))
    assert slow_frames(8, 4) == [0, 7]


@pytest.mark.parametrize(
    ("name", "other"),
    [("x3d_xs", "x3d_s"), ("x3d_s", "x3d_m"), ("mvitv2_s_16x4", "mvitv2_b_32x3")],
)
def test_networks_of_the_same_keys_are_told_apart_by_their_configs(name: str, other: str) -> None:
    row = find(name)
    text = config(DATA__NUM_FRAMES=row.sampling.frames, DATA__SAMPLING_RATE=row.sampling.stride)
    assert fits(name, text)
    assert not fits(other, text)


def test_the_pixels_of_mvitv2_l_are_imagenets() -> None:
    text = config(DATA__MEAN="[0.45, 0.45, 0.45]", DATA__STD="[0.225, 0.225, 0.225]")
    assert fits("mvitv2_b_32x3", text)
    assert not fits("mvitv2_l_40x3", text)
