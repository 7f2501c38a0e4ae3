"""The one way to run an engine, whatever executes it: fill a slot, submit it, collect it.

An engine has two or more slots. Each slot owns an input buffer, so windows are gathered directly into the
memory that the device reads, and one slot is filled while another computes. A slot's life is a cycle: free,
filled by the caller, in flight, collected, free again.

`Engine` holds what all backends share: the state of the slots and the checks of inputs. A `Backend` holds
what differs. On CUDA, slots make it possible to overlap copies with computation; with OpenVINO, they keep
its request queue full.
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
    """What executes a graph. `Engine` calls it only in order and with checked arguments."""

    name: str
    """Library, version, device and precision, such as ``OpenVINO 2026.4, CPU, bf16``."""

    @property
    def precision(self) -> Precision:
        """Precision of the computation. A machine may not have the one asked for; ``name`` then says why."""

    @property
    def buffers(self) -> Sequence[Array]:
        """Input buffer of each slot, ``[batch, *input.shape[1:]]`` of the spec's dtype, allocated once."""

    def start(self, slot: int, count: int) -> None:
        """Start computing the first ``count`` rows of the slot's buffer, and return at once."""

    def wait(self, slot: int) -> Sequence[Array]:
        """Block until the slot is done.

        Returns:
            Its outputs in the spec's order, with ``count`` rows or more each; valid until the next start.

        Raises:
            EngineError: the computation failed.
        """

    def close(self) -> None:
        """Release all memory. Called when nothing is in flight."""


@runtime_checkable
class AbandoningBackend(Backend, Protocol):
    """A backend whose slots may be held up by another machine, so that closing need not wait for them."""

    def abandon(self) -> None:
        """Cancel what is in flight, so that `wait` raises soon. Only `wait` and `close` may follow."""


class DeviceInput(NamedTuple):
    """The input of a slot in device memory."""

    address: int
    """Device address of a contiguous ``[batch, *input.shape[1:]]`` of the spec's dtype."""
    stream: int
    """CUDA stream of the slot's work. Make it wait for whatever writes the input."""


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend whose input can be written in device memory, without a copy from the host."""

    cuda: Cuda

    def device_input(self, slot: int) -> DeviceInput:
        """Where the slot reads its input."""

    def start_on_device(self, slot: int, count: int) -> None:
        """As `start`, on what is already in `device_input`."""


class Engine:
    """A loaded engine.

    Different slots may be used by different threads, but each slot by only one thread at a time.

    Args:
        spec: spec of the engine file, every axis but the batch with a size.
        backend: loaded and ready.
        device: where it runs, ``cpu`` or ``cuda:N``.

    Raises:
        EngineError: shape or dtype of the backend's buffers differ from the spec.
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
        """Library, version, device and precision, such as ``OpenVINO 2026.4, CPU, bf16``."""
        return self._backend.name

    @property
    def precision(self) -> Precision:
        """Precision of the computation; see `Backend.precision`."""
        return self._backend.precision

    @property
    def slots(self) -> int:
        """Number of slots, two or more."""
        return len(self._in_flight)

    @property
    def batch(self) -> int:
        """Rows (windows) that a slot holds."""
        return self._batch

    def buffer(self, slot: int) -> Array:
        """The input buffer of a slot, to be filled in place: ``[batch, *input.shape[1:]]``, the spec's dtype.

        Raises:
            InputError: no such slot; or it is in flight, and the device may still be reading it.
        """
        self._check_free(slot)
        return self._buffers[slot]

    @property
    def cuda(self) -> Cuda | None:
        """The CUDA device if the engine has a `device_input`, else None."""
        return self._on_device.cuda if self._on_device else None

    def device_input(self, slot: int) -> DeviceInput:
        """The input of a slot in device memory, which other streams of the same device may write.

        Raises:
            InputError: no such slot, it is in flight, or the engine reads its input from host memory.
        """
        self._check_free(slot)
        return self._device_backend().device_input(slot)

    def submit(self, slot: int, count: int, *, on_device: bool = False) -> None:
        """Start computing the first ``count`` rows of a slot, and return at once.

        Args:
            slot: a free slot.
            count: rows to compute, 1 to ``batch``.
            on_device: compute what is in `device_input` instead of `buffer`.

        Raises:
            InputError: no such slot, it is in flight already, ``count`` is out of range, or ``on_device`` is
                set for an engine without `device_input`.
            EngineError: the device failed.
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
        """Wait for a slot, and free it.

        Returns:
            Each output by name, float32 ``[count, *shape]``: copies that belong to the caller.

        Raises:
            InputError: the slot was not submitted.
            EngineError: the device failed, or an output does not have the spec's shape.
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
        """Run any number of rows, one batch at a time in slot 0: for checks and benchmarks.

        Args:
            rows: ``[n, *input.shape[1:]]`` of the spec's dtype, n at least 1.

        Returns:
            Each output by name, float32 ``[n, *shape]``.

        Raises:
            InputError: ``rows`` has another shape or dtype, or slot 0 is in flight.
            EngineError: as for `collect`.
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

    def abandon(self) -> None:
        """Give up what another machine computes, so that `collect` soon raises. Only `close` may follow.

        An engine that runs on this machine is left as it is.
        """
        if isinstance(self._backend, AbandoningBackend):
            self._backend.abandon()

    def close(self) -> None:
        """Cancel or wait for what is in flight, drop its results, and release the engine's memory.

        Closing again does nothing.
        """
        if not self._buffers:
            return
        in_flight = [slot for slot, count in enumerate(self._in_flight) if count]
        self._buffers, self._in_flight = [], [0] * len(self._in_flight)
        # A stack, so that all slots are waited for and the memory is released, whatever one of them raises.
        with ExitStack() as stack:
            stack.callback(self._backend.close)
            for slot in in_flight:
                stack.callback(self._drop, slot)
            stack.callback(self.abandon)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _drop(self, slot: int) -> None:
        # Nobody needs the result any more, nor the reason why there is none.
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
