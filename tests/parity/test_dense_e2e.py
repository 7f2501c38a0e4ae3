"""A window on every frame, against slowfast_feature_extractor's own run of SlowFast 8x8 on a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from exports import Exports, rows_apart
from parity_kit import e2e, kit, video
from run_kit import vfx_run
from tolerances import DENSE_END_TO_END, seed_parity
from vfx_engines import open_engine, read_spec
from vfx_engines.spec import Resize
from vfx_runtime.opening import open_video
from vfx_runtime.resize import plan

Colour = tuple[float, float, float]

VIDEO = "v_GGSY1Qvo990_40f20.mp4"
JOBS = {"slowfast_windows": 1, "slowfast_windows_half_rate": 2}
"""Frames from one to the next of a window: IN_FPS over OUT_FPS."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    from vfx_export.catalogue import find

    exports = Exports(tmp_path_factory.mktemp("dense"), {"slowfast_8x8_r50": "SLOWFAST_8x8_R50"})
    path = exports.folder / "slowfast_8x8_r50.onnx"
    row = find("slowfast_8x8_r50").resized("squash")
    exports.export(path, row.name, "fp32", seed=0, head=False, exact_zeros=True, transform=row.transform)
    return path


def separate_windows(engine: Path, middles: list[int], stride: int) -> NDArray[np.uint8]:
    """Windows of which frame ``middle`` is number 16, made alone: uint8 [n, 32, 256, 256, 3]."""
    spec = read_spec(engine)
    with open_video(video(VIDEO)) as decoder:
        frames = [frame.rgb() for frame in decoder]
    pixels = np.empty((len(frames), 256, 256, 3), np.uint8)
    for frame, place in zip(frames, pixels, strict=True):
        plan(spec.transform, *frame.shape[:2]).apply(frame, place)
    windows = np.full((len(middles), 32, 256, 256, 3), 115, np.uint8)
    for window, middle in zip(windows, middles, strict=True):
        for slot in range(32):
            number = middle + (slot - 16) * stride
            if 0 <= number < len(pixels):
                window[slot] = pixels[number]
    return windows


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_rows_are_those_of_slowfast_feature_extractor(tmp_path: Path, engine: Path, job: str) -> None:
    stride = JOBS[job]
    done = vfx_run(
        *("--engine", engine, video(VIDEO), "--output", tmp_path, "--format", "slowfast", "--fps", 20),
        *("--step", 1, "--stride", stride, "--anchor", "centre", "--tail", "zeros"),
    )
    assert done.exit_code == 0, done.stderr
    rows = np.load(tmp_path / f"{Path(VIDEO).stem}_32.npy")
    assert rows_apart(rows, e2e(job)["features"]) < DENSE_END_TO_END

    middles = [0, 15, 20, 39]
    with open_engine(engine) as opened:
        alone = opened.run(separate_windows(engine, middles, stride))["features"]
    assert rows_apart(rows[middles], alone) < DENSE_END_TO_END


def test_squash_brings_whole_frames_to_the_size_of_the_input() -> None:
    pytest.importorskip("torch")
    from vfx_export.catalogue import find

    row = find("slowfast_8x8_r50")
    changed = row.resized("squash")
    assert changed.transform.resize == Resize("exact", 256, 256, "opencv_linear", antialias=False)
    assert changed.input(32) == row.input(32)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_frames_that_are_blank_throughout_are_zeros_and_no_others(mean: Colour, std: Colour) -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.backbones.pixels import Pixels, normalised, zero_blanks

    blank = [round(255 * value) for value in mean]
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 6, 5, 7, 3), np.uint8))
    frames[:, 1:4] = torch.tensor(blank, dtype=torch.uint8)
    frames[0, 2, 4, 6, 2] -= 1
    frames[1, 3, 0, 0, 0] += 1
    frames[0, 4] = frames[0, 1] - 1
    pixels = Pixels(mean, std)
    usual = normalised(frames, mean, std)
    torch.testing.assert_close(pixels(frames), usual, rtol=0, atol=0)
    zero_blanks(pixels)
    made = pixels(frames)
    zeros = torch.zeros(2, 6, dtype=torch.bool)
    zeros[0, [1, 3]] = zeros[1, [1, 2]] = True
    assert (made[zeros] == 0).all()
    torch.testing.assert_close(made[~zeros], usual[~zeros], rtol=1e-6, atol=1e-6)


def test_all_of_the_zoo_has_exact_zeros_and_other_networks_say_so() -> None:
    torch = pytest.importorskip("torch")
    from vfx_engines.errors import UsageError
    from vfx_export.backbones.pixels import Pixels
    from vfx_export.catalogue import CATALOGUE, find

    for row in CATALOGUE:
        if not row.pools:
            with pytest.raises(UsageError, match=f"--exact-zeros: {row.name} does not have it, PySlowFast's"):
                row.with_exact_zeros(torch.nn.Identity())
            continue
        with torch.device("meta"):
            module = row.network(False)
        (pixels,) = (part for part in module.modules() if isinstance(part, Pixels))
        assert tuple(round(255 * value) for value in pixels.mean) == row.blank
        row.with_exact_zeros(module)
        assert pixels.exact_zeros
    assert find("x3d_xs").blank == (115, 115, 115)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x3d_xs", "mvitv2_s_16x4", "rev_mvit_b_16x4"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_blank_frames_are_zeros_to_other_networks_of_the_zoo(
    tmp_path: Path, name: str, precision: str
) -> None:
    """Against the module, which is given the normalised pixels with zeros in place of the blank frames."""
    import torch

    from vfx_export.backbones.pixels import normalised
    from vfx_export.catalogue import find
    from vfx_export.proof import example_inputs

    kits = {"x3d_xs": "X3D_XS", "mvitv2_s_16x4": "MVITv2_S_16x4", "rev_mvit_b_16x4": "REV_MVIT_B_16x4_CONV"}
    exports = Exports(tmp_path, kits)
    path = tmp_path / "engine.onnx"
    spec = exports.export(path, name, precision, seed=0, head=False, exact_zeros=True)
    assert spec.input.exact_zeros
    assert only_a_cast_takes_bytes(path)
    windows = example_inputs(spec)
    windows[0, :2] = windows[1, -1:] = 115
    module = find(name).network(False).eval()
    module.load_state_dict(exports.state(name))
    pixels = normalised(torch.from_numpy(windows), (0.45,) * 3, (0.225,) * 3)
    pixels[0, :2] = pixels[1, -1:] = 0
    module.pixels = torch.nn.Identity()
    with torch.no_grad():
        (want,) = module(pixels)
    with open_engine(path) as engine:
        got = engine.run(windows)["features"]
    assert rows_apart(got, want.numpy()) < seed_parity(
        precision, kit(kits[name]).spec["input_seed_difference"]
    )


def only_a_cast_takes_bytes(path: Path) -> bool:
    """TensorRT converts uint8 to float, and has no other layer for it."""
    graph = onnx.load(path).graph
    takers = {node.op_type for node in graph.node if graph.input[0].name in node.input}
    return takers == {"Cast"}


@pytest.mark.slow
def test_slowfast_takes_bytes_through_a_cast_alone(engine: Path) -> None:
    assert only_a_cast_takes_bytes(engine)
