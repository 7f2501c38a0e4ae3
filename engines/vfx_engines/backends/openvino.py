"""ONNX on a CPU through OpenVINO, on small machines with one stream per core, so that no core waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from vfx_engines.devices import available_cores
from vfx_engines.engine import Array
from vfx_engines.errors import EngineError, reason, shown
from vfx_engines.onnx_file import FLOAT32_NODE
from vfx_engines.spec import EngineSpec, Precision

_HINTS: dict[Precision, str] = {"fp32": "f32", "fp16": "f32", "bf16": "bf16"}
"""OpenVINO's precision for each of ours. With fp16, tensors are half, but a CPU computes in float32."""

_KEPT = "DisablePrecisionConversion"
# Python cannot create the attribute that keeps a node's precision, but can read it from a model and copy it.
_KEEPING = f"""<?xml version="1.0"?><net name="keeping" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="y" type="ReLU" version="opset1">
<rt_info><attribute name="{_KEPT}" version="0" value="dynamic:dynamic"/></rt_info>
<input><port id="0"><dim>1</dim></port></input>
<output><port id="1" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="2" name="z" type="Result" version="opset1"><input><port id="0"><dim>1</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""


class OpenVinoBackend:
    """See `vfx_engines.engine.Backend`.

    Args:
        path: an ONNX file.
        spec: spec of that file, every axis but the batch with a size.
        precision: precision to compute in, always set, because OpenVINO's default silently lowers it. bf16
            becomes fp32, and ``name`` says why, if the CPU or this version of OpenVINO lacks what it needs.
        batch: rows of a slot.
        threads: cores to use.

    Raises:
        EngineError: OpenVINO cannot read or compile the graph.
    """

    def __init__(self, path: Path, spec: EngineSpec, precision: Precision, batch: int, threads: int) -> None:
        core = ov.Core()
        streams = _streams(threads)
        try:
            model = core.read_model(path)
            shape = [
                batch if i == 0 else axis if isinstance(axis, int) else -1
                for i, axis in enumerate(spec.input.shape)
            ]
            model.reshape({spec.input.name: shape})
            lacking = _lacking_for_bf16(core, model) if precision == "bf16" else ""
            self.precision: Precision = "fp32" if lacking else precision
            self._model = core.compile_model(model, "CPU", settings(self.precision, streams, threads))
            self._requests = [self._model.create_infer_request() for _ in range(streams + 1)]
        except Exception as error:  # RuntimeError, or UnicodeDecodeError if its message quotes damaged bytes
            # The last line, because those before it name places in OpenVINO's own source.
            raise EngineError(f"{shown(path)}: OpenVINO cannot compile it: {reason(error, -1)}") from None
        version = ".".join(ov.__version__.split("-")[0].split(".")[:2])
        said = f"{self.precision}, {lacking}" if lacking else precision
        self.name = f"OpenVINO {version}, CPU, {said}"
        self.buffers = [np.zeros(shape, spec.input.dtype) for _ in self._requests]
        for request, buffer in zip(self._requests, self.buffers, strict=True):
            request.set_tensor(spec.input.name, ov.Tensor(buffer, shared_memory=True))
        self._outputs = [output.name for output in spec.outputs]

    def start(self, slot: int, count: int) -> None:
        """Compute the whole batch: rows beyond ``count`` hold old data, and their results are not read."""
        self._requests[slot].start_async()

    def wait(self, slot: int) -> Sequence[Array]:
        """Views of the request's own outputs."""
        request = self._requests[slot]
        try:
            request.wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {reason(error, -1)}") from None
        return [request.get_tensor(name).data for name in self._outputs]

    def close(self) -> None:
        """Drop the requests, then the model."""
        self._requests.clear()
        self.buffers = []
        del self._model


def _lacking_for_bf16(core: ov.Core, model: ov.Model) -> str:
    """Why a model cannot run in bf16; empty if it can.

    Nodes whose names begin with `FLOAT32_NODE` are then marked to stay float32.
    """
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "this CPU has no bf16"
    kept = [node for node in model.get_ops() if node.get_friendly_name().startswith(FLOAT32_NODE)]
    if not kept:
        return ""
    nodes = core.read_model(_KEEPING.encode(), b"").get_ops()
    (keeping,) = (node.get_rt_info() for node in nodes if node.get_friendly_name() == "y")
    key = f"{_KEPT}_0"
    # Versions that do not know the attribute silently drop it, and would compute these nodes in bf16.
    if key not in keeping:
        return "parts of it stay float32, which takes OpenVINO 2026.3"
    for node in kept:
        node.set_rt_info(keeping[key], key)
    return ""


def settings(precision: Precision, streams: int, threads: int) -> dict[str, Any]:
    """OpenVINO's settings for compiling an engine, and for `vfx_engines.peak.matrix_peak`.

    Args:
        precision: precision to compute in.
        streams: requests that are computed at the same time.
        threads: cores to use, over all streams.
    """
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Threads are pinned if they take all cores: without that, two processes at once have spun for
        # minutes in compile_model (2026.4). With fewer threads, pinning would put every process on the same
        # first cores.
        "ENABLE_CPU_PINNING": threads >= available_cores(),
    }


def _streams(threads: int) -> int:
    """A stream per core up to 4 cores; with more, about four cores share a stream and its memory."""
    return threads if threads <= 4 else max(4, threads // 4)
