"""What a server says about a model: its versions, its tensors, and the spec that vfx-export gave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vfx_engines.errors import EngineError, SpecError, reason
from vfx_engines.spec import EngineSpec
from vfx_engines.triton.address import ServerAddress
from vfx_engines.triton.server import Patience, Server
from vfx_engines.triton.tensors import DATATYPES

_Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor's name to data type and dimensions, as in a model's configuration."""


def spec_parameter(version: str | int) -> str:
    """Key of the model parameter that holds the spec of a version.

    Each version has its own, because configuration and model files cannot be replaced at the same moment, and
    the spec of another model would give wrong rows.
    """
    return f"vfx_{version}"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version of a model that a server has ready."""

    spec: EngineSpec
    """Spec of the engine file; its named axes have no size yet."""
    version: str
    most: int
    """Largest number of rows in a request."""
    server: str
    """Name and version of the server."""


def read_served(address: ServerAddress, server: Server, patient: Patience) -> ServedModel:
    """Ask a server about a model.

    Args:
        address: address of the model; its newest ready version is taken if the address names none.
        server: connection to that server.
        patient: retries each question.

    Raises:
        EngineError: the server is away or not ready, has no such model, or one that vfx did not make or whose
            tensors differ from its spec.
        SpecError: the spec is malformed or newer than this vfx.
    """
    patient(lambda: server.ask("ready"))
    who = patient(lambda: server.ask("server"))
    model = patient(lambda: server.ask("model", address.version))
    version = address.version or _newest(model)
    if version is None:
        raise EngineError(f"{address}: the server has no version of this model ready: see its log")
    config = patient(lambda: server.ask("config", version))
    try:
        spec = _spec(config, version)
        most = int(config.get("max_batch_size", 0))
        served = _tensors(config["input"]), _tensors(config["output"])
    except SpecError as error:
        raise SpecError(f"{address}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"{address}: its model configuration cannot be read ({reason(repr(error))}): is this Triton?"
        ) from None
    if spec is None:
        raise EngineError(
            f"{address}: version {version} has no vfx spec in its parameters: it was not exported with "
            "vfx-export --triton"
        )
    wanted = (
        {spec.input.name: (f"TYPE_{DATATYPES[spec.input.dtype]}", dimensions(spec.input.shape[1:]))},
        {
            output.name: (f"TYPE_{DATATYPES[output.dtype]}", dimensions(output.shape))
            for output in spec.outputs
        },
    )
    if served != wanted:
        (takes, gives), (reads, writes) = map(_listed, served), map(_listed, wanted)
        raise EngineError(
            f"{address}: the server's model takes {takes} and gives {gives}, its spec says {reads} and "
            f"{writes}: export it with vfx-export --triton again"
        )
    if most < 1:
        raise EngineError(f"{address}: max_batch_size is {most}, expected 1 or more: export the model again")
    return ServedModel(spec, version, most, f"Triton {who.get('version', '')}".strip())


def dimensions(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    """Dimensions of a tensor as in a model's configuration: -1 where the size may vary."""
    return tuple(axis if isinstance(axis, int) else -1 for axis in shape)


def _newest(model: dict[str, Any]) -> str | None:
    versions = model.get("versions")
    numbers = [int(item) for item in versions if str(item).isdecimal()] if isinstance(versions, list) else []
    return str(max(numbers)) if numbers else None


def _spec(config: dict[str, Any], version: str) -> EngineSpec | None:
    found = config.get("parameters", {}).get(spec_parameter(version))
    return None if found is None else EngineSpec.from_json(found["string_value"])


def _tensors(listed: list[dict[str, Any]]) -> _Tensors:
    return {
        # In gRPC's JSON, sizes are text, because JSON's numbers only have 53 bits.
        item["name"]: (item["data_type"], tuple(int(size) for size in item.get("dims", ())))
        for item in listed
    }


def _listed(tensors: _Tensors) -> str:
    return ", ".join(f"{name} {kind} {list(sizes)}" for name, (kind, sizes) in tensors.items())
