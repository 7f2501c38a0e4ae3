"""A fake TensorRT with the signatures of the real bindings: calls that those do not allow are refused.

The kit's ``specs/tensorrt_api/<version>.json`` lists every class, member, argument and enumerator of a
version. Calls that pass this check are acted out: plans are JSON, and executing one computes the tiny engine
on the simulated device. This shows that vfx uses TensorRT's names correctly and in a sensible order, not that
the real TensorRT then does what we expect.
"""

from __future__ import annotations

import ctypes
import enum
import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simulated_cuda import SimulatedDriver
from tiny import FRAMES, SIZE, tiny_features

KIT = Path(__file__).resolve().parent.parent.parent / "shared" / "specs" / "tensorrt_api"
VERSIONS = ("10.16", "11.4", "11.4-lean")

_ROW = (FRAMES, SIZE, SIZE, 3)


def tiny_plan(
    *,
    version: str,
    compatible: bool = False,
    profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 4),),
    row: tuple[int, ...] = _ROW,
) -> bytes:
    """A plan of the tiny engine, in the format that the fake writes and reads."""
    plan = {
        "version": version,
        "compatible": compatible,
        "profiles": profiles,
        "tensors": [["frames", "INPUT", "UINT8", [-1, *row]], ["features", "OUTPUT", "FLOAT", [-1, 4]]],
    }
    return json.dumps(plan).encode()


class FakeTensorRt(types.ModuleType):
    """Stands in for the module ``tensorrt``, or ``tensorrt_lean``.

    Args:
        version: one of the kit's files, such as ``10.16``.
        driver: the simulated device that plans run on.
    """

    def __init__(self, version: str, driver: SimulatedDriver) -> None:
        super().__init__("tensorrt_lean" if "lean" in version else "tensorrt")
        data = json.loads((KIT / f"{version}.json").read_text())
        self.__dict__.update(
            _api=data["api"], __version__=data["version"], driver=driver, enqueued=[], built=[], refuses=False
        )

    def __getattr__(self, name: str) -> Any:
        entry = self._api.get(name)
        if entry is None:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        if "enum" in entry:
            made: Any = enum.IntEnum(name, {item: number for number, item in enumerate(entry["enum"])})
        elif "class" in entry:
            made = _gate(self, name, entry["class"])
        else:
            raise NotImplementedError(f"{name} is not faked")
        self.__dict__[name] = made
        return made


def _gate(module: FakeTensorRt, name: str, members: dict[str, Any]) -> type:
    """A class with the members of the real one: those in `_ACTS` are faked, the others are refused."""
    acts = _ACTS.get(name)
    if acts is None:
        raise NotImplementedError(f"{name} is not faked")

    def refuse(instance: object, member: str) -> Any:
        if member.startswith("_") or member in vars(acts).get("__annotations__", {}):
            raise AttributeError(member)
        if member not in members:
            raise AttributeError(f"TensorRT {module.__version__}: {name} has no {member}")
        if name == "IBuilderConfig" and members[member] == "property":
            return None  # a property that was never set
        raise NotImplementedError(f"{name}.{member} is not faked")

    def assign(instance: object, member: str, value: Any) -> None:
        if (
            not member.startswith("_")
            and type(instance).__module__ == __name__
            and members.get(member) != "property"
        ):
            raise AttributeError(f"TensorRT {module.__version__}: {name} has no property {member}")
        object.__setattr__(instance, member, value)

    body: dict[str, Any] = {
        "__getattr__": refuse,
        "__setattr__": assign,
        "__module__": __name__,
        "_trt": module,
    }
    for member, does in vars(acts).items():
        if member.startswith("__") and member not in members:
            continue
        if member.startswith("_") and not member.startswith("__"):
            body[member] = does
        elif member in members:
            body[member] = _checked(name, members[member], does) if callable(does) else does
    return type(name, (), body)


def _checked(owner: str, signatures: Any, does: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``does`` so that it can only be called as one of the signatures allows."""
    if signatures == "attribute":
        return does
    overloads = [_arguments(text) for text in signatures if "*args" not in text]

    def call(instance: object, *given: Any, **named: Any) -> Any:
        if not any(_fits(arguments, given, named) for arguments in overloads):
            raise TypeError(f"{owner}: {signatures} was called with {given} {named}")
        return does(instance, *given, **named)

    return call


def _arguments(text: str) -> list[tuple[str, str, bool]]:
    """For each argument except self: its name, its type, and whether it may be left out."""
    inside = text[text.index("(") + 1 : text.rindex(")")]
    parts = re.split(r", (?=\w+: )", inside)[1:]
    found = []
    for part in parts:
        name, _, rest = part.partition(": ")
        kind, equals, _ = rest.partition(" = ")
        found.append((name, kind, bool(equals)))
    return found


def _fits(arguments: list[tuple[str, str, bool]], given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    names = [name for name, _, _ in arguments]
    if len(given) > len(names) or not set(named) <= set(names[len(given) :]):
        return False
    values = dict(zip(names, given, strict=False)) | named
    return all(
        optional if name not in values else _is_a(values[name], kind) for name, kind, optional in arguments
    )


def _is_a(value: Any, kind: str) -> bool:
    plain = {
        "str": lambda: isinstance(value, str),
        "bool": lambda: isinstance(value, bool),
        "tuple": lambda: isinstance(value, tuple),
        "list": lambda: isinstance(value, list),
        "Dims": lambda: isinstance(value, tuple | list),
        "typing.SupportsInt": lambda: hasattr(value, "__int__") or hasattr(value, "__index__"),
        "typing_extensions.Buffer": lambda: isinstance(value, bytes | bytearray | memoryview),
    }
    if kind in plain:
        return bool(plain[kind]())
    names = {base.__name__ for base in type(value).__mro__}
    return kind.rpartition(".")[2] in names or kind.rpartition("::")[2] in names


class _LoggerActs:
    VERBOSE, INFO, WARNING, ERROR, INTERNAL_ERROR = 4, 3, 2, 1, 0

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class _RuntimeActs:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False  # type: ignore[misc]

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        trt: FakeTensorRt = self._trt  # type: ignore[attr-defined]

        def refuse(why: str) -> None:
            self._logger.log(1, why)

        try:
            plan = json.loads(serialized_engine)
        except ValueError:
            return refuse(
                "Serialization assertion magicTagRead == kMAGIC_TAG failed. Magic tag does not match"
            )
        if plan["compatible"]:
            if trt.__name__ == "tensorrt" and not self.engine_host_code_allowed:
                return refuse("Plan contains host code, which is not allowed")
        elif trt.__name__ == "tensorrt_lean":
            return refuse("Plan is not version compatible")
        elif plan["version"] != trt.__version__:
            return refuse(
                "Version mismatch: the engine plan file is not compatible with this version of TensorRT, "
                f"expecting library version {plan['version']} got {trt.__version__}"
            )
        engine = trt.ICudaEngine()
        engine._plan = plan
        return engine


class _EngineActs:
    _plan: dict[str, Any]

    @property
    def num_io_tensors(self) -> int:
        return len(self._plan["tensors"])

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan["profiles"])

    def _tensor(self, name: str) -> Any:
        return next(item for item in self._plan["tensors"] if item[0] == name)

    def get_tensor_name(self, index: int) -> str:
        return str(self._plan["tensors"][index][0])

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode[self._tensor(name)[1]]  # type: ignore[attr-defined]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[self._tensor(name)[2]]  # type: ignore[attr-defined]

    def get_tensor_shape(self, name: str) -> Any:
        return tuple(self._tensor(name)[3])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        row = self._tensor(name)[3][1:]
        return [(batch, *row) for batch in self._plan["profiles"][profile_index]]

    def create_execution_context(self) -> Any:
        context = self._trt.IExecutionContext()  # type: ignore[attr-defined]
        context._plan, context._profile, context._shape = self._plan, 0, None
        context._addresses, context._busy = {}, 0
        return context

    def create_engine_inspector(self) -> Any:
        return self._trt.EngineInspector()  # type: ignore[attr-defined]


class _ContextActs:
    _plan: dict[str, Any]
    _profile: int
    _shape: tuple[int, ...] | None
    _addresses: dict[str, int]

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile, self._shape = profile_index, None
        return 0 <= profile_index < len(self._plan["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._plan["profiles"][self._profile]
        if name != "frames" or tuple(shape[1:]) != tuple(self._plan["tensors"][0][3][1:]):
            return False
        self._shape = tuple(shape)
        return bool(least <= shape[0] <= most)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in ("frames", "features")

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._shape is None or len(self._addresses) != 2:
            return False
        trt: FakeTensorRt = self._trt  # type: ignore[attr-defined]
        count, source, target = self._shape[0], self._addresses["frames"], self._addresses["features"]
        trt.enqueued.append((id(self), stream_handle, count))

        def compute() -> None:
            size = count * int(np.prod(_ROW))
            windows = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(source))
            features = tiny_features(windows.reshape(count, *_ROW))
            ctypes.memmove(target, features.ctypes.data, features.nbytes)

        trt.driver.put(stream_handle, compute)
        profiler = self.__dict__.get("profiler")
        if profiler is not None:
            for layer, milliseconds in (("cast", 0.25), ("means", 0.75)):
                profiler.report_layer_time(layer, milliseconds)
        return True


class _InspectorActs:
    def get_engine_information(self, format: Any) -> str:
        layers = [{"Name": "cast", "LayerType": "Cast"}, {"Name": "means", "LayerType": "Reduce"}]
        return json.dumps({"Layers": layers})


class _ProfilerActs:
    def __init__(self) -> None:
        pass

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class _BuilderActs:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        network = self._trt.INetworkDefinition()  # type: ignore[attr-defined]
        network._flags, network._model = flags, None
        return network

    def create_builder_config(self) -> Any:
        config = self._trt.IBuilderConfig()  # type: ignore[attr-defined]
        config._flags, config._profiles, config._limits, config._cache = set(), [], {}, None
        return config

    def create_optimization_profile(self) -> Any:
        profile = self._trt.IOptimizationProfile()  # type: ignore[attr-defined]
        profile._shapes = {}
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt: FakeTensorRt = self._trt  # type: ignore[attr-defined]
        trt.built.append((network, config))
        strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert network._flags & strongly, "10.12 and later want strongly typed networks asked for"
        assert config._cache is not None
        config._cache._data += b"timings"
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building", step):
                    return None
            monitor.phase_finish("Building")
        if trt.refuses:
            self._logger.log(1, "Error Code 10: could not find any implementation for node {conv}")
            return None
        profiles = [[shape[0] for shape in profile._shapes["frames"]] for profile in config._profiles]
        return tiny_plan(
            version=trt.__version__,
            compatible=trt.BuilderFlag.VERSION_COMPATIBLE in config._flags,
            profiles=tuple(tuple(profile) for profile in profiles),  # type: ignore[misc]
        )


class _NetworkActs:
    _flags: int
    _model: Any

    @property
    def num_inputs(self) -> int:
        return 1

    def get_input(self, index: int) -> Any:
        return types.SimpleNamespace(name="frames", is_shape_tensor=False, shape=(-1, *_ROW), dtype="uint8")

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags & 1 << int(flag))

    def __len__(self) -> int:
        return 0

    def __getitem__(self, arg0: int) -> Any:
        raise IndexError(arg0)


class _ParserActs:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[str] = []

    def parse_from_file(self, model: str) -> bool:
        import onnx

        self._network._model = onnx.load(model)
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def set_builder_config(self, builder_config: Any) -> bool:
        return True


class _ConfigActs:
    _flags: set[Any]
    _profiles: list[Any]
    _limits: dict[Any, int]
    _cache: Any
    DLA_core = -1

    @property
    def default_device_type(self) -> Any:
        return self._trt.DeviceType.GPU  # type: ignore[attr-defined]

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._limits.get(pool, 0)

    def get_tactic_sources(self) -> int:
        return 0

    def get_preview_feature(self, feature: Any) -> bool:
        return False

    def get_quantization_flag(self, flag: Any) -> bool:
        return False

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        cache = self._trt.ITimingCache()  # type: ignore[attr-defined]
        cache._data = bytes(serialized_timing_cache)
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class _ProfileActs:
    _shapes: dict[str, Any]

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    def get_shape(self, input: str) -> Any:
        return list(self._shapes[input])

    def __bool__(self) -> bool:
        return True


class _CacheActs:
    _data: bytes

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        return True

    def serialize(self) -> Any:
        return _Buffer(self._data)


class _Buffer(bytes):
    """Bytes that are also a context manager, like TensorRT's host memory."""

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _MonitorActs:
    def __init__(self) -> None:
        pass


_ACTS: dict[str, Any] = {
    "ILogger": _LoggerActs,
    "Runtime": _RuntimeActs,
    "ICudaEngine": _EngineActs,
    "IExecutionContext": _ContextActs,
    "EngineInspector": _InspectorActs,
    "Builder": _BuilderActs,
    "INetworkDefinition": _NetworkActs,
    "OnnxParser": _ParserActs,
    "IBuilderConfig": _ConfigActs,
    "IOptimizationProfile": _ProfileActs,
    "ITimingCache": _CacheActs,
    "IProgressMonitor": _MonitorActs,
    "IProfiler": _ProfilerActs,
    "Logger": _LoggerActs,
}
