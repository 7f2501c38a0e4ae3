"""One list on several devices, with a process each. Here the devices are CPUs, and processes are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from make_video import make_video
from run_kit import files_in, vfx_run
from tiny import tiny_engine, tiny_spec
from vfx_engines.devices import device_list
from vfx_engines.errors import EngineError, OutputError, UsageError, VfxError, VideoError
from vfx_runtime.atomic import part_path
from vfx_runtime.delivering import Extracted
from vfx_runtime.job import Job
from vfx_runtime.pipeline import Stats
from vfx_runtime.processes import run_on_all
from vfx_runtime.running import Listener, Task, run_here

TWO = ["cpu", "cpu"]


class Heard:
    """Records what a listener is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.figures = Stats()

    def listener(self) -> Listener:
        return Listener(self.lines.append, self._watch)

    def _watch(self, stats: Stats) -> None:
        self.figures = stats


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    folder = tmp_path_factory.mktemp("videos")
    return [Job(make_video(folder / f"v{i}.mp4", frames=8 + 5 * i), f"v{i}") for i in range(9)]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "out").mkdir()
    engine = tiny_engine(tmp_path / "tiny.onnx")
    return Task((engine,), tmp_path / "out", "npz", (tiny_spec().sampling,), threads=1, workers=1)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def children() -> list[BaseProcess]:
    return sorted(multiprocessing.active_children(), key=lambda child: child.pid or 0)


@pytest.mark.parametrize("format", ["npz", "hdf5"])
def test_the_files_are_those_of_one_process(task: Task, jobs: list[Job], tmp_path: Path, format: str) -> None:
    task = replace(task, format=format)
    bad = Job(tmp_path / "missing.mp4", "missing")
    heard = Heard()
    results = list(run_on_all(task, TWO, [*jobs, bad], heard.listener()))
    (tmp_path / "alone").mkdir()
    alone = list(
        run_here(replace(task, output=tmp_path / "alone"), "cpu", jobs, len(jobs), Heard().listener())
    )

    assert sorted(item.name for item in results) == sorted(job.name for job in [*jobs, bad])
    assert [item.name for item in results if item.error] == ["missing"]
    assert contents(task.output) == contents(tmp_path / "alone")
    assert heard.figures.videos == len(jobs) + 1
    assert heard.figures.frames == sum(8 + 5 * i for i in range(9))
    assert len([line for line in heard.lines if line.startswith("engine: ")]) == 2
    assert len(alone) == len(jobs)
    again = list(run_on_all(task, TWO, jobs, Heard().listener()))
    assert all(item.skipped for item in again)


@pytest.mark.parametrize(("format", "pack"), [("hdf5", "features.h5"), ("webdataset", "features.tar")])
def test_a_pack_that_cannot_be_written_is_an_error(
    task: Task, jobs: list[Job], format: str, pack: str
) -> None:
    task = replace(task, format=format)
    part_path(task.output / pack).mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        list(run_on_all(task, TWO, jobs, Heard().listener()))
    part_path(task.output / pack).rmdir()
    again = list(run_on_all(task, TWO, jobs, Heard().listener()))
    assert all(item.skipped for item in again)
    assert not any(item.by_others for item in again), "it was this list's own first run that staged them"
    assert len(files_in(task.output)) == 1


def test_a_process_that_dies_leaves_its_videos_to_the_other(task: Task, jobs: list[Job]) -> None:
    heard = Heard()
    results: list[Extracted] = []
    run = run_on_all(task, TWO, jobs, heard.listener())
    results.append(next(run))
    children()[0].kill()
    results += run

    assert sorted(item.name for item in results) == sorted(job.name for job in jobs)
    assert not [item.error for item in results if item.error]
    assert any("its process ended with -9; its videos go to the others" in line for line in heard.lines)


def test_with_no_process_left_the_run_ends_with_the_reason(task: Task, jobs: list[Job]) -> None:
    run = run_on_all(task, TWO, jobs, Heard().listener())
    next(run)
    for child in children():
        child.kill()
    with pytest.raises(EngineError, match="its process ended with -9"):
        list(run)


def test_a_video_that_ends_two_processes_is_given_up(
    task: Task, jobs: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three processes, and a video that ends every process that opens it."""
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(
        "import os, vfx_runtime.pipeline as pipeline\n"
        "real = pipeline.open_video\n"
        "def open_video(path, *rest):\n"
        "    if 'deadly' in str(path): os._exit(9)\n"
        "    return real(path, *rest)\n"
        "pipeline.open_video = open_video\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(trap), os.environ.get("PYTHONPATH", "")]))
    deadly = Job(tmp_path / "deadly.mp4", "deadly")
    results = list(run_on_all(task, ["cpu"] * 3, [jobs[0], deadly, *jobs[1:]], Heard().listener()))

    failed = [item for item in results if item.error]
    assert [item.name for item in failed] == ["deadly"]
    assert isinstance(failed[0].error, VideoError)
    assert "given up: 2 processes ended while they had it" in str(failed[0].error)
    assert len(results) == len(jobs) + 1


def test_an_engine_that_no_process_can_open_ends_the_run(task: Task, jobs: list[Job]) -> None:
    with pytest.raises(VfxError, match="No such file or directory; expected an engine file"):
        list(run_on_all(replace(task, engines=(Path("absent.onnx"),)), TWO, jobs, Heard().listener()))


def test_a_run_can_be_given_up(task: Task, jobs: list[Job]) -> None:
    run = run_on_all(task, TWO, jobs, Heard().listener())
    next(run)
    run.close()

    assert not [name for name in files_in(task.output) if not name.endswith(".npz")]


def test_the_others_end_with_the_first(task: Task, jobs: list[Job], tmp_path: Path) -> None:
    """After a kill -9 of the first process, its pipes close, and no other process goes on alone."""
    script = tmp_path / "first.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from pathlib import Path\n"
        "from tiny import tiny_spec\n"
        "from vfx_runtime.job import Job\n"
        "from vfx_runtime.processes import run_on_all\n"
        "from vfx_runtime.running import Listener, Task\n"
        "if __name__ == '__main__':\n"
        "    engine, output, video = map(Path, sys.argv[1:])\n"
        "    task = Task((engine,), output, 'npz', (tiny_spec().sampling,), threads=1, workers=1)\n"
        "    jobs = [Job(video, f'v{i}') for i in range(100000)]\n"
        "    for done in run_on_all(task, ['cpu', 'cpu'], jobs, Listener(str, id)):\n"
        "        print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
    )
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
    first = subprocess.Popen(
        [sys.executable, script, task.engines[0], task.output, jobs[0].path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert first.stdout is not None
    others = [int(number) for number in first.stdout.readline().split()]
    assert len(others) == 2
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    for _ in range(300):
        if not any(Path(f"/proc/{number}").exists() for number in others):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the others went on")


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:3", ["cuda:3"]),
        ("cuda:0,2,1", ["cuda:0", "cuda:2", "cuda:1"]),
    ],
)
def test_devices_are_listed(text: str, devices: list[str]) -> None:
    assert device_list(text) == devices


@pytest.mark.parametrize("text", ["cuda:0,0", "cuda:", "cuda:0,", "gpu", "cpu:0", "cuda:0,cuda:1"])
def test_what_names_no_devices_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="device"):
        device_list(text)


@pytest.mark.parametrize("device", ["cuda:0,1", "all"])
def test_without_a_driver_one_line_says_so(task: Task, jobs: list[Job], tmp_path: Path, device: str) -> None:
    from vfx_engines.devices import missing_driver

    if missing_driver() is None:
        pytest.skip("this machine has a CUDA device")
    done = vfx_run("--engine", task.engines[0], jobs[0].path, "--device", device, "--output", tmp_path / "o")

    assert done.exit_code == 2
    assert "no CUDA: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
