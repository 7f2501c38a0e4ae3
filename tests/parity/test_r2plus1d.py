"""R(2+1)D against torchvision's and ig65m-pytorch's, and window by window against video_features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import Exports, heavy, heavy_in_ci, relative, rows_apart
from parity_kit import e2e, kit, video
from tolerances import PARITY, ROUNDED_RESIZE
from vfx_engines import open_engine
from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime import extract

LAYERS_18 = "r2plus1d_18_16_kinetics"
LAYERS_34_32 = "r2plus1d_34_32_ig65m_ft_kinetics"
LAYERS_34_8 = "r2plus1d_34_8_ig65m_ft_kinetics"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("torch")
    return Exports(tmp_path_factory.mktemp("r2plus1d"))


# All rows are made of the same blocks: fp16 by default at another size, in CI a longer window in bf16.
MATRIX = [
    (LAYERS_18, "fp32", "openvino"),
    (LAYERS_18, "fp32", "onnxruntime"),
    heavy_in_ci(LAYERS_18, "fp16", "onnxruntime"),
    *(heavy(LAYERS_34_32, precision, "openvino") for precision in ("fp32", "fp16", "bf16")),
    *(heavy(LAYERS_34_8, precision, "openvino") for precision in ("fp32", "fp16", "bf16")),
    heavy(LAYERS_34_8, "fp32", "onnxruntime"),
]


@pytest.mark.parametrize(("name", "precision", "backend"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    exports: Exports, name: str, precision: str, backend: Any
) -> None:
    golden = kit(name)
    with open_engine(exports(name, precision), backend=backend) as engine:
        got = engine.run(golden.images())
    for theirs, ours in (("features", "r21d"), ("logits", "logits")):
        assert relative(got[ours], golden.pixels[f"main.{theirs}"]) < PARITY[precision]


@pytest.mark.slow
@pytest.mark.ci
def test_a_longer_window_gives_the_golden_numbers(exports: Exports, tmp_path: Path) -> None:
    golden = kit(LAYERS_18)
    spec = exports.export(tmp_path / "t32.onnx", LAYERS_18, "bf16", seed=0, frames=32)
    assert (spec.sampling.frames, spec.sampling.step) == (32, 32)
    with open_engine(tmp_path / "t32.onnx") as engine:
        got = engine.run(golden.images("t32"))
    assert relative(got["r21d"], golden.pixels["t32.features"]) < PARITY["bf16"]


@pytest.mark.parametrize("precision", [heavy_in_ci("fp32"), heavy_in_ci("fp16")])
def test_other_weights_lengths_and_sizes_agree_with_torch(
    exports: Exports, tmp_path: Path, precision: str
) -> None:
    import torch

    from vfx_export.catalogue import find

    exports.export(
        tmp_path / "other.onnx",
        LAYERS_18,
        precision,
        seed=7,
        frames=5,
        transform=Transform(Resize("short_side", 100, 100), Crop(73, 96)),
    )
    module = find(LAYERS_18).network(True).eval()
    module.load_state_dict(exports.state(LAYERS_18, 7))
    frames = np.random.default_rng(3).integers(0, 256, (3, 5, 73, 96, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(frames))
    with open_engine(tmp_path / "other.onnx") as engine:
        got = engine.run(frames)
    for output, tensor in zip(("r21d", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < PARITY[precision]


@pytest.mark.parametrize(
    ("job", "name"),
    [("r21d_18", LAYERS_18), heavy("r21d_34_32", LAYERS_34_32), heavy("r21d_34_8", LAYERS_34_8)],
)
def test_rows_of_a_video_are_those_of_video_features(exports: Exports, job: str, name: str) -> None:
    """video_features writes no times for this family."""
    got = extract(video("v_GGSY1Qvo990.mp4"), exports(name, "fp32"))
    assert rows_apart(got.arrays["r21d"], e2e(job)["r21d"]) < ROUNDED_RESIZE
