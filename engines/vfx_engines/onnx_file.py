"""The spec inside an ONNX file: writing it, reading it, and checking it against its graph."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vfx_engines.errors import EngineError, SpecError, reason, shown
from vfx_engines.spec import METADATA_KEY, EngineSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

FLOAT32_NODE = "float32/"
"""Prefix of the names of nodes that stay float32 where the graph runs in bf16."""

_DIGEST_KEY = "vfx_sha256"
"""Metadata key of a SHA-256 of the file. ONNX has no checksum: with a flipped bit in a weight, a file would
load and compute wrong rows."""


def embed_spec(model: ModelProto, spec: EngineSpec) -> None:
    """Replace all of a model's metadata by a spec and a SHA-256 over the whole model."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    model.metadata_props.add(key=_DIGEST_KEY, value=_digest(model))


def read_onnx_spec(path: Path) -> EngineSpec:
    """The spec of an ONNX file, after checking that the file is undamaged and its graph fits the spec.

    Raises:
        EngineError: the file is missing, not ONNX, damaged, without a spec, has the spec of another graph, or
            keeps tensors in other files.
        SpecError: the spec is malformed or newer than this vfx.
    """
    where = shown(path)
    try:
        # Backends open the path again, which a pipe does not allow; and reading a pipe may never end.
        if not path.is_dir() and path.exists() and not path.is_file():
            raise EngineError(f"{where}: no regular file, expected an engine file made by vfx-export")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or reason(error)
        raise EngineError(f"{where}: {what}; expected an engine file made by vfx-export") from None
    if not data:
        raise EngineError(f"{where}: zero bytes, expected an engine file: export it again")
    # Imported late, so that a command that only prints its help does not wait for them.
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
    digest = properties.get(_DIGEST_KEY)
    if digest is not None and not _ends_with(data, digest) and _digest(model) != digest:
        raise EngineError(
            f"{where}: damaged, or changed since it was exported: its sha256 is not the one that was "
            "written into it: export it again"
        )
    _check_graph(model, spec, where)
    _refuse_other_files(model, where)
    return spec


def _ends_with(data: bytes, digest: str) -> bool:
    """Whether a file ends with this digest, and the digest is that of everything before it.

    This is how vfx writes files, and the check is ten times as fast as serialising the model again.
    """
    from onnx import ModelProto

    if not isinstance(digest, str):  # damaged: protobuf returns bytes that are not valid text unchanged
        return False
    end = ModelProto()
    end.metadata_props.add(key=_DIGEST_KEY, value=digest)
    written = end.SerializeToString()
    return data.endswith(written) and hashlib.sha256(memoryview(data)[: -len(written)]).hexdigest() == digest


def _digest(model: ModelProto) -> str:
    """SHA-256 of a model without its digest entry, which is removed from ``model`` first."""
    for place, entry in enumerate(model.metadata_props):
        if entry.key == _DIGEST_KEY:
            del model.metadata_props[place]
            break
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _check_graph(model: ModelProto, spec: EngineSpec, where: str) -> None:
    """Refuse a graph that does not fit the spec: a backend would reshape it, or fail at the first batch."""
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


def _refuse_other_files(model: ModelProto, where: str) -> None:
    """Refuse external tensors: backends follow their paths anywhere and take what they find for weights."""
    from onnx import TensorProto

    graphs: list[GraphProto] = [model.graph]
    tensors: list[TensorProto] = []
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            tensors += graph.initializer
            tensors += [
                part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices)
            ]
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise EngineError(
                f"{where}: its weights lie in another file, which vfx-export never does: export it again"
            )


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
