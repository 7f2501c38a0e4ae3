"""The layers of a TensorRT plan, and the time that each of them takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vfx_engines.backends.cuda_slots import CudaSlots
from vfx_engines.devices import open_cuda
from vfx_engines.errors import EngineError, shown
from vfx_engines.plan_file import read_plan_spec
from vfx_engines.tensorrt_api import TensorRt, check_device

_RUNS = 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a plan, as TensorRT fused it."""

    name: str
    kind: str
    """Such as ``CaskConvolution``; empty if the plan was built without this information."""
    milliseconds: float
    """Mean over 20 runs of the largest batch, measured by TensorRT's profiler."""


def inspect_plan(path: Path, index: int = 0) -> tuple[list[Layer], int]:
    """Run a plan on noise (zeros, if its input is not uint8), and time each layer.

    Args:
        path: a ``.plan`` made by vfx-export for this GPU.
        index: number of the GPU.

    Returns:
        The layers in the order in which they run, and the batch that was run: the plan's largest.

    Raises:
        UsageError: no driver, no such GPU, or no TensorRT.
        EngineError: the file is not a plan or not one for this machine, or TensorRT fails.
    """
    if path.suffix != ".plan":
        raise EngineError(f"{shown(path)}: expected a .plan made by vfx-export")
    spec = read_plan_spec(path)
    assert spec.plan is not None, "read_plan_spec lets no plan pass without"
    with ExitStack() as stack:
        cuda = open_cuda(index)
        stack.callback(cuda.close)
        library = TensorRt()
        check_device(path, spec.plan, library, cuda)
        loaded = library.load(path, with_host_code=spec.plan.version_compatible)
        batch = spec.plan.batch[-1]
        context = loaded.context()

        def enqueue(slot: int, count: int, stream: int) -> None:
            context.enqueue(stream)

        slots = CudaSlots(cuda, spec, batch, 1, enqueue)
        stack.callback(slots.close)
        source, targets = slots.addresses(0)
        profile = loaded.profile_for(spec.input.name, batch)
        if profile:
            context.use_profile(profile, slots.stream(0))
        context.set_shape(spec.input.name, (batch, *(int(axis) for axis in spec.input.shape[1:])))
        context.set_address(spec.input.name, source)
        for output, target in zip(spec.outputs, targets, strict=True):
            context.set_address(output.name, target)
        buffer = slots.buffers[0]
        if spec.input.dtype == "uint8":
            buffer[:] = np.random.default_rng(0).integers(0, 256, buffer.shape, np.uint8)
        times: dict[str, list[float]] = defaultdict(list)
        for run in range(_RUNS + 1):
            if run == 1:  # the first run allocates
                context.report_layers(lambda name, milliseconds: times[name].append(milliseconds))
            slots.start(0, batch)
            slots.wait(0)
    kinds = loaded.layer_kinds()
    return [Layer(name, kinds.get(name, ""), sum(taken) / _RUNS) for name, taken in times.items()], batch


def layer_table(layers: Sequence[Layer], batch: int) -> str:
    """The layers as a text table, the slowest first, with milliseconds and share of each, and a total."""
    total = sum(layer.milliseconds for layer in layers)
    lines = [f"{'ms':>9}  {'share':>6}  {'kind':<24}  layer"]
    for layer in sorted(layers, key=lambda layer: -layer.milliseconds):
        share = layer.milliseconds / total if total else 0
        lines.append(f"{layer.milliseconds:9.4f}  {share:6.1%}  {layer.kind:<24}  {layer.name}")
    lines.append(f"{total:9.4f}  {1:6.1%}  {len(layers)} layers, batch {batch}")
    return "\n".join(lines)
