"""RAFT and PWC-Net against the public implementations: the same pixels, the same flow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from parity_kit import Kit, e2e, kit, video
from tolerances import FLOW_PIXELS, FLOW_PIXELS_END_TO_END, PARITY, TIMESTAMP_MS
from vfx_engines import open_engine
from vfx_engines.onnx_file import embed_spec, read_onnx_spec
from vfx_runtime import extract

CASES = {
    "raft": ("raft_sintel", ("main", "batch2")),
    "pwc": ("pwc_sintel", ("main", "resized")),
}
"""Folder of the kit: the row, and two sizes of its frames."""


def frames(golden: Kit, case: str) -> Any:
    """uint8 ``[1, time, height, width, 3]``: all frames of a case, of which the kit feeds pairs."""
    images = golden.frames(case)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)[None])


def relative(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def end_point_error(got: Any, want: Any) -> float:
    """Mean distance of two flows ``[..., 2, height, width]``, in pixels."""
    return float(np.linalg.norm(got - want, axis=-3).mean())


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`engines(folder of the kit, pairs)` is the path of an fp32 export, made when it is first asked for."""
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.exporting import export_model

    made: dict[str, Path] = {}

    def export(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            state = {key: torch.from_numpy(value.copy()) for key, value in kit(name).checkpoint().items()}
            torch.save({f"module.{key}": value for key, value in state.items()}, folder / "published.pth")
            made[name] = folder / "flow.onnx"
            export_model(find(CASES[name][0]), made[name], checkpoint=folder / "published.pth", frames=1)
        return made[name]

    return export


@pytest.mark.parametrize("name", CASES)
def test_module_gives_the_golden_flow(name: str) -> None:
    """What the engines below are made of, before an export, which takes a minute."""
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.fitting import load_into

    module = find(CASES[name][0]).network(False).eval()
    state = {key: torch.from_numpy(value.copy()) for key, value in kit(name).checkpoint().items()}
    load_into(module, state, model=name)
    with torch.no_grad():
        got = module(torch.from_numpy(frames(kit(name), "main")))[0].numpy()
    want = kit(name).pixels["main.flow"]
    assert relative(got, want) < PARITY["fp32"]
    assert end_point_error(got, want) < FLOW_PIXELS


# tests/export/test_unrolling.py unrolls in each run, tests/export/test_exporting.py has axes with names.
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("name", "case"), [(name, case) for name in CASES for case in CASES[name][1]])
def test_exported_engine_gives_the_golden_flow(engines: Any, name: str, case: str, backend: Any) -> None:
    """One file at two sizes: its height and width are named axes."""
    window = frames(kit(name), case)
    pairs = np.concatenate([window[:, i : i + 2] for i in range(window.shape[1] - 1)])
    want = kit(name).pixels[f"{case}.flow"]
    sizes = {"height": window.shape[2], "width": window.shape[3]}
    with open_engine(engines(name), backend=backend, sizes=sizes) as engine:
        got = engine.run(pairs)[name][:, 0]
    assert relative(got, want) < PARITY["fp32"]
    assert end_point_error(got, want) < FLOW_PIXELS


@pytest.mark.parametrize("name", CASES)
def test_module_shares_what_a_frame_gives_to_two_pairs(name: str) -> None:
    """Three frames at once, at a size that is no multiple of anything, against two pairs on their own."""
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.fitting import load_into

    module = find(CASES[name][0]).network(False).eval()
    state = {key: torch.from_numpy(value.copy()) for key, value in kit(name).checkpoint(seed=7).items()}
    load_into(module, state, model=name)
    images = np.random.default_rng(3).integers(0, 256, (1, 3, 131, 150, 3), np.uint8)
    with torch.no_grad():
        together = module(torch.from_numpy(images))
        alone = torch.cat([module(torch.from_numpy(images[:, i : i + 2])) for i in (0, 1)], 1)
    assert together.shape == (1, 2, 2, 131, 150)
    assert relative(together.numpy(), alone.numpy()) < PARITY["fp32"]


@pytest.mark.parametrize("name", [row for row, _ in CASES.values()])
def test_the_smallest_side_is_the_smallest(name: str) -> None:
    """The published RAFT gives NaN below 128 pixels; one less than the row says has no pyramid at all."""
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.exporting import random_weights

    row = find(name)
    module = row.network(False).eval()
    random_weights(module)
    side = row.smallest_side
    frames = torch.randint(0, 256, (1, 2, side, side + 2, 3), dtype=torch.uint8)
    with torch.no_grad():
        flow = module(frames)
        assert flow.shape == (1, 1, 2, side, side + 2)
        assert flow.isfinite().all()
        if side > 1:
            with pytest.raises(RuntimeError, match="too small"):
                module(frames[:, :, 1:])


@pytest.mark.slow
@pytest.mark.parametrize(("job", "side"), [("raft_6f", None), ("raft_6f_side128", "short:128")])
def test_flow_of_a_video_is_that_of_video_features(
    engines: Any, tmp_path: Path, job: str, side: str | None
) -> None:
    """At every fourth pixel, which is what the kit holds; and the first pair in full."""
    from vfx_export.catalogue import find

    path = engines("raft")
    if side:
        # What a row is resized to stands in the spec alone.
        model = onnx.load(path)
        spec = replace(read_onnx_spec(path), transform=find("raft_sintel").resized(side).transform)
        embed_spec(model, spec)
        path = tmp_path / "resized.onnx"
        onnx.save(model, path)
    want = e2e(job)
    got = extract(video("v_GGSY1Qvo990_6f.mp4"), path)
    flow = got.arrays["raft"]

    assert flow.shape == tuple(want["raft_shape"])
    assert end_point_error(flow[:, :, ::4, ::4], want["raft"]) < FLOW_PIXELS_END_TO_END
    if "raft_first" in want:
        assert end_point_error(flow[0], want["raft_first"]) < FLOW_PIXELS_END_TO_END
    # video_features writes a time for each frame: one more than there are flows.
    np.testing.assert_allclose(got.timestamps_ms[:, 0], want["timestamps_ms"][:-1], atol=TIMESTAMP_MS)


@pytest.mark.parametrize("name", [row for row, _ in CASES.values()])
def test_random_weights_leave_a_flow_that_rounding_does_not_decide(name: str) -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.exporting import random_weights

    module = find(name).network(False).eval()
    random_weights(module)
    pair = np.random.default_rng(0).integers(0, 256, (1, 2, 128, 128, 3), np.uint8)
    with torch.no_grad():
        flow = module(torch.from_numpy(pair)).numpy()
        for parameter in module.parameters():
            parameter *= 1 + 1e-7 * torch.randn_like(parameter)
        nudged = module(torch.from_numpy(pair)).numpy()
    assert np.abs(flow).mean() > 0.1
    assert relative(nudged, flow) < PARITY["fp32"]
