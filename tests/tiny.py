"""A tiny engine that needs no torch: four numbers per window of four 16x16 frames.

Its features are the means of red, green and blue over the window, and the mean of all colours over the first
frame; `tiny_features` computes them with plain NumPy. ``python tests/tiny.py FOLDER`` writes tiny.onnx and
tiny.mp4.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vfx_engines.onnx_file import embed_spec
from vfx_engines.spec import (
    Crop,
    EngineSpec,
    Input,
    Output,
    Resize,
    Sampling,
    Transform,
    Weights,
)

FRAMES, SIZE = 4, 16


def tiny_spec(labels: bool = False, **sampling: object) -> EngineSpec:
    """The spec; keyword arguments replace fields of its sampling."""
    settings: dict[str, object] = {"frames": FRAMES, "stride": 1, "step": FRAMES} | sampling
    outputs: tuple[Output, ...] = (Output("features", (4,)),)
    if labels:
        names = ("red", "green", "blue", "grey", "other")
        outputs = (*outputs, Output("logits", (5,), kind="logits", labels=names))
    return EngineSpec(
        model="tiny",
        weights=Weights("tiny", None, "Apache-2.0", "tests/tiny.py"),
        precision="fp32",
        input=Input("frames", "frames", "uint8", ("batch", FRAMES, SIZE, SIZE, 3)),
        sampling=Sampling(**settings),  # type: ignore[arg-type]
        transform=Transform(Resize("short_side", 20, 20), Crop(SIZE, SIZE)),
        outputs=outputs,
        vfx_version="0",
    )


def tiny_engine(path: Path, labels: bool = False, **sampling: object) -> Path:
    """Write the engine file."""
    spec = tiny_spec(labels, **sampling)
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "all_but_colour"], ["colours"], keepdims=0),
        helper.make_node("Slice", ["float", "zero", "one", "one"], ["first"]),
        helper.make_node("ReduceMean", ["first", "all"], ["grey"], keepdims=0),
        helper.make_node("Unsqueeze", ["grey", "one"], ["grey_column"]),
        helper.make_node("Concat", ["colours", "grey_column"], ["features"], axis=1),
    ]
    constants = {"all_but_colour": [1, 2, 3], "all": [1, 2, 3, 4], "zero": [0], "one": [1]}
    if labels:
        constants["pad"] = [0, 0, 0, 1]
        nodes.append(helper.make_node("Pad", ["features", "pad"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, spec.input.shape)],
        [
            helper.make_tensor_value_info(item.name, TensorProto.FLOAT, ("batch", *item.shape))
            for item in spec.outputs
        ],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    embed_spec(model, spec)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def other_engine(path: Path, *, transform: Transform | None = None, **sampling: object) -> Path:
    """Write the tiny engine with its output called ``other``, and another transform if one is given."""
    tiny_engine(path)
    model = onnx.load(path)
    spec = tiny_spec(**sampling)
    output = replace(spec.outputs[0], name="other")
    spec = replace(spec, outputs=(output,), model="other", transform=transform or spec.transform)
    for node in model.graph.node:
        node.output[:] = ["other" if name == "features" else name for name in node.output]
    model.graph.output[0].name = "other"
    embed_spec(model, spec)
    onnx.save(model, path)
    return path


def tiny_features(windows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the engine gives for uint8 ``[n, 4, 16, 16, 3]``: float32 ``[n, 4]``."""
    colours = windows.mean((1, 2, 3))
    grey = windows[:, 0].mean((1, 2, 3))
    return np.concatenate([colours, grey[:, None]], axis=1).astype(np.float32)


if __name__ == "__main__":
    from make_video import make_video

    folder = Path(sys.argv[1])
    tiny_engine(folder / "tiny.onnx")
    make_video(folder / "tiny.mp4", frames=12)
