"""The CUDA adapter and its slots on a simulated driver: order, reuse, graphs, memory."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from simulated_cuda import SimulatedDriver
from tiny import FRAMES, SIZE, tiny_features, tiny_spec
from tiny_on_device import BATCH, ROW, TinyOnDevice
from tolerances import TINY
from vfx_engines import cuda_python
from vfx_engines.cuda import CudaError, OutOfDeviceMemory
from vfx_engines.cuda_python import CudaPython
from vfx_engines.devices import missing_driver, open_cuda
from vfx_engines.engine import Engine
from vfx_engines.errors import UsageError


@pytest.fixture(params=range(3))
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDriver]:
    simulated = SimulatedDriver(seed=request.param)
    monkeypatch.setattr(cuda_python, "driver", simulated)
    yield simulated
    assert simulated.leaks() == []


def windows(seed: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, FRAMES, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("one_stream", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("slots", [2, 3, 5])
def test_every_slot_gives_its_own_result(
    driver: SimulatedDriver, slots: int, one_stream: bool, graphs: bool
) -> None:
    order = random.Random(slots)
    with Engine(tiny_spec(), TinyOnDevice(driver, slots, one_stream=one_stream, graphs=graphs)) as engine:
        flying: dict[int, NDArray[np.uint8]] = {}
        for turn in range(60):
            slot = order.randrange(slots)
            if slot in flying:
                outputs = engine.collect(slot)
                np.testing.assert_allclose(
                    outputs["features"], tiny_features(flying.pop(slot)), rtol=TINY, err_msg=str(turn)
                )
            given = windows(turn, order.choice([1, BATCH, BATCH]))
            engine.buffer(slot)[: len(given)] = given
            engine.submit(slot, len(given))
            flying[slot] = given
        for slot, given in flying.items():
            np.testing.assert_allclose(engine.collect(slot)["features"], tiny_features(given), rtol=TINY)
    assert (driver.launched_graphs > 0) == (graphs and not one_stream)


def test_a_graph_is_captured_once_per_slot_and_count(driver: SimulatedDriver) -> None:
    backend = TinyOnDevice(driver, 2, graphs=True)
    with Engine(tiny_spec(), backend) as engine:
        for turn in range(12):
            given = windows(turn, BATCH)
            np.testing.assert_allclose(engine.run(given)["features"], tiny_features(given), rtol=TINY)
    # Once as it is, since what runs first may allocate; once more to be captured; then never again.
    assert backend.enqueued == 2
    assert driver.launched_graphs == 11


def test_what_cannot_be_captured_runs_without_graphs(driver: SimulatedDriver) -> None:
    backend = TinyOnDevice(driver, 2, graphs=True)
    backend.refuse_capture = True
    with Engine(tiny_spec(), backend) as engine:
        for turn in range(5):
            given = windows(turn, BATCH)
            np.testing.assert_allclose(engine.run(given)["features"], tiny_features(given), rtol=TINY)
    assert not backend.slots.graphs
    assert driver.launched_graphs == 0


def test_too_little_memory_is_said_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimulatedDriver(memory=3 * BATCH * ROW)
    monkeypatch.setattr(cuda_python, "driver", driver)
    with pytest.raises(OutOfDeviceMemory, match=r"out of memory.*smaller --batch"):
        TinyOnDevice(driver, 4)
    assert driver.leaks() == []


def test_a_kernel_gets_its_arguments_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pair(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int), ("b", ctypes.c_longlong))

    got: list[tuple[object, ...]] = []
    done = threading.Event()

    def kernel(grid: object, block: object, arguments: list[int]) -> None:
        number = ctypes.c_int.from_address(arguments[0]).value
        pair = Pair.from_address(arguments[1])
        got.append((grid, block, number, pair.a, pair.b))
        done.set()

    driver = SimulatedDriver(kernels={"add": (kernel, (4, ctypes.sizeof(Pair)))})
    monkeypatch.setattr(cuda_python, "driver", driver)
    device = CudaPython(0)
    stream = device.stream()
    function = device.function(device.load(b"cubin"), "add")
    arguments = [ctypes.c_int(7), Pair(8, 9)]
    device.launch(function, (1, 2, 3), (32, 4, 1), arguments, stream)
    arguments[0].value = 0  # type: ignore[union-attr]
    device.synchronize(stream)

    assert done.is_set()
    assert got == [((1, 2, 3), (32, 4, 1), 7, 8, 9)]
    with pytest.raises(CudaError, match="not found"):
        device.function(device.load(b"cubin"), "subtract")
    device.close_stream(stream)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_python, "driver", SimulatedDriver())
    with pytest.raises(UsageError, match="cuda:3: this machine has cuda:0 to cuda:0"):
        CudaPython(3)


def test_without_a_driver_the_way_out_is_named() -> None:
    reason = missing_driver()
    if reason is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match=r"device cuda:1: no CUDA: .*--device cpu") as caught:
        open_cuda(1)
    assert "\n" not in str(caught.value)
