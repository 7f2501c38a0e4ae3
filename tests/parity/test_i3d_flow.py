"""I3D's flow stream against video_features: what it is fed, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_kit import e2e, kit, video
from tolerances import PARITY, PIXEL_SCALED, TIMESTAMP_MS
from vfx_runtime import extract, pipeline

torch = pytest.importorskip("torch")

from vfx_export.backbones.flow_i3d import FlowI3D, quantised
from vfx_export.catalogue import find
from vfx_export.fitting import load_into


def relative(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.fixture(scope="module")
def stream() -> Any:
    """i3d_flow_raft on the kit's two checkpoints."""
    module = find("i3d_flow_raft").network(True).eval()
    assert isinstance(module, FlowI3D)
    for part, name in ((module.flow, "raft"), (module.i3d, "i3d_flow")):
        state = {key: torch.from_numpy(value.copy()) for key, value in kit(name).checkpoint().items()}
        load_into(part, state, model=name)
    return module


@pytest.mark.parametrize("case", ["small", "t24"])
def test_two_channels_give_the_golden_numbers(stream: Any, case: str) -> None:
    golden = kit("i3d_flow")
    (clip,) = golden.inputs(case)
    with torch.no_grad():
        got = stream.i3d.features(torch.from_numpy(clip).permute(0, 2, 3, 4, 1), lambda x: x)
    for output, tensor in zip(("features", "logits"), got, strict=True):
        assert relative(tensor.numpy(), golden.golden[f"{case}.{output}"]) < PARITY["fp32"]


@pytest.mark.slow
def test_a_stack_of_a_video_is_that_of_video_features(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """341x256 frames: RAFT's border is one column left and two right, and the crop counts it."""
    av, pil = pytest.importorskip("av"), pytest.importorskip("PIL.Image")
    want = e2e("i3d_flow_10")
    with av.open(str(video("v_GGSY1Qvo990_22f.mp4"))) as container:
        frames = [frame.to_image() for frame, _ in zip(container.decode(video=0), range(11), strict=False)]
    resized = [np.asarray(frame.resize((341, 256), pil.Resampling.BILINEAR)) for frame in frames]
    fed: list[Any] = []
    features = stream.i3d.features

    def seen(flow: Any, scaled: Any) -> Any:
        fed.append(scaled(flow).permute(0, 4, 1, 2, 3))
        return features(flow, scaled)

    monkeypatch.setattr(stream.i3d, "features", seen)
    with torch.no_grad():
        row = stream(torch.from_numpy(np.stack(resized)[None]))[0].numpy()
    stack = fed[0].numpy()[..., ::8, ::8]
    np.testing.assert_allclose(stack, want["first_stack_input"], atol=PIXEL_SCALED)
    assert relative(row[0], want["flow"][0]) < PARITY["fp32"]


@pytest.mark.slow
def test_both_streams_of_a_video_from_one_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfx's own two streams on one video: flow as video_features has it, RGB as it is alone."""
    from vfx_export.exporting import export_model

    files = []
    for name in ("raft", "i3d_flow", "i3d_rgb"):
        state = {key: torch.from_numpy(value.copy()) for key, value in kit(name).checkpoint().items()}
        torch.save(state, tmp_path / f"{name}.pt")
        files.append(tmp_path / f"{name}.pt")
    flow, rgb = tmp_path / "flow.onnx", tmp_path / "rgb.onnx"
    export_model(find("i3d_flow_raft"), flow, checkpoint=files[:2], frames=10)
    export_model(find("i3d"), rgb, checkpoint=files[2], frames=10)
    opened: list[object] = []
    real = pipeline.open_video
    monkeypatch.setattr(pipeline, "open_video", lambda *given: opened.append(given) or real(*given))
    path = video("v_GGSY1Qvo990_22f.mp4")
    got = extract(path, [rgb, flow])

    assert len(opened) == 1
    want = e2e("i3d_flow_10")
    assert got.arrays["flow"].shape == want["flow"].shape
    apart = [relative(row, target) for row, target in zip(got.arrays["flow"], want["flow"], strict=True)]
    assert max(apart) < PARITY["fp32"], apart
    np.testing.assert_allclose(got.timestamps_ms[:, 1], want["timestamps_ms"], atol=TIMESTAMP_MS)
    np.testing.assert_array_equal(got.arrays["rgb"], extract(path, rgb).arrays["rgb"])


def test_flow_is_rounded_half_to_even_and_20_becomes_256() -> None:
    flow = torch.tensor([-30.0, -20.0, 0.0, 20.0, 30.0])
    levels = (quantised(flow) + 1) * (255 / 2)
    np.testing.assert_allclose(levels, [0, 0, 128, 256, 256], atol=1e-4)
