"""Packing on a disk that is full or fails to read, which is not damage: nothing is lost or renamed."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults import may_mount
from run_kit import files_in
from vfx_engines.errors import OutputError
from vfx_engines.spec import Output
from vfx_runtime import packing, shards
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.webdataset import TarLayout
from vfx_runtime.writers import Writer, open_writer

OUTPUTS = (Output("rgb", (64,)),)
FORMATS = ("webdataset", "parquet", "hdf5")
PACKS = {"webdataset": "features-*.tar", "parquet": "features-*.parquet", "hdf5": "features.h5"}


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    return [Job(video, name) for name in ("a", "sub/b", "c")]


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(format: str, output: Path, claims: Claims, fingerprint: str = "f") -> Writer:
    return open_writer(format, output, OUTPUTS, fingerprint=fingerprint, claims=claims)


def save(writer: Writer, job: Job, rows: int = 200) -> None:
    with RowSpool(OUTPUTS) as spool:
        values = np.random.default_rng(0).random((rows, 64), np.float32)
        spool.append({"rgb": values}, np.ones((rows, 2)), np.ones((rows, 2)))
        writer.write(job, spool, 25.0, {"spec": 1})


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes reading fail for files that match a pattern; without one, reading works again."""
    real, pattern = io.open, ""

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def readall(self) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open_(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        fails = pattern and not isinstance(file, int) and Path(file).match(pattern) and mode == "rb"
        return io.BufferedReader(Failing(file)) if fails else real(file, mode, *rest, **named)

    def fail(where: str = "") -> None:
        nonlocal pattern
        pattern = where

    monkeypatch.setattr(io, "open", open_)
    return fail


def test_what_waits_and_cannot_be_read_stays(
    format: str, output: Path, claims: Claims, jobs: list[Job], failing: Callable[..., None]
) -> None:
    writer = opened(format, output, claims)
    for job in jobs:
        save(writer, job)
    before = files_in(output)
    failing("b.npz")
    with pytest.raises(OutputError, match=r"cannot read .*b\.npz: Input/output error: run again") as ended:
        writer.finish()
    assert "\n" not in str(ended.value)
    assert files_in(output) == before
    failing()
    (pack,) = writer.finish()
    assert all(opened(format, output, claims).is_done(job) for job in jobs)
    assert files_in(output) - {".vfx-claims"} == {pack.name}


def test_a_pack_that_cannot_be_read_keeps_its_name(
    format: str, output: Path, claims: Claims, jobs: list[Job], failing: Callable[..., None]
) -> None:
    """Neither a run that begins nor one that packs takes it for damaged, so nothing is done again."""
    first = opened(format, output, claims)
    for job in jobs:
        save(first, job)
    first.finish()
    later = opened(format, output, claims, "g")
    save(later, jobs[0], rows=7)
    before = files_in(output)
    failing(PACKS[format])
    with pytest.raises(OutputError, match=r"cannot read .*features.*: Input/output error"):
        opened(format, output, claims)
    # The second run has already read the shard's contents; it fails when it compares the shard's bytes.
    if format != "hdf5":
        with pytest.raises(OutputError, match="Input/output error"):
            later.finish()
    assert files_in(output) == before
    failing()
    later.finish()
    assert later.is_done(jobs[0])
    assert [opened(format, output, claims).is_done(job) for job in jobs] == [False, True, True]
    assert not [name for name in files_in(output) if name.endswith(".old")]


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_a_shard_that_cannot_be_read_is_not_passed_over_later(
    format: str, output: Path, claims: Claims, jobs: list[Job], failing: Callable[..., None]
) -> None:
    """The shard appears during a run; its contents only become known once it can be read."""
    writer, other = opened(format, output, claims), opened(format, output, claims)
    save(other, jobs[0])
    other.finish()
    failing(PACKS[format])
    for job in jobs:
        with pytest.raises(OutputError, match="Input/output error"):
            writer.is_done(job)
    failing()
    assert [writer.is_done(job) for job in jobs] == [True, False, False]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with room for the staged videos, but not for the pack as well."""
    if not may_mount():
        pytest.skip("no tmpfs may be mounted here")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "vfx-small", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def size(disk: Path, length: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={length}", str(disk)], check=True)


def test_a_full_disk_loses_nothing(format: str, small_disk: Path, jobs: list[Job]) -> None:
    with Claims(small_disk) as claims:
        writer = opened(format, small_disk, claims)
        for job in jobs:
            save(writer, job)
        before = files_in(small_disk)
        with pytest.raises(OutputError, match="the disk is full: make room and run again"):
            writer.finish()
        assert files_in(small_disk) == before
        assert all(writer.is_done(job) for job in jobs)
        size(small_disk, 4 << 20)
        (pack,) = writer.finish()
        assert all(opened(format, small_disk, claims).is_done(job) for job in jobs)
        assert files_in(small_disk) - {".vfx-claims"} == {pack.name}


def test_a_full_disk_leaves_an_old_pack_as_it_is(format: str, small_disk: Path, jobs: list[Job]) -> None:
    """The new pack, which would also hold the old one's videos, does not fit."""
    size(small_disk, 4 << 20)
    with Claims(small_disk) as claims:
        writer = opened(format, small_disk, claims)
        save(writer, jobs[0])
        save(writer, jobs[1], rows=50)
        writer.finish()
        later = opened(format, small_disk, claims, "g")
        save(later, jobs[1], rows=250)
        space = os.statvfs(small_disk)
        size(small_disk, (space.f_blocks - space.f_bfree + 2) * space.f_frsize)
        before = files_in(small_disk)
        with pytest.raises(OutputError, match="the disk is full"):
            later.finish()
        assert files_in(small_disk) == before
        assert writer.is_done(jobs[0])
        size(small_disk, 4 << 20)
        later.finish()
        assert writer.is_done(jobs[0])
        assert later.is_done(jobs[1])


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_each_shard_is_read_once_however_many_there_are(
    output: Path, claims: Claims, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for the run that makes the shards and for one that finds them. Listings are few as well."""
    monkeypatch.setattr(packing, "SHARD_VIDEOS", 2)
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    jobs = [Job(video, f"v{number:03}") for number in range(80)]
    contents: list[Path] = []
    hashed: list[Path] = []
    listed: list[object] = []
    layout = TarLayout if format == "webdataset" else ParquetLayout
    for owner, name, calls in (
        (layout, "contents", contents),
        (shards, "bears_its_hash", hashed),
        (os, "scandir", listed),
    ):
        real = getattr(owner, name)

        def counted(*given: Any, real: Any = real, calls: Any = calls) -> Any:
            if calls is not listed or given[0] == output:
                calls.append(given[-1])
            return real(*given)

        monkeypatch.setattr(owner, name, counted)

    writer = opened(format, output, claims)
    for job in jobs:
        assert not writer.is_done(job)
        save(writer, job, rows=1)
    writer.finish()
    made = sorted(output.glob("features-*"))
    assert len(made) == 40
    # The last shards are not read, since nobody asks for them.
    assert sorted(contents) == sorted({*contents})
    assert len(contents) >= 38
    assert hashed == []
    # Each packing lists the folder before, and again after for what it made.
    assert len(listed) <= 4 * len(made)

    for calls in (contents, hashed, listed):
        calls.clear()
    later = opened(format, output, claims)
    for _ in range(3):
        assert all(later.is_done(job) for job in jobs)
    assert sorted(contents) == made
    assert sorted(hashed) == made
    assert len(listed) <= 2


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_shards_of_another_process_are_seen_at_once(
    output: Path, claims: Claims, jobs: list[Job], format: str
) -> None:
    one, other = (opened(format, output, claims) for _ in range(2))
    for job in jobs:
        assert not one.is_done(job)
        save(other, job, rows=3)
        other.finish()
        assert one.is_done(job)
    for shard in output.glob("features-*"):
        shard.unlink()
    assert not any(one.is_done(job) for job in jobs)
