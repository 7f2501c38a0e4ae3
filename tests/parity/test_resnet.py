"""ResNet against torchvision's, and frame by frame against video_features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import Exports, heavy, relative, rows_apart
from parity_kit import e2e, kit, video
from tolerances import END_TO_END, PARITY, TIMESTAMP_MS
from vfx_engines import open_engine
from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime import extract


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("torch")
    return Exports(tmp_path_factory.mktemp("resnet"))


# Depth changes nothing but the number of blocks: both kinds of block by default, the deep networks are CI's.
MATRIX = [
    ("resnet18", "fp32", "openvino"),
    ("resnet18", "fp32", "onnxruntime"),
    ("resnet18", "fp16", "openvino"),
    ("resnet18", "fp16", "onnxruntime"),
    ("resnet18", "bf16", "openvino"),
    heavy("resnet34", "fp16", "onnxruntime"),
    ("resnet50", "fp32", "openvino"),
    ("resnet50", "fp32", "onnxruntime"),
    heavy("resnet101", "bf16", "openvino"),
    heavy("resnet152", "fp16", "onnxruntime"),
    *(
        heavy(f"resnet{layers}", precision, "openvino")
        for layers, precisions in {34: ("fp32", "bf16"), 50: ("fp16", "bf16"), 101: ("fp32", "fp16")}.items()
        for precision in precisions
    ),
    heavy("resnet152", "fp32", "openvino"),
    heavy("resnet152", "bf16", "openvino"),
]


@pytest.mark.parametrize(("name", "precision", "backend"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    exports: Exports, name: str, precision: str, backend: Any
) -> None:
    golden = kit(name)
    with open_engine(exports(name, precision), backend=backend) as engine:
        got = engine.run(golden.images())
    for theirs, ours in (("features", "resnet"), ("logits", "logits")):
        assert relative(got[ours], golden.pixels[f"main.{theirs}"]) < PARITY[precision]


@pytest.mark.parametrize("precision", [heavy("fp32"), "fp16"])
def test_other_weights_and_sizes_agree_with_torch(exports: Exports, tmp_path: Path, precision: str) -> None:
    import torch

    from vfx_export.backbones.resnet import ResNet

    exports.export(
        tmp_path / "other.onnx",
        "resnet18",
        precision,
        seed=7,
        transform=Transform(Resize("short_side", 200, 200), Crop(131, 192)),
    )
    module = ResNet(18, head=True).eval()
    module.load_state_dict(exports.state("resnet18", 7))
    frames = np.random.default_rng(3).integers(0, 256, (3, 1, 131, 192, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(frames))
    with open_engine(tmp_path / "other.onnx") as engine:
        got = engine.run(frames)
    for output, tensor in zip(("resnet", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < PARITY[precision]


@pytest.mark.parametrize(
    ("job", "name", "fps"),
    [
        ("resnet18", "resnet18", None),
        ("resnet50_fps4_lossless", "resnet50", 4),
        heavy("resnet50", "resnet50", None),
    ],
)
def test_rows_of_a_video_are_those_of_video_features(
    exports: Exports, job: str, name: str, fps: float | None
) -> None:
    want = e2e(job)
    got = extract(video("v_GGSY1Qvo990.mp4"), exports(name, "fp32"), fps=fps)
    assert got.fps == pytest.approx(float(want["fps"]))
    np.testing.assert_allclose(got.timestamps_ms[:, 0], want["timestamps_ms"], atol=TIMESTAMP_MS)
    assert rows_apart(got.arrays["resnet"], want["resnet"]) < END_TO_END


@pytest.mark.parametrize("name", ["resnet18", "resnet152"])
def test_only_single_frames_fit(tmp_path: Path, name: str) -> None:
    from vfx_engines.errors import UsageError
    from vfx_export.catalogue import find

    with pytest.raises(UsageError, match=f"--frames 4: {name} takes windows of 1 and no other length"):
        find(name).windows(4)
    assert find(name).windows(1) == find(name).sampling


def test_random_weights_stay_far_within_the_range_of_fp16() -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.exporting import random_weights

    module = find("resnet152").network(False).eval()
    random_weights(module)
    largest: list[float] = []
    for part in module.modules():
        if not list(part.children()):
            part.register_forward_hook(lambda _, __, out: largest.append(float(out.abs().max())))
    frames = np.random.default_rng(0).integers(0, 256, (1, 1, 96, 96, 3), np.uint8)
    with torch.no_grad():
        module(torch.from_numpy(frames))
    assert largest[-1] > 0.1
    assert max(largest) < 1000
