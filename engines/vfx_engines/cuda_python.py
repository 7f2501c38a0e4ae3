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

# Values of the driver API's enumerations in cuda.h.
_OUT_OF_MEMORY = 2
_NON_BLOCKING_STREAM = 1
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2
_PORTABLE = 1


class CudaPython:
    """See `vfx_engines.cuda.Cuda`.

    Args:
        index: number of the device, among those that CUDA_VISIBLE_DEVICES leaves.

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
        """See `vfx_engines.cuda.Cuda`, for this and the methods below."""
        _checked(driver.cuCtxSetCurrent(self._context))

    def memory(self) -> tuple[int, int]:
        """Device memory in bytes: free, and total."""
        free, total = _checked(driver.cuMemGetInfo())
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """Allocate device memory."""
        return int(_checked(driver.cuMemAlloc(size))[0])

    def free(self, address: int) -> None:
        """Release device memory."""
        _checked(driver.cuMemFree(address))

    def pinned(self, size: int) -> Bytes:
        """Allocate page-locked host memory, zeroed."""
        (address,) = _checked(driver.cuMemHostAlloc(size, _PORTABLE))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))
        memory[:] = 0
        return memory

    def unpin(self, memory: Bytes) -> None:
        """Release page-locked memory."""
        _checked(driver.cuMemFreeHost(memory.ctypes.data))

    def stream(self) -> int:
        """Create a stream that does not synchronise with the default stream."""
        return int(_checked(driver.cuStreamCreate(_NON_BLOCKING_STREAM))[0])

    def close_stream(self, stream: int) -> None:
        """Destroy a stream."""
        _checked(driver.cuStreamDestroy(stream))

    def synchronize(self, stream: int) -> None:
        """Block until all work on a stream is done."""
        _checked(driver.cuStreamSynchronize(stream))

    def event(self) -> int:
        """Create an event without timing, on which threads sleep."""
        return int(_checked(driver.cuEventCreate(_BLOCKING_SYNC | _DISABLE_TIMING))[0])

    def close_event(self, event: int) -> None:
        """Destroy an event."""
        _checked(driver.cuEventDestroy(event))

    def record(self, event: int, stream: int) -> None:
        """Record an event after the work that is on a stream now."""
        _checked(driver.cuEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        """Make later work on a stream wait for an event."""
        _checked(driver.cuStreamWaitEvent(stream, event, 0))

    def block(self, event: int) -> None:
        """Block the calling thread until an event has completed."""
        _checked(driver.cuEventSynchronize(event))

    def copy_in(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy from host to device."""
        _checked(driver.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, stream))

    def copy_out(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Copy from device to host."""
        _checked(driver.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, stream))

    def load(self, cubin: bytes) -> int:
        """Load a module of compiled kernels."""
        return int(_checked(driver.cuModuleLoadData(cubin))[0])

    def function(self, module: int, name: str) -> int:
        """Look up a kernel of a module."""
        return int(_checked(driver.cuModuleGetFunction(module, name.encode()))[0])

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        stream: int,
    ) -> None:
        """Launch a kernel; the driver copies its arguments before this returns."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(item) for item in arguments))
        _checked(driver.cuLaunchKernel(function, *grid, *block, 0, stream, ctypes.addressof(pointers), 0))

    def begin_capture(self, stream: int) -> None:
        """Record what this thread enqueues on the stream, instead of running it."""
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(stream, mode))

    def end_capture(self, stream: int) -> int:
        """End recording; the graph, instantiated."""
        (graph,) = _checked(driver.cuStreamEndCapture(stream))
        try:
            return int(_checked(driver.cuGraphInstantiate(graph, 0))[0])
        finally:
            _checked(driver.cuGraphDestroy(graph))

    def launch_graph(self, graph: int, stream: int) -> None:
        """Launch a captured graph."""
        _checked(driver.cuGraphLaunch(graph, stream))

    def close_graph(self, graph: int) -> None:
        """Destroy a captured graph."""
        _checked(driver.cuGraphExecDestroy(graph))

    def close(self) -> None:
        """Release the device's primary context."""
        _checked(driver.cuDevicePrimaryCtxRelease(self._device))


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values that a driver call returned after its error code.

    Raises:
        OutOfDeviceMemory: the code is CUDA_ERROR_OUT_OF_MEMORY.
        CudaError: the code is another error.
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
