"""`vfx_engines.cuda.Cuda` through NVIDIA's cuda-bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from cuda.bindings import driver
from numpy.typing import NDArray

from vfx_engines.cuda import Argument, Bytes, CudaError, OutOfDeviceMemory
from vfx_engines.errors import UsageError

# Values of the driver API's C enumerations (cuda.h).
_OUT_OF_MEMORY = 2
_NON_BLOCKING_STREAM = 1
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2
_PORTABLE = 1


class CudaPython:
    """See `vfx_engines.cuda.Cuda`.

    Args:
        index: of the device, as CUDA_VISIBLE_DEVICES leaves them.

    Raises:
        UsageError: no such device.
        CudaError: the driver failed.
    """

    def __init__(self, index: int) -> None:
        _checked(driver.cuInit(0))
        (count,) = _checked(driver.cuDeviceGetCount())
        if not 0 <= index < count:
            raise UsageError(f"device cuda:{index}: this machine has cuda:0 to cuda:{count - 1}")
        (self._device,) = _checked(driver.cuDeviceGet(index))
        (self._context,) = _checked(driver.cuDevicePrimaryCtxRetain(self._device))
        self.activate()
        (name,) = _checked(driver.cuDeviceGetName(256, self._device))
        self.name = bytes(name).split(b"\0")[0].decode()
        attribute = driver.CUdevice_attribute
        major, minor = (
            int(_checked(driver.cuDeviceGetAttribute(item, self._device))[0])
            for item in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.compute_capability = (major, minor)
        self.binding = f"cuda-bindings {version('cuda-bindings')}"

    def activate(self) -> None:
        """See `Cuda`, as all below."""
        _checked(driver.cuCtxSetCurrent(self._context))

    def memory(self) -> tuple[int, int]:
        """Free, and in all."""
        free, total = _checked(driver.cuMemGetInfo())
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """Device memory."""
        return int(_checked(driver.cuMemAlloc(size))[0])

    def free(self, address: int) -> None:
        """Give it back."""
        _checked(driver.cuMemFree(address))

    def pinned(self, size: int) -> Bytes:
        """Page-locked, zeroed."""
        (address,) = _checked(driver.cuMemHostAlloc(size, _PORTABLE))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))
        memory[:] = 0
        return memory

    def unpin(self, memory: Bytes) -> None:
        """Give it back."""
        _checked(driver.cuMemFreeHost(memory.ctypes.data))

    def stream(self) -> int:
        """A stream of its own."""
        return int(_checked(driver.cuStreamCreate(_NON_BLOCKING_STREAM))[0])

    def close_stream(self, stream: int) -> None:
        """Destroy it."""
        _checked(driver.cuStreamDestroy(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for all of a stream."""
        _checked(driver.cuStreamSynchronize(stream))

    def event(self) -> int:
        """An event without timing."""
        return int(_checked(driver.cuEventCreate(_BLOCKING_SYNC | _DISABLE_TIMING))[0])

    def close_event(self, event: int) -> None:
        """Destroy it."""
        _checked(driver.cuEventDestroy(event))

    def record(self, event: int, stream: int) -> None:
        """Mark the stream's end."""
        _checked(driver.cuEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        """The stream waits."""
        _checked(driver.cuStreamWaitEvent(stream, event, 0))

    def block(self, event: int) -> None:
        """The thread waits."""
        _checked(driver.cuEventSynchronize(event))

    def copy_in(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Host to device."""
        _checked(driver.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, stream))

    def copy_out(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Device to host."""
        _checked(driver.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, stream))

    def load(self, cubin: bytes) -> int:
        """A module."""
        return int(_checked(driver.cuModuleLoadData(cubin))[0])

    def function(self, module: int, name: str) -> int:
        """A kernel."""
        return int(_checked(driver.cuModuleGetFunction(module, name.encode()))[0])

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        stream: int,
    ) -> None:
        """Run a kernel."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(item) for item in arguments))
        _checked(driver.cuLaunchKernel(function, *grid, *block, 0, stream, ctypes.addressof(pointers), 0))

    def begin_capture(self, stream: int) -> None:
        """Record this thread's calls."""
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(stream, mode))

    def end_capture(self, stream: int) -> int:
        """The graph, instantiated."""
        (graph,) = _checked(driver.cuStreamEndCapture(stream))
        try:
            return int(_checked(driver.cuGraphInstantiate(graph, 0))[0])
        finally:
            _checked(driver.cuGraphDestroy(graph))

    def launch_graph(self, graph: int, stream: int) -> None:
        """Run it."""
        _checked(driver.cuGraphLaunch(graph, stream))

    def close_graph(self, graph: int) -> None:
        """Destroy it."""
        _checked(driver.cuGraphExecDestroy(graph))

    def close(self) -> None:
        """Release the primary context."""
        _checked(driver.cuDevicePrimaryCtxRelease(self._device))


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values behind a call's code.

    Raises:
        CudaError: the code is not success.
    """
    code, *values = result
    if int(code):
        _, name = driver.cuGetErrorName(code)
        _, text = driver.cuGetErrorString(code)
        said = f"CUDA failed: {(text or b'unknown error').decode()} ({(name or b'no name').decode()})"
        if int(code) == _OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{said}: take a smaller --batch, or end what else runs on this GPU")
        raise CudaError(said)
    return tuple(values)
