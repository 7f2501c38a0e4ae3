"""Malicious lists, engines, features and links: a one-line error, and no write outside the output folder."""

from __future__ import annotations

import io
import os
import resource
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from make_video import make_video
from run_kit import failures, files_in, vfx_run
from tiny import tiny_engine, tiny_spec
from vfx_engines.errors import EngineError, OutputError, SpecError
from vfx_engines.onnx_file import embed_spec
from vfx_engines.opening import read_spec
from vfx_engines.plan_file import write_plan
from vfx_engines.spec import METADATA_KEY, Plan
from vfx_runtime.atomic import part_path
from vfx_runtime.claims import CLAIMS_FILE, Claims
from vfx_runtime.npy import npy_rows
from vfx_runtime.npz import is_whole, read_features

OUTPUTS = tiny_spec().outputs


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tiny_engine(tmp_path / "tiny.onnx")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "a.mp4", frames=9)


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """A file outside the output folder, which no run may change."""
    path = tmp_path / "treasure"
    path.write_text("gold")
    return path


# Lists


@pytest.mark.parametrize("suffix", ["txt", "csv"])
@pytest.mark.parametrize("path", ["../../x.mp4", "/etc/x.mp4", "a/../../../x.mp4", "link/x.mp4"])
def test_a_list_writes_nowhere_else(engine: Path, tmp_path: Path, suffix: str, path: str) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    listed = folder / f"list.{suffix}"
    listed.write_text(f"{path}\n")
    before = files_in(tmp_path)
    output = tmp_path / "out"
    assert vfx_run("--engine", engine, listed, "--output", output).exit_code == 1
    assert files_in(tmp_path) - before == {"out/failures.jsonl"}
    assert failures(output).keys() == {"link/x" if path.startswith("link") else "x"}
    rooted = vfx_run("--engine", engine, listed, "--output", output, "--root", folder)
    if not path.startswith("link"):  # a name below the root, though the video is elsewhere
        assert rooted.exit_code == 2
        assert "is not below --root" in rooted.stderr


def test_a_line_without_end(engine: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("a/" * 5_000_000 + "..\n")
    result = vfx_run("--engine", engine, listed, "--output", tmp_path / "out")

    assert result.exit_code == 2
    assert "line 1: 10000002 characters, more than a path can have" in result.stderr
    assert len(result.stderr) < 1000


@pytest.mark.parametrize("what", ["a pipe", "a device"])
def test_a_list_that_does_not_end(engine: Path, tmp_path: Path, what: str) -> None:
    listed = tmp_path / "list.txt"
    if what == "a pipe":
        os.mkfifo(listed)
    else:
        listed.symlink_to("/dev/zero")
    result = vfx_run("--engine", engine, listed, "--output", tmp_path / "out")

    assert result.exit_code == 2
    assert "no regular file, expected a list" in result.stderr


# Links and other things in the output folder


@pytest.mark.parametrize("format", ["npz", "npy", "pickle", "slowfast", "hdf5"])
def test_links_are_replaced_and_not_followed(
    engine: Path, video: Path, treasure: Path, tmp_path: Path, format: str
) -> None:
    assert (
        vfx_run("--engine", engine, video, "--output", tmp_path / "calm", "--format", format).exit_code == 0
    )
    finals = [name for name in files_in(tmp_path / "calm") if not name.startswith(".")]
    output = tmp_path / "out"
    output.mkdir()
    for name in (*finals, *(part_path(output / name).name for name in finals), "failures.jsonl"):
        (output / name).symlink_to(treasure)
    result = vfx_run("--engine", engine, video, tmp_path / "none.mp4", "--output", output, "--format", format)

    assert result.exit_code == 1
    assert treasure.read_text() == "gold"
    assert files_in(output) - {f"{name}.old" for name in finals} == {*finals, "failures.jsonl"}
    assert not any((output / name).is_symlink() for name in (*finals, "failures.jsonl"))


def test_a_folder_that_leads_out_is_refused(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    make_video(tmp_path / "videos" / "sub" / "a.mp4", frames=9)
    make_video(tmp_path / "videos" / "b.mp4", frames=9)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")  # the user's own choice
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    result = vfx_run("--engine", engine, tmp_path / "videos", "--output", tmp_path / "out")

    assert result.exit_code == 1
    (reason,) = failures(tmp_path / "out").values()
    assert "a link leads from there to" in reason
    assert files_in(tmp_path / "elsewhere") == set()
    assert (tmp_path / "real" / "b.npz").is_file()


def test_hidden_links_of_vfx_itself(engine: Path, video: Path, treasure: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / CLAIMS_FILE).symlink_to(tmp_path / "made")
    with Claims(output) as claims:
        assert not claims.active
    assert not (tmp_path / "made").exists()
    staging = {"hdf5": ".features.h5.parts", "webdataset": ".shards.parts", "parquet": ".parquet.parts"}
    for format, name in staging.items():
        (output / name).symlink_to(tmp_path)
        result = vfx_run("--engine", engine, video, "--output", output, "--format", format)
        assert result.exit_code == 1
        assert f"{name}: it is a link" in result.stderr


@pytest.mark.parametrize("format", ["npz", "npy", "pickle", "slowfast", "hdf5"])
def test_a_pipe_in_place_of_an_output(engine: Path, video: Path, tmp_path: Path, format: str) -> None:
    assert (
        vfx_run("--engine", engine, video, "--output", tmp_path / "calm", "--format", format).exit_code == 0
    )
    output = tmp_path / "out"
    output.mkdir()
    for name in files_in(tmp_path / "calm"):
        os.mkfifo(output / name)
    result = vfx_run("--engine", engine, video, "--output", output, "--format", format)

    assert result.exit_code == 1
    assert "no regular file" in result.stderr
    assert "Traceback" not in result.stderr


# Existing features


def archive(path: Path, head: str, content: bytes, kind: int = zipfile.ZIP_STORED) -> Path:
    text = f"{head}, }}".encode()
    with zipfile.ZipFile(path, "w", kind) as file:
        for name in (*(item.name for item in OUTPUTS), "frame_range", "timestamps_ms", "fps", "meta"):
            start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"
            file.writestr(f"{name}.npy", start + content)
    return path


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)"
FLAT = "{'descr': '<U50000000', 'fortran_order': False, 'shape': ()"
DEEP = "{'descr': '<U100000', 'fortran_order': False, 'shape': ()"
BOMBS = {
    "a shape beyond memory": (HUGE, b"", zipfile.ZIP_STORED),
    "zeros, compressed": (FLAT, bytes(200_000_000), zipfile.ZIP_DEFLATED),
    "JSON without end": (DEEP, ("[" * 100_000).encode("utf-32-le"), zipfile.ZIP_STORED),
    "objects": (DEEP.replace("<U100000", "|O"), b"cos\nsystem\n(S'true'\ntR.", zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_in_features(tmp_path: Path, bomb: str) -> None:
    head, content, kind = BOMBS[bomb]
    path = archive(tmp_path / "a.npz", head, content, kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert not is_whole(path, OUTPUTS, "f")
    with pytest.raises(OutputError, match="not a feature file of vfx, or damaged"):
        read_features(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 300 * 1024


def test_a_meta_of_terabytes_that_takes_no_disk(tmp_path: Path) -> None:
    """An uncompressed member as long as its sparse file, which is a hole but for the headers."""
    path = tmp_path / "a.npz"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name in (*(item.name for item in OUTPUTS), "frame_range", "timestamps_ms", "fps", "meta"):
            out.writestr(f"{name}.npy", b"")
    data = bytearray(file.getvalue())
    last = data.rindex(b"PK\x01\x02")
    data[last + 20 : last + 28] = struct.pack("<II", 4_000_000_000, 4_000_000_000)
    start = data.index(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = struct.pack("<I", 4_100_000_000)
    with path.open("wb") as out_file:
        out_file.write(data[:start])
        out_file.seek(4_100_000_000)
        out_file.write(data[start:])

    assert not is_whole(path, OUTPUTS, "f")


def test_a_header_that_is_nearly_numbers(tmp_path: Path) -> None:
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1 2,), }\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    assert npy_rows(tmp_path / "a.npy", (), "<f4") is None


# Engines


def with_external_weights(model: onnx.ModelProto, where: str) -> None:
    tensor = model.graph.initializer[0]
    if where == "in a branch":
        branch = onnx.helper.make_graph(
            [], "branch", [], [], [onnx.TensorProto(name="w", dims=[1], data_type=1)]
        )
        model.graph.node.append(
            onnx.helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch)
        )
        tensor = model.graph.node[-1].attribute[0].g.initializer[0]
    if where == "in a constant":
        model.graph.node.append(
            onnx.helper.make_node("Constant", [], ["d"], value=onnx.TensorProto(dims=[1], data_type=1))
        )
        tensor = model.graph.node[-1].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


@pytest.mark.parametrize("where", ["", "in a branch", "in a constant"])
def test_an_engine_reads_no_other_file(engine: Path, where: str) -> None:
    model = onnx.load(engine)
    with_external_weights(model, where)
    embed_spec(model, tiny_spec())
    engine.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="its weights lie in another file"):
        read_spec(engine)


def test_a_pipe_is_no_engine(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    with pytest.raises(EngineError, match="no regular file"):
        read_spec(tmp_path / "a.onnx")
    (tmp_path / "a.plan").write_bytes(b"plan")
    os.mkfifo(tmp_path / "a.plan.json")
    with pytest.raises(SpecError, match="not JSON"):
        read_spec(tmp_path / "a.plan")


def test_a_spec_beside_a_plan(tmp_path: Path, treasure: Path) -> None:
    (tmp_path / "a.plan").write_bytes(b"plan")
    with (tmp_path / "a.plan.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SpecError, match="which no spec has"):
        read_spec(tmp_path / "a.plan")
    (tmp_path / ".b.plan.part").symlink_to(treasure)
    plan = Plan("10.0", "a GPU", (8, 0), "0" * 64, (1, 2, 4))
    write_plan(tmp_path / "b.plan", b"plan", replace(tiny_spec(), plan=plan))
    assert treasure.read_text() == "gold"
    for field, value in (("batch", ()), ("batch", (4, 2, 1)), ("compute_capability", (8,))):
        with pytest.raises(SpecError, match="plan: "):
            replace(plan, **{field: value})


def test_class_names_that_a_terminal_would_obey(tmp_path: Path, video: Path) -> None:
    engine = tiny_engine(tmp_path / "tiny.onnx", labels=True)
    model = onnx.load(engine)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = entry.value.replace('"grey"', '"\\u001b[2Jgrey"').replace('"blue"', '"\\u001b]0;x\\u0007"')
    del model.metadata_props[1:]
    engine.write_bytes(model.SerializeToString())
    result = vfx_run("--engine", engine, video, "--output", tmp_path / "out", "--show-pred")

    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert r"\x1b[2Jgrey" in result.stderr
