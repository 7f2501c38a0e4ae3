"""A network whose first part is computed on a few frames at a time, as an ONNX `Loop`.

Its memory is then that of one chunk, however long the window. torch cannot trace such a loop where sizes are
dynamic, so both parts are traced alone and joined here.
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
    """How a network computes a window."""

    starts: tuple[int, ...]
    """First frame of each chunk."""
    frames: int
    """Of a chunk; chunks may overlap."""
    part: nn.Module
    """From the frames of a chunk, ``[batch, frames, ...]``, to a tensor: float32 ``[batch, ...]``, its other
    axes of fixed size."""
    rest: nn.Module
    """From what all chunks gave, ``[chunks, batch, ...]``, to the network's outputs."""

    def __call__(self, frames: Tensor) -> tuple[Tensor, ...]:
        """What the network gives for a window."""
        few = [frames[:, start : start + self.frames] for start in self.starts]
        outputs: tuple[Tensor, ...] = self.rest(torch.stack([self.part(chunk) for chunk in few]))
        return outputs


class Chunked(ABC):
    """A network that is computed in chunks.

    It says so by this class and not by the method alone: a user's module may have other ``chunks``.
    """

    @abstractmethod
    def chunks(self, frames: int) -> Chunks:
        """How it computes a window of so many frames."""


def joined(part: onnx.ModelProto, rest: onnx.ModelProto, chunks: Chunks, input_: Input) -> onnx.ModelProto:
    """The graph of the whole network.

    Args:
        part: traced from ``chunks.part``; used up.
        rest: traced from ``chunks.rest``; used up and given back.
        chunks: how windows are cut.
        input_: of the network.
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
    # In the body, not around it: ONNX Runtime convolves faster with weights of the same graph.
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
    """Shape of the input of ``chunks.rest``, from the graph of ``chunks.part``."""
    axes = part.graph.output[0].type.tensor_type.shape.dim
    return [len(chunks.starts), batch, *(axis.dim_value for axis in axes[1:])]


def _scalar(name: str, dtype: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(_PREFIX + name, dtype, ())
