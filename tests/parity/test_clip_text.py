"""CLIP's text encoders against the public formula with PyTorch's own attention: same weights, same ids."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import heavy, relative
from parity_kit import kit
from tolerances import CLIP_TEXT
from vfx_engines import open_engine, read_spec

torch = pytest.importorskip("torch")

from clip_texts import LAYERS, small_archive, small_clip, small_state, text_features, vocabulary_file
from torchscript_files import save_torchscript
from vfx_export.catalogue import CATALOGUE, find
from vfx_export.model import Download, Model
from vfx_export.text_exporting import export_text_encoder

KITS = {
    "clip_rn50": "clip_RN50",
    "clip_rn101": "clip_RN101",
    "clip_rn50x4": "clip_RN50x4",
    "clip_vit_b_32": "clip_ViT-B_32",
    "clip_vit_b_16": "clip_ViT-B_16",
}
NONE = Download("https://localhost/none")
# Of the whole model, less the visual part: of the public models by their own code.
TEXT_KEYS = 150


@cache
def ids() -> Any:
    """Texts of one word, of some, and as long as they may be; start is 49406, end 49407."""
    rng = np.random.default_rng(4)
    rows = np.zeros((5, 77), np.int32)
    for row, words in zip(rows, (1, 4, 7, 30, 75), strict=True):
        row[: words + 2] = [49406, *rng.integers(0, 49406, words), 49407]
    return rows


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocabulary and the small archive."""
    folder = tmp_path_factory.mktemp("clip_text")
    vocabulary_file(folder / "merges.txt.gz")
    small_archive(folder / "small.pt")
    return folder


def export(model: Model, folder: Path, checkpoint: str, precision: Any) -> Path:
    path = folder / f"{model.name}_{precision}.onnx"
    if not path.exists():
        export_text_encoder(
            model,
            path,
            checkpoint=folder / checkpoint,
            vocabulary=folder / "merges.txt.gz",
            precision=precision,
        )
    return path


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_small_encoder_gives_the_numbers_of_the_formula(
    material: Path, precision: str, backend: Any
) -> None:
    path = export(small_clip("small", NONE, NONE), material, "small.pt", precision)
    want = text_features(small_state(), torch.from_numpy(ids()), LAYERS).numpy()
    with open_engine(path, backend=backend, batch=3) as engine:
        got = engine.run(ids())["text"]
    assert relative(got, want) < CLIP_TEXT[precision]


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        heavy("fp32", "openvino"),
        heavy("fp32", "onnxruntime"),
        heavy("fp16", "openvino"),
        heavy("bf16", "openvino"),
    ],
)
def test_the_kits_weights_give_the_numbers_of_the_formula(
    material: Path, precision: str, backend: Any
) -> None:
    golden = kit("clip_ViT-B_32").checkpoint()
    state = {key: torch.from_numpy(np.array(value)) for key, value in golden.items()}
    if not (material / "kit.pt").exists():
        save_torchscript(state, material / "kit.pt")
    path = export(find("clip_vit_b_32"), material, "kit.pt", precision)
    want = text_features(state, torch.from_numpy(ids()), 12).numpy()
    with open_engine(path, backend=backend, batch=5) as engine:
        got = engine.run(ids())["text"]
    assert relative(got, want) < CLIP_TEXT[precision]


def test_the_graph_has_no_scatter_and_the_spec_says_what_a_run_needs(material: Path) -> None:
    import onnx

    path = export(small_clip("small", NONE, NONE), material, "small.pt", "fp32")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert not {name for name in operators if name.startswith("Scatter")} | operators & {"Where", "Range"}
    spec = read_spec(path)
    assert (spec.model, spec.input.shape, spec.outputs[0].shape) == ("small_text", ("batch", 77), (24,))
    assert spec.text is not None
    assert spec.text.images == "small"
    assert spec.text.scale == pytest.approx(100.0)
    assert len(spec.text.merges.split("\n")) == 48894


@pytest.mark.parametrize("name", [model.name for model in CATALOGUE if model.text])
def test_every_encoder_has_the_keys_of_its_public_checkpoint(name: str) -> None:
    from vfx_export.fitting import key_shapes

    row = find(name)
    assert row.text is not None
    with torch.device("meta"):
        shapes = key_shapes(row.text.network())
    assert len(shapes) == TEXT_KEYS
    if name in KITS:
        public = kit(KITS[name]).spec["keys"]
        assert shapes == {key: tuple(shape) for key, shape in public.items() if not key.startswith("visual.")}
