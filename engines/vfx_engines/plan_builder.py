"""From an ONNX file to a TensorRT plan for this machine's GPU, with Polygraphy, checked against the file.

Networks are strongly typed: TensorRT 11 has no others, and 10.12 and later have them too. So the dtypes of
the ONNX file's tensors alone decide the precision, and no builder flag is needed for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from vfx_engines.backends.tensorrt import TensorRtBackend
from vfx_engines.build_settings import BuildSettings
from vfx_engines.cuda import Cuda
from vfx_engines.devices import open_cuda
from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, UsageError, reason, shown
from vfx_engines.onnx_file import read_onnx_spec
from vfx_engines.opening import open_engine
from vfx_engines.plan_file import spec_path, write_plan
from vfx_engines.spec import EngineSpec, Plan, Precision, Proof, Text
from vfx_engines.tensorrt_api import TensorRt

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 1e-2}
"""Largest relative L2 error that a row of an output may have, against the ONNX file on a CPU. Polygraphy
leaves TF32 off."""

Progress = Callable[[str, int, int], bool]
"""Called with a phase of the build, its steps done and their total; returning False cancels the build."""

_HARDWARE = {"same_compute_capability": "SAME_COMPUTE_CAPABILITY", "ampere_plus": "AMPERE_PLUS"}


def build_plan(
    onnx: Path,
    output: Path,
    settings: BuildSettings | None = None,
    *,
    index: int = 0,
    cache: Path | None = None,
    progress: Progress = lambda phase, step, steps: True,
) -> EngineSpec:
    """Build a plan, compare it with the ONNX file, and write it with its spec beside it.

    Args:
        onnx: an ONNX file made by vfx-export.
        output: the ``.plan`` to write; its spec goes to ``<output>.json``.
        settings: None takes the defaults.
        index: number of the GPU.
        cache: folder for TensorRT's timing cache, which speeds up later builds; None takes the user's cache
            folder.
        progress: told how far the build is.

    Returns:
        The plan's spec; its proof is the comparison with ``onnx``.

    Raises:
        UsageError: no TensorRT, Polygraphy, driver or GPU; or an axis other than the batch may vary.
        EngineError: TensorRT refuses the network, or the plan does not compute what the file does; then
            nothing is left at ``output``.
        OSError: a file cannot be written.
    """
    settings = settings or BuildSettings()
    spec = read_onnx_spec(onnx)
    named = [axis for axis in spec.input.shape[1:] if isinstance(axis, str)]
    if named:
        raise UsageError(
            f"{shown(onnx)}: its {' and '.join(named)} may vary, and a plan has one size: run the .onnx file"
        )
    library = TensorRt()
    cuda = open_cuda(index)
    cuda.activate()
    plan = Plan(
        tensorrt=library.version,
        device=cuda.name,
        compute_capability=cuda.compute_capability,
        onnx_sha256=hashlib.sha256(onnx.read_bytes()).hexdigest(),
        batch=(
            min(low for low, _, _ in settings.batches),
            settings.batches[0][1],
            max(high for _, _, high in settings.batches),
        ),
        version_compatible=settings.version_compatible,
        hardware=settings.hardware,
    )
    spec = replace(spec, plan=plan, proof=None)
    data = _serialized(onnx, spec, library, settings, _timings(cache, library, cuda), progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.stem}.part.plan")
    try:
        write_plan(part, data, spec)
        spec = replace(spec, proof=_compared(onnx, part, spec, library, cuda))
        write_plan(output, data, spec)
    finally:
        for path in (part, spec_path(part)):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return spec


def _serialized(
    onnx: Path,
    spec: EngineSpec,
    library: TensorRt,
    settings: BuildSettings,
    timings: Path,
    progress: Progress,
) -> bytes:
    try:
        from polygraphy.backend.trt import (
            CreateConfig,
            EngineBytesFromNetwork,
            NetworkFromOnnxPath,
            Profile,
        )
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise UsageError("building plans needs Polygraphy: pip install polygraphy") from None
    trt = library.module
    name, row = spec.input.name, spec.input.shape[1:]
    profiles = [Profile().add(name, *((batch, *row) for batch in batches)) for batches in settings.batches]
    limits = {trt.MemoryPoolType.WORKSPACE: settings.workspace} if settings.workspace else None
    level = _HARDWARE.get(settings.hardware)
    config = CreateConfig(
        profiles=profiles,
        builder_optimization_level=settings.level,
        memory_pool_limits=limits,
        version_compatible=settings.version_compatible or None,
        hardware_compatibility_level=getattr(trt.HardwareCompatibilityLevel, level) if level else None,
        load_timing_cache=str(timings) if timings.exists() else None,
        progress_monitor=_monitor(library, progress),
        # For the kinds of layers in --inspect; the plan becomes a little larger, but not slower.
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
    )
    network = NetworkFromOnnxPath(str(onnx), strongly_typed=True)
    try:
        # Polygraphy's log is for its own users; errors come as exceptions.
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            data = EngineBytesFromNetwork(network, config, save_timing_cache=str(timings))()
    except PolygraphyException as error:
        said = library.last_error if library.logger.messages else reason(error)
        raise EngineError(f"{shown(onnx)}: {library.name} cannot build it: {said}") from None
    return bytes(data)


def _monitor(library: TensorRt, progress: Progress) -> Any:
    """TensorRT's progress monitor, around ``progress``."""
    base: Any = library.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the base is known at run time only
        """Reports the steps of each phase by itself; phases are not added up."""

        def __init__(self) -> None:
            # pybind11 requires the base's initialiser to be called by name.
            base.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins, possibly inside another."""
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step is done; False cancels the build."""
            return progress(phase_name, step + 1, self._steps.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            """A phase ended: all its steps are done, or it was cancelled."""
            steps = self._steps.pop(phase_name, 0)
            progress(phase_name, steps, steps)

    return Monitor()


def _timings(cache: Path | None, library: TensorRt, cuda: Cuda) -> Path:
    """Path of the timing cache, which is valid for one version of TensorRT on one kind of GPU only."""
    folder = cache or platformdirs.user_cache_path("vfx") / "timings"
    folder.mkdir(parents=True, exist_ok=True)
    kind = "".join(letter if letter.isalnum() else "-" for letter in cuda.name)
    return folder / f"{kind}-{library.version}.timings"


def _compared(
    onnx: Path, part: Path, spec: EngineSpec, library: TensorRt, cuda: Cuda, inputs: int = 2
) -> Proof:
    """Compare the plan with the ONNX file on a CPU, on noise or random texts.

    Raises:
        EngineError: they differ by more than `TOLERANCE` allows.
    """
    shape = (inputs, *(int(axis) for axis in spec.input.shape[1:]))
    given = _noise(spec, shape)
    with open_engine(onnx, device="cpu", batch=1) as reference:
        expected, what = reference.run(given), reference.name
    assert spec.plan is not None
    backend = TensorRtBackend(part, spec, library, cuda, spec.plan.batch[1])
    engine = Engine(spec, backend)
    try:
        found = engine.run(given)
    finally:
        engine.close()
    # NumPy's maximum, because Python's may pass over NaN.
    error = float(np.max([_relative(found[name], rows) for name, rows in expected.items()]))
    tolerance = TOLERANCE[spec.precision]
    if not error <= tolerance:
        raise EngineError(
            f"{shown(onnx)}: the plan differs from it by {error:.1e} (at most {tolerance:.0e} allowed) and "
            "is not written: try another --level, or report it"
        )
    return Proof(f"the ONNX file, {what}", tolerance, error, inputs)


def _noise(spec: EngineSpec, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    if spec.text is not None:
        return _texts(spec.text, shape, random)
    if spec.input.dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.uniform(-1, 1, shape).astype(np.float32)


def _texts(text: Text, shape: Sequence[int], random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Short texts, and a last one of the full length: random ids between the markers of start and end.

    Text encoders look for the end marker, so other ids would not test them.
    """
    start = 512 + text.merges.count("\n") + 1
    count, tokens = shape
    rows = np.zeros((count, tokens), np.int32)
    for row, words in zip(rows, [*[min(8, tokens - 2)] * (count - 1), tokens - 2], strict=True):
        row[: words + 2] = [start, *random.integers(0, start, words), start + 1]
    return rows


def _relative(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Largest relative L2 error of a row; NaN if a value is."""
    rows = expected.reshape(len(expected), -1).astype(np.float64)
    apart = np.linalg.norm(found.reshape(rows.shape) - rows, axis=1)
    return float(np.max(apart / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)))
