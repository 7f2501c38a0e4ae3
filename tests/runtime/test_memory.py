"""Rows of optical flow are as large as frames, so those of a long video must go to disk, not into memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from make_video import make_video
from tiny_flow import tiny_flow_engine

WIDTH, HEIGHT = 320, 240
PAIR_BYTES = 2 * WIDTH * HEIGHT * 4


def peak_bytes(engine: Path, video: Path, output: Path, format: str) -> int:
    """Peak resident memory of a vfx-run process, in bytes."""
    command = [sys.executable, "-c", "from vfx_runtime.cli import main; main()"]
    options = ["--engine", engine, video, "--output", output, "--format", format, "--threads", "1"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_flow_of_a_long_video_takes_no_more_memory(tmp_path: Path, format: str) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    peaks = {}
    for frames in (60, 460):
        video = make_video(tmp_path / f"{frames}.mp4", width=WIDTH, height=HEIGHT, frames=frames)
        peaks[frames] = peak_bytes(engine, video, tmp_path / "out", format)
        rows = np.load(tmp_path / "out" / (f"{frames}.npz" if format == "npz" else f"{frames}_flow.npy"))
        rows = rows["flow"] if format == "npz" else rows
        assert rows.shape == (frames - 1, 2, HEIGHT, WIDTH)
    # The 400 additional pairs have 245 MB of rows.
    assert 400 * PAIR_BYTES > 240e6
    assert peaks[460] - peaks[60] < 60e6
