"""The part of TensorRT that vfx uses, with types: 10.12 and later, and 11; the full runtime or the lean one.

TensorRT's wheels carry no types. So this module has a method for each use of the library, and nothing else
touches it, except for the settings and the progress monitor of `vfx_engines.plan_builder`. Names that one of
the versions lacks are not used. Callers check for a driver before they use TensorRT, because without one its
runtime object crashes the process at the next use.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vfx_engines.cuda import Cuda
from vfx_engines.errors import EngineError, UsageError, reason, shown
from vfx_engines.spec import Plan

INSTALL = (
    "TensorRT is not installed: install it from NVIDIA's index: pip install tensorrt-cu13 "
    "--extra-index-url https://pypi.nvidia.com"
)


_INSTALL_LEAN = (
    "TensorRT's lean runtime is not installed: "
    "pip install tensorrt-lean-cu13-bindings tensorrt-lean-cu13-libs"
)


class TensorRt:
    """The library, full or lean.

    Args:
        lean: take the lean runtime (``tensorrt_lean``), which only runs version-compatible plans.

    Raises:
        UsageError: it is not installed, or does not load.
    """

    def __init__(self, *, lean: bool = False) -> None:
        name = _module_name(lean)
        if name is None:
            raise UsageError(_INSTALL_LEAN if lean else INSTALL)
        try:
            self.module: Any = importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise UsageError(f"{name} is installed but does not load: {reason(error)}") from None
        self.lean = lean
        self.version = str(self.module.__version__)
        self.logger = self._make_logger()

    @property
    def name(self) -> str:
        """Library and version: ``TensorRT 11.4.0.106`` or ``TensorRT lean 11.4.0.106``."""
        return f"TensorRT {'lean ' if self.lean else ''}{self.version}"

    def load(self, path: Path, *, with_host_code: bool) -> LoadedPlan:
        """Load a plan. A driver and a device must be present.

        Args:
            path: the ``.plan`` file.
            with_host_code: allow the plan to bring its own runtime, as version-compatible plans do.

        Raises:
            EngineError: the file cannot be read, or TensorRT refuses it.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{shown(path)}: {error.strerror}") from None
        runtime = self.module.Runtime(self.logger)
        if with_host_code and not self.lean:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{shown(path)}: {self.name} refuses this plan: {self.last_error}")
        return LoadedPlan(self, runtime, engine)

    @property
    def last_error(self) -> str:
        """TensorRT's last error message, as one line."""
        return reason(self.logger.messages[-1]) if self.logger.messages else "it does not say why"

    def _make_logger(self) -> Any:
        levels: Any = self.module.ILogger

        class Logger(levels):  # type: ignore[misc]  # the base is known at run time only
            """Keeps the last ten errors, for messages, and drops everything else."""

            def __init__(self) -> None:
                # pybind11 requires the base's initialiser to be called by name.
                levels.__init__(self)
                self.messages: list[str] = []

            def log(self, severity: Any, msg: str) -> None:
                """Called by TensorRT, from any thread."""
                if severity in (levels.ERROR, levels.INTERNAL_ERROR):
                    self.messages = [*self.messages[-9:], msg]

        return Logger()


class LoadedPlan:
    """A deserialised engine, which keeps its runtime alive."""

    def __init__(self, library: TensorRt, runtime: Any, engine: Any) -> None:
        self._library, self._runtime, self._engine = library, runtime, engine

    def tensors(self) -> dict[str, tuple[str, str, tuple[int, ...]]]:
        """Each tensor by name: ``input`` or ``output``, NumPy's name of its dtype, shape (-1 if dynamic)."""
        module, engine = self._library.module, self._engine
        kinds = {
            module.DataType.FLOAT: "float32",
            module.DataType.HALF: "float16",
            module.DataType.UINT8: "uint8",
            module.DataType.INT32: "int32",
            module.DataType.INT64: "int64",
            module.DataType.BOOL: "bool",
        }
        found = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            mode = "input" if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT else "output"
            kind = kinds.get(engine.get_tensor_dtype(name), "another type")
            found[name] = (mode, kind, tuple(engine.get_tensor_shape(name)))
        return found

    def batches(self, name: str) -> tuple[int, int]:
        """Smallest and largest batch that the optimisation profiles allow for an input."""
        shapes = [
            self._engine.get_tensor_profile_shape(name, index)
            for index in range(self._engine.num_optimization_profiles)
        ]
        return min(int(least[0]) for least, _, _ in shapes), max(int(most[0]) for _, _, most in shapes)

    def profile_for(self, name: str, batch: int) -> int:
        """Index of the optimisation profile for a batch: of those that allow it, the one tuned closest to it.

        Args:
            name: the input.
            batch: rows per call.

        Raises:
            EngineError: no profile allows it.
        """
        best: tuple[int, int] | None = None
        for index in range(self._engine.num_optimization_profiles):
            least, tuned, most = self._engine.get_tensor_profile_shape(name, index)
            if int(least[0]) <= batch <= int(most[0]):
                distance = abs(int(tuned[0]) - batch)
                best = min(best or (distance, index), (distance, index))
        if best is None:
            low, high = self.batches(name)
            raise EngineError(f"batch {batch}: this plan takes {low} to {high}; build one with --batch")
        return best[1]

    def context(self) -> PlanContext:
        """An execution context with device memory of its own.

        Raises:
            EngineError: the device has too little memory.
        """
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"{self._library.name} cannot make an execution context: {self._library.last_error}: "
                "take a smaller --batch, or end what else runs on this GPU"
            )
        return PlanContext(self._library, context)

    def layer_kinds(self) -> dict[str, str]:
        """Layer name to kind, as far as the plan holds this; always empty with the lean runtime."""
        if self._library.lean:
            return {}
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._library.module.LayerInformationFormat.JSON)
        # In a plan that was built without details, layers are only names.
        layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
        return {str(layer["Name"]): str(layer.get("LayerType", "")) for layer in layers}


class PlanContext:
    """An execution context: runs one execution of a plan at a time, on one stream at a time."""

    def __init__(self, library: TensorRt, context: Any) -> None:
        self._library, self._context = library, context

    def use_profile(self, index: int, stream: int) -> None:
        """Switch to an optimisation profile, on a stream.

        Raises:
            EngineError: TensorRT refuses.
        """
        self._check(self._context.set_optimization_profile_async(index, stream), f"profile {index}")

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Set the shape of an input, before it runs.

        Raises:
            EngineError: the shape is outside the profile.
        """
        self._check(self._context.set_input_shape(name, tuple(shape)), f"{name} of shape {list(shape)}")

    def set_address(self, name: str, address: int) -> None:
        """Set the device address of a tensor.

        Raises:
            EngineError: no such tensor.
        """
        self._check(self._context.set_tensor_address(name, address), f"an address for {name}")

    def enqueue(self, stream: int) -> None:
        """Enqueue one execution on a stream.

        Raises:
            EngineError: TensorRT failed.
        """
        self._check(self._context.execute_async_v3(stream), "an execution")

    def report_layers(self, report: Callable[[str, float], None]) -> None:
        """From the next execution on, report each layer's name and milliseconds; executions then block."""
        base: Any = self._library.module.IProfiler

        class Profiler(base):  # type: ignore[misc]  # the base is known at run time only
            """TensorRT's profiler interface, around ``report``."""

            def __init__(self) -> None:
                # pybind11 requires the base's initialiser to be called by name.
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                """Called by TensorRT once for each layer of an execution."""
                report(layer_name, float(ms))

        self._context.profiler = Profiler()

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"{self._library.name} refuses {what}: {self._library.last_error}")


def check_device(file: Path, plan: Plan, library: TensorRt, cuda: Cuda) -> None:
    """Refuse a plan built by another TensorRT or for another GPU, on which TensorRT itself may crash.

    Args:
        file: the plan's file, for messages.
        plan: what the plan was built with.
        library: the TensorRT that is to run it.
        cuda: the device that is to run it.

    Raises:
        EngineError: the version or the GPU does not fit; the message names both.
    """
    where, built, here = shown(file), _numbers(plan.tensorrt), _numbers(library.version)
    if built != here and not (plan.version_compatible and built < here):
        later = "" if plan.version_compatible else ", or with --version-compatible for later ones"
        raise EngineError(
            f"{where}: built by TensorRT {plan.tensorrt}, this machine has {library.version}: build it with "
            f"this one{later}"
        )
    fits = {
        "same": plan.device == cuda.name,
        "same_compute_capability": plan.compute_capability == cuda.compute_capability,
        "ampere_plus": cuda.compute_capability >= (8, 0),
    }
    if not fits[plan.hardware]:
        raise EngineError(
            f"{where}: built for {plan.device} (compute capability {_dotted(plan.compute_capability)}), this "
            f"is {cuda.name} ({_dotted(cuda.compute_capability)}): build it here"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def is_installed(*, lean: bool = False) -> bool:
    """Whether the library can be found, which does not mean that it loads."""
    return _module_name(lean) is not None


def _module_name(lean: bool) -> str | None:
    # The wheels with the library itself bring the second name; the first is a wrapper around it.
    name = "tensorrt_lean" if lean else "tensorrt"
    found = (item for item in (name, f"{name}_bindings") if importlib.util.find_spec(item) is not None)
    return next(found, None)
