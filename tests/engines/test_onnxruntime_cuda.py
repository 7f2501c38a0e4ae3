"""ONNX Runtime on CUDA: what vfx asks of it, on a simulated device, computed by its CPU provider."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_onnxruntime import FakeOnnxRuntime
from simulated_cuda import SimulatedDriver
from tiny import FRAMES, SIZE, tiny_engine, tiny_features, tiny_spec
from tolerances import TINY
from vfx_engines import cuda_python
from vfx_engines.backends.onnxruntime_cuda import SLOTS, OnnxRuntimeCudaBackend
from vfx_engines.cuda import OutOfDeviceMemory
from vfx_engines.cuda_python import CudaPython
from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, UsageError
from vfx_engines.opening import halving, open_engine


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDriver]:
    simulated = SimulatedDriver(seed=2)
    monkeypatch.setattr(cuda_python, "driver", simulated)
    yield simulated
    assert simulated.leaks() == []


def with_module(monkeypatch: pytest.MonkeyPatch, driver: SimulatedDriver, **settings: Any) -> FakeOnnxRuntime:
    module = FakeOnnxRuntime(driver, **settings)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def windows(seed: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, FRAMES, SIZE, SIZE, 3), np.uint8)


def test_every_slot_gives_its_own_result(
    monkeypatch: pytest.MonkeyPatch, driver: SimulatedDriver, tmp_path: Path
) -> None:
    module = with_module(monkeypatch, driver)
    path, spec = tiny_engine(tmp_path / "tiny.onnx"), tiny_spec()
    with Engine(spec, OnnxRuntimeCudaBackend(path, spec, CudaPython(0), 0, 4)) as engine:
        assert engine.name.endswith("Simulated GPU, fp32")
        assert engine.slots == SLOTS
        flying: dict[int, NDArray[np.uint8]] = {}
        for turn in range(30):
            slot = turn % SLOTS
            if slot in flying:
                rows = engine.collect(slot)["features"]
                np.testing.assert_allclose(rows, tiny_features(flying[slot]), rtol=TINY)
            flying[slot] = windows(turn, 1 + turn % 4)
            engine.buffer(slot)[: len(flying[slot])] = flying[slot]
            engine.submit(slot, len(flying[slot]))
        for slot, given in flying.items():
            np.testing.assert_allclose(engine.collect(slot)["features"], tiny_features(given), rtol=TINY)
    assert len(set(module.runs)) == 1, "the session works on the one stream that it was given"
    assert len(module.runs) == 31, "once to warm up"


def test_a_batch_that_does_not_fit_is_halved_and_said(
    monkeypatch: pytest.MonkeyPatch, driver: SimulatedDriver, tmp_path: Path
) -> None:
    with_module(monkeypatch, driver, most=3)
    path, spec = tiny_engine(tmp_path / "tiny.onnx"), tiny_spec()
    made = halving(lambda size: OnnxRuntimeCudaBackend(path, spec, CudaPython(0), 0, size), 8)
    with Engine(spec, made) as engine:
        assert engine.batch == 2
        assert engine.name.endswith("batch 2: 8 do not fit its memory")


def test_memory_that_suffices_for_nothing(
    monkeypatch: pytest.MonkeyPatch, driver: SimulatedDriver, tmp_path: Path
) -> None:
    with_module(monkeypatch, driver, most=0)
    path, spec = tiny_engine(tmp_path / "tiny.onnx"), tiny_spec()
    with pytest.raises(OutOfDeviceMemory, match="out of memory"):
        halving(lambda size: OnnxRuntimeCudaBackend(path, spec, CudaPython(0), 0, size), 8)


def test_bf16_is_not_promised(
    monkeypatch: pytest.MonkeyPatch, driver: SimulatedDriver, tmp_path: Path
) -> None:
    with_module(monkeypatch, driver)
    path, spec = tiny_engine(tmp_path / "tiny.onnx"), replace(tiny_spec(), precision="bf16")
    with Engine(spec, OnnxRuntimeCudaBackend(path, spec, CudaPython(0), 0, 2)) as engine:
        assert engine.precision == "fp32"
        assert "fp32, not bf16" in engine.name


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"has_cuda": False}, UsageError, "built without CUDA: pip install onnxruntime-gpu"),
        ({"loads": False}, EngineError, "loaded it, but not for CUDA"),
    ],
)
def test_another_provider_is_never_taken_silently(
    monkeypatch: pytest.MonkeyPatch,
    driver: SimulatedDriver,
    tmp_path: Path,
    settings: dict[str, bool],
    kind: type[Exception],
    said: str,
) -> None:
    with_module(monkeypatch, driver, **settings)
    path, spec = tiny_engine(tmp_path / "tiny.onnx"), tiny_spec()
    with pytest.raises(kind, match=said):
        OnnxRuntimeCudaBackend(path, spec, CudaPython(0), 0, 2)


def test_a_device_on_which_nothing_opens_is_released(
    monkeypatch: pytest.MonkeyPatch, driver: SimulatedDriver, tmp_path: Path
) -> None:
    monkeypatch.setattr("vfx_engines.devices.missing_driver", lambda: None)
    with_module(monkeypatch, driver, loads=False)
    path = tiny_engine(tmp_path / "tiny.onnx")
    with pytest.raises(EngineError, match="not for CUDA"):
        open_engine(path, device="cuda")
    assert driver.contexts == 0
    with_module(monkeypatch, driver)
    with open_engine(path, device="cuda"):
        assert driver.contexts == 1
    assert driver.contexts == 0


def test_a_file_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, driver: SimulatedDriver, tmp_path: Path
) -> None:
    with_module(monkeypatch, driver)
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="ONNX Runtime cannot load it") as caught:
        OnnxRuntimeCudaBackend(tmp_path / "a.onnx", tiny_spec(), CudaPython(0), 0, 2)
    assert str(caught.value).isprintable()
