"""`vfx_engines.cuda.Cuda` through PyCUDA, for machines that have it but not cuda-bindings.

PyCUDA has no graph capture, and its driver module cannot even be imported without a driver.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pycuda
import pycuda.driver as driver
from numpy.typing import NDArray

from vfx_engines.cuda import Argument, Bytes, CudaError, OutOfDeviceMemory
from vfx_engines.errors import UsageError, reason

T = TypeVar("T")

_NON_BLOCKING_STREAM = 1
"""CU_STREAM_NON_BLOCKING: the stream does not synchronise with the default stream."""


class PyCuda:
    """See `vfx_engines.cuda.Cuda`.

    Args:
        index: number of the device, among those that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        UsageError: no such device.
        CudaError: the driver failed.
    """

    def __init__(self, index: int) -> None:
        _checked(driver.init)
        count = _checked(driver.Device.count)
        if not 0 <= index < count:
            raise UsageError(f"device cuda:{index}: this machine has cuda:0 to cuda:{count - 1}")
        device = _checked(lambda: driver.Device(index))
        # The primary context, because TensorRT, ONNX Runtime and NVDEC work in it too.
        self._context = _checked(device.retain_primary_context)
        self._thread = threading.local()
        self._things: dict[int, Any] = {}
        self.name: str = _checked(device.name)
        self.compute_capability: tuple[int, int] = _checked(device.compute_capability)
        self.binding = f"PyCUDA {pycuda.VERSION_TEXT}"
        self.activate()

    def activate(self) -> None:
        """See `vfx_engines.cuda.Cuda`, for this and the methods below.

        PyCUDA keeps a stack of contexts per thread, so the context is pushed only once on each.
        """
        if not getattr(self._thread, "pushed", False):
            _checked(self._context.push)
            self._thread.pushed = True

    def memory(self) -> tuple[int, int]:
        """Device memory in bytes: free, and total."""
        free, total = _checked(driver.mem_get_info)
        return free, total

    def allocate(self, size: int) -> int:
        """Allocate device memory."""
        return self._keep(_checked(lambda: driver.mem_alloc(size)), int)

    def free(self, address: int) -> None:
        """Release device memory."""
        _checked(self._things.pop(address).free)

    def pinned(self, size: int) -> Bytes:
        """Allocate page-locked host memory, zeroed."""
        flags = driver.host_alloc_flags.PORTABLE
        memory: Bytes = _checked(lambda: driver.pagelocked_empty(size, np.uint8, mem_flags=flags))
        memory[:] = 0
        self._things[memory.ctypes.data] = memory.base
        return memory

    def unpin(self, memory: Bytes) -> None:
        """Release page-locked memory."""
        _checked(self._things.pop(memory.ctypes.data).free)

    def stream(self) -> int:
        """Create a stream that does not synchronise with the default stream."""
        return self._keep(_checked(lambda: driver.Stream(_NON_BLOCKING_STREAM)), _handle)

    def close_stream(self, stream: int) -> None:
        """Drop the last reference to a stream, with which PyCUDA destroys it."""
        del self._things[stream]

    def synchronize(self, stream: int) -> None:
        """Block until all work on a stream is done."""
        _checked(self._things[stream].synchronize)

    def event(self) -> int:
        """Create an event without timing, on which threads sleep."""
        flags = driver.event_flags.BLOCKING_SYNC | driver.event_flags.DISABLE_TIMING
        return self._keep(_checked(lambda: driver.Event(flags)), _handle)

    def close_event(self, event: int) -> None:
        """Drop the last reference to an event, with which PyCUDA destroys it."""
        del self._things[event]

    def record(self, event: int, stream: int) -> None:
        """Record an event after the work that is on a stream now."""
        # 0 is the device's default stream, which PyCUDA calls None.
        on = self._things[stream] if stream else None
        _checked(lambda: self._things[event].record(on))

    def wait(self, stream: int, event: int) -> None:
        """Make later work on a stream wait for an event."""
        _checked(lambda: self._things[stream].wait_for_event(self._things[event]))

    def block(self, event: int) -> None:
        """Block the calling thread until an event has completed."""
        _checked(self._things[event].synchronize)

    def copy_in(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy from host to device."""
        _checked(lambda: driver.memcpy_htod_async(address, source, self._things[stream]))

    def copy_out(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Copy from device to host."""
        _checked(lambda: driver.memcpy_dtoh_async(target, address, self._things[stream]))

    def load(self, cubin: bytes) -> int:
        """Load a module of compiled kernels."""
        return self._keep(_checked(lambda: driver.module_from_buffer(cubin)), id)

    def function(self, module: int, name: str) -> int:
        """Look up a kernel of a module."""
        return self._keep(_checked(lambda: self._things[module].get_function(name)), id)

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        stream: int,
    ) -> None:
        """Launch a kernel. Arguments are packed here, since PyCUDA leaves out the padding of structures."""
        packed = np.frombuffer(_packed(arguments), np.uint8)
        kernel, on = self._things[function], self._things[stream]
        _checked(lambda: kernel(packed, grid=grid, block=block, stream=on))

    def begin_capture(self, stream: int) -> None:
        """Not possible with PyCUDA.

        Raises:
            CudaError: always.
        """
        raise CudaError("PyCUDA cannot capture graphs: install cuda-bindings")

    def end_capture(self, stream: int) -> int:
        """See `begin_capture`.

        Raises:
            CudaError: always.
        """
        raise CudaError("PyCUDA cannot capture graphs: install cuda-bindings")

    def launch_graph(self, graph: int, stream: int) -> None:
        """See `begin_capture`.

        Raises:
            CudaError: always.
        """
        raise CudaError("PyCUDA cannot capture graphs: install cuda-bindings")

    def close_graph(self, graph: int) -> None:
        """Nothing to do, since there are no graphs."""

    def close(self) -> None:
        """Pop the context on this thread. PyCUDA releases it with the last reference."""
        if getattr(self._thread, "pushed", False):
            _checked(self._context.pop)
            self._thread.pushed = False

    def _keep(self, thing: Any, number: Callable[[Any], int]) -> int:
        """Keep a PyCUDA object alive under its handle: it is destroyed with the last reference to it."""
        handle = number(thing)
        self._things[handle] = thing
        return handle


def _handle(thing: Any) -> int:
    return int(thing.handle)


def _packed(arguments: Sequence[Argument]) -> bytes:
    """The bytes of a C structure with these members, padding included."""
    packed = bytearray()
    for argument in arguments:
        packed += b"\0" * (-len(packed) % ctypes.alignment(argument))
        packed += bytes(argument)
    return bytes(packed)


def _checked(call: Callable[[], T]) -> T:
    try:
        return call()
    except driver.MemoryError as error:
        raise OutOfDeviceMemory(
            f"CUDA failed: {reason(error)}: take a smaller --batch, or end what else runs on this GPU"
        ) from None
    except driver.Error as error:
        raise CudaError(f"CUDA failed: {reason(error)}") from None
