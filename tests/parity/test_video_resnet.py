"""PySlowFast's ResNets and SlowFasts against its own code, at the crop of training and at that of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import Exports, heavy, relative
from parity_kit import kit
from tolerances import pyslowfast_parity
from vfx_engines import open_engine
from vfx_engines.spec import Crop, Resize, Transform

KITS = {
    "c2d_nopool_8x8_r50": "C2D_NOPOOL_8x8_R50",
    "c2d_8x8_r50": "C2D_8x8_R50",
    "i3d_8x8_r50": "I3D_8x8_R50",
    "i3d_nln_8x8_r50": "I3D_NLN_8x8_R50",
    "slow_4x16_r50": "SLOW_4x16_R50",
    "slow_8x8_r50": "SLOW_8x8_R50",
}
# The kit's case, the side of its crop, and what it calls what the head is given.
CASES = {"main": (224, "features"), "test256": (256, "window_features")}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("torch")
    return Exports(tmp_path_factory.mktemp("pyslowfast"), KITS)


def cropped(side: int) -> Transform:
    return Transform(Resize("short_side", side, side, "bilinear", antialias=False), Crop(side, side))


# The cheapest network in every precision, on both backends and at both sizes; the others once.
QUICK = [
    ("slow_4x16_r50", "fp32", "main", "openvino"),
    ("slow_4x16_r50", "fp32", "test256", "openvino"),
    ("slow_4x16_r50", "fp32", "test256", "onnxruntime"),
    ("slow_4x16_r50", "fp16", "test256", "onnxruntime"),
    ("slow_4x16_r50", "bf16", "test256", "openvino"),
    ("i3d_nln_8x8_r50", "fp32", "test256", "openvino"),
    ("i3d_8x8_r50", "bf16", "test256", "openvino"),
]
FULL = [(name, p, case, "openvino") for name in KITS for p in ("fp32", "fp16", "bf16") for case in CASES]
MATRIX = [*QUICK, *(heavy(*item) for item in FULL if item not in QUICK)]


@pytest.mark.parametrize(("name", "precision", "case", "backend"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    exports: Exports, name: str, precision: str, case: str, backend: Any
) -> None:
    golden = kit(KITS[name])
    side, pooled = CASES[case]
    path = exports.folder / f"{name}_{precision}_{side}.onnx"
    if not path.exists():
        exports.export(path, name, precision, seed=0, transform=cropped(side))
    with open_engine(path, backend=backend) as engine:
        got = engine.run(golden.images(case))
    allowed = pyslowfast_parity(precision, golden.spec["input_seed_difference"])
    for theirs, ours in ((pooled, "features"), ("logits", "logits")):
        assert relative(got[ours], golden.pixels[f"{case}.{theirs}"]) < allowed


@pytest.mark.parametrize(("name", "frames"), [("slow_4x16_r50", 3), heavy("i3d_nln_8x8_r50", 5)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_weights_lengths_and_sizes_agree_with_torch(
    exports: Exports, tmp_path: Path, name: str, frames: int, precision: str
) -> None:
    import torch

    from vfx_export.catalogue import find

    transform = Transform(Resize("short_side", 250, 250), Crop(230, 265))
    path = tmp_path / "other.onnx"
    exports.export(path, name, precision, seed=7, frames=frames, transform=transform)
    module = find(name).network(True).eval()
    module.load_state_dict(exports.state(name, 7))
    pixels = np.random.default_rng(3).integers(0, 256, (3, frames, 230, 265, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(pixels))
    with open_engine(path) as engine:
        got = engine.run(pixels)
    allowed = pyslowfast_parity(precision, kit(KITS[name]).spec["input_seed_difference"])
    for output, tensor in zip(("features", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < allowed


@pytest.mark.parametrize("name", KITS)
def test_keys_are_those_of_the_public_checkpoint(name: str) -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find

    with torch.device("meta"):
        state = find(name).network(False).state_dict()
    found = {key: list(value.shape) for key, value in state.items()}
    assert found == kit(KITS[name]).spec["keys"]


def test_windows_overlap_on_a_map_that_is_larger_than_in_training() -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.backbones.window_pool import window_mean

    x = torch.arange(64.0).reshape(1, 1, 1, 8, 8).square()
    weights = torch.tensor([1.0, 2, 2, 2, 2, 2, 2, 1]) / 14
    want = (x[0, 0, 0] * weights[:, None] * weights).sum()
    torch.testing.assert_close(window_mean(x, 7)[0, 0], want)
    torch.testing.assert_close(window_mean(x, 8), x.mean((2, 3, 4)))
    torch.testing.assert_close(window_mean(x, None), x.mean((2, 3, 4)))
