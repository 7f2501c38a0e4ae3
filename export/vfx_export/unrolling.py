"""Rounds that a network computes again and again: traced once, and unrolled in the graph.

Of 20 rounds of RAFT torch makes the same nodes as of one, in 20 times as long. So `repeated` lets only one be
traced, between two marks, and `unrolled` copies what stands between them. All rounds read the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx
import torch
from torch import Tensor
from torch.onnx.ops import symbolic_multi_out

from vfx_engines.errors import ExportError

_DOMAIN = "vfx"
_FIRST, _LAST = "FirstOfRound", "LastOfRound"

Carried = tuple[Tensor, ...]
"""What a round takes from the one before, of the same shapes and dtypes as it gives."""


def repeated(times: int, round_: Callable[..., Carried], start: Carried) -> Carried:
    """What ``times`` rounds make of ``start``; a graph must go through `unrolled` after it was traced.

    Args:
        times: one or more.
        round_: from what is carried to what is carried; rounds do not hold others.
        start: for the first round.
    """
    if torch.compiler.is_exporting():
        return _marked(_LAST, round_(*_marked(_FIRST, start, times)), times)
    for _ in range(times):
        start = round_(*start)
    return start


def _marked(kind: str, tensors: Carried, times: int) -> Carried:
    """The same tensors, behind a node of that kind in the graph."""
    marked = symbolic_multi_out(
        f"{_DOMAIN}::{kind}",
        tensors,
        {"times": times},
        dtypes=[x.dtype for x in tensors],
        shapes=[x.shape for x in tensors],
        version=1,
    )
    return tuple(marked)


def unrolled(model: onnx.ModelProto) -> None:
    """Put copies of each marked round into the graph, where there are any.

    Raises:
        ExportError: rounds hold others.
    """
    graph = model.graph
    results = [value.name for value in graph.output]
    while any(map(_is_mark, graph.node)):
        nodes = _without_first_mark(list(graph.node), results)
        del graph.node[:]
        graph.node.extend(nodes)
    for domain in [item for item in model.opset_import if item.domain == _DOMAIN]:
        model.opset_import.remove(domain)


def _is_mark(node: onnx.NodeProto) -> bool:
    return node.domain == _DOMAIN


def _without_first_mark(nodes: list[onnx.NodeProto], results: list[str]) -> list[onnx.NodeProto]:
    """The nodes of a graph with the first of its repeated rounds copied, each copy with names of its own."""
    begin, end = [i for i, node in enumerate(nodes) if _is_mark(node)][:2]
    first, last = nodes[begin], nodes[end]
    if (first.op_type, last.op_type) != (_FIRST, _LAST):
        raise ExportError("repeated rounds cannot hold others")
    changing, body, made = set(first.output), [], nodes[:begin]
    for node in nodes[begin + 1 : end]:
        if changing.isdisjoint(node.input):
            made.append(node)
        else:
            changing.update(node.output)
            body.append(node)
    carried: Iterable[str] = first.input
    names: dict[str, str] = {}
    for number in range(first.attribute[0].i):
        names = dict(zip(first.output, carried, strict=True))
        for node in body:
            names |= {name: f"{name}.{number}" for name in node.output if name}
            made.append(_renamed(node, names))
        carried = [names.get(name, name) for name in last.input]
    names |= zip(last.output, carried, strict=True)
    made += [_renamed(node, names) for node in nodes[end + 1 :]]
    return made + [
        onnx.helper.make_node("Identity", [names[name]], [name]) for name in results if name in names
    ]


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    copy.name = copy.output[0]
    return copy
