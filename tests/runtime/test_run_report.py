"""``vfx-run --report``: the same features, stages that add up, and a page even if the run ends early."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from make_video import make_video
from run_kit import vfx_run
from tiny import tiny_engine, tiny_spec
from vfx_engines.errors import EngineError, VideoError
from vfx_runtime import pipeline
from vfx_runtime.delivering import Extracted
from vfx_runtime.recording import Moment, Recorder, Recording
from vfx_runtime.run_page import run_page
from vfx_runtime.stages import Stages, timed_alike


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_engine(tmp_path / "tiny.onnx")
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / name, frames=30)
    return tmp_path


def test_features_are_the_same_and_nothing_is_timed_without_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Stages] = []

    class Noted(Stages):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr("vfx_runtime.running.Stages", Noted)
    run = "--engine", "tiny.onnx", "a.mp4", "b.mp4"
    assert vfx_run(*run, "--output", "plain").exit_code == 0
    assert made == []
    assert vfx_run(*run, "--output", "reported", "--report", "run.html").exit_code == 0
    for name in ("a.npz", "b.npz"):
        assert (place / "plain" / name).read_bytes() == (place / "reported" / name).read_bytes()
    taken = made[0].taken
    assert {"decode", "resize", "gather", "verify", "write"} <= set(taken)
    assert (taken["resize"].times, taken["gather"].times, taken["write"].times) == (60, 14, 3)
    assert all(0 <= item.cpu_seconds <= item.seconds + 0.1 for item in taken.values())


def test_a_run_that_was_done_before_has_a_page(place: Path) -> None:
    run = "--engine", "tiny.onnx", "a.mp4", "--report", "run.html"
    assert vfx_run(*run).exit_code == 0
    assert vfx_run(*run).exit_code == 0
    page = Path("run.html").read_text("utf-8")
    assert "<dt>done before</dt><dd>1</dd>" in page
    assert "<dt>windows</dt><dd>0</dd>" in page


def recorded(videos: int) -> Recording:
    """The recording of a share of a list, before any result."""
    spec, file = tiny_spec(), "failures-1-of-2.jsonl"
    recording = Recording(["vfx-run"], {}, [spec], [spec.sampling], videos, "out", file)
    recording.moments.append(Moment(1.0, 0, 3, 30, 1.0))
    return recording


def test_what_other_processes_did_has_a_line_of_its_own() -> None:
    recording = recorded(videos=4)
    done = Extracted(Path("a.mp4"), "a", None, skipped=True)
    for result in (done, replace(done, by_others=True), replace(done, by_others=True)):
        recording.note(result)
    page = run_page(recording)
    assert "<dt>done before</dt><dd>1</dd>" in page
    assert "<dt>done by other processes</dt><dd>2</dd>" in page
    assert "<dt>left</dt><dd>1</dd>" in page


def test_more_failures_than_fit_are_in_the_file_that_is_named() -> None:
    recording = recorded(videos=2000)
    failed = Extracted(Path("a.mp4"), "a", None, error=VideoError("a.mp4: damaged"))
    for _ in range(2000):
        recording.note(failed)
    assert "of 2,000; all are in failures-1-of-2.jsonl." in run_page(recording)


def test_a_run_that_fails_has_a_page_that_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise EngineError("tiny: the <engine> broke")

    monkeypatch.setattr(pipeline._Run, "_hand_out", broken)
    assert vfx_run("--engine", "tiny.onnx", "a.mp4", "--report", "run.html").exit_code == 1
    page = Path("run.html").read_text("utf-8")
    assert "The run did not reach its end: tiny: the &lt;engine&gt; broke." in page
    assert "1</span></dd>" in page.split("<dt>failed</dt>")[1][:60]


def test_a_url_is_named_as_it_was_given(place: Path) -> None:
    run = "--engine", "tiny.onnx", "memory://clips/none.mp4", "--report", "run.html"
    assert vfx_run(*run).exit_code == 1
    page = Path("run.html").read_text("utf-8")
    assert '<th scope="row">memory://clips/none.mp4</th><td>cannot be fetched: no such file</td>' in page


def test_a_folder_that_is_not_there_is_said_first(place: Path) -> None:
    result = vfx_run("--engine", "tiny.onnx", "a.mp4", "--report", "none/run.html")
    assert result.exit_code == 2
    assert "none/run.html: its folder does not exist" in result.stderr
    assert not Path("features").exists()


@pytest.mark.parametrize("taken", ["a.mp4", "folder.html"])
def test_what_is_no_page_is_never_replaced(place: Path, taken: str) -> None:
    Path("folder.html").mkdir()
    before = Path("a.mp4").read_bytes()
    result = vfx_run("--engine", "tiny.onnx", "--report", taken, "a.mp4")
    assert result.exit_code == 2
    assert f"--report {taken}: expected a file to write whose name ends in .html" in result.stderr
    assert Path("a.mp4").read_bytes() == before
    assert not Path("features").exists()


def test_a_stage_within_another_counts_for_itself() -> None:
    stages = Stages()
    with stages.time("outer"):
        time.sleep(0.02)
        with stages.time("inner"):
            time.sleep(0.05)
    outer, inner = stages.taken["outer"], stages.taken["inner"]
    assert inner.seconds >= 0.05
    assert 0.02 <= outer.seconds < outer.seconds + inner.seconds
    before = time.perf_counter()
    with stages.time("outer"):
        pass
    assert stages.taken["outer"].seconds <= outer.seconds + time.perf_counter() - before
    assert stages.taken["outer"].times == 2


def test_threads_do_not_count_for_each_other() -> None:
    stages = Stages()

    def work() -> None:
        with stages.time("inner"):
            time.sleep(0.05)

    with stages.time("outer"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert stages.taken["outer"].seconds >= stages.taken["inner"].seconds


def test_what_is_alike_stays_alike() -> None:
    one, same, other = timed_alike(Stages(), "resize", [str.upper, str.upper, str.lower])
    assert one is same
    assert one is not other
    assert one("a") == "A"


def test_a_long_run_keeps_few_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfx_runtime.recording._FIRST_SECONDS", 0.0005)
    monkeypatch.setattr("vfx_runtime.recording._MOST", 8)
    recording = Recording([], {}, [], [], 0, "")
    with Recorder(recording, pipeline.Stats):
        time.sleep(0.3)
    assert len(recording.moments) <= 18
    assert all(isinstance(moment, Moment) for moment in recording.moments)
    times = [moment.seconds for moment in recording.moments]
    assert times == sorted(times)
    assert recording.seconds == times[-1] >= 0.3
