"""ONNX on a CPU through ONNX Runtime, for machines and graphs that OpenVINO does not support."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vfx_engines.engine import Array
from vfx_engines.errors import EngineError, UsageError, reason, shown
from vfx_engines.spec import EngineSpec, Precision

_SLOTS = 2
"""One computes on all cores while the other is filled."""


class OnnxRuntimeBackend:
    """See `vfx_engines.engine.Backend`.

    Args:
        path: an ONNX file.
        spec: spec of that file, every axis but the batch with a size.
        precision: bf16 graphs run in float32 here, which is more exact; ``name`` says so.
        batch: rows of a slot.
        threads: cores to use.

    Raises:
        UsageError: onnxruntime is not installed.
        EngineError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, path: Path, spec: EngineSpec, precision: Precision, batch: int, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError("ONNX Runtime is not installed: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Between two batches, spinning threads would take the cores away from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                path,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=False,  # it would fall back to the same provider, and print to stdout
            )
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base class
            said = reason(str(error).replace(f"Load model from {path} failed:", ""))
            raise EngineError(f"{shown(path)}: ONNX Runtime cannot load it: {said}") from None
        self.precision: Precision = "fp32" if precision == "bf16" else precision
        said = "fp32, ONNX Runtime has no bf16 on CPUs" if precision == "bf16" else precision
        version = ".".join(onnxruntime.__version__.split(".")[:2])
        self.name = f"ONNX Runtime {version}, CPU, {said}"
        shape = [batch if i == 0 else int(axis) for i, axis in enumerate(spec.input.shape)]
        self.buffers = [np.zeros(shape, spec.input.dtype) for _ in range(_SLOTS)]
        self._input = spec.input.name
        self._outputs = [output.name for output in spec.outputs]
        # One run at a time, because the session itself uses all cores.
        self._worker = ThreadPoolExecutor(1, "onnxruntime")
        self._running: list[Future[Sequence[Array]] | None] = [None] * _SLOTS

    def start(self, slot: int, count: int) -> None:
        """Queue the first ``count`` rows only, since the batch axis is dynamic."""
        feed = {self._input: self.buffers[slot][:count]}
        self._running[slot] = self._worker.submit(self._session.run, self._outputs, feed)

    def wait(self, slot: int) -> Sequence[Array]:
        """The arrays that ONNX Runtime allocated for the outputs."""
        future, self._running[slot] = self._running[slot], None
        assert future is not None, "Engine waits only for what it started"
        try:
            return future.result()
        except Exception as error:  # see above
            raise EngineError(f"ONNX Runtime failed: {reason(error)}") from None

    def close(self) -> None:
        """Stop the worker and drop the session."""
        self._worker.shutdown()
        self.buffers = []
        del self._session
