"""From rows to a request, and from a response to rows: what both of Triton's clients have in common."""

from __future__ import annotations

from typing import Any

from vfx_engines.engine import Array
from vfx_engines.errors import EngineError, reason
from vfx_engines.spec import EngineSpec
from vfx_engines.triton.address import ServerAddress

DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float16": "FP16", "float32": "FP32"}
"""A spec's dtypes to those of the protocol. A model's configuration puts ``TYPE_`` before them."""


def as_input(kind: Any, spec: EngineSpec, rows: Array) -> Any:
    """``rows`` as an ``InferInput``, copied; ``kind`` is that class of the gRPC or the HTTP client."""
    made = kind(spec.input.name, list(rows.shape), DATATYPES[spec.input.dtype])
    made.set_data_from_numpy(rows)
    return made


def requested(kind: Any, spec: EngineSpec) -> list[Any]:
    """The spec's outputs as ``InferRequestedOutput``; ``kind`` is that class of one of the clients."""
    return [kind(output.name) for output in spec.outputs]


def read_outputs(result: Any, spec: EngineSpec, address: ServerAddress) -> list[Array]:
    """The arrays of an ``InferResult``, in the order of the spec's outputs.

    Raises:
        EngineError: an output is missing, or its bytes do not fit its shape.
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
