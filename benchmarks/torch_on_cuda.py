"""An engine on a GPU whose slots are executed by a network in torch.

If neither TensorRT nor ONNX Runtime's CUDA provider is available, everything around the engine can still be
run and measured this way: decoding, preprocessing, slots, rows. The rows are those of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vfx_engines import Engine
from vfx_engines.backends.cuda_slots import CudaSlots
from vfx_engines.cuda import Cuda
from vfx_engines.engine import Array, DeviceInput
from vfx_engines.spec import EngineSpec, Precision, Weights
from vfx_export.catalogue import find
from vfx_export.exporting import random_weights
from vfx_export.lowering import lowered
from vfx_export.proof import reference

SLOTS = 3


class TorchOnCuda:
    """A backend that runs a torch network, see `vfx_engines.engine.DeviceBackend`.

    Args:
        cuda: the device.
        spec: describes the network's input and outputs.
        network: the network on that device, in evaluation mode. It is called with a whole batch, always of
            the same shape.
        batch: rows in a slot.
        said: how the network is run, for the backend's name.
    """

    def __init__(
        self, cuda: Cuda, spec: EngineSpec, network: Callable[[Tensor], Any], batch: int, said: str
    ) -> None:
        self.cuda, self._network = cuda, network
        self.precision: Precision = spec.precision
        self.name = f"torch {torch.__version__}, {said}, {cuda.name}, {spec.precision}"
        self._slots = CudaSlots(cuda, spec, batch, SLOTS, self._enqueue)
        self.buffers: Sequence[Array] = self._slots.buffers
        self._inputs: list[Tensor] = []
        self._targets: list[list[Tensor]] = []
        self._streams: list[Any] = []
        for slot in range(SLOTS):
            source, targets = self._slots.addresses(slot)
            self._inputs.append(_tensor(source, self.buffers[slot].shape, spec.input.dtype))
            self._targets.append(
                [
                    _tensor(address, (batch, *output.sizes), output.dtype)
                    for address, output in zip(targets, spec.outputs, strict=True)
                ]
            )
            # torch gives its constructor no types.
            stream = torch.cuda.ExternalStream(self._slots.stream(slot))  # type: ignore[no-untyped-call]
            self._streams.append(stream)
        try:
            # The first calls allocate memory, try out convolutions and compile. Do this before threads call.
            for slot in range(SLOTS):
                self.start(slot, batch)
                self.wait(slot)
        except BaseException:
            self._slots.close()
            raise

    def start(self, slot: int, count: int) -> None:
        self._slots.start(slot, count)

    def device_input(self, slot: int) -> DeviceInput:
        return self._slots.device_input(slot)

    def start_on_device(self, slot: int, count: int) -> None:
        self._slots.start(slot, count, on_device=True)

    def wait(self, slot: int) -> Sequence[Array]:
        return self._slots.wait(slot)

    def close(self) -> None:
        """Close the slots; the device still belongs to the caller."""
        self._slots.close()

    def _enqueue(self, slot: int, count: int, stream: int) -> None:
        with torch.inference_mode(), torch.cuda.stream(self._streams[slot]):
            made = self._network(self._inputs[slot])
            outputs = made if isinstance(made, tuple | list) else (made,)
            for target, output in zip(self._targets[slot], outputs, strict=True):
                target[:count].copy_(output[:count])


class _Memory:
    """Device memory in the form in which torch accepts it from other libraries."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "version": 2,
        }


def _tensor(address: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    return torch.as_tensor(_Memory(address, shape, dtype), device="cuda")


def torch_engine(
    cuda: Cuda, name: str, precision: Precision, batch: int, frames: int | None = None, compile: bool = False
) -> Engine:
    """A network of the catalogue, as it would be exported, with random weights, as an engine on a GPU.

    Args:
        cuda: the device.
        name: name of the model in the catalogue.
        precision: the precision to compute in.
        batch: windows per call.
        frames: frames in a window; None takes the model's own number.
        compile: whether to use ``torch.compile``.

    Raises:
        RuntimeError: its rows differ from those of the network on a CPU in float32.
    """
    spec, module, low = network_of(name, precision, frames)
    shape = (2, *(int(axis) for axis in spec.input.shape[1:]))
    windows = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (wanted,), macs = reference(module, spec, windows)
    low = low.cuda()
    for weight in low.parameters():
        if weight.dim() == 5:  # the layout that cuDNN's kernels for matrix units need
            weight.data = weight.data.to(memory_format=torch.channels_last_3d)
    network = torch.compile(low, dynamic=False) if compile else low
    spec = replace(spec, macs=macs)
    said = "compiled" if compile else "eager"
    engine = Engine(spec, TorchOnCuda(cuda, spec, network, batch, said), "cuda:0")
    found = engine.run(windows)[spec.outputs[0].name]
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    # float32 convolutions may be computed in TF32 here, hence the tolerance.
    if not error < 1e-2:
        engine.close()
        raise RuntimeError(f"rows are {error:.1e} from those of the CPU")
    return engine


def network_of(
    name: str, precision: Precision, frames: int | None
) -> tuple[EngineSpec, nn.Module, nn.Module]:
    """The spec of a model, its network, and the network in the spec's precision, both on the CPU."""
    model = find(name)
    sampling = model.windows(frames)
    module = model.network(False)
    random_weights(module)
    spec = EngineSpec(
        model=model.name,
        weights=Weights("random", None, "none", "random, seed 0"),
        precision=precision,
        input=model.input(sampling.frames),
        sampling=sampling,
        transform=model.transform,
        outputs=(model.output(sampling.frames),),
    )
    module.eval()
    low = lowered(module, precision, sampling.frames, model.low_precision, model.published_half)
    return spec, module, low
