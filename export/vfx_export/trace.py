"""From a torch module to an ONNX graph at opset 18, with its spec inside.

Opset 18: bilinear GridSample is renamed in 20, and TensorRT then samples nearest without a word;
LayerNormalization is native from 17.
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
    """The graph of ``module``, batch the only dynamic axis unless the spec's input names more.

    Args:
        module: as `lowered` gives it.
        example: an input of the spec's shape and dtype; two rows, since a batch of one would be baked in.
        spec: names the inputs, outputs and dynamic axes, and travels in the file.
        float32: ends of paths of submodules whose nodes are marked to stay float32 where the file runs in
            bf16; of a network that is computed in chunks, in what follows them.

    Raises:
        ExportError: torch cannot trace the module, an axis came out dynamic that the spec does not name, or
            what is to stay float32 has no nodes.
    """
    # A batch of one must do; how small other axes may be is the network's to say (`Dim.DYNAMIC`).
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
        # Not in the loop: OpenVINO does not look for marks there.
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
    """What torch's exporter makes of a module, for a model of this name."""
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
    except Exception as error:  # the exporter's errors share no base class
        # What the exporter itself says is advice to its developers; its first cause is about the module.
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
    """Put the mark into the names of the nodes that these submodules made, which torch notes on each."""
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
    """Drop what torch notes for debugging: it holds paths of this machine and changes the file's hash."""
    graph = model.graph
    model.producer_name, model.producer_version, model.doc_string, graph.doc_string = "vfx", "", "", ""
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            del item.metadata_props[:]
            item.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]


def _name_axes(model: onnx.ModelProto, spec: EngineSpec) -> None:
    """Call each axis of the input and the outputs what the spec calls it, where the tracer made up a name."""
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
    """The exporter talks on stdout, in warnings and in logs about things nobody can act on."""
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
    """Without looking for garbage: tracing keeps nearly all it makes, and the search takes 7 to 29% of it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
