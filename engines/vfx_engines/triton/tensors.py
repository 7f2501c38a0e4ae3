"""Rows to a request and a response to rows: what both of Triton's clients have in common."""

from __future__ import annotations

from typing import Any

from vfx_engines.engine import Array
from vfx_engines.errors import EngineError, reason
from vfx_engines.spec import EngineSpec
from vfx_engines.triton.address import ServerAddress

DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float16": "FP16", "float32": "FP32"}
"""Of a spec, to those of the protocol; in a model's configuration they begin with ``TYPE_``."""


def as_input(kind: Any, spec: EngineSpec, rows: Array) -> Any:
    """``rows`` as an ``InferInput`` of one of the clients, copied."""
    made = kind(spec.input.name, list(rows.shape), DATATYPES[spec.input.dtype])
    made.set_data_from_numpy(rows)
    return made


def requested(kind: Any, spec: EngineSpec) -> list[Any]:
    """The spec's outputs as ``InferRequestedOutput`` of one of the clients."""
    return [kind(output.name) for output in spec.outputs]


def read_outputs(result: Any, spec: EngineSpec, address: ServerAddress) -> list[Array]:
    """The spec's outputs of an ``InferResult``.

    Raises:
        EngineError: one is missing, or has fewer bytes than its shape.
    """
    found = []
    for output in spec.outputs:
        try:
            array = result.as_numpy(output.name)
        except ValueError as error:
            raise EngineError(f"{address}: output {output.name} is damaged: {reason(error)}") from None
        if array is None:
            raise EngineError(f"{address}: the answer has no output {output.name}: export the model again")
        found.append(array)
    return found
