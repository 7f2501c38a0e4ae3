"""Shares of a list: every video is in exactly one, however each run is given the list."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from make_video import make_video
from run_kit import failures, vfx_run
from tiny import tiny_engine
from vfx_engines.errors import UsageError
from vfx_runtime.job import Job
from vfx_runtime.shares import Share

JOBS = [Job(Path(f"/v/{number}.mp4"), f"{number}") for number in range(1000)]


def test_each_video_is_in_one_share() -> None:
    parts = [Share(number, 8).of(JOBS) for number in range(8)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in JOBS)
    assert all(90 < len(part) < 160 for part in parts)


def test_a_share_does_not_depend_on_the_list() -> None:
    shuffled = JOBS[:500]
    random.Random(0).shuffle(shuffled)
    own = {job.name for job in Share(3, 8).of(JOBS)}
    assert {job.name for job in Share(3, 8).of(shuffled)} == own & {job.name for job in shuffled}


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "1/", "a/b", "0/0", "1 / 2", "٣/8"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected I/N with I from 0 to N - 1"):
        Share.from_text(text)


def test_runs_of_an_array_keep_their_failures_apart(tmp_path: Path) -> None:
    tiny_engine(tmp_path / "tiny.onnx")
    (tmp_path / "videos").mkdir()
    for number in range(4):
        make_video(tmp_path / "videos" / f"{number}.mp4", frames=8)
        (tmp_path / "videos" / f"bad{number}.mp4").write_bytes(b"no video")
    names = set()
    for number in range(2):
        done = vfx_run(
            "--engine",
            tmp_path / "tiny.onnx",
            tmp_path / "videos",
            "--output",
            tmp_path / "out",
            "--shard",
            f"{number}/2",
        )
        assert f"share {number}/2: " in done.stderr
    assert failures(tmp_path / "out") == {}
    for path in (tmp_path / "out").glob("failures-*-of-2.jsonl"):
        names |= {line.split('"name": "')[1].split('"')[0] for line in path.read_text().splitlines()}
    assert names == {f"bad{number}" for number in range(4)}
    assert len(list((tmp_path / "out").glob("*.npz"))) == 4


def test_an_empty_share_is_done(tmp_path: Path) -> None:
    tiny_engine(tmp_path / "tiny.onnx")
    make_video(tmp_path / "a.mp4", frames=8)
    codes = [
        vfx_run(
            "--engine",
            tmp_path / "tiny.onnx",
            tmp_path / "a.mp4",
            "--output",
            tmp_path / "out",
            "--shard",
            f"{n}/3",
        )
        for n in range(3)
    ]
    assert [code.exit_code for code in codes] == [0, 0, 0]
    assert (tmp_path / "out" / "a.npz").exists()
