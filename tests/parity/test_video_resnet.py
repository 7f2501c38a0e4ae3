"""PySlowFast's ResNets and SlowFasts against its own code, at the crop of training and at that of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import PYSLOWFAST, Exports, heavy, heavy_in_ci, relative
from parity_kit import kit
from tolerances import seed_parity
from vfx_engines import open_engine
from vfx_engines.spec import Crop, Resize, Transform

# The kit's case and the side of its crop.
CASES = {"main": 224, "test256": 256}
# Heads that take the global mean at any size.
GLOBAL = {name for name in PYSLOWFAST if "multigrid" in name or "ava" in name}


def cropped(side: int) -> Transform:
    return Transform(Resize("short_side", side, side, "bilinear", antialias=False), Crop(side, side))


# By default the cheapest network on both backends, at the size that the row has. CI has the other precisions
# too, on it, on a network with non-local blocks, and on one with two pathways.
QUICK = [
    ("slow_4x16_r50", "fp32", "test256", "openvino"),
    ("slow_4x16_r50", "fp32", "test256", "onnxruntime"),
]
IN_CI = [
    ("i3d_nln_8x8_r50", "fp16", "test256", "onnxruntime"),
    ("slowfast_4x16_r50", "bf16", "test256", "openvino"),
    ("slow_4x16_r50", "fp16", "test256", "onnxruntime"),
    ("i3d_nln_8x8_r50", "fp32", "test256", "openvino"),
]
FULL = [
    (name, precision, case, "openvino")
    for name in PYSLOWFAST
    for precision in ("fp32", "fp16", "bf16")
    for case in CASES
    if case == "main" or "ssv2" not in name  # of which the kit has one size
]
MATRIX = [
    *QUICK,
    *(heavy_in_ci(*item) for item in IN_CI),
    *(heavy(*item) for item in FULL if item not in [*QUICK, *IN_CI]),
]


@pytest.mark.parametrize(("name", "precision", "case", "backend"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    pyslowfast: Exports, name: str, precision: str, case: str, backend: Any
) -> None:
    from vfx_export.catalogue import find

    golden = kit(PYSLOWFAST[name])
    windows = golden.images(case)
    frames = windows.shape[1]
    path = pyslowfast.folder / f"{name}_{precision}_{case}.onnx"
    crop = find(name).transform.crop
    if crop is not None and crop.height == CASES[case] and frames == find(name).windows(None).frames:
        path = pyslowfast(name, precision)  # the row as it is, which other tests have too
    elif not path.exists():
        pyslowfast.export(path, name, precision, seed=0, frames=frames, transform=cropped(CASES[case]))
    with open_engine(path, backend=backend) as engine:
        got = engine.run(windows)
    allowed = seed_parity(precision, golden.spec["input_seed_difference"])
    whole = case == "main" or name in GLOBAL
    theirs = f"{case}.{'features' if whole else 'window_features'}"
    assert relative(got["features"], golden.pixels[theirs]) < allowed
    # The kit has logits of windows, and none of the network of boxes.
    if f"{case}.logits" in golden.pixels and (case == "main" or not whole):
        assert relative(got["logits"], golden.pixels[f"{case}.logits"]) < allowed


@pytest.mark.parametrize(
    ("name", "frames", "precision"),
    [
        heavy_in_ci("slow_4x16_r50", 3, "bf16"),
        heavy("i3d_nln_8x8_r50", 5, "fp32"),
        heavy("slowfast_4x16_r50", 16, "fp32"),
        heavy("slowfast_4x16_r50", 8, "fp16"),
    ],
)
def test_other_weights_lengths_and_sizes_agree_with_torch(
    pyslowfast: Exports, tmp_path: Path, name: str, frames: int, precision: str
) -> None:
    import torch

    from vfx_export.catalogue import find

    transform = Transform(Resize("short_side", 250, 250), Crop(230, 265))
    path = tmp_path / "other.onnx"
    pyslowfast.export(path, name, precision, seed=7, frames=frames, transform=transform)
    module = find(name).network(True).eval()
    module.load_state_dict(pyslowfast.state(name, 7))
    pixels = np.random.default_rng(3).integers(0, 256, (3, frames, 230, 265, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(pixels))
    with open_engine(path) as engine:
        got = engine.run(pixels)
    allowed = seed_parity(precision, kit(PYSLOWFAST[name]).spec["input_seed_difference"])
    for output, tensor in zip(("features", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < allowed


@pytest.mark.parametrize(
    ("frames", "alpha", "picked"),
    [
        (32, 4, [0, 4, 8, 13, 17, 22, 26, 31]),
        (32, 8, [0, 10, 20, 31]),
        (8, 4, [0, 7]),
        (8, 8, [0]),
        (64, 4, [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]),
    ],
)
def test_the_slow_pathway_sees_frames_spread_from_the_first_to_the_last(
    frames: int, alpha: int, picked: list[int]
) -> None:
    pytest.importorskip("torch")
    from vfx_export.backbones.slowfast import slow_frames

    assert slow_frames(frames, alpha) == picked


def test_slow_frames_are_those_of_torch_for_windows_of_any_length() -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.backbones.slowfast import slow_frames

    for alpha in (2, 4, 8):
        for frames in range(alpha, 200):
            want = torch.linspace(0, frames - 1, frames // alpha).long().tolist()
            assert slow_frames(frames, alpha) == want


def test_a_window_that_the_pathways_cannot_share_is_refused() -> None:
    pytest.importorskip("torch")
    from vfx_engines.errors import UsageError
    from vfx_export.catalogue import find

    row = find("slowfast_4x16_r50")
    with pytest.raises(UsageError, match="--frames 20: slowfast_4x16_r50 takes multiples of 8"):
        row.windows(20)
    with pytest.raises(UsageError, match="needs at least 8 frames"):
        row.windows(4)
    assert (row.windows(16).frames, row.windows(16).step) == (16, 32)


def test_a_head_without_class_names_has_a_length() -> None:
    pytest.importorskip("torch")
    from vfx_engines.spec import Output
    from vfx_export.catalogue import find

    logits = Output("logits", (157,), kind="logits", activation="sigmoid")
    assert find("slowfast_16x8_r50_charades").logits() == logits
    assert len(find("slowfast_8x8_r50").logits().labels or ()) == 400


@pytest.mark.parametrize("name", PYSLOWFAST)
def test_keys_are_those_of_the_public_checkpoint(name: str) -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find

    with torch.device("meta"):
        state = find(name).network(False).state_dict()
    found = {key: list(value.shape) for key, value in state.items()}
    assert found == kit(PYSLOWFAST[name]).spec["keys"]


def test_windows_overlap_on_a_map_that_is_larger_than_in_training() -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.backbones.window_pool import window_mean

    x = torch.arange(64.0).reshape(1, 1, 1, 8, 8).square()
    weights = torch.tensor([1.0, 2, 2, 2, 2, 2, 2, 1]) / 14
    want = (x[0, 0, 0] * weights[:, None] * weights).sum()
    torch.testing.assert_close(window_mean(x, 7)[0, 0], want)
    torch.testing.assert_close(window_mean(x, 8), x.mean((2, 3, 4)))
    torch.testing.assert_close(window_mean(x, None), x.mean((2, 3, 4)))
