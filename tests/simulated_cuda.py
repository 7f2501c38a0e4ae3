"""A simulated CUDA driver API: `cuda.bindings.driver` without a device, in host memory.

Each stream is a thread that does its work in order, with random delays in between, so that work on different
streams overlaps and ends in any order. Calls that the real module does not have, or that have another number
of arguments, are refused.
"""

from __future__ import annotations

import ctypes
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cuda.bindings import driver as real

OK = real.CUresult.CUDA_SUCCESS
OUT_OF_MEMORY = real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
INVALID = real.CUresult.CUDA_ERROR_INVALID_VALUE
CAPTURE_UNSUPPORTED = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

Work = Callable[[], None]
Kernel = Callable[[Sequence[int], Sequence[int], list[int]], None]


class _Event:
    def __init__(self) -> None:
        self.happened = threading.Event()
        self.happened.set()

    def record(self) -> threading.Event:
        """Start a new recording; whoever waits from now on waits for this one."""
        self.happened = threading.Event()
        return self.happened


class _Stream:
    def __init__(self, device: SimulatedDriver) -> None:
        self._device = device
        self._queue: queue.Queue[Work | None] = queue.Queue()
        self.captured: list[Callable[[], Work]] | None = None
        self.spoilt = False
        self._thread = threading.Thread(target=self._work, name="simulated-stream", daemon=True)
        self._thread.start()

    def put(self, prepare: Callable[[], Work]) -> None:
        """Queue the work that ``prepare`` returns; or capture ``prepare``, which then runs at launch."""
        if self.captured is not None:
            self.captured.append(prepare)
        else:
            self._queue.put(prepare())

    def finish(self) -> None:
        done = threading.Event()
        self._queue.put(done.set)
        if not done.wait(30):
            raise TimeoutError("a simulated stream hangs")

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(30)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            time.sleep(self._device.delay())
            work()


class SimulatedDriver:
    """Stands in for the module `cuda.bindings.driver`.

    Args:
        seed: seed of the random delays.
        slowest: longest delay before a piece of work begins, in seconds.
        memory: memory of the device in bytes.
        kernels: for each kernel, by name: a function that runs it, given the grid, the block and the
            addresses of its arguments; and the sizes of the arguments in bytes.
        capture: whether streams can be captured.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        slowest: float = 0.002,
        memory: int = 1 << 30,
        kernels: Mapping[str, tuple[Kernel, Sequence[int]]] | None = None,
        capture: bool = True,
    ) -> None:
        self._random, self._slowest = random.Random(seed), slowest
        self._memory, self._used = memory, 0
        self._kernels, self._can_capture = kernels or {}, capture
        self._blocks: dict[int, Any] = {}
        self._host: dict[int, Any] = {}
        self._things: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._default_stream = _Stream(self)
        self.launched_graphs = 0
        self.contexts = 0
        """How often the primary context is held."""

    def delay(self) -> float:
        with self._lock:
            return self._random.uniform(0, self._slowest)

    def __getattr__(self, name: str) -> Any:
        actual = getattr(real, name)  # AttributeError if the real module has no such name
        if not name.startswith("cu"):
            return actual
        try:
            own = object.__getattribute__(self, f"_{name}")
        except AttributeError:
            raise NotImplementedError(f"{name} is not simulated") from None
        signature = (actual.__doc__ or "").splitlines()[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        wanted = len([part for part in inside.split(",") if part.strip()])

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == wanted, f"{signature} was given {len(arguments)} arguments"
            result: tuple[Any, ...] = own(*arguments)
            return result

        return call

    def leaks(self) -> list[str]:
        """What was created and not released."""
        left = [f"{len(self._blocks)} device blocks", f"{len(self._host)} host blocks"]
        return [text for text in left if not text.startswith("0 ")] + [
            type(item).__name__ for item in self._things.values() if not isinstance(item, str | dict)
        ]

    def put(self, stream: int, work: Work) -> None:
        """Queue work, on behalf of a fake library such as TensorRT."""
        self._stream(stream).put(lambda: work)

    def _stream(self, handle: Any) -> _Stream:
        found: _Stream = self._things[int(handle)] if int(handle) else self._default_stream
        return found

    def spoil(self, stream: int) -> None:
        """Let the present capture on the stream fail, as if an operation could not be captured."""
        self._stream(stream).spoilt = True

    def capturing(self, stream: int) -> bool:
        return self._stream(stream).captured is not None

    def _new(self, thing: Any) -> int:
        with self._lock:
            handle = 0x1000 + 16 * len(self._things)
            while handle in self._things:
                handle += 16
            self._things[handle] = thing
            return handle

    # Device and context

    def _cuInit(self, flags: int) -> Any:
        return (OK,)

    def _cuDeviceGetCount(self) -> Any:
        return OK, 1

    def _cuDeviceGet(self, ordinal: int) -> Any:
        return OK, ordinal

    def _cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        self.contexts += 1
        return OK, 1

    def _cuDevicePrimaryCtxRelease(self, device: int) -> Any:
        self.contexts -= 1
        return (OK if self.contexts >= 0 else INVALID,)

    def _cuCtxSetCurrent(self, context: int) -> Any:
        return (OK,)

    def _cuDeviceGetName(self, length: int, device: int) -> Any:
        return OK, b"Simulated GPU".ljust(length, b"\0")

    def _cuDeviceGetAttribute(self, attribute: Any, device: int) -> Any:
        return OK, 9 if "MAJOR" in attribute.name else 0

    def _cuGetErrorName(self, code: Any) -> Any:
        return OK, code.name.encode()

    def _cuGetErrorString(self, code: Any) -> Any:
        return OK, code.name.removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode()

    # Memory

    def _cuMemGetInfo(self) -> Any:
        return OK, self._memory - self._used, self._memory

    def _cuMemAlloc(self, size: int) -> Any:
        with self._lock:
            if self._used + size > self._memory:
                return OUT_OF_MEMORY, None
            self._used += size
            block = (ctypes.c_uint8 * size)(*([0xCD] * min(size, 64)))
            self._blocks[ctypes.addressof(block)] = block
        return OK, real.CUdeviceptr(ctypes.addressof(block))

    def _cuMemFree(self, address: Any) -> Any:
        with self._lock:
            block = self._blocks.pop(int(address), None)
            if block is None:
                return (INVALID,)
            self._used -= len(block)
        return (OK,)

    def _cuMemHostAlloc(self, size: int, flags: int) -> Any:
        block = (ctypes.c_uint8 * size)()
        self._host[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def _cuMemFreeHost(self, address: int) -> Any:
        return (OK if self._host.pop(int(address), None) is not None else INVALID,)

    def _inside(self, blocks: dict[int, Any], address: int, size: int) -> bool:
        return any(first <= address and address + size <= first + len(b) for first, b in blocks.items())

    def _cuMemcpyHtoDAsync(self, target: Any, source: int, size: int, stream: Any) -> Any:
        if not (
            self._inside(self._blocks, int(target), size) and self._inside(self._host, int(source), size)
        ):
            return (INVALID,)
        return self._put(stream, lambda: ctypes.memmove(int(target), int(source), size))

    def _cuMemcpyDtoHAsync(self, target: int, source: Any, size: int, stream: Any) -> Any:
        if not (
            self._inside(self._blocks, int(source), size) and self._inside(self._host, int(target), size)
        ):
            return (INVALID,)
        return self._put(stream, lambda: ctypes.memmove(int(target), int(source), size))

    def _put(self, stream: Any, work: Callable[[], Any]) -> Any:
        self._stream(stream).put(lambda: work)
        return (OK,)

    # Streams and events

    def _cuStreamCreate(self, flags: int) -> Any:
        return OK, real.CUstream(self._new(_Stream(self)))

    def _cuStreamDestroy(self, stream: Any) -> Any:
        self._things.pop(int(stream)).close()
        return (OK,)

    def _cuStreamSynchronize(self, stream: Any) -> Any:
        if self.capturing(stream):
            return (CAPTURE_UNSUPPORTED,)
        self._stream(stream).finish()
        return (OK,)

    def _cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> Any:
        happening = self._things[int(event)]

        def prepare() -> Work:
            happened = happening.happened
            return lambda: _wait(happened)

        self._stream(stream).put(prepare)
        return (OK,)

    def _cuEventCreate(self, flags: int) -> Any:
        return OK, real.CUevent(self._new(_Event()))

    def _cuEventDestroy(self, event: Any) -> Any:
        self._things.pop(int(event))
        return (OK,)

    def _cuEventRecord(self, event: Any, stream: Any) -> Any:
        item = self._things[int(event)]
        self._stream(stream).put(lambda: item.record().set)
        return (OK,)

    def _cuEventSynchronize(self, event: Any) -> Any:
        _wait(self._things[int(event)].happened)
        return (OK,)

    # Kernels

    def _cuModuleLoadData(self, image: bytes) -> Any:
        return OK, real.CUmodule(self._new({"image": image}))

    def _cuModuleGetFunction(self, module: Any, name: bytes) -> Any:
        if name.decode() not in self._kernels:
            return real.CUresult.CUDA_ERROR_NOT_FOUND, None
        return OK, real.CUfunction(self._new(name.decode()))

    def _cuLaunchKernel(
        self,
        function: Any,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared: int,
        stream: Any,
        parameters: int,
        extra: int,
    ) -> Any:
        name = self._things[int(function)]
        run, sizes = self._kernels[name]
        pointers = (ctypes.c_void_p * len(sizes)).from_address(parameters)
        # Arguments are copied now, since they need not outlive the call.
        copies = [
            ctypes.create_string_buffer(ctypes.string_at(pointer, size), size)
            for pointer, size in zip(pointers, sizes, strict=True)
        ]
        grid, block = (grid_x, grid_y, grid_z), (block_x, block_y, block_z)
        return self._put(stream, lambda: run(grid, block, [ctypes.addressof(copy) for copy in copies]))

    # Graphs

    def _cuStreamBeginCapture(self, stream: Any, mode: Any) -> Any:
        self._stream(stream).captured = []
        return (OK,)

    def _cuStreamEndCapture(self, stream: Any) -> Any:
        item = self._stream(stream)
        captured, item.captured = item.captured, None
        if item.spoilt or not self._can_capture:
            item.spoilt = False
            return real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        return OK, real.CUgraph(self._new({"graph": captured}))

    def _cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return OK, real.CUgraphExec(self._new({"graph": self._things[int(graph)]["graph"]}))

    def _cuGraphDestroy(self, graph: Any) -> Any:
        del self._things[int(graph)]
        return (OK,)

    def _cuGraphExecDestroy(self, graph: Any) -> Any:
        del self._things[int(graph)]
        return (OK,)

    def _cuGraphLaunch(self, graph: Any, stream: Any) -> Any:
        self.launched_graphs += 1
        for prepare in self._things[int(graph)]["graph"]:
            self._stream(stream).put(prepare)
        return (OK,)


def _wait(event: threading.Event) -> None:
    if not event.wait(30):
        raise TimeoutError("a simulated event never happens")
