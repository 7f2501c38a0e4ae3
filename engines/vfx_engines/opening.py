"""From a file to a running engine: read its spec, choose a backend, load it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from vfx_engines.cuda import Cuda, OutOfDeviceMemory
from vfx_engines.devices import available_cores
from vfx_engines.engine import Backend, Engine
from vfx_engines.errors import EngineError, SpecError, UsageError, reason, shown
from vfx_engines.onnx_file import read_onnx_spec
from vfx_engines.plan_file import read_plan_spec
from vfx_engines.spec import EngineSpec, Precision
from vfx_engines.triton.address import is_address, server_address

BackendName = Literal["openvino", "onnxruntime"]

_FRAMES_PER_CALL = {"cpu": 8, "cuda": 256}
"""Frames of 224x224 per call. On a CPU, the activations of more no longer fit the caches: with 32 frames per
call, each frame of ResNet-50 and CLIP took a tenth longer, in fp32 and bf16. The GPU's number is a guess."""

_OTHERS_PER_CALL = {"cpu": 16, "cuda": 128}
"""Windows of audio, or texts, per call. They are small beside the computation, and the time of a call mostly
goes into reading weights."""


def read_spec(path: Path) -> EngineSpec:
    """The spec of an engine file, or of an engine on a Triton server.

    Args:
        path: an ``.onnx`` or ``.plan`` file, or a server's address as for `open_engine`.

    Raises:
        EngineError: the file is missing, damaged, without a spec, or has the spec of another graph; or the
            server does not answer, or has no such model.
        SpecError: the spec is malformed or newer than this vfx.
        UsageError: the address is malformed, or Triton's client is not installed.
    """
    if is_address(path):
        return _read_served_spec(path)
    if path.suffix == ".plan":
        return read_plan_spec(path)
    try:
        stat = path.stat()
        stamp = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError):  # reported when the file is read
        stamp = None
    return _read_onnx_spec(path, stamp)


@lru_cache(maxsize=16)
def _read_onnx_spec(path: Path, stamp: tuple[int, ...] | None) -> EngineSpec:
    """Cached until the file changes: a run asks three times, and reading hashes the whole file."""
    return read_onnx_spec(path)


def open_engine(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    precision: Precision | None = None,
    backend: BackendName | None = None,
    batch: int | None = None,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Engine:
    """Load an engine file.

    Args:
        path: an ``.onnx`` or ``.plan`` file made by vfx-export; or the address of a model that vfx-export
            wrote into a Triton repository, ``grpc://host:8001/model`` or ``http://host:8000/model``
            (extra ``vfx[triton]``); see `vfx_engines.triton.address`.
        device: ``cpu``, ``cuda`` or ``cuda:1``; None takes a GPU for a plan and the CPU for ONNX. A server
            decides where its engine runs, so an address takes no ``device``, ``backend`` or ``threads``.
        precision: precision to compute in; None takes the file's own. A file with fp16 tensors stays fp16.
        backend: for an ``.onnx`` file on a CPU: ``openvino``, or ``onnxruntime`` (extra
            ``vfx[onnxruntime]``); None takes OpenVINO if it is installed, else ONNX Runtime. On a GPU it is
            always ONNX Runtime.
        batch: windows per call, 1 or more. None chooses by the size of a window, or takes the most that a
            plan allows. A server has a limit of its own. If a GPU has too little memory, the batch is halved,
            and the engine's name says so.
        threads: cores to use, 1 or more; None takes all that this process may run on.
        sizes: sizes of the axes that the spec names beside ``batch``, for example ``{"height": 240,
            "width": 320}``. An engine is opened at one size.

    Raises:
        UsageError: an argument is none of these or does not go with this file, or a library is missing.
        EngineError: the file is missing, damaged, without a spec, or cannot run here; or the server does not
            answer.
        SpecError: the spec is malformed or newer than this vfx.
    """
    if is_address(path):
        return _served(path, device, precision, backend, batch, threads, sizes or {})
    file = Path(path)
    spec = read_spec(file)
    _check_choice("backend", backend, get_args(BackendName))
    _check_choice("precision", precision, get_args(Precision))
    is_plan = file.suffix == ".plan"
    index = cuda_index(device or ("cuda" if is_plan else "cpu"))
    if is_plan and index is None:
        raise UsageError(
            f"{shown(file)}: a TensorRT plan runs on a GPU, not on {device!r}: give the .onnx file"
        )
    wanted = _precision(file, spec, precision, index)
    try:
        spec = spec.sized(sizes or {})
    except SpecError as error:
        raise UsageError(f"{shown(file)}: {error}") from None
    for what, number in (("batch", batch), ("threads", threads)):
        if number is not None and number < 1:
            raise UsageError(f"{what} {number}: expected 1 or more")
    if index is None:
        return Engine(spec, _on_cpu(file, spec, wanted, backend, batch, threads))
    if backend == "openvino":
        raise UsageError(f"backend 'openvino' runs on a CPU, not on {device!r}: leave --backend out")
    on_gpu = _plan_on_cuda if is_plan else _onnx_on_cuda
    return Engine(spec, on_gpu(file, spec, index, batch), f"cuda:{index}")


def engine_label(path: str | os.PathLike[str]) -> str:
    """A short label of an engine: the name of its file, or its address."""
    return str(server_address(path)) if is_address(path) else shown(Path(path).name)


def check_unchanged(path: str | os.PathLike[str], found: EngineSpec, spec: EngineSpec) -> None:
    """Check that an engine is still the one for which the run laid its windows.

    Engines are opened late: once for each size of video, or by an actor of Ray that starts again.

    Args:
        path: the engine's file or address.
        found: the spec of the engine that is there now.
        spec: the spec that was read there when the run began.

    Raises:
        EngineError: the file was replaced, or the server has another version.
    """
    if found != spec:
        raise EngineError(
            f"{engine_label(path)}: replaced by another engine since this run began: run again, which "
            "also does finished videos again"
        )


def _read_served_spec(path: str | os.PathLike[str]) -> EngineSpec:
    from vfx_engines.triton.connecting import connect
    from vfx_engines.triton.served import read_served
    from vfx_engines.triton.server import Patience

    address = server_address(path)
    server = connect(address)
    try:
        return read_served(address, server, Patience(address)).spec
    finally:
        server.close()


def _served(
    path: str | os.PathLike[str],
    device: str | None,
    precision: Precision | None,
    backend: BackendName | None,
    batch: int | None,
    threads: int | None,
    sizes: Mapping[str, int],
) -> Engine:
    from vfx_engines.backends.triton import TritonBackend
    from vfx_engines.triton.connecting import connect
    from vfx_engines.triton.served import read_served
    from vfx_engines.triton.server import Patience

    address = server_address(path)
    for what, given in (("device", device), ("backend", backend), ("threads", threads)):
        if given is not None:
            raise UsageError(
                f"{address}: {what} {given}: the server decides where the engine runs: leave it out"
            )
    if batch is not None and batch < 1:
        raise UsageError(f"batch {batch}: expected 1 or more")
    server, patient = connect(address), Patience(address)
    try:
        model = read_served(address, server, patient)
        if precision not in (None, model.spec.precision):
            raise UsageError(
                f"{address}: computes in {model.spec.precision}, not {precision}: leave the precision out"
            )
        try:
            spec = model.spec.sized(sizes)
        except SpecError as error:
            raise UsageError(f"{address}: {error}") from None
        size = batch or min(model.most, _default_batch(spec, "cpu"))
        return Engine(spec, TritonBackend(address, spec, model, server, patient, size))
    except BaseException:
        server.close()
        raise


def _on_cpu(
    file: Path,
    spec: EngineSpec,
    precision: Precision,
    backend: BackendName | None,
    batch: int | None,
    threads: int | None,
) -> Backend:
    batch = batch or _default_batch(spec, "cpu")
    threads = threads or available_cores()
    try:
        # Imported late, so that a command that only prints its help does not wait for it.
        if backend == "onnxruntime" or (backend is None and find_spec("openvino") is None):
            from vfx_engines.backends.onnxruntime import OnnxRuntimeBackend

            return OnnxRuntimeBackend(file, spec, precision, batch, threads)
        from vfx_engines.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(file, spec, precision, batch, threads)
    except MemoryError as error:
        raise EngineError(
            f"{shown(file)}: no memory for a batch of {batch} ({reason(error)}): give a smaller one"
        ) from None


def _plan_on_cuda(file: Path, spec: EngineSpec, index: int, batch: int | None) -> Backend:
    from vfx_engines.backends.tensorrt import TensorRtBackend
    from vfx_engines.tensorrt_api import TensorRt, check_device, is_installed

    assert spec.plan is not None, "read_spec lets no plan pass without"
    lean = spec.plan.version_compatible and not is_installed()
    library = TensorRt(lean=lean)
    with _device(index) as cuda:
        check_device(file, spec.plan, library, cuda)
        return halving(
            lambda size: TensorRtBackend(file, spec, library, cuda, size), batch or spec.plan.batch[-1]
        )


def _onnx_on_cuda(file: Path, spec: EngineSpec, index: int, batch: int | None) -> Backend:
    from vfx_engines.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

    with _device(index) as cuda:
        return halving(
            lambda size: OnnxRuntimeCudaBackend(file, spec, cuda, index, size),
            batch or _default_batch(spec, "cuda"),
        )


@contextmanager
def _device(index: int) -> Iterator[Cuda]:
    """An open device for the backend that is made in this block; closed if none can be made."""
    from vfx_engines.devices import open_cuda

    cuda = open_cuda(index)
    try:
        yield cuda
    except BaseException:
        cuda.close()
        raise


def halving(make: Callable[[int], Backend], batch: int) -> Backend:
    """The backend that ``make`` returns for a batch, which is halved while the GPU has too little memory.

    Args:
        make: builds a backend for a batch.
        batch: windows per call to begin with.

    Raises:
        OutOfDeviceMemory: a single window does not fit.
    """
    size = batch
    while True:
        try:
            made = make(size)
        except OutOfDeviceMemory:
            if size == 1:
                raise
            size //= 2
        else:
            if size != batch:
                made.name += f", batch {size}: {batch} do not fit its memory"
            return made


def _precision(file: Path, spec: EngineSpec, precision: Precision | None, index: int | None) -> Precision:
    if precision is None or precision == spec.precision:
        return spec.precision
    if "fp16" in (precision, spec.precision) or index is not None:
        raise UsageError(
            f"{shown(file)}: holds {spec.precision} tensors and cannot run in {precision}: "
            f"export it with --precision {precision}"
        )
    return precision


def cuda_index(device: str) -> int | None:
    """Number of the GPU in ``cuda`` (0) or ``cuda:N``; None for ``cpu``.

    Raises:
        UsageError: the text is none of these.
    """
    if device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    if found is None:
        raise UsageError(f"device {device!r}: expected cpu, cuda, or cuda:N")
    return int(found[1] or 0)


def _check_choice(what: str, given: str | None, choices: tuple[str, ...]) -> None:
    if given is not None and given not in choices:
        raise UsageError(f"{what} {given!r}: expected {' or '.join(choices)}")


def _default_batch(spec: EngineSpec, kind: Literal["cpu", "cuda"]) -> int:
    """Small inputs share a call. A window of a 3D network is enough work by itself, and takes more memory."""
    if spec.input.modality != "frames":
        return _OTHERS_PER_CALL[kind]
    pixels = math.prod(axis for axis in spec.input.shape[1:] if isinstance(axis, int))
    return max(1, _FRAMES_PER_CALL[kind] * 224 * 224 * 3 // max(pixels, 1))
