"""Tar shards, as WebDataset reads them."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from run_kit import files_in
from vfx_engines.errors import OutputError
from vfx_engines.spec import Output
from vfx_runtime import reading
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import NpzWriter
from vfx_runtime.packing import ShardWriter
from vfx_runtime.reading import read_features
from vfx_runtime.webdataset import TarLayout

OUTPUTS = (Output("rgb", (8,)),)


def save(writer: ShardWriter | NpzWriter, job: Job) -> list[Path]:
    with RowSpool(OUTPUTS) as spool:
        spool.append({"rgb": np.full((3, 8), 3, np.float32)}, np.ones((3, 2)), np.ones((3, 2)))
        return writer.write(job, spool, 25.0, {"spec": 1})


def samples(shard: Path) -> dict[str, dict[str, bytes]]:
    """Members by key and extension, as WebDataset groups them: a key ends at the file name's first dot."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            match = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name)
            assert match is not None, member.name
            file = archive.extractfile(member)
            assert file is not None
            assert (member.mtime, member.uid) == (0, 0), "the same run gives the same bytes"
            found.setdefault(match[1], {})[match[2]] = file.read()
    return found


def test_a_shard_holds_the_files_of_npz(tmp_path: Path) -> None:
    output, plain_output = tmp_path / "out", tmp_path / "plain"
    output.mkdir()
    plain_output.mkdir()
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    jobs = [Job(video, name) for name in ("a", "sub/b.1%", "sub/c", "\udcff ä")]
    with Claims(output) as claims:
        writer = ShardWriter(TarLayout(), output, OUTPUTS, "f", claims)
        plain = NpzWriter(plain_output, OUTPUTS, "f", claims)
        for job in jobs:
            assert save(writer, job) == []
            save(plain, job)
            assert writer.is_done(job)
        (shard,) = writer.finish()

        assert files_in(output) - {".vfx-claims"} == {shard.name}
        found = samples(shard)
        said = {key: json.loads(sample["json"]) for key, sample in found.items()}
        assert {one["name"] for one in said.values()} == {job.name for job in jobs}
        for key, sample in found.items():
            assert sample.keys() == {"npz", "json"}
            assert sample["npz"] == (plain_output / f"{said[key]['name']}.npz").read_bytes()
            assert said[key]["meta"]["fingerprint"] == "f"
            with np.load(io.BytesIO(sample["npz"])) as arrays:
                assert arrays["rgb"].shape == (3, 8)
        later = ShardWriter(TarLayout(), output, OUTPUTS, "f", claims)
        assert all(later.is_done(job) and later.paths(job) == [shard] for job in jobs)
        assert later.finish() == []


def test_a_loop_over_a_shard_hashes_it_twice_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    real = reading.bears_its_hash
    monkeypatch.setattr(reading, "bears_its_hash", lambda shard: hashed.append(shard) or real(shard))
    output, video = tmp_path / "out", tmp_path / "v.mp4"
    output.mkdir()
    video.write_bytes(b"video")
    with Claims(output) as claims:
        writer = ShardWriter(TarLayout(), output, OUTPUTS, "f", claims)
        for name in "abc":
            save(writer, Job(video, name))
        (shard,) = writer.finish()

    monkeypatch.setattr(reading, "TICK_SECONDS", 3600)
    for name in "abc":
        read_features(shard, name)
    assert len(hashed) == 1
    monkeypatch.setattr(reading, "TICK_SECONDS", 0)
    for name in "abcabc":
        assert read_features(shard, name).arrays["rgb"].shape == (3, 8)
    assert len(hashed) == 2, "it may have changed within the tick of its clock in which it was first seen"

    status = shard.stat()
    time.sleep(0.05)  # longer than a tick of Linux's clock for files
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(OutputError, match="other bytes than its name says"):
            read_features(shard, "a")


def sparse(name: str) -> bytes:
    """A member of 2 KiB that claims 1 TiB of holes, as GNU tar writes it."""
    member = tarfile.TarInfo(name)
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for at, number in ((386, 0), (398, 512)):
        head[at : at + 12] = b"%011o\0" % number
    head[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(512)


def link(name: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "b.json"
    return member.tobuf()


def json_alone(name: str) -> bytes:
    text = b'{"name": "a", "meta": {"fingerprint": "f", "source": null}}'
    member = tarfile.TarInfo(name)
    member.size = len(text)
    return member.tobuf() + text.ljust(512, b"\0")


def npz_alone(name: str) -> bytes:
    return tarfile.TarInfo(name).tobuf()


@pytest.mark.parametrize(
    "content",
    [
        sparse("a.json"),
        link("a.json"),
        json_alone("a.json"),
        npz_alone("a.npz") + json_alone("a.json") + json_alone("b.json"),
        b"damaged" * 100,
        b"",
    ],
    ids=["sparse", "link", "no features", "features of two", "damaged", "empty"],
)
def test_tars_of_strangers_hold_nothing(tmp_path: Path, content: bytes) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(content + bytes(1024))
    assert TarLayout().contents(shard).videos == {}
    with pytest.raises(OutputError, match="not a feature file of vfx, or damaged"):
        read_features(shard)
