"""The slots of an engine on a CUDA device: what each owns, and in which order its work is done.

A slot has page-locked host memory and device memory for its input and outputs, and a stream. Its work has
three steps: copy in, compute, copy out. Slots are on different streams, so the copies of one overlap with the
computation of another. If an executor can compute on a single stream only (ONNX Runtime), events pass each
slot to that stream and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from vfx_engines.cuda import Bytes, Cuda, CudaError
from vfx_engines.engine import Array, DeviceInput
from vfx_engines.spec import EngineSpec

Enqueue = Callable[[int, int, int], None]
"""Called with slot, count and stream: enqueues the computation of the slot's first ``count`` rows."""

_Run = tuple[int, bool]
"""Number of rows, and whether the input is on the device already."""


@dataclass(slots=True)
class _Slot:
    stream: int
    done: int
    copied: int
    computed: int
    input: int
    """Device address."""
    outputs: list[int]
    """Device addresses, in the spec's order."""
    host_input: Array
    host_outputs: list[Array]
    last: _Run | None = None
    """The last run. Only a repeated run is captured: the first one of its kind may allocate, which a graph
    cannot contain."""
    graphs: dict[_Run, int] = field(default_factory=dict)


class CudaSlots:
    """Buffers, streams and events of all slots.

    Args:
        cuda: the device.
        spec: spec of the engine, every axis but the batch with a size.
        batch: rows of a slot.
        slots: number of slots.
        enqueue: starts the executor.
        compute_stream: the single stream on which the executor works; None lets it work on each slot's own.
        graphs: capture the work of a slot as a CUDA graph once it has run, and launch the graph from then on.
            Ignored if there is a ``compute_stream``.

    Raises:
        OutOfDeviceMemory: the buffers do not fit.
    """

    def __init__(
        self,
        cuda: Cuda,
        spec: EngineSpec,
        batch: int,
        slots: int,
        enqueue: Enqueue,
        *,
        compute_stream: int | None = None,
        graphs: bool = False,
    ) -> None:
        self._cuda, self._enqueue, self._compute = cuda, enqueue, compute_stream
        self.graphs = graphs and compute_stream is None
        self._row = (
            math.prod(int(axis) for axis in spec.input.shape[1:]) * np.dtype(spec.input.dtype).itemsize
        )
        self._output_rows = [
            np.dtype(output.dtype).itemsize * math.prod(output.sizes) for output in spec.outputs
        ]
        self._slots: list[_Slot] = []
        self._undo = ExitStack()
        try:
            for _ in range(slots):
                self._slots.append(self._make(spec, batch))
        except BaseException:
            self.close()
            raise

    @property
    def buffers(self) -> Sequence[Array]:
        """Page-locked input buffer of each slot, ``[batch, *input.shape[1:]]`` of the spec's dtype."""
        return [slot.host_input for slot in self._slots]

    def addresses(self, slot: int) -> tuple[int, list[int]]:
        """Device addresses of a slot's input, and of its outputs in the spec's order."""
        return self._slots[slot].input, self._slots[slot].outputs

    def stream(self, slot: int) -> int:
        """Handle of a slot's stream."""
        return self._slots[slot].stream

    def device_input(self, slot: int) -> DeviceInput:
        """See `vfx_engines.engine.DeviceBackend.device_input`."""
        return DeviceInput(self._slots[slot].input, self._slots[slot].stream)

    def start(self, slot: int, count: int, on_device: bool = False) -> None:
        """See `vfx_engines.engine.Backend.start`; ``on_device`` skips the copy of the input."""
        self._cuda.activate()
        item, run = self._slots[slot], (count, on_device)
        graph = item.graphs.get(run)
        if graph is None and self.graphs and run == item.last:
            graph = self._capture(slot, run)
        if graph is not None:
            self._cuda.launch_graph(graph, item.stream)
        else:
            self._put(slot, run)
            item.last = run
        self._cuda.record(item.done, item.stream)

    def wait(self, slot: int) -> Sequence[Array]:
        """See `vfx_engines.engine.Backend.wait`."""
        self._cuda.activate()
        item = self._slots[slot]
        self._cuda.block(item.done)
        return item.host_outputs

    def close(self) -> None:
        """Wait for what is in flight, then release everything."""
        self._cuda.activate()
        for slot in self._slots:
            self._cuda.synchronize(slot.stream)
        self._undo.close()
        self._slots = []

    def _put(self, slot: int, run: _Run) -> None:
        """Enqueue the three steps of a slot."""
        cuda, item = self._cuda, self._slots[slot]
        count, on_device = run
        if not on_device:
            cuda.copy_in(item.input, item.host_input[:count], item.stream)
        if self._compute is None:
            self._enqueue(slot, count, item.stream)
        else:
            cuda.record(item.copied, item.stream)
            cuda.wait(self._compute, item.copied)
            self._enqueue(slot, count, self._compute)
            cuda.record(item.computed, self._compute)
            cuda.wait(item.stream, item.computed)
        for host, address in zip(item.host_outputs, item.outputs, strict=True):
            cuda.copy_out(host[:count], address, item.stream)

    def _capture(self, slot: int, run: _Run) -> int | None:
        """The slot's work as a graph. If it cannot be captured: None, and no slot tries again."""
        item = self._slots[slot]
        try:
            self._cuda.begin_capture(item.stream)
            try:
                self._put(slot, run)
            finally:
                graph = self._cuda.end_capture(item.stream)
        except CudaError:
            self.graphs = False
            return None
        item.graphs[run] = graph
        self._undo.callback(self._cuda.close_graph, graph)
        return graph

    def _make(self, spec: EngineSpec, batch: int) -> _Slot:
        cuda, undo = self._cuda, self._undo

        def memory(size: int) -> int:
            address = cuda.allocate(size)
            undo.callback(cuda.free, address)
            return address

        def host(size: int) -> Bytes:
            pinned = cuda.pinned(size)
            undo.callback(cuda.unpin, pinned)
            return pinned

        def event() -> int:
            made = cuda.event()
            undo.callback(cuda.close_event, made)
            return made

        stream = cuda.stream()
        undo.callback(cuda.close_stream, stream)
        shape = (batch, *(int(axis) for axis in spec.input.shape[1:]))
        return _Slot(
            stream=stream,
            done=event(),
            copied=event(),
            computed=event(),
            input=memory(batch * self._row),
            outputs=[memory(batch * row) for row in self._output_rows],
            host_input=host(batch * self._row).view(spec.input.dtype).reshape(shape),
            host_outputs=[
                host(batch * row).view(output.dtype).reshape(batch, *output.sizes)
                for row, output in zip(self._output_rows, spec.outputs, strict=True)
            ],
        )
