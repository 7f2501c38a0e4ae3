"""I3D against the public implementation: the same checkpoint, the same pixels, the same numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import heavy
from parity_kit import e2e, kit, video
from tolerances import END_TO_END, LOSSY_REENCODING, PARITY, TIMESTAMP_MS
from vfx_engines import open_engine
from vfx_runtime import Features, extract


@cache
def rows(engines: Any, frames: int, **options: Any) -> Features:
    """Of the kit's video in fp32, run once for all that ask."""
    return extract(video("v_GGSY1Qvo990.mp4"), engines("fp32", frames), **options)


def rows_apart(got: Features, want: Any) -> float:
    return max(relative(row, target) for row, target in zip(got.arrays["rgb"], want["rgb"], strict=True))


CASES = {64: "main", 24: "t24", 16: "small"}
OUTPUTS = {"features": "rgb", "logits": "logits"}


def relative(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# Each precision in the shortest window, the longest in fp32: the network is the same. The rest is CI's.
MATRIX = [
    (precision, frames) if frames == 16 or (precision, frames) == ("fp32", 64) else heavy(precision, frames)
    for precision in PARITY
    for frames in CASES
]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("precision", "frames"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    i3d_engines: Any, precision: str, frames: int, backend: Any
) -> None:
    golden = kit("i3d_rgb")
    windows = golden.images(CASES[frames])
    with open_engine(i3d_engines(precision, frames), backend=backend) as engine:
        got = engine.run(windows)
    for theirs, ours in OUTPUTS.items():
        assert relative(got[ours], golden.pixels[f"{CASES[frames]}.{theirs}"]) < PARITY[precision]


@pytest.mark.slow
@pytest.mark.parametrize("frames", [16, 17])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_other_weights_agree_with_torch(tmp_path: Path, precision: Any, frames: int) -> None:
    """Seeds that no golden number was made for; 17 frames take the stem that is packed in two axes only."""
    torch = pytest.importorskip("torch")
    from vfx_export.backbones.i3d import I3D
    from vfx_export.catalogue import find
    from vfx_export.exporting import export_model

    golden = kit("i3d_rgb")
    state = {key: torch.from_numpy(value.copy()) for key, value in golden.checkpoint(seed=7).items()}
    torch.save(state, tmp_path / "seed7.pt")
    spec = export_model(
        find("i3d"),
        tmp_path / "i3d.onnx",
        checkpoint=tmp_path / "seed7.pt",
        precision=precision,
        frames=frames,
        head=True,
    )
    assert spec.proof is not None
    assert 0 < spec.proof.error < PARITY[precision]
    module = I3D(head=True).eval()
    module.load_state_dict(state)
    windows = np.random.default_rng(3).integers(0, 256, (1, frames, 224, 224, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(windows))
    with open_engine(tmp_path / "i3d.onnx") as engine:
        got = engine.run(windows)
    for output, tensor in zip(("rgb", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < PARITY[precision]


@pytest.mark.parametrize(
    ("job", "frames", "options"),
    [
        ("i3d_rgb_64", 64, {}),
        heavy("i3d_rgb_24_12", 24, {"step": 12}),
        ("i3d_rgb_fps25_lossless", 64, {"fps": 25}),
    ],
)
def test_rows_of_a_video_are_those_of_video_features(
    i3d_engines: Any, job: str, frames: int, options: dict[str, Any]
) -> None:
    want = e2e(job)
    got = rows(i3d_engines, frames, **options)
    assert got.arrays["rgb"].shape == want["rgb"].shape
    assert got.fps == pytest.approx(float(want["fps"]))
    np.testing.assert_allclose(got.timestamps_ms[:, 1], want["timestamps_ms"], atol=TIMESTAMP_MS)
    assert rows_apart(got, want) < END_TO_END


def test_the_lossy_reencoding_of_video_features_moves_rows_by_less_than_a_percent(i3d_engines: Any) -> None:
    """video_features re-encodes for --fps; vfx picks the same frames of the source."""
    got = rows(i3d_engines, 64, fps=25)
    assert 1e-3 < rows_apart(got, e2e("i3d_rgb_fps25")) < LOSSY_REENCODING
