"""S3D against video_features: the same checkpoint, the same pixels, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exports import Exports, heavy, relative, rows_apart
from parity_kit import e2e, kit, video
from tolerances import LOSSY_REENCODING, PARITY, ROUNDED_RESIZE
from vfx_engines import open_engine
from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime import extract


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("torch")
    return Exports(tmp_path_factory.mktemp("s3d"))


def test_exported_engine_gives_the_golden_numbers(exports: Exports) -> None:
    golden = kit("s3d")
    with open_engine(exports("s3d", "fp32"), backend="openvino") as engine:
        got = engine.run(golden.images())
    for theirs, ours in (("features", "s3d"), ("logits", "logits")):
        assert relative(got[ours], golden.pixels[f"main.{theirs}"]) < PARITY["fp32"]


@pytest.mark.parametrize("precision", [heavy("fp32"), heavy("fp16"), heavy("bf16")])
def test_shorter_windows_give_the_golden_numbers(exports: Exports, tmp_path: Path, precision: str) -> None:
    golden = kit("s3d")
    exports.export(tmp_path / "small.onnx", "s3d", precision, seed=0, frames=16)
    for backend in ("openvino", "onnxruntime"):
        with open_engine(tmp_path / "small.onnx", backend=backend) as engine:  # type: ignore[arg-type]
            got = engine.run(golden.images("small"))
        for theirs, ours in (("features", "s3d"), ("logits", "logits")):
            assert relative(got[ours], golden.pixels[f"small.{theirs}"]) < PARITY[precision]


def test_other_weights_lengths_and_sizes_agree_with_torch(exports: Exports, tmp_path: Path) -> None:
    """13 frames are the fewest, and sides are no multiples of what the network shrinks them by."""
    import torch

    from vfx_export.catalogue import find

    exports.export(
        tmp_path / "other.onnx",
        "s3d",
        "bf16",
        seed=7,
        frames=13,
        transform=Transform(Resize("short_side", 100, 100), Crop(99, 131)),
    )
    module = find("s3d").network(True).eval()
    module.load_state_dict(exports.state("s3d", 7))
    frames = np.random.default_rng(3).integers(0, 256, (2, 13, 99, 131, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(frames))
    with open_engine(tmp_path / "other.onnx") as engine:
        got = engine.run(frames)
    for output, tensor in zip(("s3d", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < PARITY["bf16"]


@pytest.mark.parametrize(("job", "tolerance"), [("s3d_lossless", ROUNDED_RESIZE), ("s3d", LOSSY_REENCODING)])
def test_rows_of_a_video_are_those_of_video_features(exports: Exports, job: str, tolerance: float) -> None:
    """At 25 frames a second without being asked; video_features writes no times for this family."""
    got = extract(video("v_GGSY1Qvo990.mp4"), exports("s3d", "fp32"))
    assert got.fps == 25
    assert rows_apart(got.arrays["s3d"], e2e(job)["s3d"]) < tolerance


def test_too_short_a_window_is_refused() -> None:
    pytest.importorskip("torch")
    from vfx_engines.errors import UsageError
    from vfx_export.catalogue import find

    with pytest.raises(UsageError, match="--frames 12: s3d needs at least 13 frames"):
        find("s3d").windows(12)
