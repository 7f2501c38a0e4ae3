"""Networks whose first part is computed on a few frames at a time, in an ONNX `Loop`.

The loop needs the memory of one chunk, whatever the length of the window. torch cannot trace such a loop with
dynamic sizes, so the two parts are traced separately and joined here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vfx_engines.spec import Input

_PREFIX = "chunk/"


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a network computes a window in chunks."""

    starts: tuple[int, ...]
    """First frame of each chunk."""
    frames: int
    """Frames of a chunk; chunks may overlap."""
    part: nn.Module
    """From the frames of a chunk, ``[batch, frames, ...]``, to float32 ``[batch, ...]``, where only the batch
    may vary in size."""
    rest: nn.Module
    """From the results of all chunks, ``[chunks, batch, ...]``, to the network's outputs."""

    def __call__(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The network's outputs for a window, ``[batch, time, ...]``, computed in torch."""
        few = [frames[:, start : start + self.frames] for start in self.starts]
        outputs: tuple[Tensor, ...] = self.rest(torch.stack([self.part(chunk) for chunk in few]))
        return outputs


class Chunked(ABC):
    """Base class of networks that are computed in chunks.

    The method alone does not identify them, because a user's module may have a ``chunks`` of its own.
    """

    @abstractmethod
    def chunks(self, frames: int) -> Chunks:
        """How the network computes a window of ``frames`` frames."""


def joined(part: onnx.ModelProto, rest: onnx.ModelProto, chunks: Chunks, input_: Input) -> onnx.ModelProto:
    """Join the graphs of both parts to that of the whole network.

    Args:
        part: traced from ``chunks.part``; modified.
        rest: traced from ``chunks.rest``; modified and returned.
        chunks: how windows are cut.
        input_: the network's input.
    """
    assert not part.functions, "the exporter inlines them"
    body = onnx.compose.add_prefix(part, _PREFIX, inplace=True).graph
    (few,), (given,), (stacked,) = body.input, body.output, rest.graph.input
    index = np.array(chunks.starts)[:, None] + np.arange(chunks.frames)
    nodes = [
        helper.make_node("Gather", [_PREFIX + "index", _PREFIX + "number"], [_PREFIX + "which"], axis=0),
        helper.make_node("Gather", [input_.name, _PREFIX + "which"], [few.name], axis=1),
        *body.node,
        helper.make_node("Identity", [_PREFIX + "go"], [_PREFIX + "go_on"]),
    ]
    # Constants are in the loop's body, because ONNX Runtime convolves faster with weights of the same graph.
    constants = [*body.initializer, numpy_helper.from_array(index, _PREFIX + "index")]
    loop = helper.make_node(
        "Loop",
        [_PREFIX + "count", ""],
        [stacked.name],
        body=helper.make_graph(
            nodes,
            "chunk",
            [_scalar("number", TensorProto.INT64), _scalar("go", TensorProto.BOOL)],
            [_scalar("go_on", TensorProto.BOOL), given],
            initializer=constants,
        ),
    )
    graph = rest.graph
    graph.initializer.append(numpy_helper.from_array(np.array(len(chunks.starts)), _PREFIX + "count"))
    graph.node.insert(0, loop)
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(input_.dtype))
    whole = helper.make_tensor_value_info(input_.name, dtype, input_.shape)
    stacked.CopyFrom(whole)
    return rest


def stacked_shape(part: onnx.ModelProto, chunks: Chunks, batch: int) -> Sequence[int]:
    """Shape of the input of ``chunks.rest``, ``[chunks, batch, ...]``, from the graph of ``chunks.part``."""
    axes = part.graph.output[0].type.tensor_type.shape.dim
    return [len(chunks.starts), batch, *(axis.dim_value for axis in axes[1:])]


def _scalar(name: str, dtype: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(_PREFIX + name, dtype, ())
