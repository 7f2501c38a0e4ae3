"""From a file to a running engine: read its spec, choose what executes it, load it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from vfx_engines.backends.onnxruntime import OnnxRuntimeBackend
from vfx_engines.engine import Backend, Engine
from vfx_engines.errors import EngineError, SpecError, UsageError, reason, shown
from vfx_engines.spec import METADATA_KEY, EngineSpec, Precision

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

BackendName = Literal["openvino", "onnxruntime"]

_FRAMES_PER_CALL = 32
"""Frames of 224x224 that a call of a CPU engine should at least have: below, its overhead shows."""


def read_spec(path: Path) -> EngineSpec:
    """The spec of an engine file.

    Raises:
        UsageError: a TensorRT plan, which this version does not run.
        EngineError: no such file, not ONNX, damaged, made without a spec, or with one of another graph.
        SpecError: the spec is malformed or newer than this vfx.
    """
    where = shown(path)
    if path.suffix == ".plan":
        raise UsageError(
            f"{where}: TensorRT plans cannot be run by this version of vfx: "
            "export with --format onnx and run that"
        )
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or reason(error)
        raise EngineError(f"{where}: {what}; expected an engine file made by vfx-export") from None
    if not data:
        raise EngineError(f"{where}: zero bytes, expected an engine file: export it again")
    # Here, not above: a command that only prints its help need not wait for them.
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise EngineError(
            f"{where}: not an ONNX file, or damaged ({reason(error)}): export it again"
        ) from None
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in properties:
        raise EngineError(
            f"{where}: an ONNX file without a vfx spec: export it with vfx-export "
            "(--module FILE.py:factory --spec spec.json takes any torch module)"
        )
    try:
        spec = EngineSpec.from_json(properties[METADATA_KEY])
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    _check_graph(model, spec, where)
    return spec


def open_engine(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    precision: Precision | None = None,
    backend: BackendName | None = None,
    batch: int | None = None,
    threads: int | None = None,
) -> Engine:
    """Load an engine file.

    Args:
        path: an ``.onnx`` file made by vfx-export.
        device: ``cpu``.
        precision: to compute in; None takes the file's own. A file of fp16 tensors stays fp16.
        backend: for a CPU ``openvino``, or ``onnxruntime`` (extra ``vfx[onnxruntime]``); None takes
            OpenVINO.
        batch: windows per call, 1 or more; None chooses by the size of a window.
        threads: cores to use, 1 or more; None takes all that this process may run on.

    Raises:
        UsageError: an argument that is none of these, or does not go with this file.
        EngineError: the file is missing, damaged, without a spec, or cannot run here.
    """
    file = Path(path)
    spec = read_spec(file)
    _check_choice("backend", backend, get_args(BackendName))
    _check_choice("precision", precision, get_args(Precision))
    if device != "cpu":
        raise UsageError(f"device {device!r}: this version of vfx runs on 'cpu'")
    if precision is None:
        precision = spec.precision
    elif (precision == "fp16") != (spec.precision == "fp16"):
        raise UsageError(
            f"{shown(file)}: holds {spec.precision} tensors and cannot run in {precision}: "
            f"export it with --precision {precision}"
        )
    if batch is None:
        batch = _default_batch(spec)
    if batch < 1:
        raise UsageError(f"batch {batch}: expected 1 or more")
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = cores or 1
    if threads < 1:
        raise UsageError(f"threads {threads}: expected 1 or more")
    loaded: Backend
    try:
        if backend == "onnxruntime":
            loaded = OnnxRuntimeBackend(file, spec, precision, batch, threads)
        else:
            from vfx_engines.backends.openvino import OpenVinoBackend  # 0.3 s, not paid for --help

            loaded = OpenVinoBackend(file, spec, precision, batch, threads)
    except MemoryError as error:
        raise EngineError(
            f"{shown(file)}: no memory for a batch of {batch} ({reason(error)}): give a smaller one"
        ) from None
    return Engine(spec, loaded)


def _check_choice(what: str, given: str | None, choices: tuple[str, ...]) -> None:
    if given is not None and given not in choices:
        raise UsageError(f"{what} {given!r}: expected {' or '.join(choices)}")


def _check_graph(model: ModelProto, spec: EngineSpec, where: str) -> None:
    """Refuse a graph that the spec is not of: a backend would reshape it, or fail at the first batch."""
    dynamic = [axis for axis in spec.input.shape[1:] if isinstance(axis, str)]
    if dynamic:
        raise EngineError(
            f"{where}: {', '.join(dynamic)} may vary, and this version of vfx runs engines whose batch "
            "alone does: export it with fixed sizes"
        )
    constants = {item.name for item in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in constants}
    outputs = {value.name: value for value in model.graph.output}
    if list(inputs) != [spec.input.name]:
        raise EngineError(f"{where}: the graph takes {list(inputs)}, the spec says {spec.input.name}")
    _check_value(inputs[spec.input.name], spec.input.dtype, spec.input.shape, where)
    for output in spec.outputs:
        if output.name not in outputs:
            raise EngineError(f"{where}: the graph gives {list(outputs)}, the spec says {output.name}")
        _check_value(outputs[output.name], output.dtype, ("batch", *output.shape), where)


def _check_value(value: ValueInfoProto, dtype: str, shape: tuple[int | str, ...], where: str) -> None:
    from onnx import TensorProto, helper

    tensor = value.type.tensor_type
    axes = [axis.dim_value if axis.HasField("dim_value") else "?" for axis in tensor.shape.dim]
    fits = len(axes) == len(shape) and all(
        found == "?" or found == size for found, size in zip(axes, shape, strict=True)
    )
    if tensor.elem_type != helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) or not fits:
        kinds = {number: name.lower() for name, number in TensorProto.DataType.items()}
        raise EngineError(
            f"{where}: the spec says {value.name} is {dtype} {list(shape)}, the graph says "
            f"{kinds.get(tensor.elem_type, 'another type')} {axes}: export it again"
        )


def _default_batch(spec: EngineSpec) -> int:
    """Small inputs share a call; a window of a 3D network is work enough alone, and memory counts."""
    pixels = 1
    for axis in spec.input.shape[1:]:
        pixels *= axis if isinstance(axis, int) else 1
    return max(1, _FRAMES_PER_CALL * 224 * 224 * 3 // max(pixels, 1))
