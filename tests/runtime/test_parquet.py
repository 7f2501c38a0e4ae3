"""Parquet shards: what readers find in them, and that they lose nothing of an ``.npz`` file."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import lacking
from vfx_engines.errors import OutputError, UsageError
from vfx_engines.spec import Output
from vfx_runtime import parquet as parquet_module
from vfx_runtime.claims import Claims
from vfx_runtime.features import Features, RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import NpzWriter
from vfx_runtime.packing import ShardWriter
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.reading import read_features
from vfx_runtime.writers import open_writer

pq = pytest.importorskip("pyarrow.parquet")

VECTORS = (Output("rgb", (8,)), Output("logits", (3,), kind="logits"))
FLOW = (Output("raft", (2, 6, 4), dtype="float16"),)
META = {"spec": {"model": "i3d", "source": "ü\n", "macs": 0.1}, "others": [], "vfx_version": "0"}
ROWS = {"a": 3, "sub/b.1%": 700, "sub/c": 0, "\udcff ä": 1}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    return video


def spool(outputs: Sequence[Output], rows: int, seed: int) -> RowSpool:
    """Rows of random bit patterns, and times that have no finite decimal notation."""
    generator = np.random.default_rng(seed)
    made = RowSpool(outputs)
    arrays: dict[str, NDArray[Any]] = {}
    for item in outputs:
        kind = np.dtype(item.dtype)
        bits = generator.integers(0, 256, (rows, *item.row, kind.itemsize), np.uint8)
        arrays[item.name] = bits.view(kind)[..., 0]
    start = np.arange(rows) * 64
    ranges = np.stack([start, start + 64], axis=1)
    made.append(arrays, ranges, ranges / 29.97 * 1000)
    return made


def save(
    writer: ShardWriter | NpzWriter,
    job: Job,
    outputs: Sequence[Output] = VECTORS,
    rows: int = 3,
    seed: int = 0,
) -> None:
    with spool(outputs, rows, seed) as made:
        writer.write(job, made, 30000 / 1001, META)


def shards(output: Path) -> list[Path]:
    return sorted(output.glob("features-*.parquet"))


def bits(features: Features) -> dict[str, tuple[str, tuple[int, ...], bytes] | str | float]:
    """Everything in a feature file, bit for bit and in order."""
    arrays = {
        **features.arrays,
        "frame_range": features.frame_range,
        "timestamps_ms": features.timestamps_ms,
    }
    return {
        **{name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
        "fps": features.fps,
        "meta": json.dumps(features.meta),
    }


@pytest.mark.parametrize(
    "outputs",
    [VECTORS, FLOW, (*VECTORS, Output("map", (5, 4), pool="none"), Output("one", (4,), per="pair"))],
    ids=["vectors", "flow", "all"],
)
@pytest.mark.parametrize("again", [False, True], ids=["staged", "from another shard"])
def test_nothing_of_an_npz_is_lost(
    output: Path,
    claims: Claims,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outputs: tuple[Output, ...],
    again: bool,
) -> None:
    monkeypatch.setattr(parquet_module, "ROW_GROUP_BYTES", 5000)
    monkeypatch.setattr(parquet_module, "BLOCK_BYTES", 1500)
    (tmp_path / "plain").mkdir()
    plain = NpzWriter(tmp_path / "plain", outputs, "f", claims)
    writer = ShardWriter(ParquetLayout(outputs), output, outputs, "f", claims)
    for seed, (name, rows) in enumerate(ROWS.items()):
        save(plain, Job(video, name), outputs, rows, seed)
        save(writer, Job(video, name), outputs, rows, seed)
    if again:
        save(writer, Job(video, "z"), outputs)
        writer.finish()
        other = ShardWriter(ParquetLayout(outputs), output, outputs, "g", claims)
        save(other, Job(video, "z"), outputs)
        other.finish()
    else:
        writer.finish()
    (shard,) = shards(output)
    assert pq.read_metadata(shard).num_row_groups > 2
    for name in ROWS:
        assert bits(read_features(shard, name)) == bits(read_features(tmp_path / "plain" / f"{name}.npz"))
    with pytest.raises(OutputError, match="holds no video b, but "):
        read_features(shard, "b")
    with pytest.raises(UsageError, match=r"videos: say which one \("):
        read_features(shard)


def test_what_readers_find(output: Path, claims: Claims, video: Path) -> None:
    outputs = (*VECTORS, *FLOW)
    writer = open_writer("parquet", output, outputs, fingerprint="f", claims=claims)
    with spool(outputs, 3, 1) as rows:
        raft, rgb = rows.outputs["raft"].array(), rows.outputs["rgb"].array()
        assert writer.write(Job(video, "a"), rows, 25.0, META) == []
    save(writer, Job(video, "\udcff ä"), outputs, 2)  # type: ignore[arg-type]
    (shard,) = writer.finish()

    table = pq.read_table(output)  # the whole folder, of which readers ignore hidden files
    assert {field.name: str(field.type) for field in table.schema} == {
        "video": "string",
        "row": "int64",
        "start_frame": "int64",
        "end_frame": "int64",
        "start_ms": "double",
        "end_ms": "double",
        "rgb": "fixed_size_list<element: float>[8]",
        "logits": "fixed_size_list<element: float>[3]",
        "raft": "list<element: halffloat>",
        "raft_shape": "fixed_size_list<element: int32>[3]",
    }
    assert table["video"].to_pylist() == ["a"] * 3 + ["\\udcff ä"] * 2
    assert table["row"].to_pylist() == [0, 1, 2, 0, 1]
    assert table["end_frame"].to_pylist()[:3] == [64, 128, 192]
    rows_of_a = pq.read_table(output, filters=[("video", "=", "a")], columns=["rgb", "raft", "raft_shape"])
    frame = rows_of_a.to_pandas()
    assert np.stack(frame["rgb"]).tobytes() == rgb.tobytes()
    maps = [row.raft.reshape(row.raft_shape) for row in frame.itertuples()]
    assert np.stack(maps).tobytes() == raft.tobytes()
    said = json.loads(pq.read_metadata(shard).metadata[b"vfx"])
    (settings,) = said["settings"]
    assert settings == {**META, "source": None, "fingerprint": "f"}
    assert said["videos"][1]["name"] == "\udcff ä"
    assert said["videos"][1]["source"] == {"size": 5}


def test_row_groups_are_of_bounded_size(
    output: Path, claims: Claims, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short videos share a group, a long one has several, and statistics tell whose rows a group holds."""
    monkeypatch.setattr(parquet_module, "ROW_GROUP_BYTES", 20_000)
    monkeypatch.setattr(parquet_module, "BLOCK_BYTES", 2_000)
    writer = ShardWriter(ParquetLayout(), output, VECTORS, "f", claims)
    for number in range(50):
        save(writer, Job(video, f"v{number:02}"), rows=2)
    save(writer, Job(video, "w"), rows=3000)
    (shard,) = writer.finish()
    footer = pq.read_metadata(shard)
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    assert len(groups) > 5
    # This includes the numbers, the levels of lists, and page headers.
    assert max(group.total_byte_size for group in groups) < 40_000
    video_column = groups[0].column(0)
    assert (video_column.statistics.min, video_column.statistics.max) == ("v00", "w")
    assert groups[2].column(0).statistics.min == "w"


def test_the_same_videos_give_the_same_bytes(tmp_path: Path, video: Path) -> None:
    found = set()
    for order in (1, -1):
        output = tmp_path / f"out{order}"
        output.mkdir()
        with Claims(output) as claims:
            writer = ShardWriter(ParquetLayout(), output, VECTORS, "f", claims)
            for name in [*ROWS][::order]:
                save(writer, Job(video, name), rows=ROWS[name])
            (shard,) = writer.finish()
        found.add((shard.name, shard.read_bytes()))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("outputs", "twice"),
    [
        ((Output("video", (8,)),), "video"),
        ((Output("row", (8,)),), "row"),
        ((*FLOW, Output("raft_shape", (3,))), "raft_shape"),
    ],
)
def test_names_of_other_columns_are_refused(
    output: Path, claims: Claims, outputs: tuple[Output, ...], twice: str
) -> None:
    with pytest.raises(UsageError, match=f"two columns called '{twice}'.*webdataset"):
        open_writer("parquet", output, outputs, fingerprint="f", claims=claims)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        "{}",
        '{"outputs": 1, "settings": [], "videos": []}',
        '{"outputs": [], "settings": [], "videos": [{"name": "a"}]}',
        '{"outputs": [], "settings": [{}], "videos": [{"name": "a", "rows": 9, "fps": 1, "settings": 0, '
        '"source": null, "shapes": {}}]}',
        '{"outputs": [], "settings": [{}], "videos": [{"name": "a", "rows": 2, "fps": 1, "settings": 5, '
        '"source": null, "shapes": {}}]}',
        '{"outputs": [], "settings": [[]], "videos": [{"name": "a", "rows": 2, "fps": 1, "settings": 0, '
        '"source": null, "shapes": {}}]}',
        "[" * 100_000,
    ],
)
def test_tables_of_strangers_hold_nothing(tmp_path: Path, said: str) -> None:
    import pyarrow as pa

    table = pa.table({"video": ["a", "a"]}).replace_schema_metadata({"vfx": said})
    pq.write_table(table, tmp_path / "features-0.parquet")
    found = ParquetLayout().contents(tmp_path / "features-0.parquet")
    assert (found.videos, found.whole) == ({}, False)
    pq.write_table(pa.table({"video": ["a"]}), tmp_path / "features-1.parquet")
    assert not ParquetLayout().contents(tmp_path / "features-1.parquet").whole


def test_parts_of_strangers_are_not_packed(output: Path, claims: Claims, video: Path) -> None:
    writer = ShardWriter(ParquetLayout(), output, VECTORS, "f", claims)
    save(writer, Job(video, "a"))
    staging = output / ".parquet.parts"
    np.savez(staging / "b.npz", rgb=np.zeros((3, 8), np.float32))
    meta = np.array(json.dumps({"fingerprint": "f", "source": {}}))
    pairs = {"frame_range": np.zeros((2, 2), np.int64), "timestamps_ms": np.zeros((2, 2))}
    np.savez(staging / "c.npz", rgb=np.zeros((3, 8), np.float32), fps=np.array(1.0), meta=meta, **pairs)
    np.savez(staging / "d.npz", rgb=np.array(["text"] * 2), fps=np.array(1.0), meta=meta, **pairs)
    good = {"rgb": np.zeros((2, 8), np.float32), "fps": np.array(1.0), "meta": meta, **pairs}
    np.savez(staging / "e.npz", **{**good, "video": good["rgb"]})
    np.savez(staging / "f.npz", **{**good, "meta": np.array("{}")})
    np.savez(staging / "g.npz", **{**good, "meta": np.array("[]")})
    np.savez(staging / "h.npz", **{**good, "fps": np.array(1, np.int8)})
    np.savez_compressed(staging / "i.npz", **good)
    (shard,) = writer.finish()
    assert pq.read_table(shard)["video"].to_pylist() == ["a"] * 3
    assert not staging.exists()


@pytest.mark.slow
@pytest.mark.ci
def test_ray_data_reads_it(output: Path, claims: Claims, video: Path) -> None:
    """In a separate process, because Ray leaves processes behind until the one that started it ends."""
    if subprocess.run([sys.executable, "-c", "import ray.data"], capture_output=True).returncode:
        lacking("ray", "Ray Data is not installed")
    writer = ShardWriter(ParquetLayout(), output, VECTORS, "f", claims)
    save(writer, Job(video, "a"), rows=5)
    writer.finish()
    code = """
import sys, ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
rows = ray.data.read_parquet(sys.argv[1]).take_all()
print(len(rows), rows[0]["video"], len(rows[4]["rgb"]))
"""
    said = subprocess.run([sys.executable, "-c", code, str(output)], capture_output=True, text=True)
    assert said.stdout.split() == ["5", "a", "8"], said.stderr


def test_damage_is_noticed_when_one_video_is_read(output: Path, claims: Claims, video: Path) -> None:
    writer = ShardWriter(ParquetLayout(), output, VECTORS, "f", claims)
    save(writer, Job(video, "a"))
    (shard,) = writer.finish()
    renamed = output / "corpus.parquet"
    data = shard.read_bytes()
    renamed.write_bytes(data)
    good = bits(read_features(renamed))
    (footer,) = np.frombuffer(data[-8:-4], "<u4")
    for at in range(0, len(data), 41):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        shard.write_bytes(damaged)
        with pytest.raises(OutputError, match="not a feature file of vfx, or damaged"):
            read_features(shard, "a")
        # Under another name, pages still have checksums, but the footer has none.
        if at < len(data) - 8 - int(footer):
            renamed.write_bytes(damaged)
            with contextlib.suppress(OutputError):
                assert bits(read_features(renamed)) == good, at
