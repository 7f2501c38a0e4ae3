"""Engines on a real Triton server: the same features as locally, and what a run does when it goes away."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from conftest import lacking
from make_video import make_video
from run_kit import expected_rows, failures, files_in, vfx_run
from tiny import FRAMES, SIZE, tiny_engine, tiny_features
from tiny_flow import PAIRS, tiny_flow_engine
from triton_server import INSTALLED, Proxy, TritonServer, free_port, publish
from vfx_engines import EngineError, UsageError, open_engine, read_spec
from vfx_runtime import bench, pipeline, read_features
from vfx_runtime.job import Job
from vfx_runtime.pipeline import Pipeline

PROTOCOLS = ("grpc", "http")


def rows_of(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, FRAMES, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("engine") / "tiny.onnx", labels=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, engine_file: Path) -> Path:
    """Model repository: tiny; tiny_flow (any frame size); foreign (no spec); wrong (another model's spec)."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    publish(folder, engine_file)
    publish(folder, tiny_flow_engine(engine_file.with_name("tiny_flow.onnx")))
    config = (folder / "tiny" / "config.pbtxt").read_text("utf-8")
    for name in ("foreign", "wrong"):
        shutil.copytree(folder / "tiny", folder / name)
        own = config.replace('name: "tiny"', f'name: "{name}"')
        if name == "foreign":
            own = "\n".join(line for line in own.splitlines() if not line.startswith("parameters"))
        else:
            own = own.replace(r"\"features\"", r"\"others\"")
        (folder / name / "config.pbtxt").write_text(own, "utf-8")
    return folder


def installed() -> None:
    pytest.importorskip("tritonclient.grpc")
    if not INSTALLED.exists():
        lacking("triton", "no Triton server is here: scripts/triton installs one")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[TritonServer]:
    installed()
    with TritonServer(tmp_path_factory.mktemp("server"), repository) as server:
        yield server


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(8):
        make_video(folder / f"v{number}.mp4", width=40 + 2 * number, height=30, frames=20 + 3 * number)
    return folder


# The engine


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_computes_what_the_file_computes_here(
    server: TritonServer, engine_file: Path, protocol: str
) -> None:
    address = server.address(protocol, "tiny")
    assert read_spec(Path(address)) == read_spec(engine_file)
    rows = rows_of(21)
    with open_engine(engine_file, backend="onnxruntime") as local, open_engine(address) as engine:
        assert engine.spec == local.spec
        assert engine.name.startswith("Triton 2.")
        assert engine.name.endswith(f", {protocol}, version 1, fp32")
        assert "127.0.0.1" not in engine.name
        assert (engine.slots, engine.batch, engine.precision) == (4, 8, "fp32")
        expected = local.run(rows)
        for name, array in engine.run(rows).items():
            np.testing.assert_array_equal(array, expected[name])
        # All requests in flight at once, each with different rows and a different batch size.
        for slot in range(engine.slots):
            engine.buffer(slot)[: slot + 1] = rows_of(slot + 1, seed=slot)
            engine.submit(slot, slot + 1)
        for slot in reversed(range(engine.slots)):
            got = engine.collect(slot)["features"]
            np.testing.assert_allclose(got, tiny_features(rows_of(slot + 1, seed=slot)), rtol=1e-6)


def test_requests_and_their_size_are_the_callers(server: TritonServer) -> None:
    with open_engine(f"{server.address('grpc', 'tiny')}?requests=3&version=1", batch=2) as engine:
        assert (engine.slots, engine.batch) == (3, 2)
        np.testing.assert_allclose(engine.run(rows_of(5))["features"], tiny_features(rows_of(5)), rtol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_engine_of_any_size_is_open_at_one(server: TritonServer, protocol: str) -> None:
    address = server.address(protocol, "tiny_flow")
    pixels = np.random.default_rng(0).integers(0, 256, (2, PAIRS + 1, 24, 40, 3), np.uint8)
    with open_engine(address, sizes={"height": 24, "width": 40}) as engine:
        got = engine.run(pixels)["flow"]
    change = np.diff(pixels.astype(np.float32), axis=1)[..., :2]
    np.testing.assert_array_equal(got, change.transpose(0, 1, 4, 2, 3))
    with pytest.raises(UsageError, match="height, width may vary"):
        open_engine(address)


def test_requests_of_several_slots_share_a_call(server: TritonServer) -> None:
    before = len(server.calls("tiny"))
    with open_engine(f"{server.address('grpc', 'tiny')}?requests=16", batch=1) as engine:
        for _ in range(4):
            for slot in range(engine.slots):
                engine.submit(slot, 1)
            for slot in range(engine.slots):
                engine.collect(slot)
    calls = server.calls("tiny")[before:]
    assert sum(calls) == 64
    assert max(calls) > 1


# Refusals


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("none", "unknown model: 'none'"),
        ("tiny?version=7", "'tiny' version 7 is not found"),
        ("foreign", "version 1 has no vfx spec in its parameters: it was not exported with"),
        ("wrong", "its spec says frames .* and others TYPE_FP32"),
    ],
)
def test_a_model_that_is_not_there_or_not_ours_is_named(
    server: TritonServer, protocol: str, model: str, said: str
) -> None:
    address = server.address(protocol, model)
    for call in (read_spec, open_engine):
        with pytest.raises(EngineError, match=said) as failed:
            call(Path(address))
        assert address.partition("?")[0] in str(failed.value)
        assert str(failed.value).isprintable()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_server_does_not_take_is_refused(server: TritonServer, protocol: str) -> None:
    address = server.address(protocol, "tiny")
    with pytest.raises(UsageError, match="batch 9: the server takes 8 windows"):
        open_engine(address, batch=9)
    with pytest.raises(UsageError, match="computes in fp32, not bf16: leave the precision out"):
        open_engine(address, precision="bf16")
    # A server whose model was replaced by one of another shape, while an engine was open.
    with open_engine(address) as engine:
        engine._backend.buffers[0] = np.zeros((8, FRAMES, SIZE, SIZE + 1, 3), np.uint8)  # type: ignore[index]
        engine.submit(0, 8)
        with pytest.raises(EngineError, match="unexpected shape for input 'frames'"):
            engine.collect(0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_away_is_named_after_some_tries(protocol: str) -> None:
    pytest.importorskip("tritonclient.grpc")
    address = f"{protocol}://127.0.0.1:{free_port()}/tiny"
    with pytest.raises(EngineError, match=r"no answer \(2 tries in \d+ s; the last one: .*refused"):
        open_engine(f"{address}?tries=2")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_tritons_client_it_is_named(protocol: str) -> None:
    code = (
        "import sys; sys.modules['tritonclient'] = None; from vfx_engines import open_engine\n"
        f"open_engine('{protocol}://127.0.0.1/tiny')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vfx_engines.errors.UsageError: "), last
    assert last.endswith("pip install 'tritonclient[grpc,http]'")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_something_else_behind_the_port_is_named(protocol: str, server: TritonServer) -> None:
    port = server.http_port if protocol == "grpc" else server.grpc_port
    with pytest.raises(EngineError, match=f"{protocol}://127.0.0.1"):
        open_engine(f"{protocol}://127.0.0.1:{port}/tiny?tries=1&timeout=5")


# Lost connections


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lost_connections_are_made_again(server: TritonServer, protocol: str) -> None:
    port = server.grpc_port if protocol == "grpc" else server.http_port
    with Proxy(port, drop=2) as proxy, open_engine(f"{protocol}://127.0.0.1:{proxy.port}/tiny") as engine:
        assert proxy.dropped == 2
        rows = rows_of(30)
        np.testing.assert_allclose(engine.run(rows[:5])["features"], tiny_features(rows[:5]), rtol=1e-6)
        proxy.cut(more=2)
        np.testing.assert_allclose(engine.run(rows)["features"], tiny_features(rows), rtol=1e-6)
        assert proxy.dropped == 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closing_an_engine_ends_its_requests(server: TritonServer, protocol: str) -> None:
    """Closing does not wait for a server that hangs, though a request may last two minutes."""
    port = server.grpc_port if protocol == "grpc" else server.http_port
    with Proxy(port) as proxy:
        engine = open_engine(f"{protocol}://127.0.0.1:{proxy.port}/tiny")
        engine.run(rows_of(3))
        proxy.hold()
        for slot in range(engine.slots):
            engine.submit(slot, 1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_hangs_is_given_up(server: TritonServer, protocol: str) -> None:
    port = server.grpc_port if protocol == "grpc" else server.http_port
    with Proxy(port) as proxy:
        address = f"{protocol}://127.0.0.1:{proxy.port}/tiny?tries=2&timeout=0.5"
        with open_engine(address) as engine:
            proxy.hold()
            engine.submit(0, 1)
            with pytest.raises(EngineError, match=r"no answer \(2 tries"):
                engine.collect(0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_giving_a_run_up_does_not_wait_for_a_server_that_hangs(
    server: TritonServer, videos: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Ctrl-C does this. The server would be given eight tries of two minutes each."""
    monkeypatch.setattr(pipeline, "SECONDS_TO_STOP", 1.0)
    port = server.grpc_port if protocol == "grpc" else server.http_port
    jobs = [Job(video, f"{turn}{video.stem}") for turn in range(20) for video in videos.iterdir()]
    with Proxy(port) as proxy:
        engine = open_engine(f"{protocol}://127.0.0.1:{proxy.port}/tiny", batch=1)
        results = Pipeline(engine).run(jobs)
        next(results)
        proxy.hold()
        stopping = threading.Thread(target=results.close, daemon=True)
        stopping.start()
        stopping.join(30)
        assert not stopping.is_alive()
        engine.close()


# Commands


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_vfx_run_writes_what_it_writes_with_the_file(
    server: TritonServer, engine_file: Path, videos: Path, tmp_path: Path, protocol: str
) -> None:
    address = server.address(protocol, "tiny")
    result = vfx_run("--engine", address, videos, "--output", tmp_path / "served", "--step", 3)
    assert result.exit_code == 0, result.output
    assert f"engine: {address}, Triton 2." in result.stderr
    local = ("--engine", engine_file, "--backend", "onnxruntime", videos, "--step", 3)
    assert vfx_run(*local, "--output", tmp_path / "local").exit_code == 0
    assert files_in(tmp_path / "served") == files_in(tmp_path / "local")
    for number in range(8):
        here, there = (read_features(tmp_path / where / f"v{number}.npz") for where in ("local", "served"))
        assert here.arrays.keys() == there.arrays.keys()
        for name, array in here.arrays.items():
            np.testing.assert_array_equal(array, there.arrays[name])
        np.testing.assert_array_equal(here.timestamps_ms, there.timestamps_ms)
    # It is the same engine wherever it runs, so a local run accepts what the served one made.
    again = vfx_run(*local, "--output", tmp_path / "served")
    assert "0 done, 8 were done before" in again.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_actors_of_ray_share_a_server(server: TritonServer, videos: Path, tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-c", "import ray.data"], capture_output=True, check=False).returncode:
        lacking("ray", "Ray Data is not installed")
    command = [sys.executable, "-c", "from vfx_runtime.cli import main; main()", videos]
    command += ["--engine", server.address("grpc", "tiny")]
    for more in (["--output", tmp_path / "one"], ["--output", tmp_path / "two", "--ray", "--actors", "2"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (
        {name: (tmp_path / run / name).read_bytes() for name in files_in(tmp_path / run)}
        for run in ("one", "two")
    )
    assert len(one) == 8
    assert one == two


def test_vfx_bench_measures_a_served_engine(server: TritonServer, videos: Path) -> None:
    arguments = ["--engine", server.address("grpc", "tiny"), str(videos / "v7.mp4")]
    arguments += ["--seconds", "0.05", "--rounds", "1"]
    result = CliRunner().invoke(bench.main, arguments)
    assert result.exit_code == 0, result.output
    assert "engine alone, batch 8" in result.stdout
    assert "that the server, decoding or resizing set" in result.stdout


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_dies_costs_the_videos_under_way_and_no_other(
    repository: Path, videos: Path, tmp_path: Path, protocol: str
) -> None:
    installed()
    (tmp_path / "server").mkdir()
    output = tmp_path / "features"
    with TritonServer(tmp_path / "server", repository) as server:
        server.slow(0.1)
        command = [
            *(sys.executable, "-c", "from vfx_runtime.cli import main; main()"),
            *("--workers", "2", "--batch", "1"),
            *("--engine", f"{server.address(protocol, 'tiny')}?tries=2", "--output", output, videos),
        ]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while run.poll() is None and len(list(output.glob("*.npz"))) < 2:
            time.sleep(0.02)
        server.kill()
        _, said = run.communicate(timeout=60)
        assert run.returncode == 1, said
        assert said.splitlines()[-1].startswith(f"vfx-run: {protocol}://127.0.0.1"), said
        done = {path.stem for path in output.glob("*.npz")}
        named = failures(output)
        assert 2 <= len(done) < 8
        assert named
        assert not done & set(named)
        for name, error in named.items():
            assert f"{name}.mp4: {protocol}://127.0.0.1" in error
            assert "no answer (2 tries" in error
        (server.folder / "backends" / "onnxruntime" / "slow").unlink()
        server.start()
        result = vfx_run("--engine", server.address(protocol, "tiny"), "--output", output, videos)
        assert result.exit_code == 0, result.output
        assert f"{8 - len(done)} done, {len(done)} were done before" in result.stderr
    for number in range(8):
        features = read_features(output / f"v{number}.npz")
        rows = expected_rows(videos / f"v{number}.mp4")
        np.testing.assert_allclose(features.arrays["features"], rows, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.ci
def test_a_server_that_comes_back_in_time_costs_nothing(
    repository: Path, videos: Path, tmp_path: Path
) -> None:
    installed()
    (tmp_path / "server").mkdir()
    with TritonServer(tmp_path / "server", repository) as server:
        server.slow(0.05)
        killed = threading.Event()

        def restart() -> None:
            while len(list((tmp_path / "features").glob("*.npz"))) < 2:
                time.sleep(0.02)
            server.kill()
            server.start()
            killed.set()

        thread = threading.Thread(target=restart, daemon=True)
        thread.start()
        address = f"{server.address('grpc', 'tiny')}?tries=12"
        result = vfx_run(
            "--engine", address, "--batch", 1, "--workers", 2, "--output", tmp_path / "features", videos
        )
        assert result.exit_code == 0, result.output
        thread.join(60)
        assert killed.is_set()
        assert "8 done, 0 were done before, 0 failed" in result.stderr
