"""The one way to run an engine, whatever executes it: fill a slot, submit it, collect it.

An engine has two or more slots. A slot owns a buffer of the engine's input, so windows are gathered
straight into the memory that the device reads, and while one slot computes, the next is filled. A
slot goes round: free, filled by the caller, in flight, collected, free.

`Engine` holds what is the same for all: the state of each slot and the checks of what goes in. A
`Backend` is what differs. CUDA needs the slots for overlapped copies; OpenVINO's request queue gains
from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vfx_engines.cuda import Cuda
from vfx_engines.errors import EngineError, InputError
from vfx_engines.spec import EngineSpec, Precision

Array = NDArray[Any]
Outputs = dict[str, Array]


class Backend(Protocol):
    """What executes a graph. `Engine` calls it in order and with checked arguments only."""

    name: str
    """Library, version, device and precision: ``OpenVINO 2026.4, CPU, bf16``."""

    @property
    def precision(self) -> Precision:
        """What it computes in, which a machine may make another than was asked for; ``name`` says why."""

    @property
    def buffers(self) -> Sequence[Array]:
        """The input buffer of each slot, ``[batch, ...]`` of the spec's dtype, made once."""

    def start(self, slot: int, count: int) -> None:
        """Begin to run the first ``count`` rows of the slot's buffer, and return at once."""

    def wait(self, slot: int) -> Sequence[Array]:
        """Block until the slot is done; its outputs in the spec's order, valid until the next start."""

    def close(self) -> None:
        """Give back all memory. Nothing is in flight."""


@runtime_checkable
class AbandoningBackend(Backend, Protocol):
    """A backend whose slots may take long for reasons of others, and need not be waited for."""

    def abandon(self) -> None:
        """End what is in flight: `wait` then raises soon. Only `close` follows."""


class DeviceInput(NamedTuple):
    """The input of a slot in device memory."""

    address: int
    """``[batch, *input.shape[1:]]`` of the spec's dtype, contiguous."""
    stream: int
    """Which the slot's work is put on: let it wait for what writes the input."""


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend whose input can be written where it is read, without a copy from the host."""

    cuda: Cuda

    def device_input(self, slot: int) -> DeviceInput:
        """Where the slot reads its input."""

    def start_on_device(self, slot: int, count: int) -> None:
        """`start` on what lies in `device_input`."""


class Engine:
    """A loaded engine.

    Not thread-safe per slot: one thread at a time may handle a slot, different slots may be handled
    by different threads.

    Args:
        spec: of the engine file.
        backend: loaded and ready.
        device: that it runs on, ``cpu`` or ``cuda:N``.

    Raises:
        EngineError: the backend's buffers are not what the spec says.
    """

    def __init__(self, spec: EngineSpec, backend: Backend, device: str = "cpu") -> None:
        self.spec = spec
        self.device = device
        self._backend = backend
        self._on_device = backend if isinstance(backend, DeviceBackend) else None
        self._buffers = list(backend.buffers)
        self._in_flight = [0] * len(self._buffers)
        self._batch = len(self._buffers[0])
        shape = spec.input.shape[1:]
        for buffer in self._buffers:
            fits = len(buffer.shape) == len(shape) + 1 and all(
                isinstance(axis, str) or axis == size
                for axis, size in zip(shape, buffer.shape[1:], strict=True)
            )
            if not fits or buffer.dtype != np.dtype(spec.input.dtype):
                raise EngineError(
                    f"input {spec.input.name}: the spec says {spec.input.dtype} {list(spec.input.shape)}, "
                    f"the graph takes {buffer.dtype} {list(buffer.shape)}; export the engine again"
                )

    @property
    def name(self) -> str:
        """What runs: library, version, device, precision."""
        return self._backend.name

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return self._backend.precision

    @property
    def slots(self) -> int:
        """Number of slots, two or more."""
        return len(self._in_flight)

    @property
    def batch(self) -> int:
        """Rows in a slot."""
        return self._batch

    def buffer(self, slot: int) -> Array:
        """The input of a slot, ``[batch, *input.shape[1:]]`` of the spec's dtype, to be written in place.

        Raises:
            InputError: the slot is in flight: the device may still be reading it.
        """
        self._check_free(slot)
        return self._buffers[slot]

    @property
    def cuda(self) -> Cuda | None:
        """The device, where `device_input` can be written."""
        return self._on_device.cuda if self._on_device else None

    def device_input(self, slot: int) -> DeviceInput:
        """The input of a slot in device memory, to be written by other streams of the same device.

        Raises:
            InputError: the slot is in flight, or the engine reads host memory.
        """
        self._check_free(slot)
        return self._device_backend().device_input(slot)

    def submit(self, slot: int, count: int, *, on_device: bool = False) -> None:
        """Start the first ``count`` rows of a slot and return at once.

        Args:
            slot: free.
            count: rows.
            on_device: run what lies in `device_input`, not what lies in `buffer`.

        Raises:
            InputError: no such slot, in flight already, or ``count`` is not between 1 and ``batch``; or
                ``on_device`` with an engine that has no `device_input`.
        """
        self._check_free(slot)
        if not 1 <= count <= self.batch:
            raise InputError(f"slot {slot}: {count} rows submitted, expected 1 to {self.batch}")
        start = self._device_backend().start_on_device if on_device else self._backend.start
        self._in_flight[slot] = count
        try:
            start(slot, count)
        except BaseException:
            self._in_flight[slot] = 0
            raise

    def collect(self, slot: int) -> Outputs:
        """Wait for a slot and free it.

        Returns:
            Every output by name, float32 ``[count, *shape]``, owned by the caller.

        Raises:
            InputError: the slot was not submitted.
            EngineError: the device failed, or an output is not of the spec's shape.
        """
        self._check(slot)
        count = self._in_flight[slot]
        if not count:
            raise InputError(f"slot {slot}: collected without being submitted")
        try:
            arrays = self._backend.wait(slot)
        finally:
            self._in_flight[slot] = 0
        outputs: Outputs = {}
        for output, array in zip(self.spec.outputs, arrays, strict=True):
            if tuple(array.shape[1:]) != output.shape or len(array) < count:
                raise EngineError(
                    f"output {output.name}: the spec says {list(output.shape)} per row, "
                    f"the graph gave {list(array.shape)}; export the engine again"
                )
            outputs[output.name] = np.array(array[:count], np.float32)
        return outputs

    def run(self, rows: Array) -> Outputs:
        """Run any number of rows, one slot after the other: for checks and benchmarks.

        Args:
            rows: ``[n, *input.shape[1:]]`` of the spec's dtype.

        Raises:
            InputError: ``rows`` has another shape or dtype.
        """
        buffer = self.buffer(0)
        expected = buffer.shape[1:]
        if rows.dtype != buffer.dtype or rows.shape[1:] != expected or not len(rows):
            raise InputError(
                f"input {self.spec.input.name}: expected {buffer.dtype} [n, "
                f"{', '.join(map(str, expected))}], got {rows.dtype} {list(rows.shape)}"
            )
        parts = []
        for first in range(0, len(rows), self.batch):
            part = rows[first : first + self.batch]
            buffer[: len(part)] = part
            self.submit(0, len(part))
            parts.append(self.collect(0))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """End or wait for what is in flight, drop it, and give back the engine's memory; once is enough."""
        if not self._buffers:
            return
        in_flight = [slot for slot, count in enumerate(self._in_flight) if count]
        self._buffers, self._in_flight = [], [0] * len(self._in_flight)
        # A stack, since whatever a slot raises the others are waited for and the memory is given back.
        with ExitStack() as stack:
            stack.callback(self._backend.close)
            for slot in in_flight:
                stack.callback(self._drop, slot)
            if isinstance(self._backend, AbandoningBackend):
                stack.callback(self._backend.abandon)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _drop(self, slot: int) -> None:
        # Nobody wants the result, nor the reason why there is none.
        with suppress(EngineError):
            self._backend.wait(slot)

    def _device_backend(self) -> DeviceBackend:
        if self._on_device is None:
            raise InputError(f"{self.name}: reads its input from host memory, see Engine.buffer")
        return self._on_device

    def _check(self, slot: int) -> None:
        if not self._buffers:
            raise InputError(f"slot {slot}: the engine is closed")
        if not 0 <= slot < len(self._buffers):
            raise InputError(f"slot {slot}: the engine has slots 0 to {len(self._buffers) - 1}")

    def _check_free(self, slot: int) -> None:
        self._check(slot)
        if self._in_flight[slot]:
            raise InputError(f"slot {slot}: in flight, collect it before it is written again")
