"""Shards of either layout: what counts as finished, what is redone, and what a crash leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from make_video import make_video
from run_kit import files_in, vfx_run
from tiny_flow import tiny_flow_engine
from vfx_engines.errors import OutputError, UsageError
from vfx_engines.spec import Output
from vfx_runtime import packing
from vfx_runtime.atomic import part_path
from vfx_runtime.claims import Claims
from vfx_runtime.extracting import extract
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import NpzWriter
from vfx_runtime.packing import ShardWriter, pack
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.reading import read_features
from vfx_runtime.shards import Layout
from vfx_runtime.webdataset import TarLayout
from vfx_runtime.writers import SHARDED, Format

OUTPUTS = (Output("rgb", (8,)),)
WIDER = (Output("rgb", (9,)),)


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    return [Job(video, name) for name in ("a", "sub/b.1%", "sub/c", "\udcff ä")]


@pytest.fixture(params=[TarLayout, ParquetLayout], ids=["webdataset", "parquet"])
def layout(request: pytest.FixtureRequest) -> Layout:
    made: Layout = request.param()
    return made


@pytest.fixture
def writer(layout: Layout, output: Path, claims: Claims) -> Callable[..., ShardWriter]:
    def open_one(fingerprint: str = "f", outputs: tuple[Output, ...] = OUTPUTS) -> ShardWriter:
        return ShardWriter(layout, output, outputs, fingerprint, claims)

    return open_one


def save(
    writer: ShardWriter | NpzWriter, job: Job, rows: int = 3, outputs: tuple[Output, ...] = OUTPUTS
) -> list[Path]:
    with RowSpool(outputs) as spool:
        values = np.full((rows, *outputs[0].row), rows, np.float32)
        spool.append({outputs[0].name: values}, np.ones((rows, 2)), np.ones((rows, 2)))
        return writer.write(job, spool, 25.0, {"spec": 1})


def shards(output: Path) -> list[Path]:
    return sorted(path for path in output.glob("features-*") if path.suffix != ".old")


def names(shard: Path) -> list[str]:
    """Sorted names of the videos in a shard, read without vfx."""
    if shard.suffix == ".tar":
        with tarfile.open(shard, "r:") as archive:
            said = [archive.extractfile(member) for member in archive if member.name.endswith(".json")]
            return sorted(json.load(file)["name"] for file in said if file is not None)
    import pyarrow.parquet as pq

    footer = pq.read_metadata(shard)
    return sorted(video["name"] for video in json.loads(footer.metadata[b"vfx"])["videos"])


def test_full_shards_are_closed_while_the_run_goes_on(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_VIDEOS", 2)
    one = writer()
    made = [len(save(one, job)) for job in jobs[:3]]
    assert made == [0, 1, 0]
    assert len(shards(output)) == 1
    assert all(one.is_done(job) for job in jobs[:3])
    one.finish()
    assert len(shards(output)) == 2


@pytest.mark.parametrize("format", SHARDED)
def test_videos_of_different_sizes_share_a_shard(tmp_path: Path, format: Format) -> None:
    """An engine for frames of any size is opened once for each size, but shards are packed once."""
    engine, videos = tiny_flow_engine(tmp_path / "flow.onnx"), tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        make_video(videos / f"v{number}.mp4", width=32 + 16 * (number % 3), height=32, frames=8)
    done = vfx_run("--engine", engine, videos, "--output", tmp_path / "out", "--format", format)
    assert done.exit_code == 0, done.output
    (shard,) = shards(tmp_path / "out")
    assert done.stdout.split() == [str(shard)]
    assert names(shard) == sorted(path.stem for path in videos.iterdir())
    results = list(extract([videos], engine, output=tmp_path / "python", format=format))
    assert [item.error for item in results] == [None] * 6
    assert [path.read_bytes() for path in shards(tmp_path / "python")] == [shard.read_bytes()]


def test_staged_videos_of_an_earlier_writer_count(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a writer for each size of video: without this, nothing would be packed before the end."""
    monkeypatch.setattr(packing, "SHARD_VIDEOS", 3)
    made = [len(save(writer(), job)) for job in jobs[:3]]
    assert made == [0, 0, 1]
    assert names(shards(output)[0]) == sorted(job.name for job in jobs[:3])


def test_other_settings_or_another_video_is_not_done(
    writer: Callable[..., ShardWriter], jobs: list[Job]
) -> None:
    one = writer()
    save(one, jobs[0])
    one.finish()
    assert not writer("g").is_done(jobs[0])
    jobs[0].path.write_bytes(b"another video")
    assert not one.is_done(jobs[0])
    jobs[0].path.unlink()
    assert one.is_done(jobs[0]), "a video that is gone cannot have changed"


def test_what_is_done_again_leaves_its_old_shard(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job]
) -> None:
    first = writer()
    for job in jobs:
        save(first, job)
    first.finish()
    second = writer("g")
    save(second, jobs[0], rows=2)
    (shard,) = second.finish()

    assert shards(output) == [shard]
    assert names(shard) == sorted(job.name for job in jobs)
    assert second.is_done(jobs[0])
    assert [first.is_done(job) for job in jobs] == [False, True, True, True]


def test_what_old_shards_leave_does_not_all_go_into_one(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_VIDEOS", 2)
    first = writer()
    many = [Job(jobs[0].path, f"v{number}") for number in range(8)]
    for job in many:
        save(first, job)
    assert len(shards(output)) == 4
    second = writer("g")
    for job in many[::4]:
        save(second, job)
    second.finish()
    assert sorted(name for shard in shards(output) for name in names(shard)) == [job.name for job in many]
    assert max(len(names(shard)) for shard in shards(output)) <= 3
    assert all(second.is_done(job) for job in many[::4])
    assert first.is_done(many[1])


def test_a_damaged_shard_is_set_aside_and_its_videos_are_done_again(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job]
) -> None:
    one = writer()
    for job in jobs[:2]:
        save(one, job)
    (shard,) = one.finish()
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    later = writer()
    assert not any(later.is_done(job) for job in jobs[:2])
    for job in jobs[:2]:
        save(later, job)
    later.finish()
    assert all(later.is_done(job) for job in jobs[:2])
    assert files_in(output) - {".vfx-claims"} == {shard.name, f"{shard.name}.old"}


@pytest.mark.parametrize("length", [0, 3, 0.5, 0.99])
def test_a_shard_that_cannot_be_read_is_set_aside_too(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job], length: float
) -> None:
    """Which videos it held cannot be known, and readers of the folder would stop at it."""
    one = writer()
    save(one, jobs[0])
    (shard,) = one.finish()
    data = shard.read_bytes()
    shard.write_bytes(data[: int(length * len(data)) if length < 1 else int(length)])
    later = writer()
    assert not later.is_done(jobs[0])
    save(later, jobs[0])
    later.finish()
    assert later.is_done(jobs[0])
    assert shard.read_bytes() == data


def test_every_damaged_byte_is_noticed(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job]
) -> None:
    one = writer()
    save(one, jobs[0])
    (shard,) = one.finish()
    data = shard.read_bytes()
    for at in range(0, len(data), 13):
        shard.unlink()
        shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not writer().is_done(jobs[0]), at


def test_a_crash_between_shard_and_parts_leaves_nothing_twice(
    writer: Callable[..., ShardWriter],
    layout: Layout,
    output: Path,
    claims: Claims,
    jobs: list[Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = writer()
    for job in jobs:
        save(first, job)
    first.finish()
    save(writer("g"), jobs[0])
    with monkeypatch.context() as crash:
        crash.setattr(packing, "remove", lambda paths: None)
        pack(layout, output, claims)
    assert len(shards(output)) == 2, "the old shard is still there, as after kill -9"
    later = writer("g")
    assert later.is_done(jobs[0])
    later.finish()
    (shard,) = shards(output)
    assert len(names(shard)) == len(jobs)


def test_a_part_that_was_damaged_is_not_packed(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, jobs: list[Job]
) -> None:
    one = writer()
    for job in jobs[:2]:
        save(one, job)
    part = output / layout.staging / "a.npz"
    part.write_bytes(part.read_bytes()[:-30])
    (shard,) = one.finish()
    assert names(shard) == [jobs[1].name]
    assert not one.is_done(jobs[0])


def test_a_part_that_comes_while_its_video_is_packed_stays(
    writer: Callable[..., ShardWriter], layout: Layout, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is from another run into the folder, with other settings, that reported the video done."""
    first, second = writer(), writer("g")
    save(first, jobs[0])
    save(first, jobs[1])
    write = layout.write

    def meanwhile(*arguments: Any) -> None:
        write(*arguments)
        save(second, jobs[0])

    with monkeypatch.context() as patch:
        patch.setattr(layout, "write", meanwhile)
        first.finish()
    assert second.is_done(jobs[0])
    second.finish()
    assert second.is_done(jobs[0])
    assert first.is_done(jobs[1])


def test_pipes_and_compressed_parts_are_not_packed(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, jobs: list[Job]
) -> None:
    one = writer()
    save(one, jobs[0])
    save(one, jobs[1])
    part = output / layout.staging / "a.npz"
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.npy", bytes(1 << 20))
    os.mkfifo(part.with_name("pipe.npz"))
    (shard,) = one.finish()
    assert names(shard) == [jobs[1].name]


def test_links_in_place_of_parts_are_not_followed(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, jobs: list[Job], tmp_path: Path
) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("gold")
    one = writer()
    save(one, jobs[0])
    part_path(output / f"features{layout.suffix}").symlink_to(treasure)
    (shard,) = one.finish()
    assert treasure.read_text() == "gold"
    assert shard.is_file()
    assert not shard.is_symlink()


def test_a_pipe_in_place_of_a_shard_is_not_read(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, jobs: list[Job]
) -> None:
    os.mkfifo(output / f"features-0123456789abcdef{layout.suffix}")
    one = writer()
    assert not one.is_done(jobs[0])
    save(one, jobs[0])
    (shard,) = one.finish()
    assert one.is_done(jobs[0])
    assert shard.is_file()


def test_a_linked_staging_folder_is_refused(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, tmp_path: Path
) -> None:
    (output / layout.staging).symlink_to(tmp_path)
    with pytest.raises(OutputError, match="it is a link: remove it"):
        writer()


def test_videos_of_other_columns(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, jobs: list[Job]
) -> None:
    """As when another engine writes to the same folder: a table needs rows of one length, a tar does not."""
    first = writer()
    for job in jobs:
        save(first, job)
    first.finish()
    second = writer("g", WIDER)
    save(second, jobs[0], outputs=WIDER)
    made = second.finish()
    assert shards(output) == sorted(made)
    assert [first.is_done(job) for job in jobs] == [False, True, True, True]
    assert second.is_done(jobs[0])
    together = [names(shard) for shard in made]
    if layout.suffix == ".tar":
        assert together == [sorted(job.name for job in jobs)]
    else:
        assert together == [["a"], sorted(job.name for job in jobs[1:])]


def test_a_shard_of_a_stranger_is_left_alone(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, jobs: list[Job]
) -> None:
    """Its name has the hash of its bytes, so it is not damaged: this version of vfx just cannot read it."""
    text = b"of another version"
    name = f"features-{hashlib.blake2b(text, digest_size=8).hexdigest()}{layout.suffix}"
    (output / name).write_bytes(text)
    one = writer()
    assert not one.is_done(jobs[0])
    save(one, jobs[0])
    one.finish()
    assert one.is_done(jobs[0])
    assert (output / name).read_bytes() == text


def test_a_file_of_the_user_is_left_alone(
    writer: Callable[..., ShardWriter], layout: Layout, output: Path, jobs: list[Job]
) -> None:
    """Its name is not one that vfx gives, so it does not count as a damaged shard, readable or not."""
    own = output / f"features-all{layout.suffix}"
    own.write_bytes(b"mine")
    one = writer()
    assert not one.is_done(jobs[0])
    save(one, jobs[0])
    one.finish()
    assert one.is_done(jobs[0])
    assert own.read_bytes() == b"mine"


def test_a_video_is_read_from_its_shard(
    writer: Callable[..., ShardWriter], output: Path, jobs: list[Job], claims: Claims
) -> None:
    (output / "plain").mkdir()
    plain = NpzWriter(output / "plain", OUTPUTS, "f", claims)
    one = writer()
    for rows, job in enumerate(jobs):
        save(one, job, rows)
        save(plain, job, rows)
    (shard,) = one.finish()
    for job in jobs:
        want, found = read_features(output / "plain" / f"{job.name}.npz"), read_features(shard, job.name)
        assert (found.fps, found.meta) == (want.fps, want.meta)
        np.testing.assert_array_equal(found.arrays["rgb"], want.arrays["rgb"])
    for path, name, message in (
        (shard, None, "holds 4 videos: say which one"),
        (shard, "none", "holds no video none, but a, "),
        (output / "plain" / "a.npz", "a", "leave the name a out"),
        (output / f"none{shard.suffix}", "a", "no such file"),
        (output / "plain", "a", "leave the name"),
    ):
        with pytest.raises((OutputError, UsageError), match=message):
            read_features(path, name)
    shard.write_bytes(b"damaged")
    with pytest.raises(OutputError, match="not a feature file of vfx, or damaged"):
        read_features(shard, "a")
