"""Rounds that are traced once: as many in the graph as the module makes, on one copy of the weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exports import relative
from own_modules import FRAMES, SIZE, own_spec
from tolerances import PARITY
from vfx_engines import EngineSpec, ExportError, Output, open_engine
from vfx_engines.onnx_file import FLOAT32_NODE
from vfx_export import export_module
from vfx_export.unrolling import repeated


class Rounds(nn.Module):
    """Two tensors that change in each round, one that does not, and rounds after rounds."""

    def __init__(self, times: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.times = times
        self.begin, self.step, self.end = nn.Linear(3, 8), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames.float() / 255).mean((1, 2, 3)).to(self.begin.weight.dtype)
        context = torch.relu(self.begin(x))

        def round_(h: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.step(torch.cat([h, context.square()], 1)))
            return h, total + h.float().abs()

        h, total = repeated(self.times, round_, (context, torch.zeros_like(context, dtype=torch.float32)))
        # Carried tensors that trade places, and one that a round leaves as it is.
        total, h, _ = repeated(3, lambda a, b, c: (b, a, c), (total, h.float(), context))
        y: Tensor = self.end((total + h).to(self.end.weight.dtype))
        return y.float()


class Nested(Rounds):
    def forward(self, frames: Tensor) -> Tensor:
        x = frames.float().mean((1, 2, 3))[:, :1].expand(-1, 4)
        (x,) = repeated(2, lambda x: repeated(2, lambda y: (y + 1,), (2 * x,)), (x,))
        return x


def rounds_spec(precision: Any = "fp32") -> EngineSpec:
    return replace(own_spec(precision), outputs=(Output("features", (4,)),))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("times", [1, 5])
def test_the_graph_has_all_rounds_and_the_weights_once(tmp_path: Path, times: int, precision: Any) -> None:
    path = tmp_path / "rounds.onnx"
    module = Rounds(times).eval()
    export_module(module, rounds_spec(precision), path, float32=("step",))

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Tanh"] == times
    assert kinds["Relu"] == 1
    marked = [node for node in model.graph.node if node.name.startswith(FLOAT32_NODE)]
    assert len(marked) == (times if precision == "bf16" else 0)
    assert kinds["Mul"] + kinds["Pow"] == 1, "what no round changes is computed once"
    weights = [item for item in model.graph.initializer if list(item.dims) in ([8, 16], [16, 8])]
    assert len(weights) == 1
    assert {item.domain for item in model.opset_import} == {""}

    frames = np.random.default_rng(0).integers(0, 256, (3, FRAMES, SIZE, SIZE, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(frames)).numpy()
    for backend in ("openvino", "onnxruntime"):
        with open_engine(path, backend=backend, batch=2) as engine:
            assert relative(engine.run(frames)["features"], want) < PARITY[precision]


def test_rounds_in_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="rounds cannot hold others"):
        export_module(Nested(1).eval(), rounds_spec(), tmp_path / "nested.onnx")
    assert not list(tmp_path.iterdir())
