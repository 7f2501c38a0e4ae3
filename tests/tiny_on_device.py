"""The tiny engine on a simulated CUDA device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulated_cuda import SimulatedDriver
from tiny import FRAMES, SIZE, tiny_features, tiny_spec
from vfx_engines.backends.cuda_slots import CudaSlots
from vfx_engines.cuda import Cuda
from vfx_engines.cuda_python import CudaPython
from vfx_engines.engine import DeviceInput
from vfx_engines.spec import Precision

BATCH = 4
ROW = FRAMES * SIZE * SIZE * 3


class TinyOnDevice:
    """A backend on top of `CudaSlots` that computes the tiny engine in simulated device memory."""

    name = "tiny on a simulated device"
    precision: Precision = "fp32"

    def __init__(
        self,
        driver: SimulatedDriver,
        slots: int,
        *,
        one_stream: bool = False,
        graphs: bool = False,
        binding: Callable[[int], Cuda] = CudaPython,
    ) -> None:
        self.driver, self.cuda = driver, binding(0)
        self._stream = self.cuda.stream() if one_stream else None
        self.enqueued = 0
        self.refuse_capture = False
        self.slots = CudaSlots(
            self.cuda,
            tiny_spec(),
            BATCH,
            slots,
            self._enqueue,
            compute_stream=self._stream,
            graphs=graphs,
        )
        self.buffers = self.slots.buffers

    def _enqueue(self, slot: int, count: int, stream: int) -> None:
        self.enqueued += 1
        if self.refuse_capture and self.driver.capturing(stream):
            self.driver.spoil(stream)
        source, (target,) = self.slots.addresses(slot)

        def compute() -> None:
            windows = np.ctypeslib.as_array((ctypes.c_uint8 * (count * ROW)).from_address(source))
            features = tiny_features(windows.reshape(count, FRAMES, SIZE, SIZE, 3))
            ctypes.memmove(target, features.ctypes.data, features.nbytes)

        self.driver.put(stream, compute)

    def start(self, slot: int, count: int) -> None:
        self.slots.start(slot, count)

    def device_input(self, slot: int) -> DeviceInput:
        return self.slots.device_input(slot)

    def start_on_device(self, slot: int, count: int) -> None:
        self.slots.start(slot, count, on_device=True)

    def wait(self, slot: int) -> list[NDArray[np.generic]]:
        return list(self.slots.wait(slot))

    def close(self) -> None:
        self.slots.close()
        if self._stream is not None:
            self.cuda.close_stream(self._stream)
