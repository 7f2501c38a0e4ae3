"""A window on every frame, against slowfast_feature_extractor's own run of SlowFast 8x8 on a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from exports import Exports, heavy, rows_apart
from parity_kit import e2e, video
from run_kit import vfx_run
from tolerances import DENSE_END_TO_END
from vfx_engines import open_engine, read_spec
from vfx_engines.spec import Resize
from vfx_runtime.opening import open_video
from vfx_runtime.resize import plan

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


@pytest.mark.parametrize("job", ["slowfast_windows", heavy("slowfast_windows_half_rate")])
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


def test_frames_that_are_blank_throughout_are_zeros_and_no_others() -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.backbones.pixels import normalised, normalised_with_zeros

    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 6, 5, 7, 3), np.uint8))
    frames[:, 1:4] = 115
    frames[0, 2, 4, 6, 2] = 114
    frames[1, 3, 0, 0, 0] = 116
    frames[0, 4] = 114
    made = normalised_with_zeros(frames, 0.45, 0.225, 115)
    zeros = torch.zeros(2, 6, dtype=torch.bool)
    zeros[0, [1, 3]] = zeros[1, [1, 2]] = True
    assert (made[zeros] == 0).all()
    usual = normalised(frames, (0.45,) * 3, (0.225,) * 3)
    torch.testing.assert_close(made[~zeros], usual[~zeros], rtol=1e-6, atol=1e-6)


def test_networks_without_exact_zeros_say_so() -> None:
    torch = pytest.importorskip("torch")
    from vfx_engines.errors import UsageError
    from vfx_export.catalogue import find

    with pytest.raises(UsageError, match="--exact-zeros: x3d_xs has none, PySlowFast's ResNets"):
        find("x3d_xs").with_exact_zeros(torch.nn.Identity())
