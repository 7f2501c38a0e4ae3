"""A TensorRT plan on a CUDA device: a context and a stream per slot, and CUDA graphs once a slot has run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vfx_engines.backends.cuda_slots import CudaSlots
from vfx_engines.cuda import Cuda
from vfx_engines.engine import Array, DeviceInput
from vfx_engines.errors import EngineError, shown
from vfx_engines.spec import EngineSpec, Precision
from vfx_engines.tensorrt_api import LoadedPlan, PlanContext, TensorRt

_Tensors = dict[str, tuple[str, str, tuple[int | str, ...]]]
"""Tensor's name to mode, dtype and shape without the batch."""

SLOTS = 3
"""One is filled, one copied in, one computed."""


class TensorRtBackend:
    """See `vfx_engines.engine.Backend`.

    Args:
        path: the plan.
        spec: spec of the plan, from the file beside it.
        library: TensorRT, full or lean.
        cuda: the device; closed with the backend.
        batch: rows of a slot; None takes the most that the plan allows.

    Raises:
        EngineError: TensorRT refuses the plan, its tensors differ from the spec, or it does not allow
            ``batch``.
        OutOfDeviceMemory: the buffers do not fit.
    """

    def __init__(
        self, path: Path, spec: EngineSpec, library: TensorRt, cuda: Cuda, batch: int | None = None
    ) -> None:
        self._spec, self.cuda = spec, cuda
        cuda.activate()
        self._plan: LoadedPlan = library.load(path, with_host_code=_brings_runtime(spec))
        self._check(path)
        least, most = self._plan.batches(spec.input.name)
        batch = batch or most
        if not least <= batch <= most:
            raise EngineError(
                f"{shown(path)}: batch {batch}: this plan was built for {least} to {most}; "
                "build one with --batch"
            )
        self._least = least
        self._profile = self._plan.profile_for(spec.input.name, batch)
        self._contexts: list[PlanContext] = [self._plan.context() for _ in range(SLOTS)]
        self._shapes: list[int | None] = [None] * SLOTS
        self._slots = CudaSlots(cuda, spec, batch, SLOTS, self._enqueue, graphs=True)
        for slot, context in enumerate(self._contexts):
            source, targets = self._slots.addresses(slot)
            if self._profile:
                context.use_profile(self._profile, self._slots.stream(slot))
            context.set_address(spec.input.name, source)
            for output, target in zip(spec.outputs, targets, strict=True):
                context.set_address(output.name, target)
        self.buffers: Sequence[Array] = self._slots.buffers
        self.precision: Precision = spec.precision
        self.name = f"{library.name}, {cuda.name}, {spec.precision}"

    def start(self, slot: int, count: int) -> None:
        """Compute ``count`` rows, or the fewest that the plan allows.

        Rows beyond ``count`` hold old data, and their results are not read.
        """
        self._slots.start(slot, max(count, self._least))

    def device_input(self, slot: int) -> DeviceInput:
        """The slot's device buffer."""
        return self._slots.device_input(slot)

    def start_on_device(self, slot: int, count: int) -> None:
        """As `start`, without the copy of the input."""
        self._slots.start(slot, max(count, self._least), on_device=True)

    def wait(self, slot: int) -> Sequence[Array]:
        """The slot's page-locked outputs."""
        return self._slots.wait(slot)

    def close(self) -> None:
        """Close the contexts before the memory that they point to, and the device last."""
        self._contexts = []
        self._slots.close()
        del self._plan
        self.cuda.close()

    def _enqueue(self, slot: int, count: int, stream: int) -> None:
        context, name = self._contexts[slot], self._spec.input.name
        if self._shapes[slot] != count:
            context.set_shape(name, (count, *(int(axis) for axis in self._spec.input.shape[1:])))
            self._shapes[slot] = count
        context.enqueue(stream)

    def _check(self, path: Path) -> None:
        """Refuse a plan whose tensors are not those of the spec."""
        spec, found = self._spec, self._plan.tensors()
        wanted: _Tensors = {spec.input.name: ("input", spec.input.dtype, spec.input.shape[1:])}
        for output in spec.outputs:
            wanted[output.name] = ("output", output.dtype, output.shape)
        have: _Tensors = {name: (mode, kind, shape[1:]) for name, (mode, kind, shape) in found.items()}
        if have != wanted:
            raise EngineError(
                f"{shown(path)}: the plan has {_listed(have)}, its spec says {_listed(wanted)}: "
                "they are not of the same export; export it again"
            )


def _brings_runtime(spec: EngineSpec) -> bool:
    return spec.plan is not None and spec.plan.version_compatible


def _listed(tensors: _Tensors) -> str:
    return ", ".join(f"{mode} {name} {kind} {list(shape)}" for name, (mode, kind, shape) in tensors.items())
