"""ONNX on a CUDA device through ONNX Runtime, which works in the slots' own buffers and on our stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfx_engines.backends.cuda_slots import CudaSlots
from vfx_engines.cuda import Cuda, OutOfDeviceMemory
from vfx_engines.engine import Array, DeviceInput
from vfx_engines.errors import EngineError, UsageError, reason, shown
from vfx_engines.spec import EngineSpec, Precision

SLOTS = 3
"""One is filled, one copied in, one computed."""

_PROVIDER = "CUDAExecutionProvider"
_GET = "pip install onnxruntime-gpu (in place of onnxruntime: both install the same package)"


class OnnxRuntimeCudaBackend:
    """See `vfx_engines.engine.Backend`.

    Args:
        path: an ONNX file.
        spec: spec of that file, every axis but the batch with a size.
        cuda: the device; closed with the backend.
        index: number of the device.
        batch: rows of a slot.

    Raises:
        UsageError: ONNX Runtime is not installed, or not its build for CUDA.
        EngineError: ONNX Runtime cannot load the graph.
        OutOfDeviceMemory: the device has too little memory for this batch.
    """

    def __init__(self, path: Path, spec: EngineSpec, cuda: Cuda, index: int, batch: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError(f"device cuda:{index}: an .onnx file needs ONNX Runtime: {_GET}") from None
        if _PROVIDER not in onnxruntime.get_available_providers():
            raise UsageError(f"device cuda:{index}: this ONNX Runtime is built without CUDA: {_GET}")
        self.cuda, self._spec, self._index = cuda, spec, index
        cuda.activate()
        self._stream = cuda.stream()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        settings = {
            "device_id": str(index),
            "user_compute_stream": str(self._stream),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "0",  # float32 files are computed in float32
        }
        try:
            self._session: Any = onnxruntime.InferenceSession(
                path, options, providers=[(_PROVIDER, settings)], enable_fallback=False
            )
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            cuda.close_stream(self._stream)
            raise _failed(f"{shown(path)}: ONNX Runtime cannot load it", error) from None
        if self._session.get_providers()[0] != _PROVIDER:
            cuda.close_stream(self._stream)
            raise EngineError(f"{shown(path)}: ONNX Runtime loaded it, but not for CUDA: see its log: {_GET}")
        self._options = onnxruntime.RunOptions()
        # The thread that collects a slot waits for it, not the thread that submits it.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._bindings: dict[tuple[int, int], Any] = {}
        try:
            self._slots = CudaSlots(cuda, spec, batch, SLOTS, self._enqueue, compute_stream=self._stream)
        except BaseException:
            cuda.close_stream(self._stream)
            raise
        try:
            # The first run allocates memory and tries out convolution algorithms.
            self.start(0, batch)
            self.wait(0)
        except BaseException:
            self._release()
            raise
        self.buffers: Sequence[Array] = self._slots.buffers
        self.precision: Precision = "fp32" if spec.precision == "bf16" else spec.precision
        said = "fp32, not bf16, which the file's float32 tensors cannot be on CUDA"
        version = ".".join(onnxruntime.__version__.split(".")[:2])
        self.name = (
            f"ONNX Runtime {version}, {cuda.name}, {said if spec.precision == 'bf16' else self.precision}"
        )

    def start(self, slot: int, count: int) -> None:
        """Copy in, compute, copy out."""
        self._slots.start(slot, count)

    def device_input(self, slot: int) -> DeviceInput:
        """The slot's device buffer."""
        return self._slots.device_input(slot)

    def start_on_device(self, slot: int, count: int) -> None:
        """Compute, copy out."""
        self._slots.start(slot, count, on_device=True)

    def wait(self, slot: int) -> Sequence[Array]:
        """The slot's page-locked outputs."""
        return self._slots.wait(slot)

    def close(self) -> None:
        """Close the session before the stream that it works on, and the device last."""
        self._release()
        self.cuda.close()

    def _release(self) -> None:
        self._bindings.clear()
        del self._session
        self._slots.close()
        self.cuda.close_stream(self._stream)

    def _enqueue(self, slot: int, count: int, stream: int) -> None:
        binding = self._bindings.get((slot, count))
        if binding is None:
            binding = self._bindings[slot, count] = self._bound(slot, count)
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:  # see above
            raise _failed("ONNX Runtime failed", error) from None

    def _bound(self, slot: int, count: int) -> Any:
        """An I/O binding of the first ``count`` rows of a slot, at their device addresses."""
        spec, binding = self._spec, self._session.io_binding()
        source, targets = self._slots.addresses(slot)
        shape = (count, *spec.input.shape[1:])
        binding.bind_input(spec.input.name, "cuda", self._index, np.dtype(spec.input.dtype), shape, source)
        for output, target in zip(spec.outputs, targets, strict=True):
            shape = (count, *output.shape)
            binding.bind_output(output.name, "cuda", self._index, np.dtype(output.dtype), shape, target)
        return binding


def _failed(what: str, error: Exception) -> EngineError:
    text = str(error)
    if "out of memory" in text.lower() or "Failed to allocate memory" in text:
        return OutOfDeviceMemory(f"{what}: the GPU is out of memory: take a smaller --batch")
    return EngineError(f"{what}: {reason(error)}")
