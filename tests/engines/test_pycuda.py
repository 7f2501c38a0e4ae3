"""The adapter for PyCUDA, on a stand-in for it: what it calls, and that slots and kernels work through it."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_pycuda
from cuda_on_cpu import CpuKernels
from make_video import make_video
from simulated_cuda import INVALID, SimulatedDriver
from tiny import FRAMES, SIZE, tiny_features, tiny_spec
from tiny_on_device import BATCH, TinyOnDevice
from tolerances import TINY
from vfx_engines.cuda import CudaError, OutOfDeviceMemory
from vfx_engines.engine import Engine
from vfx_engines.errors import UsageError
from vfx_runtime.job import Job
from vfx_runtime.opening import open_video
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.preprocess import CpuPreprocess
from vfx_runtime.surfaces import KERNELS, Colour, Frames, Geometry, Surfaces, Taps


class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_byte), ("b", ctypes.c_double))


TYPES: dict[str, tuple[Any, ...]] = {
    "add": (ctypes.c_int, Pair, ctypes.c_longlong),
    **dict.fromkeys(KERNELS.values(), (Surfaces, Geometry, Colour, Taps)),
    "gather_chunks": (Frames, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p),
    "gather_bytes": (Frames, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p),
}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`adapter(driver)` is the class `PyCuda` on that driver."""

    def on(driver: SimulatedDriver) -> Any:
        package = types.ModuleType("pycuda")
        package.__dict__.update(VERSION_TEXT="2026.1", __path__=[])
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", fake_pycuda.make(driver, TYPES))
        package.driver = sys.modules["pycuda.driver"]  # type: ignore[attr-defined]
        monkeypatch.delitem(sys.modules, "vfx_engines.cuda_pycuda", raising=False)
        return importlib.import_module("vfx_engines.cuda_pycuda").PyCuda

    yield on
    sys.modules.pop("vfx_engines.cuda_pycuda", None)


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_slot_gives_its_own_result(adapter: Any, one_stream: bool, seed: int) -> None:
    driver = SimulatedDriver(seed=seed)
    backend = TinyOnDevice(driver, 3, one_stream=one_stream, graphs=True, binding=adapter(driver))
    with Engine(tiny_spec(), backend, "cuda:0") as engine:
        flying: dict[int, Any] = {}
        for turn in range(30):
            slot = turn % 3
            if slot in flying:
                np.testing.assert_allclose(
                    engine.collect(slot)["features"], tiny_features(flying.pop(slot)), rtol=TINY
                )
            shape = (1 + turn % BATCH, FRAMES, SIZE, SIZE, 3)
            given = np.random.default_rng(turn).integers(0, 256, shape, np.uint8)
            engine.buffer(slot)[: len(given)] = given
            engine.submit(slot, len(given))
            flying[slot] = given
        assert not driver.launched_graphs, "PyCUDA has none"
    backend.cuda.close()
    del backend, engine
    gc.collect()
    assert driver.leaks() == []


def test_arguments_are_packed_as_a_structure(adapter: Any) -> None:
    got: list[object] = []

    def kernel(grid: object, block: object, arguments: list[int]) -> None:
        number = ctypes.c_int.from_address(arguments[0]).value
        pair = Pair.from_address(arguments[1])
        got.append((grid, block, number, pair.a, pair.b, ctypes.c_longlong.from_address(arguments[2]).value))

    driver = SimulatedDriver(kernels={"add": (kernel, (4, 16, 8))})
    device = adapter(driver)(0)
    stream = device.stream()
    function = device.function(device.load(b"cubin"), "add")
    pair = Pair(8, 2.5)
    device.launch(function, (1, 2, 3), (32, 4, 1), [ctypes.c_int(7), pair, ctypes.c_longlong(9)], stream)
    device.synchronize(stream)

    assert got == [((1, 2, 3), (32, 4, 1), 7, 8, 2.5, 9)]
    with pytest.raises(CudaError, match="cannot capture graphs"):
        device.begin_capture(stream)


def test_videos_are_prepared_through_it(adapter: Any, tmp_path: Path) -> None:
    kernels = CpuKernels(tmp_path)
    driver = SimulatedDriver(kernels=kernels.for_driver())
    path = make_video(tmp_path / "v.mp4", width=48, height=32, frames=21)
    with Engine(tiny_spec(), TinyOnDevice(driver, 2, binding=adapter(driver)), "cuda:0") as engine:
        (result,) = Pipeline(engine, workers=1).run([Job(path, "v")])
        assert result.rows is not None
        with result.rows as rows:
            found = rows.features(result.fps, {}).arrays["features"]
        frames = []
        with open_video(path) as decoder:
            prepare = CpuPreprocess(engine).prepare
            frames = [prepare(frame) for frame in decoder]
    windows = np.stack([np.stack(frames[first : first + FRAMES]) for first in range(0, 18, FRAMES)])
    np.testing.assert_array_equal(found, tiny_features(windows))


def test_what_is_missing_is_said(adapter: Any) -> None:
    with pytest.raises(UsageError, match="cuda:2: this machine has cuda:0 to cuda:0"):
        adapter(SimulatedDriver())(2)
    device = adapter(SimulatedDriver(memory=1000))(0)
    with pytest.raises(OutOfDeviceMemory, match="take a smaller --batch"):
        device.allocate(2000)
    assert device.memory() == (1000, 1000)
    assert device.binding == "PyCUDA 2026.1"


@pytest.mark.parametrize(
    ("call", "fails"),
    [
        ("free", "cuMemFree"),
        ("unpin", "cuMemFreeHost"),
        ("opening", "cuInit"),
        ("opening", "cuDeviceGetCount"),
        ("opening", "cuDeviceGetName"),
        ("opening", "cuDevicePrimaryCtxRetain"),
        ("opening", "cuCtxSetCurrent"),
    ],
)
def test_a_driver_that_fails_is_one_kind_of_error(
    adapter: Any, monkeypatch: pytest.MonkeyPatch, call: str, fails: str
) -> None:
    driver = SimulatedDriver()
    make = adapter(driver)
    device = None if call == "opening" else make(0)
    given = {"free": lambda: device.allocate(16), "unpin": lambda: device.pinned(16), "opening": lambda: 0}
    argument = given[call]()
    monkeypatch.setattr(driver, f"_{fails}", lambda *arguments: (INVALID, None))
    with pytest.raises(CudaError, match="CUDA failed: failed: CUDA_ERROR_INVALID_VALUE"):
        make(argument) if device is None else getattr(device, call)(argument)
