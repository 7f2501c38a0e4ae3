"""Rounds that a network repeats: traced once, and unrolled in the graph.

Tracing 20 rounds of RAFT takes 20 times as long as one, for the same nodes 20 times. So `repeated` has one
round traced, between two marks, and `unrolled` makes copies of what is between the marks. All copies share
the weights.
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
"""What one round hands to the next. Shapes and dtypes are the same in every round."""


def repeated(times: int, round_: Callable[..., Carried], start: Carried) -> Carried:
    """Apply a round several times. A graph traced from this must then go through `unrolled`.

    Args:
        times: number of rounds, 1 or more.
        round_: from what the last round handed on to what this one hands on; it must not call `repeated`.
        start: what the first round takes.

    Returns:
        What the last round hands on.
    """
    if torch.compiler.is_exporting():
        return _marked(_LAST, round_(*_marked(_FIRST, start, times)), times)
    for _ in range(times):
        start = round_(*start)
    return start


def _marked(kind: str, tensors: Carried, times: int) -> Carried:
    """The same tensors, passed through a marking node of that kind in the graph."""
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
    """Replace each marked round in the model's graph by its copies, in place.

    Raises:
        ExportError: a marked round contains another one.
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
    """The nodes of a graph after unrolling the first of its marked rounds.

    Each copy has names of its own. Nodes of a round that do not depend on what it takes are not copied.
    """
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
