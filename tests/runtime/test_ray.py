"""Runs on a Ray of their own write the files of a run without Ray, whatever happens to the actors."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import lacking
from make_video import make_video
from run_kit import failures, files_in, vfx_run
from tiny import tiny_engine, tiny_spec
from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, UsageError
from vfx_runtime import ray_actor
from vfx_runtime.delivering import Extracted
from vfx_runtime.job import Job
from vfx_runtime.ray_actor import Actor, Answer
from vfx_runtime.ray_run import _check_answers, _given_up, _pool, check_address
from vfx_runtime.running import Task

VFX_RUN = Path(sys.executable).with_name("vfx-run")
VIDEOS = 40
MARK = f"vfx-tests-{uuid.uuid4().hex}"
"""In the environment of all processes that these tests start."""


@pytest.fixture(scope="session")
def ray() -> None:
    """Skip the test if Ray is not installed. Another process checks, so that this one does not import Ray."""
    os.environ["VFX_TESTS"] = MARK
    found = subprocess.run([sys.executable, "-c", "import ray.data"], capture_output=True, check=False)
    if found.returncode:
        lacking("ray", "Ray Data is not installed")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tiny_engine(folder / "tiny.onnx")
    (folder / "videos").mkdir()
    for number in range(VIDEOS):
        make_video(folder / "videos" / f"v{number:02}.mp4", frames=8 + number)
    return folder


def command(work: Path, output: Path, *more: str) -> list[str]:
    return [*map(str, (VFX_RUN, "--engine", work / "tiny.onnx", work / "videos", "--output", output)), *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


@pytest.fixture(scope="module")
def alone(work: Path) -> dict[str, bytes]:
    """The files that one process writes."""
    subprocess.run(command(work, work / "alone"), check=True, capture_output=True)
    found = contents(work / "alone")
    assert len(found) == VIDEOS
    return found


def environment_with(code: Path) -> dict[str, str]:
    """This process's environment, with a folder whose modules come before all others."""
    path = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def actors_below(pid: int) -> list[int]:
    """The processes of Ray's actors among the descendants of a process."""
    parents: dict[int, int] = {}
    names: dict[int, bytes] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int(status[1])
        except OSError:
            continue
    found = []
    for child, name in names.items():
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and b"MapWorker" in name:
            found.append(child)
    return found


def ray_processes() -> list[str]:
    """Command lines of processes that Ray left behind, for this test session's Ray only (see ``MARK``)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "vfx-ray-" in line and MARK.encode() in (folder / "environ").read_bytes():
                found.append(line)
        except OSError:
            continue
    return found


def test_four_processes_write_what_one_does(work: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    """Three at once, and a fourth that starts when they are in the middle."""
    output = tmp_path / "out"
    # Files, not pipes: reading the first line of a pipe also consumes what follows it.
    said = [tmp_path / f"{number}.txt" for number in range(4)]
    runs: list[subprocess.Popen[str]] = []

    def start() -> None:
        with said[len(runs)].open("wb") as stdout:
            arguments = command(work, output, "--threads", "1")
            runs.append(subprocess.Popen(arguments, stdout=stdout, stderr=subprocess.PIPE, text=True))

    try:
        for _ in range(3):
            start()
        deadline = time.monotonic() + 120
        while not any(file.stat().st_size for file in said[:3]) and time.monotonic() < deadline:
            time.sleep(0.01)
        start()
        results = [
            (run.communicate(timeout=120)[1], file.read_text()) for run, file in zip(runs, said, strict=True)
        ]
    finally:
        for run in runs:
            run.kill()
            run.communicate()

    assert [run.returncode for run in runs] == [0] * 4, results
    assert contents(output) == alone
    written = [line for _, stdout in results for line in stdout.splitlines()]
    assert len(written) == len(set(written)) == VIDEOS, "a video was done twice, or by nobody"
    for stderr, stdout in results:
        own, others = len(stdout.splitlines()), VIDEOS - len(stdout.splitlines())
        summary = next(line for line in stderr.splitlines() if line.lstrip().startswith("videos"))
        assert f" {own} done, " in summary
        before = int(summary.partition(" were done before")[0].rpartition(" ")[2])
        meanwhile = summary.partition(" failed, ")[2].partition(" were done by other")[0] or "0"
        assert before + int(meanwhile) == others


def test_shares_of_a_slurm_array(work: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    written: list[str] = []
    for number in range(4):
        done = vfx_run(
            "--engine", work / "tiny.onnx", work / "videos", "--output", tmp_path, "--shard", f"{number}/4"
        )
        assert done.exit_code == 0, done.output
        written += done.stdout.split()
    assert len(written) == len(set(written)) == VIDEOS
    assert contents(tmp_path) == alone


def test_two_actors_write_what_one_process_does(
    ray: None, work: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = subprocess.run(
        command(work, output, "--ray", "--actors", "2"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert contents(output) == alone
    written = done.stdout.splitlines()
    assert len(written) == len(set(written)) == VIDEOS
    lines = done.stderr.splitlines()
    assert any(": 2 actors, each with" in line for line in lines)
    assert any(line.startswith("engine: tiny.onnx, ") for line in lines)
    assert f"{VIDEOS} done, 0 were done before, 0 failed" in done.stderr
    own = ("Ray ", "engine: ", " videos ", " windows ", " frames ", " time ")
    # Ray warns that actors are restarted with arguments by reference; silencing that would print a line as
    # well.
    others = [line for line in lines if not line.startswith(own) and "core_worker.cc" not in line]
    assert others == [], "Ray's own words"
    assert ray_processes() == []


@pytest.mark.slow
@pytest.mark.ci
def test_actors_make_the_shard_of_one_process(ray: None, work: Path, tmp_path: Path) -> None:
    alone, output = tmp_path / "alone", tmp_path / "out"
    subprocess.run(command(work, alone, "--format", "parquet"), check=True, capture_output=True)
    subprocess.run(
        command(work, output, "--format", "parquet", "--ray", "--actors", "2"),
        check=True,
        capture_output=True,
    )
    (name,) = contents(alone)
    assert name.endswith(".parquet")
    assert contents(output) == contents(alone)


@pytest.mark.slow
@pytest.mark.ci
def test_an_actor_dies_and_nothing_is_lost(
    ray: None, work: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """An actor is killed half-way; also, one video is damaged, and one ends every actor that opens it."""
    output, videos, code = tmp_path / "out", tmp_path / "videos", tmp_path / "code"
    code.mkdir()
    videos.mkdir()
    for video in (work / "videos").iterdir():
        (videos / video.name).symlink_to(video)
    (videos / "deadly.mp4").symlink_to(work / "videos" / "v00.mp4")
    (videos / "damaged.mp4").write_bytes(b"no video")
    # Behaves like a decoder that crashes.
    (code / "sitecustomize.py").write_text(
        "import os, time\n"
        "import vfx_runtime.pipeline as pipeline\n"
        "original = pipeline.open_video\n"
        "def open_video(path, *rest):\n"
        "    if 'deadly' in str(path): os._exit(1)\n"
        "    time.sleep(0.2)\n"
        "    return original(path, *rest)\n"
        "pipeline.open_video = open_video\n"
    )
    run = subprocess.Popen(
        [*map(str, (VFX_RUN, "--engine", work / "tiny.onnx", videos, "--output", output)),
         "--ray", "--actors", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(code),
    )  # fmt: skip
    # When two of forty videos are written, the run is in the middle of its work.
    deadline = time.monotonic() + 120
    while len(list(output.glob("*.npz"))) < 2 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed = actors_below(run.pid)
    for pid in killed[:1]:
        os.kill(pid, signal.SIGKILL)
    _, said = run.communicate(timeout=180)

    assert killed, said
    assert run.returncode == 1, said
    assert failures(output).keys() == {"deadly", "damaged"}
    assert "two actors ended while they had it" in failures(output)["deadly"]
    assert "tried once more: " in said
    found = contents(output)
    del found["failures.jsonl"]
    assert found == alone
    assert ray_processes() == []


@pytest.mark.slow
@pytest.mark.ci
def test_a_polite_end_leaves_no_ray(ray: None, work: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = subprocess.Popen(
        command(work, output, "--ray", "--actors", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    first = run.stdout.readline()
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)

    assert first
    assert run.returncode == 130, said
    assert said.splitlines()[-1].startswith("vfx-run: interrupted")
    assert "Traceback" not in said
    assert ray_processes() == []
    subprocess.run(command(work, output), check=True, capture_output=True)
    assert contents(output) == alone


@pytest.mark.slow
@pytest.mark.ci
def test_a_machine_without_vfx_ends_the_run_in_one_line(ray: None, work: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'vfx_runtime':\n"
        "            raise ModuleNotFoundError(\"No module named 'vfx_runtime'\", name=name)\n"
        "if b'default_worker.py' in open('/proc/self/cmdline', 'rb').read():\n"
        "    sys.meta_path.insert(0, Without())\n"
    )
    done = subprocess.run(
        command(work, tmp_path / "out", "--ray", "--actors", "2"),
        capture_output=True,
        text=True,
        env=environment_with(code),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vfx-run: Ray gave up ("), done.stderr
    assert "No module named 'vfx_runtime'" in last
    assert ray_processes() == []


@pytest.mark.slow
@pytest.mark.ci
def test_actors_that_end_whenever_they_start_end_the_run(ray: None, work: Path, tmp_path: Path) -> None:
    """As when opening the engine crashes, or takes more memory than there is."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(
        "import os\n"
        "import vfx_runtime.ray_run, vfx_runtime.running\n"
        "vfx_runtime.ray_run._SPARE_RESTARTS = 1\n"
        "vfx_runtime.running.open_engine = lambda *_, **more: os._exit(1)\n"
    )
    video = work / "videos" / "v00.mp4"
    run = subprocess.Popen(
        [
            *map(
                str,
                (VFX_RUN, "--engine", work / "tiny.onnx", video, "--output", tmp_path / "out", "--ray=local"),
            )
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(code),
    )
    try:
        _, said = run.communicate(timeout=120)
    finally:
        run.terminate()
    assert run.returncode == 1, said
    last = said.splitlines()[-1]
    assert last.startswith("vfx-run: Ray gave up (The actor is dead"), said
    assert last.endswith("does the engine open there without --ray?")
    assert ray_processes() == []


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
machine = {"num_cpus": 1, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
try:
    cluster.add_node(**machine)
    print(cluster.address, flush=True)
    sys.stdin.read()
finally:
    cluster.shutdown()
"""
"""A cluster of two machines with a core each; it ends when its stdin does."""


@pytest.mark.slow
@pytest.mark.ci
def test_no_actor_is_larger_than_a_machine(
    ray: None, work: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """An actor with the cores of two machines would never start, and the run never end."""
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        text=True,
    )
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        run = subprocess.Popen(
            command(work, tmp_path / "out", "--ray", address, "--actors", "1"),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, said = run.communicate(timeout=90)
        finally:
            run.terminate()
    finally:
        cluster.communicate()
    assert run.returncode == 0, said
    assert "each with 1 CPU\n" in said
    assert contents(tmp_path / "out") == alone


# Without Ray: what an actor does, and what a cluster is asked for


@pytest.fixture
def task(tmp_path: Path, work: Path) -> Task:
    (tmp_path / "out").mkdir()
    return Task(
        (work / "tiny.onnx",),
        tmp_path / "out",
        "npz",
        (tiny_spec().sampling,),
        threads=1,
        workers=1,
        pack=False,
    )


def call(actor: Actor, *jobs: Job) -> Answer:
    chunk = np.empty(1, object)
    chunk[0] = pickle.dumps(list(jobs))
    answer: Answer = pickle.loads(actor({"jobs": chunk})["answer"][0])
    return answer


def test_an_actor_answers_for_each_call(task: Task, work: Path) -> None:
    videos = [Job(work / "videos" / f"v{i:02}.mp4", f"v{i:02}") for i in range(6)]
    actor = Actor(task, "cpu", len(videos))
    first, second = call(actor, *videos[:4]), call(actor, *videos[4:], Job(work / "none.mp4", "none"))
    assert sorted(item.name for item in first.results) == ["v00", "v01", "v02", "v03"]
    assert [item.error is None for item in second.results] == [True, True, False]
    assert (first.stats.videos, second.stats.videos) == (4, 3)
    assert first.stats.frames == 8 + 9 + 10 + 11
    assert len(first.lines) == 1
    assert second.lines == []


def test_an_actor_without_an_engine_says_why(task: Task, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no engine")
    actor = Actor(replace(task, engines=(tmp_path / "bad.onnx",)), "cpu", 1)
    answer = call(actor, Job(tmp_path / "a.mp4", "a"))
    assert answer.results == []
    assert "bad.onnx" in str(answer.fatal)


def test_an_actor_goes_on_after_an_engine_that_fails_to_close(
    task: Task, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that is lost: all further calls fail, and so does the one that closes the engine."""

    def lost(*_: object) -> None:
        raise EngineError("the device was lost")

    monkeypatch.setattr(ray_actor, "_BROKEN_SECONDS", 0.0)
    jobs = [Job(work / "videos" / f"v{i:02}.mp4", f"v{i:02}") for i in range(2)]
    actor = Actor(task, "cpu", len(jobs))
    answers: list[Answer] = []
    for job in jobs:
        # A thread of its own, since an actor that does not answer would hang the test.
        asking = threading.Thread(target=lambda job=job: answers.append(call(actor, job)), daemon=True)
        with monkeypatch.context() as patched:
            if job is jobs[0]:
                patched.setattr(Engine, "collect", lost)
                patched.setattr(Engine, "close", lost)
            asking.start()
            asking.join(60)
        assert not asking.is_alive(), "the actor does not answer"
    (failed,), (done,) = (answer.results for answer in answers)
    assert "the device was lost" in str(failed.error)
    assert done.error is None


@pytest.mark.parametrize(
    ("machines", "threads", "actors", "on_gpu", "expected"),
    [
        ([{"CPU": 2.0}], None, None, False, (1, 2.0, 0)),
        ([{"CPU": 2.0}], None, 4, False, (4, 0.5, 0)),
        ([{"CPU": 64.0}], None, None, False, (16, 4.0, 0)),
        ([{"CPU": 64.0}], 2, None, False, (32, 2.0, 0)),
        ([{"CPU": 64.0, "GPU": 4.0}], None, None, True, (4, 16.0, 1)),
        ([{"CPU": 2.0}], None, 3, False, (3, 0.666, 0)),
        # No actor is larger than a machine.
        ([{"CPU": 2.0}, {"CPU": 2.0}], None, None, False, (2, 2.0, 0)),
        ([{"CPU": 16.0}, {"CPU": 16.0}], None, 1, False, (1, 16.0, 0)),
        ([{"CPU": 16.0}] * 3, None, 2, False, (2, 16.0, 0)),
        ([{"CPU": 6.0}] * 3, None, 4, False, (4, 3.0, 0)),
        ([{"CPU": 8.0, "GPU": 8.0}, {"CPU": 64.0}], None, None, True, (8, 1.0, 1)),
        ([{"GPU": 1.0}, {"CPU": 4.0}], None, None, True, (1, 0.0, 1)),
        ([{"CPU": 64.0}, {"CPU": 2.0}, {}], None, None, False, (16, 4.0, 0)),
    ],
)
def test_the_cluster_is_shared_out(
    machines: list[dict[str, float]],
    threads: int | None,
    actors: int | None,
    on_gpu: bool,
    expected: tuple[int, float, int],
) -> None:
    pool = _pool(machines, threads, actors, 1000, on_gpu)
    assert (pool.actors, pool.cpus, pool.gpus) == expected


def test_a_video_that_failed_before_its_actor_ended_says_both() -> None:
    job = Job(Path("a.mp4"), "a")
    failed = Extracted.of(job, error=EngineError("a.mp4: the device was lost"))
    said = str(_given_up(job, failed))
    assert said.startswith(
        "a.mp4: given up: an actor ended while it had it, and before, it failed (a.mp4: the"
    )
    assert str(_given_up(job, None)).startswith("a.mp4: given up: two actors ended while they had it; ")


def test_more_actors_than_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="the cluster has 2"):
        _pool([{"CPU": 8.0, "GPU": 2.0}], None, 3, 10, True)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "ray://127.0.0.1"])
def test_where_nothing_listens_is_said_at_once(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _check_answers(f"127.0.0.1:{port}", lambda: "127.0.0.1")
        # Ray takes the machine's own address in place of the loopback one, and may listen there alone.
        _check_answers(f"[::1]:{port}", lambda: "127.0.0.1")
    with pytest.raises(UsageError, match=r"no Ray cluster there: Connection refused: .*--ray=local"):
        _check_answers(f"{address}:{port}", lambda: "127.0.0.1")


def test_a_run_on_no_cluster_ends_at_once(ray: None, work: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = subprocess.run(
        command(work, tmp_path / "out", f"--ray=127.0.0.1:{port}"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vfx-run: --ray 127.0.0.1:{port}: no Ray cluster there: Connection refused: ")


def test_an_input_that_was_taken_for_an_address_is_named() -> None:
    done = vfx_run("--engine", "e.onnx", "--ray", "clips/")
    assert done.exit_code == 2
    assert "--ray clips/: expected HOST:PORT" in done.stderr


@pytest.mark.parametrize("address", ["videos.txt", "a.mp4", "clips/", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="--ray=local"):
        check_address(address)


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "ray://head-1.cluster:10001"])
def test_addresses(address: str) -> None:
    check_address(address)
