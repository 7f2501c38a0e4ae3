"""A tiny engine for pairs of frames of any size: the change of red and green from one frame to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vfx_engines.onnx_file import embed_spec
from vfx_engines.spec import EngineSpec, Input, Output, Sampling, Transform, Weights

PAIRS = 2


def tiny_flow_spec(transform: Transform | None = None, smallest_side: int = 1) -> EngineSpec:
    return EngineSpec(
        model="tiny_flow",
        weights=Weights("tiny", None, "Apache-2.0", "tests/tiny_flow.py"),
        precision="fp32",
        input=Input(
            "frames",
            "frames",
            "uint8",
            ("batch", PAIRS + 1, "height", "width", 3),
            smallest_side=smallest_side,
        ),
        sampling=Sampling(frames=PAIRS + 1, stride=1, step=PAIRS, edges="repeat"),
        transform=transform or Transform(),
        outputs=(Output("flow", (PAIRS, 2, "height", "width"), per="pair"),),
        vfx_version="0",
    )


def tiny_flow_engine(path: Path, transform: Transform | None = None, smallest_side: int = 1) -> Path:
    """Write the engine file."""
    spec = tiny_flow_spec(transform, smallest_side)
    constants = {"zero": [0], "one": [1], "last": [PAIRS], "end": [PAIRS + 1], "time": [1], "colour": [4]}
    constants |= {"two": [2]}
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["float", "one", "end", "time"], ["later"]),
        helper.make_node("Slice", ["float", "zero", "last", "time"], ["earlier"]),
        helper.make_node("Sub", ["later", "earlier"], ["change"]),
        helper.make_node("Slice", ["change", "zero", "two", "colour"], ["two_colours"]),
        helper.make_node("Transpose", ["two_colours"], ["flow"], perm=[0, 1, 4, 2, 3]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_flow",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, spec.input.shape)],
        [helper.make_tensor_value_info("flow", TensorProto.FLOAT, ("batch", *spec.outputs[0].shape))],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    embed_spec(model, spec)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def tiny_flow(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the engine gives for a video.

    Args:
        frames: uint8 ``[n, height, width, 3]``.

    Returns:
        float32 ``[n - 1, 2, height, width]``.
    """
    change = np.diff(frames.astype(np.float32), axis=0)[..., :2]
    return np.ascontiguousarray(change.transpose(0, 3, 1, 2))
