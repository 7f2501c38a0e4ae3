"""Hundreds of randomly damaged videos in one run: no crash, no hang, no wrong row, no partial file."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from make_video import make_video
from run_kit import expected_rows, failures, files_in, vfx_run
from tiny import tiny_engine
from vfx_runtime import read_features

VFX_RUN = Path(sys.executable).with_name("vfx-run")
FRAMES = 60


def flipped(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice([1, 3, 20])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def zeroed(data: bytearray, chance: random.Random) -> bytearray:
    first = chance.randrange(len(data))
    count = min(chance.choice([4, 64, 1000]), len(data) - first)
    data[first : first + count] = bytes(count)
    return data


def without(data: bytearray, chance: random.Random) -> bytearray:
    first = chance.randrange(len(data))
    del data[first : first + chance.choice([1, 50, 700])]
    return data


def inserted(data: bytearray, chance: random.Random) -> bytearray:
    first = chance.randrange(len(data))
    data[first:first] = chance.randbytes(chance.choice([1, 50, 700]))
    return data


def truncated(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


WAYS: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    flipped,
    flipped,
    zeroed,
    without,
    inserted,
    truncated,
)

KINDS: dict[str, tuple[str, Any, int]] = {
    "h264 in mp4": ("a.mp4", "h264", 500),
    "h264 in matroska": ("a.mkv", "h264", 60),
    "h264 in a transport stream": ("a.ts", "h264", 60),
    "mpeg-4 in avi": ("a.avi", "mpeg4", 60),
    "hevc in mp4": ("a.mp4", "hevc", 60),
    "vp9 in webm": ("a.webm", "vp9", 60),
}

SEEN = {"h264 in mp4": 0.05, "mpeg-4 in avi": 0.1}
"""The share of damaged files that may pass unnoticed: measured 2.6 % and 3 %. Only a checksum could detect a
bit that turns valid data into other valid data, or an index that lists fewer frames. The share is larger if
whole packets can be lost (MPEG-TS), or if nearly any bits decode (HEVC, VP9), so those kinds have no limit
here."""


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage(tmp_path: Path, kind: str) -> None:
    name, codec, count = KINDS[kind]
    engine = tiny_engine(tmp_path / "tiny.onnx")
    whole = make_video(tmp_path / name, codec=codec, frames=FRAMES)
    expected = expected_rows(whole)
    chance = random.Random(kind)
    videos, output = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for number in range(count):
        damage = chance.choice(WAYS)
        data = damage(bytearray(whole.read_bytes()), chance)
        (videos / f"{number:03}{whole.suffix}").write_bytes(data)

    result = subprocess.run(
        [VFX_RUN, "--engine", engine, videos, "--output", output], capture_output=True, text=True, timeout=300
    )

    assert result.returncode in (0, 1), result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    failed = failures(output)
    done = {file.removesuffix(".npz") for file in files_in(output) - {"failures.jsonl"}}
    assert done | failed.keys() == {f"{number:03}" for number in range(count)}
    assert not done & failed.keys()
    assert all(reason.isprintable() and len(reason) < 400 for reason in failed.values())
    wrong = []
    for video in sorted(done):
        found = read_features(output / f"{video}.npz")
        rows = found.arrays["features"]
        assert np.isfinite(rows).all()
        assert np.all(found.frame_range[:, 1] - found.frame_range[:, 0] == 4)
        assert np.all(np.diff(found.timestamps_ms[:, 0]) > 0)
        # If one small block is slightly wrong, a mean changes by less than a grey level, which we allow.
        if rows.shape != expected.shape or np.abs(rows - expected).max() > 1:
            wrong.append(video)
    print(f"{kind}: {len(failed)} refused, {len(done) - len(wrong)} right, {len(wrong)} wrong")
    assert len(done) > 0
    assert len(failed) > count // 4
    if kind in SEEN:
        assert len(wrong) <= count * SEEN[kind], wrong


def test_a_time_beyond_reason_does_not_fill_the_disk(tmp_path: Path) -> None:
    """With --fps, a frame is repeated until the next one appears, which here would be years later."""
    engine = tiny_engine(tmp_path / "tiny.onnx")
    times = [Fraction(number, 25) for number in range(20)]
    times += [Fraction(20_000_000_000 + number) / 25 for number in range(5)]
    video = make_video(tmp_path / "a.mkv", frames=25, times=times)
    started = time.monotonic()
    result = vfx_run("--engine", engine, video, "--fps", 25, "--output", tmp_path / "out")

    assert time.monotonic() - started < 60
    assert result.exit_code == 1
    (reason,) = failures(tmp_path / "out").values()
    assert "a.mkv: frame 19 is shown for 799999999 s" in reason
    assert "leave --fps out" in reason
    assert files_in(tmp_path / "out") == {"failures.jsonl"}
