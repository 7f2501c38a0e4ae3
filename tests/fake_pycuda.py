"""`pycuda.driver`, as far as vfx uses it, on top of the simulated driver.

Names, argument names and static methods are those of PyCUDA 2026.1's wrap_cudadrv.cpp and driver.py. A kernel
gets its arguments as bytes, which PyCUDA passes on as one block; the simulation is told their types.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
from cuda.bindings import driver as real
from numpy.typing import NDArray

from simulated_cuda import SimulatedDriver


class Error(Exception):
    """Base of PyCUDA's errors."""


class MemoryError(Error):
    """The device has too little memory."""


def make(device: SimulatedDriver, kernels: dict[str, Sequence[type]]) -> types.ModuleType:
    """Make the module.

    Args:
        device: the simulated driver that does the work.
        kernels: for each known kernel, the types of its arguments.
    """

    def checked(result: tuple[Any, ...]) -> Any:
        code, *values = result
        if code == real.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise MemoryError("cuMemAlloc failed: out of memory")
        if int(code):
            raise Error(f"failed: {code.name}")
        return values[0] if len(values) == 1 else values

    class Context:
        stack = 0

        def push(self) -> None:
            checked(device.cuCtxSetCurrent(1))
            Context.stack += 1

        @staticmethod
        def pop() -> None:
            assert Context.stack > 0
            Context.stack -= 1

    class Device:
        def __init__(self, number: int) -> None:
            self._number = number

        @staticmethod
        def count() -> int:
            return int(checked(device.cuDeviceGetCount()))

        def name(self) -> str:
            return bytes(checked(device.cuDeviceGetName(64, self._number))).split(b"\0")[0].decode()

        def compute_capability(self) -> tuple[int, int]:
            return 9, 0

        def retain_primary_context(self) -> Context:
            checked(device.cuDevicePrimaryCtxRetain(self._number))
            return Context()

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self._address = int(checked(device.cuMemAlloc(size)))

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            checked(device.cuMemFree(self._address))

    class PagelockedHostAllocation:
        def __init__(self, size: int) -> None:
            self.address = int(checked(device.cuMemHostAlloc(size, 1)))
            self.__array_interface__ = {
                "shape": (size,),
                "typestr": "|u1",
                "data": (self.address, False),
                "version": 3,
            }

        def free(self) -> None:
            checked(device.cuMemFreeHost(self.address))

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = int(checked(device.cuStreamCreate(flags)))

        def synchronize(self) -> None:
            checked(device.cuStreamSynchronize(self.handle))

        def wait_for_event(self, evt: Event) -> None:
            checked(device.cuStreamWaitEvent(self.handle, evt.handle, 0))

        def __del__(self) -> None:
            device.cuStreamDestroy(self.handle)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            self.handle = int(checked(device.cuEventCreate(flags)))

        def record(self, stream: Stream | None = None) -> Event:
            checked(device.cuEventRecord(self.handle, stream.handle if stream else 0))
            return self

        def synchronize(self) -> Event:
            checked(device.cuEventSynchronize(self.handle))
            return self

        def __del__(self) -> None:
            device.cuEventDestroy(self.handle)

    class Function:
        def __init__(self, name: str) -> None:
            self._function = checked(device.cuModuleGetFunction(0, name.encode()))
            self._kinds = kernels[name]

        def __call__(
            self,
            packed: NDArray[np.uint8],
            *,
            grid: tuple[int, ...],
            block: tuple[int, ...],
            stream: Stream | None = None,
        ) -> None:
            # The block has the memory layout of a structure of the arguments.
            fields = [(f"a{i}", kind) for i, kind in enumerate(self._kinds)]
            structure = type("Arguments", (ctypes.Structure,), {"_fields_": fields})
            whole = bytes(packed)
            assert len(whole) >= sum(ctypes.sizeof(kind) for kind in self._kinds)
            arguments = structure.from_buffer_copy(whole.ljust(ctypes.sizeof(structure), b"\0"))
            places = [ctypes.addressof(arguments) + getattr(structure, name).offset for name, _ in fields]
            pointers = (ctypes.c_void_p * len(places))(*places)
            handle = stream.handle if stream else 0
            checked(
                device.cuLaunchKernel(self._function, *grid, *block, 0, handle, ctypes.addressof(pointers), 0)
            )

    class Module:
        def get_function(self, name: str) -> Function:
            return Function(name)

    def pagelocked_empty(shape: int, dtype: type, order: str = "C", mem_flags: int = 0) -> NDArray[np.uint8]:
        assert dtype is np.uint8
        return np.asarray(PagelockedHostAllocation(shape))

    def memcpy_htod_async(dest: int, src: NDArray[Any], stream: Stream | None = None) -> None:
        handle = stream.handle if stream else 0
        checked(device.cuMemcpyHtoDAsync(dest, src.ctypes.data, src.nbytes, handle))

    def memcpy_dtoh_async(dest: NDArray[Any], src: int, stream: Stream | None = None) -> None:
        handle = stream.handle if stream else 0
        checked(device.cuMemcpyDtoHAsync(dest.ctypes.data, src, dest.nbytes, handle))

    module = types.ModuleType("pycuda.driver")
    module.__dict__.update(
        Device=Device,
        Error=Error,
        Event=Event,
        MemoryError=MemoryError,
        Stream=Stream,
        event_flags=types.SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2),
        host_alloc_flags=types.SimpleNamespace(PORTABLE=1),
        init=lambda: checked(device.cuInit(0)),
        mem_alloc=DeviceAllocation,
        mem_get_info=lambda: tuple(checked(device.cuMemGetInfo())),
        memcpy_dtoh_async=memcpy_dtoh_async,
        memcpy_htod_async=memcpy_htod_async,
        module_from_buffer=lambda buffer: Module(),
        pagelocked_empty=pagelocked_empty,
        contexts=Context,
    )
    return module
