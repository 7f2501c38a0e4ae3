"""2D weights of ImageNet in PySlowFast's networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exports import relative
from parity_kit import kit
from tolerances import MAP_PARITY
from vfx_engines.errors import CheckpointError, UsageError
from vfx_export.backbones import resnet, video_resnet
from vfx_export.catalogue import CATALOGUE, find
from vfx_export.exporting import _load, export_model
from vfx_export.fitting import key_shapes
from vfx_export.inflating import inflated


def flat(depth: int = 50) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(np.array(value)) for key, value in kit(f"resnet{depth}").checkpoint().items()
    }


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imagenet") / "resnet50.pth"
    torch.save(flat(), path)
    return path


def test_a_network_without_kernels_over_time_gives_the_mean_of_its_frames(
    imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PySlowFast's pixels are not ImageNet's: for the comparison both take the same.
    monkeypatch.setattr(resnet, "MEAN", video_resnet.MEAN)
    monkeypatch.setattr(resnet, "STD", video_resnet.STD)
    pictures = find("resnet50").network(False).eval()
    pictures.load_state_dict(flat())
    module, weights = _load(find("c2d_nopool_8x8_r50"), False, [imagenet], inflate=True)
    assert weights.licence == "that of the 2D weights"
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224, 3), np.uint8))
    with torch.no_grad():
        (got,) = module.eval()(frames)
        (want,) = pictures(frames[0, :, None])
    assert relative(got[0].numpy(), want.mean(0).numpy()) < MAP_PARITY


@pytest.mark.parametrize("name", ["slow_8x8_r50", "i3d_8x8_r50", "c2d_8x8_r50"])
def test_kernels_over_time_sum_to_those_of_the_picture(imagenet: Path, name: str) -> None:
    module, _ = _load(find(name), False, [imagenet], inflate=True)
    state, pictures = module.state_dict(), flat()
    pairs = {
        "s1.pathway0_stem.conv.weight": "conv1.weight",
        "s1.pathway0_stem.bn.running_var": "bn1.running_var",
        "s2.pathway0_res0.branch1.weight": "layer1.0.downsample.0.weight",
        "s2.pathway0_res0.branch1_bn.bias": "layer1.0.downsample.1.bias",
        "s4.pathway0_res5.branch2.a.weight": "layer3.5.conv1.weight",
        "s5.pathway0_res2.branch2.b_bn.weight": "layer4.2.bn2.weight",
        "s5.pathway0_res2.branch2.c.weight": "layer4.2.conv3.weight",
    }
    for key, theirs in pairs.items():
        value = state[key]
        if value.ndim == 5:
            assert torch.equal(value, value[:, :, :1].expand_as(value))
            value = value.sum(2)
        torch.testing.assert_close(value, pictures[theirs])
    assert not state["head.projection.weight"].any()


def test_pyslowfasts_own_2d_weights_bring_their_classifier() -> None:
    wanted = key_shapes(find("slow_4x16_r50").network(False))
    own = {
        key: torch.ones(shape[:2] + shape[3:] if len(shape) == 5 else shape) for key, shape in wanted.items()
    }
    found = inflated(own, wanted, head=True, file="2d.pyth")
    assert {key: tuple(value.shape) for key, value in found.items()} == wanted
    assert bool((found["head.projection.weight"] == 1).all())
    assert float(found["s5.pathway0_res0.branch2.a.weight"].max()) == pytest.approx(1 / 3)


def test_what_cannot_be_inflated_is_said(imagenet: Path, tmp_path: Path) -> None:
    row = find("slow_4x16_r50")
    with pytest.raises(CheckpointError, match=r"no classifier of this network inside; leave --head out"):
        export_model(row, tmp_path / "a.onnx", checkpoint=imagenet, head=True, inflate=True)
    with pytest.raises(CheckpointError, match=r"does not fit slow_4x16_r50: .*missing"):
        export_model(row, tmp_path / "a.onnx", checkpoint=imagenet)
    torch.save(flat(18), tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"resnet18.pth does not fit slow_4x16_r50: .*missing"):
        export_model(row, tmp_path / "a.onnx", checkpoint=tmp_path / "resnet18.pth", inflate=True)
    torch.save({"a.weight": torch.ones(2, 2, 1, 3, 3)}, tmp_path / "video.pyth")
    with pytest.raises(CheckpointError, match="no 2D convolutions inside; leave it out for video weights"):
        export_model(row, tmp_path / "a.onnx", checkpoint=tmp_path / "video.pyth", inflate=True)
    for name in ("i3d", "i3d_nln_8x8_r50", "slowfast_8x8_r50", "x3d_m"):
        with pytest.raises(UsageError, match=f"--inflate: {name} cannot be made of a 2D ResNet's weights"):
            export_model(find(name), tmp_path / "a.onnx", checkpoint=imagenet, inflate=True)
    assert sum(item.inflates for item in CATALOGUE) == 5
