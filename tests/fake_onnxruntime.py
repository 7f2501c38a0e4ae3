"""ONNX Runtime with a fake CUDA provider that computes on a simulated device."""

from __future__ import annotations

import ctypes
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from simulated_cuda import SimulatedDriver


class FakeOnnxRuntime(types.ModuleType):
    """The real module, except for a CUDA provider that queues its work on a simulated stream.

    Args:
        driver: the simulated device.
        has_cuda: whether the provider is available.
        loads: whether the provider can be loaded.
        most: with more rows than this, the provider reports that memory is full.
    """

    def __init__(
        self, driver: SimulatedDriver, *, has_cuda: bool = True, loads: bool = True, most: int = 99
    ) -> None:
        super().__init__("onnxruntime")
        self.driver, self.has_cuda, self.loads, self.most = driver, has_cuda, loads, most
        self.runs: list[int] = []
        self.SessionOptions, self.RunOptions = onnxruntime.SessionOptions, onnxruntime.RunOptions
        self.__version__ = onnxruntime.__version__

    def get_available_providers(self) -> list[str]:
        return [*["CUDAExecutionProvider"] * self.has_cuda, "CPUExecutionProvider"]

    def InferenceSession(
        self, path: Path, options: Any, *, providers: Any, enable_fallback: bool
    ) -> _Session:
        ((provider, settings),) = providers
        assert provider == "CUDAExecutionProvider"
        assert not enable_fallback
        assert all(isinstance(value, str) for value in settings.values())
        return _Session(
            self, onnxruntime.InferenceSession(path, options), int(settings["user_compute_stream"])
        )


class _Session:
    def __init__(self, module: FakeOnnxRuntime, real: Any, stream: int) -> None:
        self._module, self._real, self._stream = module, real, stream

    def get_providers(self) -> list[str]:
        return [*["CUDAExecutionProvider"] * self._module.loads, "CPUExecutionProvider"]

    def io_binding(self) -> _Binding:
        return _Binding()

    def run_with_iobinding(self, binding: _Binding, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        (name, kind, shape, source), outputs = binding.input, binding.outputs
        if shape[0] > self._module.most:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 123")
        self._module.runs.append(self._stream)

        def compute() -> None:
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            given = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(source))
            names = [output[0] for output in outputs]
            results = self._real.run(names, {name: given.view(kind).reshape(shape)})
            for (_, _, wanted, target), result in zip(outputs, results, strict=True):
                assert result.shape == tuple(wanted)
                ctypes.memmove(target, np.ascontiguousarray(result).ctypes.data, result.nbytes)

        self._module.driver.put(self._stream, compute)


class _Binding:
    def __init__(self) -> None:
        self.outputs: list[tuple[str, Any, Any, int]] = []

    def bind_input(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.input = (name, kind, shape, address)

    def bind_output(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.outputs.append((name, kind, shape, address))
