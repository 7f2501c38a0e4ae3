"""Networks that are computed on a few frames at a time: one loop in the graph, and the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exports import relative
from own_modules import own_spec
from tolerances import PARITY
from vfx_engines import EngineSpec, Input, Output, Sampling, Transform, open_engine
from vfx_engines.onnx_file import FLOAT32_NODE
from vfx_export import export_module
from vfx_export.backbones.flow_i3d import PAIRS_AT_ONCE, FlowI3D
from vfx_export.backbones.pwc import PWCNet
from vfx_export.chunks import Chunked, Chunks

PAIRS = 8


class Moving(nn.Module, Chunked):
    """What changes from each frame to the next, three pairs at a time, of which eight are no multiple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.change, self.all = Change(), Whole()

    def chunks(self, frames: int) -> Chunks:
        return Chunks((0, 3, frames - 4), 4, self.change, self.all)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return self.chunks(frames.shape[1])(frames)


class Change(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3))

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames.permute(0, 4, 1, 2, 3).float() / 255).to(self.conv.weight.dtype)
        x = torch.relu(self.conv(x))
        return (x[:, :, 1:] - x[:, :, :-1]).float().pow(2).mean((3, 4)).transpose(1, 2)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(9 * 4, 5)

    def forward(self, stacked: Tensor) -> tuple[Tensor, ...]:
        x = stacked.transpose(0, 1).flatten(1)
        return (self.line(x.to(self.line.weight.dtype)).float(),)


def moving_spec(precision: Any) -> EngineSpec:
    return replace(
        own_spec(precision),
        input=Input("frames", "frames", "uint8", ("batch", PAIRS + 1, "height", "width", 3)),
        sampling=Sampling(frames=PAIRS + 1, stride=1, step=PAIRS),
        transform=Transform(),
        outputs=(Output("features", (5,)),),
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_loop_gives_what_the_module_gives(tmp_path: Path, precision: Any) -> None:
    path = tmp_path / "moving.onnx"
    export_module(Moving().eval(), moving_spec(precision), path, float32=("line",))

    graph = onnx.load(path).graph
    marked = [node for node in graph.node if node.name.startswith(FLOAT32_NODE)]
    assert bool(marked) == (precision == "bf16")
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    kernels = [
        item for part in (graph, loop.attribute[0].g) for item in part.initializer if len(item.dims) == 5
    ]
    assert len(kernels) == 1
    pixels = np.random.default_rng(1).integers(0, 256, (3, PAIRS + 1, 20, 33, 3), np.uint8)
    with torch.no_grad():
        (want,) = Moving()(torch.from_numpy(pixels))
    for backend in ("openvino", "onnxruntime"):
        with open_engine(path, backend=backend, batch=2, sizes={"height": 20, "width": 33}) as engine:
            got = engine.run(pixels)["features"]
        assert relative(got, want.numpy()) < PARITY[precision]


def test_chunks_are_even_and_leave_no_pair_out() -> None:
    stream = FlowI3D(PWCNet())
    for pairs in range(1, 70):
        chunks = stream.chunks(pairs + 1)
        taken = [start + i for start in chunks.starts for i in range(chunks.frames - 1)]
        assert sorted(set(taken)) == [*range(pairs)]
        assert chunks.frames - 1 <= PAIRS_AT_ONCE
        assert len(taken) - pairs < len(chunks.starts)


def test_pairs_of_two_chunks_are_fed_once() -> None:
    """17 pairs are three chunks of six: the last begins with a pair of the second."""
    pairs = 17
    stream = FlowI3D(PWCNet()).eval()
    chunks = stream.chunks(pairs + 1)
    flow = torch.randn(1, pairs, 2, 224, 224) * 10
    stacked = torch.stack([flow[:, start : start + chunks.frames - 1] for start in chunks.starts])
    with torch.no_grad():
        (got,) = chunks.rest(stacked)
        (want,) = chunks.rest(flow[None])
    assert torch.equal(got, want)
