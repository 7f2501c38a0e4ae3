"""A tiny engine for sound that needs no torch: the mean of a window, and the root mean square of each half.

A window has 0.1 s at 16 kHz, and the next one begins where it ends.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vfx_engines.onnx_file import embed_spec
from vfx_engines.spec import EngineSpec, Input, Output, Sampling, Transform, Weights

RATE, SAMPLES = 16_000, 1600


def sound_spec(**sampling: object) -> EngineSpec:
    """The spec; keyword arguments replace fields of its sampling."""
    settings: dict[str, object] = {"frames": SAMPLES, "stride": 1, "step": SAMPLES, "fps": float(RATE)}
    return EngineSpec(
        model="tiny_sound",
        weights=Weights("tiny", None, "Apache-2.0", "tests/tiny_sound.py"),
        precision="fp32",
        input=Input("samples", "audio", "float32", ("batch", SAMPLES), blank=(0,)),
        sampling=Sampling(**(settings | sampling)),  # type: ignore[arg-type]
        transform=Transform(),
        outputs=(Output("loudness", (3,)),),
        vfx_version="0",
    )


def sound_engine(path: Path, **sampling: object) -> Path:
    """Write the engine file."""
    spec = sound_spec(**sampling)
    nodes = [
        helper.make_node("ReduceMean", ["samples", "one"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["samples", "halves"], ["split"]),
        helper.make_node("Mul", ["split", "split"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "two"], ["power"], keepdims=0),
        helper.make_node("Sqrt", ["power"], ["rms"]),
        helper.make_node("Concat", ["mean", "rms"], ["loudness"], axis=1),
    ]
    constants = {"one": [1], "two": [2], "halves": [-1, 2, SAMPLES // 2]}
    graph = helper.make_graph(
        nodes,
        "tiny_sound",
        [helper.make_tensor_value_info("samples", TensorProto.FLOAT, spec.input.shape)],
        [helper.make_tensor_value_info("loudness", TensorProto.FLOAT, ("batch", 3))],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    embed_spec(model, spec)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def sound_features(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the engine gives for windows ``[n, 1600]``: ``[n, 3]``."""
    rms = np.sqrt((windows.reshape(-1, 2, SAMPLES // 2) ** 2).mean(2))
    return np.concatenate([windows.mean(1, keepdims=True), rms], axis=1)
