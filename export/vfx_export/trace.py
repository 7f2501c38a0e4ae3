"""From a torch module to an ONNX graph of opset 18, with its spec inside.

LayerNormalization is an operator from opset 17 on. In opset 20, GridSample's bilinear mode has another name,
with which TensorRT silently samples nearest.
"""

from __future__ import annotations

import ast
import gc
import io
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from vfx_engines.errors import ExportError, reason
from vfx_engines.onnx_file import FLOAT32_NODE, embed_spec
from vfx_engines.spec import EngineSpec
from vfx_export.chunks import Chunked, joined, stacked_shape
from vfx_export.unrolling import unrolled

OPSET = 18


def trace(
    module: nn.Module, example: Tensor, spec: EngineSpec, float32: Collection[str] = ()
) -> onnx.ModelProto:
    """Trace a module. The batch is the only dynamic axis, unless the spec's input names more.

    Args:
        module: as returned by `vfx_export.lowering.lowered`.
        example: an input of the spec's shape and dtype, with two rows, because torch would make a batch of
            one a constant.
        spec: names the input, the outputs and the dynamic axes, and is embedded in the model.
        float32: ends of the paths of submodules whose nodes are marked to stay float32 where the file runs in
            bf16. In a network that is computed in chunks, only nodes after the chunks can be marked.

    Returns:
        The model, whose inputs, outputs, dtypes and axes are those of the spec.

    Raises:
        ExportError: torch cannot trace the module, an input or output does not fit the spec, or a submodule
            in ``float32`` has no nodes.
    """
    # The batch may be 1 or more. The smallest size of other axes depends on the network (`Dim.DYNAMIC`).
    dynamic: dict[int, Any] = {
        i: torch.export.Dim(axis, min=1) if i == 0 else torch.export.Dim.DYNAMIC
        for i, axis in enumerate(spec.input.shape)
        if isinstance(axis, str)
    }
    outputs = [output.name for output in spec.outputs]
    if isinstance(module, Chunked):
        chunks = module.chunks(example.shape[1])
        few = example[:, : chunks.frames]
        part = _exported(chunks.part, few, dynamic, [spec.input.name], ["given"], spec.model)
        stacked = torch.zeros(*stacked_shape(part, chunks, len(example)))
        # No marks inside the loop, because OpenVINO does not look for them there.
        rest = _exported(chunks.rest, stacked, {1: dynamic[0]}, ["stacked"], outputs, spec.model, float32)
        model = joined(part, rest, chunks, spec.input)
    else:
        model = _exported(module, example, dynamic, [spec.input.name], outputs, spec.model, float32)
    _name_axes(model, spec)
    _check_axes(model, spec)
    embed_spec(model, spec)
    onnx.checker.check_model(model)
    return model


def _exported(
    module: nn.Module,
    example: Tensor,
    dynamic: dict[int, Any],
    inputs: list[str],
    outputs: list[str],
    name: str,
    float32: Collection[str] = (),
) -> onnx.ModelProto:
    """Run torch's exporter on a module; ``name`` is the model's, for messages."""
    try:
        with _quiet(), _uncollected():
            program = torch.onnx.export(
                module,
                (example,),
                None,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=(dynamic,),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors share no narrower base class
        # The exporter's own messages are advice to its developers; the first cause is about the module.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(f"{name}: torch cannot trace it: {reason(cause)}") from error
    assert program is not None, "only the TorchScript exporter returns nothing"
    model = program.model_proto
    unrolled(model)
    _mark_float32(model, float32, name)
    _strip(model)
    return model


def _mark_float32(model: onnx.ModelProto, ends: Collection[str], name: str) -> None:
    """Mark the names of the nodes that come from these submodules; torch notes the submodule on each node."""
    marked: set[str] = set()
    for node in model.graph.node:
        notes = {item.key: item.value for item in node.metadata_props}
        scopes: list[str] = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        found = {end for end in ends for scope in scopes if f".{scope}".endswith(f".{end}")}
        marked |= found
        if found:
            node.name = FLOAT32_NODE + node.name
    for end in ends:
        if end not in marked:
            raise ExportError(f"{name}: the graph has no nodes of {end!r}, which should stay float32")


def _strip(model: onnx.ModelProto) -> None:
    """Drop torch's debugging notes, which hold paths of this machine and change the file's hash."""
    graph = model.graph
    model.producer_name, model.producer_version, model.doc_string, graph.doc_string = "vfx", "", "", ""
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            del item.metadata_props[:]
            item.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]


def _name_axes(model: onnx.ModelProto, spec: EngineSpec) -> None:
    """Replace the tracer's made-up names of axes by those of the spec, in the input and the outputs."""
    names = {
        dim.dim_param: axis
        for dim, axis in zip(model.graph.input[0].type.tensor_type.shape.dim, spec.input.shape, strict=False)
        if isinstance(axis, str)
    }
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _check_axes(model: onnx.ModelProto, spec: EngineSpec) -> None:
    named = {axis for axis in spec.input.shape if isinstance(axis, str)}
    expected: list[tuple[str, str, tuple[int | str, ...]]] = [
        (spec.input.name, spec.input.dtype, spec.input.shape)
    ]
    for output in spec.outputs:
        expected.append((output.name, output.dtype, ("batch", *output.shape)))
    values = [*model.graph.input, *model.graph.output]
    if [value.name for value in values] != [name for name, _, _ in expected]:
        raise ExportError(
            f"{spec.model}: the graph has {', '.join(value.name for value in values)}, "
            f"the spec {', '.join(name for name, _, _ in expected)}"
        )
    for value, (name, dtype, shape) in zip(values, expected, strict=True):
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        if kind != dtype:
            raise ExportError(f"{spec.model}: {name} came out as {kind}, the spec says {dtype}: cast it")
        found = tuple(
            dim.dim_param if dim.HasField("dim_param") else dim.dim_value
            for dim in value.type.tensor_type.shape.dim
        )
        if any(isinstance(axis, str) and axis not in named for axis in found) or found != shape:
            raise ExportError(
                f"{spec.model}: {name} came out as {list(found)}, the spec says {list(shape)}: "
                "name each dynamic axis in the spec's input, and fix the others in the module"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose prints, warnings and logs are about things that no user can act on."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turn off the garbage collector, which takes 7 to 29% of tracing, although nearly all objects stay."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
