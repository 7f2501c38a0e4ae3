"""CUDA as vfx uses it: one device, its memory, streams, events, kernels and graphs.

Nothing else knows which binding serves it. NVIDIA's ``cuda-bindings`` is taken where it is installed
(wheels, imports without a driver), else PyCUDA. Handles and device addresses are plain integers, which
TensorRT, ONNX Runtime and NVDEC take as they are; all work in the device's primary context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vfx_engines.errors import EngineError

Bytes = NDArray[np.uint8]
Argument: TypeAlias = "ctypes._SimpleCData[Any] | ctypes.Structure"
"""What a kernel takes: numbers, pointers and structures, all by value."""


class CudaError(EngineError):
    """A call of the CUDA driver failed."""


class OutOfDeviceMemory(CudaError):
    """The device has too little free memory for what was asked."""


class Cuda(Protocol):
    """One CUDA device. Calls concern the context that is current on the calling thread: `activate` first."""

    @property
    def binding(self) -> str:
        """What serves it: ``cuda-bindings 13.5.0``."""

    @property
    def name(self) -> str:
        """The device's: ``NVIDIA H200``."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Such as (9, 0)."""

    def activate(self) -> None:
        """Make the device's primary context current on this thread."""

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, and in all."""

    def allocate(self, size: int) -> int:
        """Device memory.

        Raises:
            OutOfDeviceMemory: there is not so much.
        """

    def free(self, address: int) -> None:
        """Give device memory back."""

    def pinned(self, size: int) -> Bytes:
        """Page-locked host memory, zeroed, that copies need not stage: uint8 [size]."""

    def unpin(self, memory: Bytes) -> None:
        """Give page-locked memory back; the array must not be touched again."""

    def stream(self) -> int:
        """A stream that does not wait for the default one."""

    def close_stream(self, stream: int) -> None:
        """Destroy a stream."""

    def synchronize(self, stream: int) -> None:
        """Block until a stream has done all that was put on it."""

    def event(self) -> int:
        """An event that threads sleep for, without timing."""

    def close_event(self, event: int) -> None:
        """Destroy an event."""

    def record(self, event: int, stream: int) -> None:
        """The event happens when the stream gets here; 0 is the device's default stream."""

    def wait(self, stream: int, event: int) -> None:
        """The stream goes on when the event, as recorded last, has happened."""

    def block(self, event: int) -> None:
        """This thread goes on when the event has happened."""

    def copy_in(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy contiguous host memory to the device; asynchronous if it is page-locked."""

    def copy_out(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Copy to contiguous host memory; asynchronous if it is page-locked."""

    def load(self, cubin: bytes) -> int:
        """A module of kernels."""

    def function(self, module: int, name: str) -> int:
        """A kernel of a module."""

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        stream: int,
    ) -> None:
        """Run a kernel; its arguments are copied before this returns."""

    def begin_capture(self, stream: int) -> None:
        """What this thread puts on the stream from here is recorded, not run."""

    def end_capture(self, stream: int) -> int:
        """The recorded graph, ready to run.

        Raises:
            CudaError: something in it cannot be captured. The stream is usable again.
        """

    def launch_graph(self, graph: int, stream: int) -> None:
        """Run a captured graph."""

    def close_graph(self, graph: int) -> None:
        """Destroy a graph."""

    def close(self) -> None:
        """Release the device. What was made on it must be closed before."""
