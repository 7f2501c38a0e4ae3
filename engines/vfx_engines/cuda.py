"""The part of CUDA that vfx uses: one device, its memory, streams, events, kernels and graphs.

Callers do not know which binding is behind it: NVIDIA's ``cuda-bindings`` if it is installed (it comes as
wheels and can be imported without a driver), else PyCUDA. Handles and device addresses are plain integers,
which TensorRT, ONNX Runtime and NVDEC accept as they are. All of them work in the device's primary context.
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
"""An argument of a kernel: a number, a pointer or a structure, passed by value."""


class CudaError(EngineError):
    """A call of the CUDA driver failed."""


class OutOfDeviceMemory(CudaError):
    """The device has too little free memory for the request."""


class Cuda(Protocol):
    """One CUDA device.

    Calls act on the context that is current on the calling thread, so each thread calls `activate` first.
    Methods raise `CudaError` if the driver fails.
    """

    @property
    def binding(self) -> str:
        """Name and version of the binding, such as ``cuda-bindings 13.5.0``."""

    @property
    def name(self) -> str:
        """Name of the device, such as ``NVIDIA H200``."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number, such as (9, 0)."""

    def activate(self) -> None:
        """Make the device's primary context current on this thread."""

    def memory(self) -> tuple[int, int]:
        """Device memory in bytes: free, and total."""

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes of device memory.

        Returns:
            The device address.

        Raises:
            OutOfDeviceMemory: there is too little free memory.
        """

    def free(self, address: int) -> None:
        """Release device memory."""

    def pinned(self, size: int) -> Bytes:
        """Allocate page-locked host memory, which copies need not stage: uint8 ``[size]``, zeroed."""

    def unpin(self, memory: Bytes) -> None:
        """Release page-locked memory. The array must not be used afterwards."""

    def stream(self) -> int:
        """Create a stream that does not synchronise with the default stream."""

    def close_stream(self, stream: int) -> None:
        """Destroy a stream."""

    def synchronize(self, stream: int) -> None:
        """Block until all work on a stream is done."""

    def event(self) -> int:
        """Create an event without timing, on which threads sleep instead of spinning."""

    def close_event(self, event: int) -> None:
        """Destroy an event."""

    def record(self, event: int, stream: int) -> None:
        """Record an event on a stream, after the work that is on it now; stream 0 is the default stream."""

    def wait(self, stream: int, event: int) -> None:
        """Make later work on a stream wait for an event, as last recorded. Returns at once."""

    def block(self, event: int) -> None:
        """Block the calling thread until an event has completed."""

    def copy_in(self, address: int, source: NDArray[Any], stream: int) -> None:
        """Copy a contiguous host array to the device; asynchronous if it is page-locked."""

    def copy_out(self, target: NDArray[Any], address: int, stream: int) -> None:
        """Copy from the device to a contiguous host array; asynchronous if it is page-locked."""

    def load(self, cubin: bytes) -> int:
        """Load a module of compiled kernels."""

    def function(self, module: int, name: str) -> int:
        """Look up a kernel of a module."""

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Argument],
        stream: int,
    ) -> None:
        """Launch a kernel on a stream. Its arguments are copied before this returns.

        Args:
            function: from `function`.
            grid: blocks in x, y, z.
            block: threads of a block in x, y, z.
            arguments: in the order of the kernel's parameters.
            stream: to run on.
        """

    def begin_capture(self, stream: int) -> None:
        """From here on, record what this thread enqueues on the stream, instead of running it."""

    def end_capture(self, stream: int) -> int:
        """End recording.

        Returns:
            The recorded graph, ready to launch.

        Raises:
            CudaError: something that was recorded cannot be captured. The stream is usable again.
        """

    def launch_graph(self, graph: int, stream: int) -> None:
        """Launch a captured graph on a stream."""

    def close_graph(self, graph: int) -> None:
        """Destroy a captured graph."""

    def close(self) -> None:
        """Release the device. Everything made on it must be closed first."""
