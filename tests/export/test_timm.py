"""``timm:<name>``, with the real timm where it can be imported."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vfx_engines import open_engine
from vfx_engines.errors import UsageError
from vfx_engines.spec import Crop, Resize
from vfx_export.catalogue import find
from vfx_export.exporting import export_model


@pytest.fixture
def timm() -> Any:
    try:
        return importlib.import_module("timm")
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        pytest.skip(f"timm cannot be imported here: {error}")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchvision" else object())
    with pytest.raises(UsageError, match="needs torchvision, which is not installed: pip install"):
        find("timm:resnet18")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs timm, which is not installed: pip install"):
        find("timm:resnet18")


def test_a_torchvision_of_another_torch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("timm", "timm.data"):
        monkeypatch.delitem(importlib.sys.modules, name, raising=False)
    with pytest.raises(
        UsageError, match=f"operator nms does not exist; install .* torch {torch.__version__[:4]}"
    ):
        find("timm:resnet18")


def test_an_unknown_model_names_near_ones(timm: Any) -> None:
    with pytest.raises(UsageError, match=r"has no such model; did you mean resnet18"):
        find("timm:resnet18x")


@pytest.mark.parametrize(
    ("name", "length", "full", "crop", "filter_"),
    [
        ("resnet18.a1_in1k", 512, 235, 224, "bicubic"),
        ("mobilenetv3_small_050.lamb_in1k", 1024, 256, 224, "bicubic"),
        ("deit_tiny_patch16_224.fb_in1k", 192, 248, 224, "bicubic"),
    ],
)
def test_the_pretrained_configuration_is_the_row(
    timm: Any, name: str, length: int, full: int, crop: int, filter_: Any
) -> None:
    row = find(f"timm:{name}")
    assert row.feature.shape == (length,)
    assert row.transform.resize == Resize("short_side", full, full, filter_)
    assert row.transform.crop == Crop(crop, crop, "centre_round")
    assert row.download.url == f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"


def test_features_are_those_of_timm_without_classifier(timm: Any, tmp_path: Path) -> None:
    name = "resnet18.a1_in1k"
    net = timm.create_model(name, pretrained=False).eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    spec = export_model(find(f"timm:{name}"), tmp_path / "a.onnx", checkpoint=tmp_path / "resnet18.pth")
    assert spec.model == f"timm:{name}"
    frames = np.random.default_rng(1).integers(0, 256, (2, 1, 224, 224, 3), np.uint8)
    mean, std = (torch.tensor(net.pretrained_cfg[key]) for key in ("mean", "std"))
    pixels = (torch.from_numpy(frames[:, 0]) / 255 - mean) / std
    net.reset_classifier(0)
    with torch.no_grad():
        want = net(pixels.permute(0, 3, 1, 2)).numpy()
    with open_engine(tmp_path / "a.onnx") as engine:
        got = engine.run(frames)["timm"]
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-4
