"""vfx-run as users see it: what it prints where, its options, its exit codes, what a second run does."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest

from make_video import make_video
from run_kit import expected_rows, failures, files_in, vfx_run
from tiny import tiny_engine, tiny_spec
from tolerances import TINY
from vfx_engines import read_spec
from vfx_engines.onnx_file import embed_spec
from vfx_engines.spec import Weights
from vfx_runtime import read_features
from vfx_runtime.atomic import part_path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("engine") / "tiny.onnx")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("labelled") / "tiny.onnx", labels=True)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder with a video, and another video in a subfolder."""
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    make_video(folder / "a.mp4", frames=9)
    make_video(folder / "deep" / "b.mkv", frames=14)
    return folder


def test_paths_on_stdout_talk_on_stderr(engine: Path, clips: Path, tmp_path: Path) -> None:
    result = vfx_run("--engine", engine, clips, "--output", tmp_path / "out")

    assert result.exit_code == 0
    assert sorted(result.stdout.splitlines()) == [
        str(tmp_path / "out" / "a.npz"),
        str(tmp_path / "out" / "deep" / "b.npz"),
    ]
    assert f"engine: {engine}, OpenVINO" in result.stderr or "engine: tiny.onnx, OpenVINO" in result.stderr
    assert "2 done, 0 were done before, 0 failed" in result.stderr
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_a_second_run_finds_all_done(engine: Path, clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    vfx_run("--engine", engine, clips, "--output", output)
    before = {name: (output / name).stat().st_mtime_ns for name in files_in(output)}
    result = vfx_run("--engine", engine, clips, "--output", output)

    assert result.exit_code == 0
    assert result.stdout == ""
    assert "0 done, 2 were done before, 0 failed" in result.stderr
    assert {name: (output / name).stat().st_mtime_ns for name in files_in(output)} == before


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


REDONE: dict[str, tuple[Callable[[Path, Path], object], tuple[object, ...]]] = {
    "corrupt": (lambda out, clips: damage(out / "a.npz"), ()),
    "cut short": (lambda out, clips: (out / "a.npz").write_bytes((out / "a.npz").read_bytes()[:99]), ()),
    "foreign": (lambda out, clips: np.savez(out / "a.npz", features=np.zeros((2, 4), np.float32)), ()),
    "empty": (lambda out, clips: (out / "a.npz").write_bytes(b""), ()),
    "another step": (lambda out, clips: None, ("--step", 2)),
    "another video": (lambda out, clips: make_video(clips / "a.mp4", frames=13), ()),
}


@pytest.mark.parametrize("what", REDONE)
def test_what_is_not_this_runs_output_is_redone(engine: Path, clips: Path, tmp_path: Path, what: str) -> None:
    change, options = REDONE[what]
    output = tmp_path / "out"
    vfx_run("--engine", engine, clips, "--output", output)
    change(output, clips)
    result = vfx_run("--engine", engine, clips, "--output", output, *options)

    assert result.exit_code == 0, result.stderr
    assert str(output / "a.npz") in result.stdout
    step = int(str(options[1])) if options else 4
    found = read_features(output / "a.npz")
    wanted = expected_rows(clips / "a.mp4", step=step)
    np.testing.assert_allclose(found.arrays["features"], wanted, rtol=TINY)


def test_failures_are_named_live_at_the_end_and_in_the_file(
    engine: Path, clips: Path, tmp_path: Path
) -> None:
    (clips / "bad.mp4").write_bytes(b"no video")
    output = tmp_path / "out"
    result = vfx_run("--engine", engine, clips, "--output", output)

    assert result.exit_code == 1
    assert result.stderr.count("bad.mp4") == 2
    assert "1 failed, see failures.jsonl" in result.stderr
    assert list(failures(output)) == ["bad"]
    # Once the video is replaced by a good one, the next run removes the list.
    make_video(clips / "bad.mp4", frames=5)
    assert vfx_run("--engine", engine, clips, "--output", output).exit_code == 0
    assert failures(output) == {}


@pytest.mark.parametrize("damaged", [True, False], ids=["cannot be set aside", "cannot be written"])
def test_failures_are_listed_where_the_pack_fails(
    engine: Path, clips: Path, tmp_path: Path, damaged: bool
) -> None:
    (clips / "bad.mp4").write_bytes(b"no video")
    output = tmp_path / "out"
    if damaged:
        (output / "features.h5.old").mkdir(parents=True)
        (output / "features.h5").write_bytes(b"damaged")
    else:
        part_path(output / "features.h5").mkdir(parents=True)
    result = vfx_run("--engine", engine, clips, "--output", output, "--format", "hdf5")

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("vfx-run: cannot write ")
    assert list(failures(output)) == ["bad"]


def test_dry_run_says_and_writes_nothing(engine: Path, clips: Path, tmp_path: Path) -> None:
    result = vfx_run("--engine", engine, clips, "--output", tmp_path / "out", "--dry-run")

    assert result.exit_code == 0
    assert [line.split(" -> ")[1] for line in result.stdout.splitlines()] == [
        str(tmp_path / "out" / "a"),
        str(tmp_path / "out" / "deep" / "b"),
    ]
    assert "2 videos, windows of 4 frames every 4, tiny; nothing is run" in result.stderr
    one = ("--engine", engine, clips / "a.mp4", "--output", tmp_path / "out", "--dry-run")
    said = vfx_run(*one, "--fps", 12.5).stderr
    assert said.startswith("1 video, windows of 4 frames every 4 at 12.5 per second, tiny;")
    assert "1 video, windows of 4 frames every 4 of 8, tiny;" in vfx_run(*one, "--total", 8).stderr
    assert not (tmp_path / "out").exists()


def test_predictions(labelled: Path, engine: Path, clips: Path, tmp_path: Path) -> None:
    result = vfx_run("--engine", labelled, clips / "a.mp4", "--output", tmp_path / "out", "--show-pred")
    logits = read_features(tmp_path / "out" / "a.npz").arrays["logits"]

    names = ("red", "green", "blue", "grey", "other")
    for row, start, end in ((0, 0.0, 0.16), (1, 0.16, 0.32)):
        best = names[int(np.argmax(logits[row]))]
        assert f"a {start:.2f}-{end:.2f} s: {best} " in result.stderr
    again = vfx_run("--engine", labelled, clips / "a.mp4", "--output", tmp_path / "out", "--show-pred")
    assert "done before are not shown again" in again.stderr
    refused = vfx_run("--engine", engine, clips, "--output", tmp_path / "out", "--show-pred")
    assert refused.exit_code == 2
    assert "export it with --head" in refused.stderr


def test_predictions_of_several_classes_at_once_without_names(
    labelled: Path, clips: Path, tmp_path: Path
) -> None:
    """As for Charades: sigmoids, which do not sum to one."""
    model = onnx.load(labelled)
    spec = read_spec(labelled)
    logits = replace(spec.outputs[1], labels=None, activation="sigmoid")
    embed_spec(model, replace(spec, outputs=(spec.outputs[0], logits)))
    onnx.save(model, tmp_path / "several.onnx")
    result = vfx_run(
        "--engine", tmp_path / "several.onnx", clips / "a.mp4", "--output", tmp_path / "out", "--show-pred"
    )
    row = read_features(tmp_path / "out" / "a.npz").arrays["logits"][0]
    best = int(np.argmax(row))
    assert f"a 0.00-0.16 s: class {best} {1 / (1 + np.exp(-row[best])):.3f}, class " in result.stderr


@pytest.mark.parametrize("format", ["npy", "pickle", "hdf5"])
def test_formats(engine: Path, clips: Path, tmp_path: Path, format: str) -> None:
    output = tmp_path / "out"
    result = vfx_run("--engine", engine, clips, "--output", output, "--format", format)
    assert result.exit_code == 0, result.stderr
    wanted = expected_rows(clips / "a.mp4")

    rows: Any
    if format == "hdf5":
        assert files_in(output) == {"features.h5"}
        with h5py.File(output / "features.h5") as file:
            rows = file["a"]["features"][:]
    elif format == "npy":
        rows = np.load(output / "a_features.npy")
    else:
        rows = pickle.loads((output / "a_features.pkl").read_bytes())
    np.testing.assert_allclose(rows, wanted, rtol=TINY)
    again = vfx_run("--engine", engine, clips, "--output", output, "--format", format)
    assert "0 done, 2 were done before" in again.stderr


def test_frame_rate_step_and_tail(engine: Path, clips: Path, tmp_path: Path) -> None:
    video = clips / "a.mp4"  # nine frames at 25 per second
    settings: dict[str, tuple[list[object], list[list[int]], float]] = {
        "step": (["--step", 3], [[0, 4], [3, 7]], 25),
        "tail": (["--tail", "repeat"], [[0, 4], [4, 8], [8, 9]], 25),
        "zeros": (["--tail", "zeros"], [[0, 4], [4, 8], [8, 9]], 25),
        "half": (["--fps", 12.5], [[0, 7]], 12.5),
        "double": (["--fps", 50], [[0, 2], [2, 4], [4, 6], [6, 8]], 50),
    }
    for name, (options, ranges, fps) in settings.items():
        output = tmp_path / name
        result = vfx_run("--engine", engine, video, "--output", output, *options)
        assert result.exit_code == 0, result.stderr
        found = read_features(output / "a.npz")
        assert found.fps == fps
        if name != "half":
            assert found.frame_range.tolist() == ranges, name
        else:
            assert len(found.frame_range) == 1


@pytest.mark.parametrize("options", [("--batch", 1), ("--batch", 7, "--threads", 1), ("--workers", 3)])
def test_how_it_runs_changes_nothing(
    engine: Path, clips: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    result = vfx_run("--engine", engine, clips, "--output", tmp_path / "out", *options)

    assert result.exit_code == 0, result.stderr
    for name, video in (("a", "a.mp4"), ("deep/b", "deep/b.mkv")):
        found = read_features(tmp_path / "out" / f"{name}.npz")
        np.testing.assert_allclose(found.arrays["features"], expected_rows(clips / video), rtol=TINY)


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "step": (("--step", 0), "step 0"),
    "fps": (("--fps", -1), "fps -1"),
    "fps not a number": (("--fps", "nan"), "fps nan"),
    "batch": (("--batch", 0), "batch 0"),
    "threads": (("--threads", -2), "threads -2"),
    "workers": (("--workers", 0), "--workers 0"),
    "device": (("--device", "abacus"), "device 'abacus': expected cpu, cuda, cuda:N, cuda:N,M,... or all"),
    "precision": (("--precision", "fp16"), "export it with --precision fp16"),
    "no device": (("--device", ""), "device '': expected cpu"),
    "rate of images": (("--images-fps", 30), "--images-fps 30 goes with --images"),
    "rate too low": (("--fps", "1e-300"), "frame rate is 1e-300"),
    "target rate too low": (("--target-fps", "1e-300"), "frame rate is 1e-300"),
    "rate of images too low": (("--images", "*.png", "--images-fps", "1e-300"), "frame rate is 1e-300"),
    "root": (("--root", "/nowhere"), "--root"),
    "no engine": (("--engine", ""), "--engine: found the empty text, expected a path"),
    "no output": (("--output", ""), "--output: found the empty text, expected a path"),
    "no root": (("--root", ""), "--root: found the empty text, expected a path"),
    "no input": (("",), "an input is the empty text"),
    "output elsewhere": (
        ("--output", "s3://bucket/x"),
        "--output: found a URL, expected a path of this mach",
    ),
    "report elsewhere": (
        ("--report", "s3://bucket/x.html"),
        "--report: found a URL, expected a path of this",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_option_is_one_line_and_nothing_is_made(
    engine: Path, clips: Path, tmp_path: Path, what: str
) -> None:
    options, said = WRONG[what]
    result = vfx_run("--engine", engine, clips, "--output", tmp_path / "out", *options)

    assert result.exit_code == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("vfx-run: ")
    assert said in line
    assert files_in(tmp_path / "out") == set()


def test_a_full_disk_behind_standard_output_is_one_line(engine: Path, clips: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from vfx_runtime.cli import main; main()"]
    command += ["--engine", str(engine), str(clips), "--output", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert last == (
        "vfx-run: cannot write standard output: the disk is full: make room and run again, finished videos "
        "are kept"
    )


def test_two_inputs_of_one_output_are_refused_before_anything_runs(engine: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_video(tmp_path / name / "a.mp4", frames=5)
    both = (tmp_path / "one" / "a.mp4", tmp_path / "two" / "a.mp4")
    result = vfx_run("--engine", engine, *both, "--output", tmp_path / "out")

    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "would both write" in line
    assert not (tmp_path / "out").exists()
    rooted = vfx_run("--engine", engine, *both, "--output", tmp_path / "out", "--root", tmp_path)
    assert rooted.exit_code == 0, rooted.stderr
    assert files_in(tmp_path / "out") == {"one/a.npz", "two/a.npz"}


def test_random_weights_are_said_loudly(tmp_path: Path, clips: Path) -> None:
    path = tiny_engine(tmp_path / "tiny.onnx")
    model = onnx.load(path)
    embed_spec(model, replace(tiny_spec(), weights=Weights("random", None, "none", "random, seed 0")))
    onnx.save(model, path)
    result = vfx_run("--engine", path, clips, "--output", tmp_path / "out")

    assert "RANDOM WEIGHTS" in result.stderr
    assert read_features(tmp_path / "out" / "a.npz").meta["spec"]["weights"]["file"] == "random"


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_packs_are_printed_like_any_file(engine: Path, clips: Path, tmp_path: Path, format: str) -> None:
    output = tmp_path / "out"
    first = vfx_run("--engine", engine, clips, "--output", output, "--format", format)
    assert first.stdout.splitlines() == [str(path) for path in output.iterdir()] != []
    assert vfx_run("--engine", engine, clips, "--output", output, "--format", format).stdout == ""


def test_a_rate_that_takes_no_frame_is_said(engine: Path, clips: Path, tmp_path: Path) -> None:
    result = vfx_run(
        "--engine", engine, clips / "a.mp4", "--output", tmp_path / "out", "--fps", 0.01, "--tail", "repeat"
    )
    assert result.exit_code == 1
    assert "of which 0.01 fps take none: use a higher --fps" in result.stderr


def test_without_inputs_click_says_what_is_missing(engine: Path) -> None:
    result = vfx_run("--engine", engine)

    assert result.exit_code == 2
    assert "INPUT" in result.stderr


def test_version_and_a_traceback_on_request(engine: Path, clips: Path, tmp_path: Path) -> None:
    assert vfx_run("--version").stdout.startswith("vfx-run, version ")
    missing = ("--engine", tmp_path / "none.onnx", clips, "--output", tmp_path / "out")
    assert "Traceback" not in vfx_run(*missing).stderr
    command = [Path(sys.executable).with_name("vfx-run"), *map(str, missing), "--debug"]
    assert "Traceback" in subprocess.run(command, capture_output=True, text=True).stderr
