"""Feature files: contents, what counts as finished, and what damage, kills and full disks lead to."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet
import pytest

from vfx_engines.errors import OutputError, UsageError
from vfx_engines.spec import Output
from vfx_runtime import features as features_module
from vfx_runtime import hdf5 as hdf5_module
from vfx_runtime import npy
from vfx_runtime.atomic import new_files, part_path, prepare_output
from vfx_runtime.features import Column, Features, RowSpool
from vfx_runtime.job import Job
from vfx_runtime.reading import read_features
from vfx_runtime.writers import FORMATS, check_names, open_writer

OUTPUTS = (Output("rgb", (8,)), Output("logits", (3,), kind="logits"))
META = {"spec": {"model": "i3d", "source": "ü\n"}, "vfx": "0.1.0"}
FPS = 19.62


def spool(rows, folder=None, outputs=OUTPUTS, seed=0):
    generator = np.random.default_rng(seed)
    spool = RowSpool(outputs, folder)
    for k in range(rows):
        spool.append(
            {o.name: generator.standard_normal((1, *o.shape), np.float32) for o in outputs},
            np.array([[64 * k, 64 * k + 64]]),
            np.array([[1000.0 * k, 1000.0 * k + 999.5]]),
        )
    return spool


@pytest.fixture
def job(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"video")
    return Job(video, "sub/a")


@pytest.fixture
def writer(tmp_path, claims):
    def open_one(format="npz", fingerprint="f1", outputs=OUTPUTS):
        outputs = outputs[:1] if format == "slowfast" else outputs
        return open_writer(format, tmp_path / "out", outputs, fingerprint=fingerprint, claims=claims)

    return open_one


def everything(folder):
    """Relative paths of all files below a folder, except the claims."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {".vfx-claims"}


def shard_contents(folder):
    """Contents of all shards of a folder, by video (Parquet) or member (tar); asserts that none is twice.

    The folder must hold nothing but shards of one layout.
    """
    found = {}
    for name in everything(folder):
        if name.endswith(".parquet"):
            videos = json.loads(pyarrow.parquet.read_metadata(folder / name).metadata[b"vfx"])["videos"]
            held = {video["name"]: contents(read_features(folder / name, video["name"])) for video in videos}
        else:
            with tarfile.open(folder / name, "r:") as archive:
                held = {member.name: archive.extractfile(member).read() for member in archive}
        assert held.keys().isdisjoint(found)
        found |= held
    return found


def save(writer, job, rows=5, seed=0):
    with spool(rows, seed=seed) as collected:
        return writer.write(job, collected, FPS, META)


# Rows


def test_columns_spill_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "BLOCK_BYTES", 1000)
    expected = np.arange(700, dtype=np.float32).reshape(100, 7)
    column = Column("<f4", (7,), tmp_path)
    for start in range(0, 100, 3):
        rows = expected[start : start + 3]
        column.append(rows)
    assert list(tmp_path.iterdir()) == []
    blocks = list(column.blocks())
    assert len(blocks) > 2
    assert max(block.nbytes for block in blocks) <= 1000
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    array = column.array()
    column.append(expected[:1])
    np.testing.assert_array_equal(np.concatenate(list(column.blocks()))[-1], expected[0])
    column.close()
    np.testing.assert_array_equal(array, expected)
    array[0] = 1


def test_rows_are_copied_and_cast():
    column = Column("<f4", (2, 2))
    rows = np.ones((3, 2, 2), np.float16)
    column.append(rows[:, :, ::-1])
    rows[:] = 2
    assert column.array().dtype == np.float32
    assert (column.array() == 1).all()
    column.append(np.empty((0, 2, 2), np.float32))
    assert column.rows == 3
    with pytest.raises(ValueError, match="shape"):
        column.append(np.ones((1, 4), np.float32))


def test_a_spool_refuses_rows_that_do_not_belong_together():
    two, one = np.zeros((2, 2)), np.zeros((1, 2))
    rows = RowSpool(OUTPUTS[:1])
    with pytest.raises(ValueError, match="numbers of rows"):
        rows.append({"rgb": np.zeros((2, 8))}, one, one)
    with pytest.raises(ValueError, match="outputs"):
        rows.append({"flow": np.zeros((2, 8))}, two, two)


def test_features_show_shapes_only():
    with spool(300) as collected:
        features = collected.features(25, META)
    assert repr(features) == "Features(rgb: [300, 8], logits: [300, 3]; 300 rows, 25 fps)"


@pytest.mark.parametrize(
    ("formats", "megabytes"),
    # Arrow holds 9 MB at a time and its allocator keeps another 20 MB, however much is written.
    [(["npz", "npy", "hdf5", "webdataset"], 48), (["parquet"], 64)],
    ids=["own", "arrow"],
)
def test_memory_does_not_grow_with_rows(tmp_path, formats, megabytes):
    """150 MB of rows go through a spool and each writer; the process grows by a few blocks only."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from vfx_engines.spec import Output
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.writers import open_writer
out, outputs = Path(sys.argv[1]), (Output("rgb", (1024,)),)
rows = np.zeros((2048, 1024), np.float32)
index = np.zeros((2048, 2))
with Claims(out) as claims, RowSpool(outputs, out) as spool:
    spool.append({"rgb": rows[:8]}, index[:8], index[:8])
    writers = [open_writer(f, out, outputs, fingerprint="", claims=claims) for f in sys.argv[2:]]
    for writer in writers:
        writer.write(Job(Path("v"), "small"), spool, 1.0, {})
        writer.finish()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(18):
        spool.append({"rgb": rows}, index, index)
    job = Job(Path("v"), "big")
    for writer in writers:
        writer.write(job, spool, 1.0, {})
        writer.finish()
        assert writer.is_done(job)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = [sys.executable, "-c", code, str(tmp_path), *formats]
    assert int(subprocess.check_output(run)) < megabytes * 1024


# Contents


def test_npz_holds_what_was_given(tmp_path, writer, job):
    paths = save(writer(), job)
    assert paths == [tmp_path / "out/sub/a.npz"] == writer().paths(job)
    with np.load(paths[0], allow_pickle=False) as file, spool(5) as rows:
        assert set(file.files) == {"rgb", "logits", "frame_range", "timestamps_ms", "fps", "meta"}
        np.testing.assert_array_equal(file["rgb"], rows.outputs["rgb"].array())
        assert file["rgb"].dtype == np.float32
        assert file["logits"].shape == (5, 3)
        assert file["frame_range"].dtype == np.int64
        assert file["frame_range"][-1].tolist() == [256, 320]
        assert file["timestamps_ms"][-1].tolist() == [4000.0, 4999.5]
        assert file["fps"].dtype == np.float64
        assert (file["fps"].shape, float(file["fps"])) == ((), FPS)
        meta = json.loads(str(file["meta"]))
    assert meta == {**META, "source": {"size": 5}, "fingerprint": "f1"}
    assert everything(tmp_path / "out") == {"sub/a.npz"}


def test_npz_reads_back(writer, job):
    (path,) = save(writer(), job)
    features = read_features(path)
    assert isinstance(features, Features)
    assert list(features.arrays) == ["rgb", "logits"]
    assert features.fps == FPS
    assert features.meta["spec"] == META["spec"]


def test_npz_bytes_depend_on_the_features_only(tmp_path, writer, job):
    (path,) = save(writer(), job)
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    os.utime(job.path, (0, 0))
    assert save(writer(), job) == [path]
    assert path.read_bytes() == first
    save(writer(), job, seed=1)
    assert path.read_bytes() != first


@pytest.mark.parametrize("damage", [b"", b"text", b"PK\x05\x06" + bytes(18)])
def test_reading_what_is_no_feature_file_is_one_line(tmp_path, damage):
    path = tmp_path / "x.npz"
    path.write_bytes(damage)
    with pytest.raises(OutputError, match=r"not a feature file of vfx, or damaged") as caught:
        read_features(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="no such file"):
        read_features(tmp_path / "y.npz")


@pytest.mark.parametrize(("name", "dtype"), [("rgb", np.float64), ("vggish", np.float32)])
@pytest.mark.parametrize(("format", "suffix"), [("npy", "npy"), ("pickle", "pkl")])
def test_npy_and_pickle_are_what_video_features_writes(tmp_path, writer, job, format, suffix, name, dtype):
    def load(path):
        if suffix == "npy":
            return np.load(path, allow_pickle=False)
        return pickle.loads(path.read_bytes())

    out = tmp_path / "out/sub"
    outputs = (Output(name, (8,)),)
    with spool(5, outputs=outputs) as rows:
        writer(format, outputs=outputs).write(job, rows, FPS, META)
        expected = rows.outputs[name].array()
    assert writer(format, outputs=outputs).is_done(job)
    beside = () if name == "vggish" else ("fps", "timestamps_ms")
    assert everything(out) == {f"a_{key}.{suffix}" for key in (name, *beside)}
    features = load(out / f"a_{name}.{suffix}")
    assert features.dtype == dtype
    assert type(features) is np.ndarray
    np.testing.assert_array_equal(features, expected)
    features[0] = 0
    if beside:
        fps, times = (load(out / f"a_{key}.{suffix}") for key in beside)
        assert fps.dtype == times.dtype == np.float64
        assert (fps.shape, float(fps)) == ((), FPS)
        assert times.tolist() == [999.5, 1999.5, 2999.5, 3999.5, 4999.5]
    with spool(0, outputs=outputs) as rows:
        writer(format, outputs=outputs).write(job, rows, FPS, META)
    for key in {name, *beside} - {"fps"}:
        assert load(out / f"a_{key}.{suffix}").shape == (0,)
    assert writer(format, outputs=outputs).is_done(job)


@pytest.mark.parametrize("format", ["npy", "pickle"])
@pytest.mark.parametrize(
    ("names", "timed"),
    [
        (["rgb", "flow"], True),
        (["s3d"], False),
        (["r21d"], False),
        (["vggish", "pca"], False),
        (["s3d", "rgb"], True),
        (["features"], True),
    ],
)
@pytest.mark.parametrize("head", [False, True])
def test_rate_and_times_stand_beside_what_video_features_saves_them_with(
    tmp_path, writer, job, format, names, timed, head
):
    logits = (Output("logits", (3,), kind="logits"),) if head else ()
    outputs = (*(Output(name, (8,)) for name in names), *logits)
    one = writer(format, outputs=outputs)
    with spool(2, outputs=outputs) as rows:
        files = one.write(job, rows, FPS, META)
    keys = {*names, *(["fps", "timestamps_ms"] if timed else []), *(["logits"] if head else [])}
    assert {path.stem.removeprefix("a_") for path in files} == keys
    assert one.is_done(job)


@pytest.mark.parametrize("format", ["npy", "pickle"])
def test_logits_alone_have_rate_and_times(writer, job, format):
    """Such engines are the user's own; video_features has no network like it, so no layout to follow."""
    keys = {path.stem.removeprefix("a_") for path in writer(format, outputs=OUTPUTS[1:]).paths(job)}
    assert keys == {"logits", "fps", "timestamps_ms"}


@pytest.mark.parametrize(("fps", "last"), [(50.0, 4020.0), (0.0, 4499.75)])
@pytest.mark.parametrize("format", ["npy", "pickle"])
def test_pairs_have_a_time_for_each_frame(tmp_path, writer, job, format, fps, last):
    """As in video_features' optical flow; the last frame's time is one frame after the last pair's."""
    outputs = (Output("raft", (1, 2, 3, 4), per="pair"),)
    one = writer(format, outputs=outputs)
    with RowSpool(outputs) as rows:
        for k in range(5):
            row = np.full((1, 2, 3, 4), k, np.float32)
            rows.append({"raft": row}, np.array([[k, k + 2]]), np.array([[1000.0 * k, 1000 * k + 999.5]]))
        one.write(job, rows, fps, META)
    np.testing.assert_array_equal(
        saved(tmp_path / "out", format, job, "timestamps_ms"), [0, 1000, 2000, 3000, 4000, last]
    )
    assert saved(tmp_path / "out", format, job, "raft").shape == (5, 2, 3, 4)
    assert one.is_done(job)
    # Files of earlier versions have one time per pair; they are redone.
    times = Column("<f8", ())
    times.append(np.arange(5.0))
    path = next(path for path in one.paths(job) if "timestamps_ms" in path.name)
    with path.open("wb") as file:
        (npy._save_npy if format == "npy" else npy._save_pickle)(file, times, "<f8", tmp_path)
    assert not one.is_done(job)


def test_frame_features_are_stamped_with_the_frames_own_time(tmp_path, writer, job):
    outputs = (Output("resnet", (8,), per="frame"),)
    with spool(2, outputs=outputs) as rows:
        writer("npy", outputs=outputs).write(job, rows, FPS, META)
    assert np.load(tmp_path / "out/sub/a_timestamps_ms.npy").tolist() == [0, 1000]


def test_hdf5_holds_a_group_per_video(tmp_path, writer, job):
    hdf5 = writer("hdf5")
    other = Job(job.path, "sub/b \udcff\n")
    assert save(hdf5, job) == []
    save(hdf5, other, rows=0)
    assert hdf5.is_done(job)
    assert hdf5.finish() == [tmp_path / "out/features.h5"]
    assert everything(tmp_path / "out") == {"features.h5"}
    assert not (tmp_path / "out/.features.h5.parts").exists()
    with h5py.File(tmp_path / "out/features.h5") as file, spool(5) as rows:
        group = file["sub/a"]
        np.testing.assert_array_equal(group["rgb"][:], rows.outputs["rgb"].array())
        assert group["rgb"].dtype == np.float32
        assert group["frame_range"][-1].tolist() == [256, 320]
        assert group["timestamps_ms"].dtype == np.float64
        assert group["fps"][()] == FPS
        assert json.loads(group["meta"][()])["fingerprint"] == "f1"
        assert file["sub/b \\udcff\n/rgb"].shape == (0, 8)
    assert hdf5.is_done(job)
    assert hdf5.is_done(other)
    assert hdf5.finish() == []


def test_hdf5_keeps_and_replaces_groups(tmp_path, writer, job):
    b, nested = Job(job.path, "b"), Job(job.path, "b/c")
    for each in (job, b, nested):
        save(writer("hdf5"), each)
    writer("hdf5").finish()
    later = writer("hdf5", fingerprint="f2")
    assert not later.is_done(b)
    save(later, b, rows=2)
    later.finish()
    assert later.is_done(b)
    assert all(writer("hdf5").is_done(each) for each in (job, nested))
    with h5py.File(tmp_path / "out/features.h5") as file:
        assert file["b/rgb"].shape == (2, 8)


def test_hdf5_leaves_what_another_run_staged(tmp_path, writer, job):
    save(writer("hdf5", fingerprint="old"), job, rows=1)
    b = Job(job.path, "b")
    save(writer("hdf5"), b)
    writer("hdf5").finish()
    with h5py.File(tmp_path / "out/features.h5") as file:
        assert list(file) == ["b"]
    assert writer("hdf5", fingerprint="old").is_done(job)


def test_hdf5_names_videos_that_cannot_be_in_one_file(writer, job):
    hdf5 = writer("hdf5")
    a, inside = Job(job.path, "a"), Job(job.path, "a/rgb")
    save(hdf5, a)
    save(hdf5, inside)
    with pytest.raises(OutputError, match="group of video a/rgb would lie in an array"):
        hdf5.finish()
    assert hdf5.is_done(a)
    assert hdf5.is_done(inside)


def test_hdf5_without_h5py(writer, monkeypatch):
    monkeypatch.setattr(hdf5_module, "h5py", None)
    with pytest.raises(UsageError, match="pip install h5py"):
        writer("hdf5")


def test_impossible_requests(writer):
    with pytest.raises(UsageError, match="npz, npy, pickle, slowfast, hdf5"):
        writer("mat")
    for name in ("meta", "fps"):
        with pytest.raises(UsageError, match="output called"):
            writer(outputs=(Output(name, (8,)),))


def test_slowfast_names_and_contents(tmp_path, claims):
    """As slowfast_feature_extractor: float32, the folder of the listed name, the name up to its first dot."""
    writer = open_writer("slowfast", tmp_path / "out", OUTPUTS[:1], fingerprint="", claims=claims, frames=32)
    for name, file in {"a": "a", "x.y/b": "x.y/b", "x/c.d.e": "x/c", "..f": "..f"}.items():
        job = Job(tmp_path / "v.mp4", name)
        with spool(5) as rows:
            (path,) = writer.write(job, rows, FPS, META)
            assert path == tmp_path / f"out/{file}_32.npy"
            found = np.load(path)
            assert (found.dtype, found.shape) == (np.dtype("<f4"), (5, 8))
            np.testing.assert_array_equal(found, rows.outputs["rgb"].array())
        whole = path.read_bytes()
        assert writer.is_done(job)
        for damaged in (whole[:-1], whole + b"x", whole[:60], b"", np.float64(found).tobytes()):
            path.write_bytes(damaged)
            assert not writer.is_done(job)
        np.save(path, found.astype(np.float64))
        assert not writer.is_done(job)
        np.save(path, found[:, :7])
        assert not writer.is_done(job)
    assert everything(tmp_path / "out") == {"a_32.npy", "x.y/b_32.npy", "x/c_32.npy", "..f_32.npy"}


def test_slowfast_holds_one_array(tmp_path, claims):
    with pytest.raises(UsageError, match="holds one array per video, and this run gives rgb, logits"):
        open_writer("slowfast", tmp_path / "out", OUTPUTS, fingerprint="", claims=claims, frames=32)


def test_slowfast_holds_rows_of_numbers(tmp_path, claims):
    maps = (Output("map", (2048, 4, 8, 8), pool="none"),)
    with pytest.raises(UsageError, match=r"and map is \[2048, 4, 8, 8\]: export it without --pool none"):
        open_writer("slowfast", tmp_path / "out", maps, fingerprint="", claims=claims, frames=32)


@pytest.mark.parametrize("format", ["npz", "npy", "pickle", "hdf5", "parquet"])
def test_maps_and_tokens_are_rows_too(tmp_path, claims, job, format):
    """As with --pool none: several outputs, each with several axes per row."""
    outputs = (Output("slow_map", (6, 2, 3, 3), pool="none"), Output("tokens", (5, 4), pool="none"))
    writer = open_writer(format, tmp_path / "out", outputs, fingerprint="f", claims=claims)
    with spool(3, outputs=outputs) as rows:
        want = {name: column.array() for name, column in rows.outputs.items()}
        writer.write(job, rows, FPS, META)
    assert writer.is_done(job)
    writer.finish()
    for name, array in want.items():
        np.testing.assert_array_equal(saved(tmp_path / "out", format, job, name), array)


def saved(folder, format, job, name):
    """One output of a job, read without vfx."""
    if format == "npz":
        with np.load(folder / f"{job.name}.npz") as file:
            return file[name]
    if format == "npy":
        return np.load(folder / f"{job.name}_{name}.npy")
    if format == "pickle":
        return pickle.loads((folder / f"{job.name}_{name}.pkl").read_bytes())
    if format == "parquet":
        table = pyarrow.parquet.read_table(folder).to_pandas()
        return np.stack([row[name].reshape(row[f"{name}_shape"]) for _, row in table.iterrows()])
    with h5py.File(folder / "features.h5") as file:
        return file[job.name][name][...]


def test_slowfast_names_that_would_be_one():
    jobs = [Job(Path(f"/v/{name}.mp4"), name) for name in ("a.1", "b", "x/a", "a.2")]
    check_names("npz", jobs)
    check_names("slowfast", jobs[:3])
    with pytest.raises(UsageError, match=r"a\.1\.mp4 and /v/a\.2\.mp4 would both write a: "):
        check_names("slowfast", jobs)


# What counts as finished


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [0, 1, 5, 1023, 1024, 3000])
def test_a_finished_output_is_done(writer, job, format, rows):
    one = writer(format)
    assert not one.is_done(job)
    save(one, job, rows=rows)
    assert one.is_done(job)
    one.finish()
    assert one.is_done(job)
    assert writer(format).is_done(job)


@pytest.mark.parametrize("format", ["npz", "hdf5"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_settings_or_another_video_is_not_done(writer, job, format, packed):
    save(writer(format), job)
    if packed:
        writer(format).finish()
    assert not writer(format, fingerprint="f2").is_done(job)
    assert not writer(format, outputs=OUTPUTS[:1]).is_done(job)
    assert not writer(format, outputs=(Output("rgb", (9,)), OUTPUTS[1])).is_done(job)
    job.path.write_bytes(b"another video")
    assert not writer(format).is_done(job)
    job.path.unlink()
    assert writer(format).is_done(job)


@pytest.mark.parametrize("format", ["npy", "pickle"])
def test_a_set_that_does_not_fit_is_not_done(writer, job, format):
    one = writer(format)
    paths = save(one, job)
    assert not writer(format, outputs=(Output("rgb", (9,)), OUTPUTS[1])).is_done(job)
    for path in paths:
        data = path.read_bytes()
        path.unlink()
        assert not one.is_done(job)
        path.write_bytes(data[:-1])
        assert not one.is_done(job)
        path.write_bytes(data + b"x")
        assert not one.is_done(job)
        path.write_bytes(data)
    assert one.is_done(job)
    rgb = paths[2].read_bytes()
    save(one, job, rows=4)
    paths[2].write_bytes(rgb)
    assert not one.is_done(job)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path, writer, job):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    paths = save(writer("pickle"), job)
    paths[2].write_bytes(pickle.dumps((Trap(), bytearray(8))))
    assert not writer("pickle").is_done(job)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("format", ["npy", "pickle"])
def test_a_damaged_array_file_that_counts_as_done_loads(writer, job, format):
    one = writer(format)
    path = save(one, job, rows=2)[2]
    data, generator, done = path.read_bytes(), random.Random(0), 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        if one.is_done(job):
            done += 1
            array = np.load(path) if format == "npy" else pickle.loads(damaged)
            assert array.shape == (2, 8)
    assert done == 2 * 8 * 8


def test_arrays_of_different_lengths_are_not_done(writer, job):
    (path,) = save(writer(), job)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays)
    assert writer().is_done(job)
    np.savez(path, **{**arrays, "logits": arrays["logits"][1:]})
    assert not writer().is_done(job)


def contents(features):
    """Everything that a reader gets, in a form that compares with ``==``."""
    arrays = {**features.arrays, "r": features.frame_range, "t": features.timestamps_ms}
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()}, features.fps, features.meta


def contents_of(path):
    """``contents`` of a feature file, or None if it cannot be read."""
    try:
        return contents(read_features(path))
    except OutputError:
        return None


def test_every_damaged_byte_of_an_npz_is_noticed(writer, job):
    one = writer()
    (path,) = save(one, job, rows=2)
    good, data = contents_of(path), path.read_bytes()
    generator = random.Random(0)
    redone = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        if one.is_done(job):
            # The damage is in dates and the like, which nothing reads.
            assert contents_of(path) == good, at
        else:
            redone += 1
    assert redone > 0.8 * len(data)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert not one.is_done(job)


def test_a_damaged_hdf5_file_is_set_aside_and_its_videos_redone(tmp_path, writer, job):
    """The HDF5 library itself crashes on a third of such files, so it must never be given one."""
    b = Job(job.path, "b")
    one = writer("hdf5")
    save(one, job)
    save(one, b, seed=1)
    one.finish()
    file = tmp_path / "out/features.h5"
    data = file.read_bytes()
    generator = random.Random(0)
    for at in (*range(60), *(generator.randrange(len(data)) for _ in range(300))):
        damaged = bytearray(data)
        damaged[at] ^= 1 << generator.randrange(8)
        file.unlink()
        file.write_bytes(damaged[: len(data) - at % 2])
        assert not writer("hdf5").is_done(job)
    save(one, b)
    one.finish()
    assert one.is_done(b)
    assert not one.is_done(job)
    assert (tmp_path / "out/features.h5.old").stat().st_size == len(damaged) - at % 2


def test_a_damaged_hdf5_file_that_cannot_be_set_aside_is_said_in_one_line(tmp_path, writer, job):
    (tmp_path / "out/features.h5").write_bytes(b"damaged")
    (tmp_path / "out/features.h5.old").mkdir()
    one = writer("hdf5")
    save(one, job)
    with pytest.raises(OutputError, match=r"features\.h5\.old: this is a folder, expected a file"):
        one.finish()
    assert one.is_done(job)


# Failures


def test_a_failure_while_writing_leaves_nothing(tmp_path, writer, job):
    with spool(3) as rows:
        rows.outputs["rgb"].blocks = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        for format in FORMATS:
            with pytest.raises(KeyboardInterrupt):
                writer(format).write(job, rows, FPS, META)
    assert everything(tmp_path / "out") == set()


def test_a_set_of_files_is_never_old_and_new(tmp_path):
    finals = [tmp_path / name for name in ("fps", "rgb")]
    for final in finals:
        final.write_text("old")
    finals[1].unlink()
    finals[1].mkdir()

    def replace():
        with new_files(finals, exclusive=True, inside=tmp_path) as parts:
            for part in parts:
                part.write_text("new")

    with pytest.raises(OutputError, match="rgb"):
        replace()
    assert not finals[0].exists()
    assert everything(tmp_path) == set()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, job):
    """A limit on file size makes a write fail midway, as a full disk does."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from vfx_engines.errors import OutputError
from vfx_engines.spec import Output
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.writers import open_writer
out, outputs = Path(sys.argv[1]), (Output("rgb", (1024,)),)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Claims(out) as claims, RowSpool(outputs, out) as spool:
    spool.append({"rgb": np.zeros((100, 1024))}, np.zeros((100, 2)), np.zeros((100, 2)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
    for format in sys.argv[2:]:
        try:
            open_writer(format, out, outputs, fingerprint="", claims=claims).write(
                Job(Path("v"), "v"), spool, 1.0, {})
        except OutputError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, -1))
    writer = open_writer("hdf5", out, outputs, fingerprint="", claims=claims)
    for name in "ab":
        writer.write(Job(Path("v"), name), spool, 1.0, {})
    try:
        writer.finish()
    except OutputError as error:
        print(error)
    assert writer.is_done(Job(Path("v"), "a"))
    try:
        for _ in range(20):
            spool.append({"rgb": np.zeros((100, 1024))}, np.zeros((100, 2)), np.zeros((100, 2)))
    except OutputError as error:
        print(error)
"""
    run = [sys.executable, "-c", code, str(tmp_path), *FORMATS]
    lines = subprocess.check_output(run, text=True).splitlines()
    assert len(lines) == len(FORMATS) + 2
    assert all(line.startswith("cannot write ") for line in lines)
    staged = {f".features.h5.parts/{name}.npz" for name in "ab"}
    assert everything(tmp_path) == {"a.mp4", *staged}


def test_names_that_cannot_be_files_are_said_before_the_work(tmp_path, writer, job):
    out = tmp_path / "out"
    (out / "file").write_bytes(b"")
    (out / "folder.npz").mkdir()
    for name, reason in {
        "file/x": "a part of this path is a file",
        "folder": "this is a folder",
        "n" * 255: "too long",
    }.items():
        with pytest.raises(OutputError, match=reason) as caught:
            writer().is_done(Job(job.path, name))
        assert "\n" not in str(caught.value)
    for name in ("file/x", "folder", "n" * 255):
        with pytest.raises(OutputError):
            save(writer(), Job(job.path, name))
    assert everything(out) == {"file"}


def test_the_longest_name_can_be_written(writer, job):
    long = Job(job.path, "n" * 251)
    save(writer(), long)
    assert writer().is_done(long)


def test_output_folders(tmp_path):
    prepare_output(tmp_path / "new/deep")
    assert list((tmp_path / "new/deep").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(OutputError, match="is a file, expected a folder"):
            prepare_output(path)
    # Nobody, not even root, can create files there.
    with pytest.raises(OutputError, match=r"cannot write /proc/self/fd"):
        prepare_output(Path("/proc/self/fd"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_vanished_folder_is_said_with_the_file(tmp_path, writer, job, format):
    here = writer(format)
    (tmp_path / "out" / ".vfx-claims").unlink()
    (tmp_path / "out").rmdir()
    with pytest.raises(OutputError, match=r"out/\S*a\S*: the output folder \S*out is gone"):
        save(here, job)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_is_removed(tmp_path, writer, job):
    for format in ("npz", "npy", "hdf5"):
        one = writer(format)
        left = [part_path(path) for path in one.paths(job) or [tmp_path / "out/features.h5"]]
        for path in left:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        one.prepare(job)
        save(one, job)
        one.finish()
        assert not any(path.exists() for path in left), format
    left[-1].write_bytes(b"half")
    one.finish()
    assert not left[-1].exists()


def test_without_claims_two_processes_do_not_share_part_files(tmp_path, writer, claims, job):
    claims.reason = "no locks here"
    (path,) = writer().paths(job)
    alone = {"exclusive": False, "inside": tmp_path / "out"}
    with new_files([path], **alone) as (one,), new_files([path], **alone) as (two,):
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert path.read_text() == "1"
    path.parent.joinpath(part_path(path).name).write_text("another's")
    writer().prepare(job)
    assert part_path(path).exists()


RUN = """
import sys
from pathlib import Path
import numpy as np
from vfx_engines.spec import Output
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.writers import open_writer
out, outputs = Path(sys.argv[1]), (Output("rgb", (512,)),)
with Claims(out) as claims:
    writer = open_writer(sys.argv[2], out, outputs, fingerprint="f", claims=claims)
    for i in range(40):
        job = Job(Path("v"), f"{i % 7}/v{i}")
        while not claims.take(job.name):
            pass
        if not writer.is_done(job):
            writer.prepare(job)
            with RowSpool(outputs, out) as spool, open(out.parent / "log", "a") as log:
                n = 50 + i
                spool.append({"rgb": np.full((n, 512), i)}, np.ones((n, 2)), np.ones((n, 2)))
                writer.write(job, spool, 25.0, {})
                log.write(f"{i} ")
        claims.release(job.name)
    writer.finish()
"""


@pytest.mark.parametrize("format", FORMATS)
def test_kills_lose_nothing_and_leave_nothing(tmp_path, format):
    out, calm = tmp_path / "out/o", tmp_path / "calm/o"
    out.mkdir(parents=True)
    calm.mkdir(parents=True)
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", RUN, str(calm), format], check=True)
    length = time.monotonic() - start
    generator = random.Random(1)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(out), format])
        time.sleep(length * generator.uniform(0.4, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    runs = [subprocess.Popen([sys.executable, "-c", RUN, str(out), format]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert not (out / ".vfx-claims").exists()
    if format in ("webdataset", "parquet"):
        # Each of the two runs packs what it finds when it ends, so the shards differ, not their contents.
        assert shard_contents(out) == shard_contents(calm)
        return
    assert everything(out) == everything(calm)
    if format == "hdf5":
        with h5py.File(out / "features.h5") as one, h5py.File(calm / "features.h5") as other:
            for i in range(40):
                name = f"{i % 7}/v{i}/rgb"
                np.testing.assert_array_equal(one[name][:], other[name][:])
                assert one[name].shape == (50 + i, 512)
    else:
        for name in everything(calm):
            assert (out / name).read_bytes() == (calm / name).read_bytes()
