"""Tar shards: what WebDataset reads from them, what counts as finished, and what is done again."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from run_kit import files_in
from vfx_engines.spec import Output
from vfx_runtime import webdataset
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import NpzWriter
from vfx_runtime.webdataset import WebDatasetWriter, pack

OUTPUTS = (Output("rgb", (8,)),)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def claims(output: Path) -> Iterator[Claims]:
    with Claims(output) as claims:
        yield claims


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    return [Job(video, name) for name in ("a", "sub/b.1%", "sub/c", "\udcff ä")]


def save(writer: WebDatasetWriter | NpzWriter, job: Job, rows: int = 3) -> list[Path]:
    with RowSpool(OUTPUTS) as spool:
        spool.append({"rgb": np.full((rows, 8), rows, np.float32)}, np.ones((rows, 2)), np.ones((rows, 2)))
        return writer.write(job, spool, 25.0, {"spec": 1})


def samples(shard: Path) -> dict[str, dict[str, bytes]]:
    """As WebDataset groups members: the key ends at the first dot of the last part of a name."""
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


def shards(output: Path) -> list[Path]:
    return sorted(output.glob("features-*.tar"))


def test_a_shard_holds_the_files_of_npz(
    output: Path, claims: Claims, jobs: list[Job], tmp_path: Path
) -> None:
    writer = WebDatasetWriter(output, OUTPUTS, "f", claims)
    (tmp_path / "plain").mkdir()
    plain = NpzWriter(tmp_path / "plain", OUTPUTS, "f", claims)
    for job in jobs:
        assert save(writer, job) == []
        save(plain, job)
        assert writer.is_done(job)
    (shard,) = writer.finish()

    assert files_in(output) - {".vfx-claims"} == {shard.name}
    found = samples(shard)
    assert {json.loads(sample["json"])["name"] for sample in found.values()} == {job.name for job in jobs}
    for sample in found.values():
        assert sample.keys() == {"npz", "json"}
        said = json.loads(sample["json"])
        assert sample["npz"] == (tmp_path / "plain" / f"{said['name']}.npz").read_bytes()
        assert said["meta"]["fingerprint"] == "f"
        with np.load(io.BytesIO(sample["npz"])) as arrays:
            assert arrays["rgb"].shape == (3, 8)
    later = WebDatasetWriter(output, OUTPUTS, "f", claims)
    assert all(later.is_done(job) and later.paths(job) == [shard] for job in jobs)
    assert later.finish() == []


def test_full_shards_are_closed_while_the_run_goes_on(
    output: Path, claims: Claims, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "SHARD_VIDEOS", 2)
    writer = WebDatasetWriter(output, OUTPUTS, "f", claims)
    made = [len(save(writer, job)) for job in jobs[:3]]
    assert made == [0, 1, 0]
    assert len(shards(output)) == 1
    assert all(writer.is_done(job) for job in jobs[:3])
    writer.finish()
    assert len(shards(output)) == 2


def test_other_settings_or_another_video_is_not_done(output: Path, claims: Claims, jobs: list[Job]) -> None:
    writer = WebDatasetWriter(output, OUTPUTS, "f", claims)
    save(writer, jobs[0])
    writer.finish()
    assert not WebDatasetWriter(output, OUTPUTS, "g", claims).is_done(jobs[0])
    jobs[0].path.write_bytes(b"another video")
    assert not writer.is_done(jobs[0])


def test_what_is_done_again_leaves_its_old_shard(output: Path, claims: Claims, jobs: list[Job]) -> None:
    first = WebDatasetWriter(output, OUTPUTS, "f", claims)
    for job in jobs:
        save(first, job)
    first.finish()
    second = WebDatasetWriter(output, OUTPUTS, "g", claims)
    save(second, jobs[0], rows=2)
    (shard,) = second.finish()

    assert shards(output) == [shard]
    assert len(samples(shard)) == len(jobs)
    assert second.is_done(jobs[0])
    assert [first.is_done(job) for job in jobs] == [False, True, True, True]


def test_a_damaged_shard_is_set_aside_and_its_videos_are_done_again(
    output: Path, claims: Claims, jobs: list[Job]
) -> None:
    writer = WebDatasetWriter(output, OUTPUTS, "f", claims)
    for job in jobs[:2]:
        save(writer, job)
    (shard,) = writer.finish()
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    later = WebDatasetWriter(output, OUTPUTS, "f", claims)
    assert not any(later.is_done(job) for job in jobs[:2])
    for job in jobs[:2]:
        save(later, job)
    later.finish()
    assert all(later.is_done(job) for job in jobs[:2])
    assert files_in(output) - {".vfx-claims"} == {shard.name, f"{shard.name}.old"}


def test_a_crash_between_shard_and_parts_leaves_nothing_twice(
    output: Path, claims: Claims, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = WebDatasetWriter(output, OUTPUTS, "f", claims)
    for job in jobs:
        save(first, job)
    first.finish()
    second = WebDatasetWriter(output, OUTPUTS, "g", claims)
    save(second, jobs[0])
    with monkeypatch.context() as crash:
        crash.setattr(webdataset, "remove", lambda paths: None)
        pack(output, claims)
    assert len(shards(output)) == 2, "the old shard is still there, as after kill -9"
    later = WebDatasetWriter(output, OUTPUTS, "g", claims)
    assert later.is_done(jobs[0])
    later.finish()
    (shard,) = shards(output)
    assert len(samples(shard)) == len(jobs)


def test_a_part_that_was_damaged_is_not_packed(output: Path, claims: Claims, jobs: list[Job]) -> None:
    writer = WebDatasetWriter(output, OUTPUTS, "f", claims)
    for job in jobs[:2]:
        save(writer, job)
    part = output / ".shards.parts" / "a.npz"
    part.write_bytes(part.read_bytes()[:-30])
    (shard,) = writer.finish()
    assert len(samples(shard)) == 1
    assert not writer.is_done(jobs[0])
