"""X3D against PySlowFast's, at the training and the test crop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import Exports, heavy, heavy_in_ci, relative
from parity_kit import kit
from tolerances import PARITY, X3D_AT_TRAINING_CROP, seed_parity
from vfx_engines import open_engine
from vfx_engines.spec import Crop, Transform

# Row -> the kit's case of the test crop, and the training crop.
CROPS = {
    "x3d_xs": ("test182", 160),
    "x3d_s": ("test182", 160),
    "x3d_m": ("test256", 224),
    "x3d_l": ("test356", 312),
}


class _Exports(Exports):
    """At either crop: ``x3d_m`` is the row, ``x3d_m:main`` the same at the training crop."""

    def __call__(self, name: str, precision: str) -> Path:
        row, _, case = name.partition(":")
        path = self.folder / f"{row}_{case}_{precision}.onnx"
        if not path.exists():
            self.export(path, row, precision, seed=0, **(cropped(row, CROPS[row][1]) if case else {}))
        return path

    def state(self, name: str, seed: int = 0) -> dict[str, Any]:
        return super().state(name.upper(), seed)


def cropped(name: str, size: int) -> dict[str, Any]:
    from vfx_export.catalogue import find

    resize = find(name).transform.resize
    assert resize is not None
    return {
        "transform": Transform(dataclasses.replace(resize, height=size, width=size), Crop(size, size)),
        "tolerances": X3D_AT_TRAINING_CROP,
    }


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("torch")
    return _Exports(tmp_path_factory.mktemp("x3d"))


# XS, S and M are one network at other sizes; L is deeper.
MATRIX = [
    ("x3d_xs", "fp32", "openvino"),
    ("x3d_xs", "fp32", "onnxruntime"),
    ("x3d_xs", "bf16", "openvino"),
    heavy_in_ci("x3d_xs", "fp16", "onnxruntime"),
    heavy_in_ci("x3d_xs:main", "fp32", "openvino"),
    *(
        heavy(f"x3d_{size}{case}", precision, "openvino")
        for size in "sml"
        for case in ("", ":main")
        for precision in ("fp32", "fp16", "bf16")
    ),
    heavy("x3d_m", "fp16", "onnxruntime"),
    heavy("x3d_l", "fp32", "onnxruntime"),
]


@pytest.mark.parametrize(("name", "precision", "backend"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    exports: Exports, name: str, precision: str, backend: Any
) -> None:
    row, _, case = name.partition(":")
    case = case or CROPS[row][0]
    golden = kit(row.upper())
    with open_engine(exports(name, precision), backend=backend) as engine:
        got = engine.run(golden.images(case))
    allowed = seed_parity(precision, golden.spec["input_seed_difference"])
    for theirs, ours in (("lin5", "features"), ("logits", "logits")):
        assert relative(got[ours], golden.pixels[f"{case}.{theirs}"]) < allowed


@pytest.mark.parametrize("precision", [heavy_in_ci("fp32"), heavy_in_ci("fp16")])
def test_other_weights_and_sizes_agree_with_torch(exports: Exports, tmp_path: Path, precision: str) -> None:
    """Sides that are odd at every stage, and a window of its own length."""
    import torch

    from vfx_export.catalogue import find

    path = tmp_path / "other.onnx"
    exports.export(path, "x3d_xs", precision, seed=7, frames=3, **cropped("x3d_xs", 173))
    module = find("x3d_xs").network(True).eval()
    module.load_state_dict(exports.state("x3d_xs", 7))
    frames = np.random.default_rng(3).integers(0, 256, (3, 3, 173, 173, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(frames))
    with open_engine(path) as engine:
        got = engine.run(frames)
    for output, tensor in zip(("features", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < PARITY[precision]
