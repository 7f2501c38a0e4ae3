"""From a file to a running engine: read its spec, choose what executes it, load it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from vfx_engines.backends.onnxruntime import OnnxRuntimeBackend
from vfx_engines.engine import Backend, Engine
from vfx_engines.errors import EngineError, UsageError
from vfx_engines.spec import METADATA_KEY, EngineSpec, Precision

BackendName = Literal["openvino", "onnxruntime"]

_FRAMES_PER_CALL = 32
"""Frames of 224x224 that a call of a CPU engine should at least have: below, its overhead shows."""


def read_spec(path: Path) -> EngineSpec:
    """The spec of an engine file.

    Raises:
        EngineError: no such file, not ONNX, damaged, or made without a spec.
        SpecError: the spec is malformed or newer than this vfx.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise EngineError(f"{path}: {what}, expected an engine file made by vfx-export")
    if path.suffix == ".plan":
        raise UsageError(
            f"{path}: TensorRT plans cannot be run by this version of vfx: "
            "export with --format onnx and run that"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise EngineError(f"{path}: not an ONNX file, or damaged ({error}): export it again") from None
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in properties:
        raise EngineError(
            f"{path}: an ONNX file without a vfx spec: export it with vfx-export "
            "(--module FILE.py:factory --spec spec.json takes any torch module)"
        )
    return EngineSpec.from_json(properties[METADATA_KEY])


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
        batch: windows per call; None chooses by the size of a window.
        threads: cores to use; None takes all that this process may run on.

    Raises:
        UsageError: a device, backend or precision that does not go with this file.
        EngineError: the file is missing, damaged, without a spec, or cannot run here.
    """
    file = Path(path)
    spec = read_spec(file)
    if device != "cpu":
        raise UsageError(f"device {device!r}: this version of vfx runs on 'cpu'")
    if precision is None:
        precision = spec.precision
    elif (precision == "fp16") != (spec.precision == "fp16"):
        raise UsageError(
            f"{file}: holds {spec.precision} tensors and cannot run in {precision}: "
            f"export it with --precision {precision}"
        )
    if batch is None:
        batch = _default_batch(spec)
    if batch < 1:
        raise UsageError(f"batch {batch}: expected 1 or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = threads or cores or 1
    loaded: Backend
    if backend == "onnxruntime":
        loaded = OnnxRuntimeBackend(file, spec, precision, batch, threads)
    else:
        from vfx_engines.backends.openvino import OpenVinoBackend  # 0.3 s, not paid for --help

        loaded = OpenVinoBackend(file, spec, precision, batch, threads)
    return Engine(spec, loaded)


def _default_batch(spec: EngineSpec) -> int:
    """Small inputs share a call; a window of a 3D network is work enough alone, and memory counts."""
    pixels = 1
    for axis in spec.input.shape[1:]:
        pixels *= axis if isinstance(axis, int) else 1
    return max(1, _FRAMES_PER_CALL * 224 * 224 * 3 // max(pixels, 1))
