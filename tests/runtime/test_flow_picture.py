"""Optical flow as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from make_video import make_video
from run_kit import files_in, vfx_run
from tiny import tiny_engine
from tiny_flow import tiny_flow_engine
from vfx_engines.errors import OutputError
from vfx_runtime.flow_picture import flow_picture, write_flow_pictures


def test_direction_is_hue_and_length_is_saturation() -> None:
    flow = np.zeros((2, 1, 6), np.float32)
    # To the right, half as far to the right, down, left, nowhere, up.
    flow[0, 0] = [4, 2, 0, -4, 0, 0]
    flow[1, 0] = [0, 0, 4, 0, 0, -4]
    (row,) = flow_picture(flow).astype(int)
    right, half, down, left, nowhere, up = row

    assert right.tolist() == [255, 0, 0]
    assert half.tolist() == [255, 128, 128]
    assert nowhere.tolist() == [255, 255, 255]
    assert down[0] > down[2]
    assert down[1] > down[2]
    assert left[0] == 0
    assert min(left[1], left[2]) > 100
    assert up[2] == 255
    assert up[1] < up[0]


def test_what_is_too_long_or_no_number_is_dark() -> None:
    flow = np.zeros((2, 1, 3), np.float32)
    flow[0, 0] = [1, 10, np.nan]
    (row,) = flow_picture(flow, longest=2).astype(int)

    assert row[0].tolist() == [255, 128, 128]
    assert row[1].tolist() == [191, 0, 0]
    assert row[2].max() <= 191
    assert flow_picture(np.zeros((2, 3, 4), np.float32)).min() == 255


def test_a_run_writes_a_picture_for_each_pair(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", width=48, height=32, frames=7)
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    done = vfx_run(
        "--engine", engine, video, "--output", tmp_path / "out", "--show-flow", tmp_path / "pictures"
    )

    assert done.exit_code == 0, done.stderr
    files = sorted((tmp_path / "pictures" / "v").iterdir())
    assert [file.name for file in files] == [f"{number:06}.png" for number in range(6)]
    with np.load(tmp_path / "out" / "v.npz") as saved:
        for file, flow in zip(files, saved["flow"], strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(file)), flow_picture(flow))


def test_what_has_no_flow_has_no_pictures(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4")
    done = vfx_run(
        "--engine", tiny_engine(tmp_path / "t.onnx"), video, "--output", tmp_path / "o", "--show-flow", "p"
    )
    assert done.exit_code == 2
    assert "gives no optical flow" in done.stderr
    (tmp_path / "file").touch()
    flow = tiny_flow_engine(tmp_path / "flow.onnx")
    done = vfx_run("--engine", flow, video, "--output", tmp_path / "o", "--show-flow", tmp_path / "file")
    assert done.exit_code == 1
    assert "file: a part of this path is a file" in done.stderr
    assert not files_in(tmp_path / "o")
    with pytest.raises(OutputError, match="cannot be written"):
        write_flow_pictures([np.zeros((2, 3, 4), np.float32)], tmp_path / "file" / "folder")
