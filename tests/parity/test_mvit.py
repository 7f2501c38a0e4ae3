"""MViT and Rev-MViT against PySlowFast's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import Exports, heavy, heavy_in_ci, relative
from parity_kit import kit
from tolerances import PARITY, seed_parity
from vfx_engines import open_engine

KITS = {
    "mvit_b_16x4": "MVIT_B_16x4_CONV",
    "mvit_b_32x3": "MVIT_B_32x3_CONV",
    "mvitv2_s_16x4": "MVITv2_S_16x4",
    "mvitv2_b_32x3": "MVITv2_B_32x3",
    "mvitv2_l_40x3": "MVITv2_L_40x3",
    "rev_mvit_b_16x4": "REV_MVIT_B_16x4_CONV",
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("torch")
    return Exports(tmp_path_factory.mktemp("mvit"), KITS)


# CI has one with relative positions and one of two streams; an export takes most of a minute.
MATRIX = [
    heavy_in_ci("mvitv2_s_16x4", "fp32", "openvino"),
    heavy_in_ci("rev_mvit_b_16x4", "bf16", "openvino"),
    *(
        heavy(name, precision, backend)
        for name in KITS
        for precision, backend in (
            ("fp32", "openvino"),
            ("fp32", "onnxruntime"),
            ("fp16", "openvino"),
            ("fp16", "onnxruntime"),
            ("bf16", "openvino"),
        )
        if (name, precision, backend)
        not in {("mvitv2_s_16x4", "fp32", "openvino"), ("rev_mvit_b_16x4", "bf16", "openvino")}
    ),
]


@pytest.mark.parametrize(("name", "precision", "backend"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    exports: Exports, name: str, precision: str, backend: Any
) -> None:
    golden = kit(KITS[name])
    with open_engine(exports(name, precision), backend=backend) as engine:
        got = engine.run(golden.images())
    allowed = seed_parity(precision, golden.spec["input_seed_difference"])
    for output in ("features", "logits"):
        assert relative(got[output], golden.pixels[f"main.{output}"]) < allowed


@pytest.mark.slow
def test_other_weights_and_batches_agree_with_torch(exports: Exports, tmp_path: Path) -> None:
    """fp16, weights of another seed, and a batch of another size than was traced."""
    import torch

    from vfx_export.catalogue import find

    path = tmp_path / "other.onnx"
    exports.export(path, "mvitv2_s_16x4", "fp16", seed=7)
    module = find("mvitv2_s_16x4").network(True).eval()
    module.load_state_dict(exports.state("mvitv2_s_16x4", 7))
    frames = np.random.default_rng(3).integers(0, 256, (1, 16, 224, 224, 3), np.uint8)
    with torch.no_grad():
        want = module(torch.from_numpy(frames))
    with open_engine(path) as engine:
        got = engine.run(frames)
    for output, tensor in zip(("features", "logits"), want, strict=True):
        assert relative(got[output], tensor.numpy()) < PARITY["fp16"]


def test_graph_has_no_operators_that_move_without_need(exports: Exports) -> None:
    import onnx

    graph = onnx.load(exports("mvitv2_s_16x4", "fp32")).graph
    found = Counter(node.op_type for node in graph.node)
    for operator in (
        "ScatterND",
        "ScatterElements",
        "GatherND",
        "Shape",
        "Expand",
        "Einsum",
        "Resize",
        "Where",
    ):
        assert operator not in found
    assert found["Softmax"] == 31  # the last block has the class token's alone


@pytest.mark.parametrize(
    "build",
    [
        {"depth": 16, "pooled": (1, 3, 14), "kernel": (3, 3, 3)},
        {"depth": 16, "pooled": (1, 3, 14), "kernel": None},
        {"depth": 24, "pooled": (2, 5, 21), "kernel": (3, 3, 3)},
        {"depth": 24, "pooled": (2, 5, 21), "kernel": None},
    ],
    ids=lambda build: f"{build['depth']}-{build['kernel']}",
)
def test_structure_of_version_1_is_that_of_its_file(build: dict[str, Any]) -> None:
    """Published files are said to differ from their configs in depth, kernels and missing pools."""
    torch = pytest.importorskip("torch")
    from vfx_export.backbones.mvit import MViT
    from vfx_export.backbones.mvit_plan import from_shapes, published
    from vfx_export.fitting import key_shapes

    blocks = published(patches=(16, 56, 56), width=96, head_width=96, in_attention=False, **build)
    with torch.device("meta"):
        shapes = key_shapes(MViT(blocks, (0, 0, 0), (1, 1, 1), relative=False))
    found = from_shapes(shapes, (16, 56, 56))
    assert found is not None
    with torch.device("meta"):
        assert key_shapes(MViT(found, (0, 0, 0), (1, 1, 1), relative=False)) == shapes
    assert [block.key_stride for block in found] == [block.key_stride for block in blocks]
    assert [block.queries for block in found] == [block.queries for block in blocks]


def test_version_1_loads_a_file_whose_last_blocks_have_no_key_pools(exports: Exports, tmp_path: Path) -> None:
    import torch

    from vfx_engines.errors import CheckpointError
    from vfx_export.catalogue import find
    from vfx_export.exporting import _load

    state = exports.state("mvit_b_16x4")
    pools = [f"blocks.{i}.attn.{kind}_{of}" for i in (14, 15) for kind in ("pool", "norm") for of in "kv"]
    fewer = {key: value for key, value in state.items() if not key.startswith(tuple(pools))}
    assert len(fewer) == len(state) - 12
    torch.save({"model_state": fewer}, tmp_path / "june.pyth")
    module, _ = _load(find("mvit_b_16x4"), False, [tmp_path / "june.pyth"])
    assert set(module.state_dict()) == set(fewer)
    del fewer["blocks.3.attn.pool_k.weight"]
    torch.save(fewer, tmp_path / "damaged.pyth")
    with pytest.raises(CheckpointError, match="does not fit mvit_b_16x4: 13 missing"):
        _load(find("mvit_b_16x4"), False, [tmp_path / "damaged.pyth"])


def test_every_row_has_the_keys_of_its_published_file() -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.fitting import key_shapes

    for name, kit_name in KITS.items():
        with torch.device("meta"):
            found = key_shapes(find(name).network(False))
        assert found == {key: tuple(shape) for key, shape in kit(kit_name).spec["keys"].items()}
