"""Rounds that a network computes again and again: traced once, and unrolled in the graph.

Of 20 rounds of RAFT torch makes the same nodes as of one, in 20 times as long. So `repeated` lets only one be
traced, between two marks, and `unrolled` copies what stands between them. All rounds read the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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
        ExportError: a mark is there without its other half: rounds in rounds, or in a branch.
    """
    graph = model.graph
    while (at := _position(graph.node, _FIRST)) is not None:
        nodes = list(graph.node)
        until = _position(nodes, _LAST)
        if until is None or until < at:
            raise ExportError("a repeated round has no end in the graph: rounds cannot hold others")
        before, between, after = nodes[:at], nodes[at + 1 : until], nodes[until + 1 :]
        body = _round(between, nodes[at].output, nodes[until].input)
        rest = [node for i, node in enumerate(between) if i not in body]
        copies = list(_rounds(nodes[at], [between[i] for i in body], nodes[until]))
        del graph.node[:]
        graph.node.extend([*before, *rest, *copies, *after])
    if _position(graph.node, _LAST) is not None:
        raise ExportError("a repeated round has no beginning in the graph: rounds cannot hold others")
    for domain in [item for item in model.opset_import if item.domain == _DOMAIN]:
        model.opset_import.remove(domain)


def _position(nodes: Iterable[onnx.NodeProto], kind: str) -> int | None:
    marks = (i for i, node in enumerate(nodes) if (node.domain, node.op_type) == (_DOMAIN, kind))
    return next(marks, None)


def _round(nodes: list[onnx.NodeProto], given: Iterable[str], wanted: Iterable[str]) -> list[int]:
    """Which of the nodes between two marks change from round to round."""
    changing = set(given)
    body = []
    for i, node in enumerate(nodes):
        if changing.intersection(node.input):
            body.append(i)
            changing.update(node.output)
    return body


def _rounds(first: onnx.NodeProto, body: list[onnx.NodeProto], last: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all rounds, each with names of its own."""
    carried = list(first.input)
    for number in range(first.attribute[0].i):
        names = dict(zip(first.output, carried, strict=True))
        for node in body:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            names |= {name: f"{name}.{number}" for name in node.output if name}
            copy.name = f"{node.name}.{number}"
            for field, renamed in ((copy.input, node.input), (copy.output, node.output)):
                field[:] = [names.get(name, name) for name in renamed]
            yield copy
        carried = [names.get(name, name) for name in last.input]
    for name, result in zip(last.output, carried, strict=True):
        yield onnx.helper.make_node("Identity", [result], [name])
