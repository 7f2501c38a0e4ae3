"""OpenAI's CLIP image encoders against their own code: same archive, same pixels, same numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import heavy
from parity_kit import e2e, kit, video
from tolerances import CLIP_END_TO_END, TIMESTAMP_MS, seed_parity
from vfx_engines import open_engine
from vfx_engines.spec import EngineSpec, Input, Output, Sampling, Transform, Weights
from vfx_runtime import extract

torch = pytest.importorskip("torch")

KITS = {
    "clip_rn50": "clip_RN50",
    "clip_rn101": "clip_RN101",
    "clip_rn50x4": "clip_RN50x4",
    "clip_vit_b_32": "clip_ViT-B_32",
    "clip_vit_b_16": "clip_ViT-B_16",
}
# By default a ResNet on both backends; the other precision, and what each does to a ViT, is CI's.
QUICK = {("clip_rn50", "fp16"), ("clip_rn50", "bf16")}
MATRIX = [
    *(
        (name, precision, backend) if (name, precision) in QUICK else heavy(name, precision, backend)
        for name in ("clip_rn50", "clip_vit_b_32")
        for precision in ("fp32", "fp16", "bf16")
        for backend in ("openvino", "onnxruntime")
    ),
    heavy("clip_rn101", "fp32", "onnxruntime"),
    heavy("clip_rn101", "fp16", "onnxruntime"),
    *(
        heavy(name, precision, "openvino")
        for name in ("clip_rn101", "clip_rn50x4")
        for precision in ("fp32", "fp16")
    ),
    *(heavy("clip_vit_b_16", precision, "openvino") for precision in ("fp32", "fp16", "bf16")),
]
# Of the visual part, without batch norm's counters: of the public models by their own code.
KEYS = {
    "clip_rn50": 339 - 55,
    "clip_rn101": 645 - 106,
    "clip_rn50x4": 519 - 85,
    "clip_rn50x16": 771 - 127,
    "clip_rn50x64": 1203 - 199,
    "clip_vit_b_32": 152,
    "clip_vit_b_16": 152,
    "clip_vit_l_14": 296,
    "clip_vit_l_14_336px": 296,
}


def relative(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def archive(name: str, path: Path) -> None:
    """The kit's checkpoint as OpenAI publishes it, of the text encoder only what is small."""
    from torchscript_files import save_torchscript

    golden = kit(KITS[name])
    keys = {
        key: shape
        for key, shape in golden.spec["keys"].items()
        if key.startswith(("visual.", "ln_final.")) or "." not in key
    }
    state = dataclasses.replace(golden, spec={**golden.spec, "keys": keys}).checkpoint()
    scalars = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    save_torchscript(tensors | {key: torch.tensor(value) for key, value in scalars.items()}, path)


@pytest.fixture(scope="module")
def clip_engines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`engines(name, precision)` is the path of that export, made when it is first asked for."""
    from vfx_export.catalogue import find
    from vfx_export.exporting import export_model

    folder = tmp_path_factory.mktemp("clip")

    def engine(name: str, precision: Any) -> Path:
        path, checkpoint = folder / f"{name}_{precision}.onnx", folder / f"{name}.pt"
        if not checkpoint.exists():
            archive(name, checkpoint)
        if not path.exists():
            export_model(find(name), path, checkpoint=checkpoint, precision=precision)
        return path

    return engine


@pytest.mark.parametrize(("name", "precision", "backend"), MATRIX)
def test_exported_engine_gives_the_golden_numbers(
    clip_engines: Any, name: str, precision: str, backend: Any
) -> None:
    golden = kit(KITS[name])
    with open_engine(clip_engines(name, precision), backend=backend) as engine:
        got = engine.run(golden.images())
    error = relative(got["clip"], golden.pixels["main.features"])
    assert error < seed_parity(precision, golden.spec["input_seed_difference"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_other_sizes_and_weights_agree_with_torch(tmp_path: Path, kind: str, precision: Any) -> None:
    from vfx_export.backbones.clip_resnet import CLIPResNet
    from vfx_export.backbones.clip_vit import CLIPViT
    from vfx_export.exporting import export_module, random_weights

    module: Any = (
        CLIPViT(96, 16, width=128, layers=3, length=40)
        if kind == "vit"
        else CLIPResNet(96, width=16, blocks=(2, 1, 1, 2), length=40)
    )
    random_weights(module, seed=5)
    spec = EngineSpec(
        model=f"small_{kind}",
        weights=Weights("random", None, "none", "random, seed 5"),
        precision=precision,
        input=Input("frames", "frames", "uint8", ("batch", 1, 96, 96, 3)),
        sampling=Sampling(1, 1, 1),
        transform=Transform(),
        outputs=(Output("clip", (40,)),),
    )
    export_module(module, spec, tmp_path / "small.onnx", tolerances={precision: seed_parity(precision, 0)})
    frames = np.random.default_rng(3).integers(0, 256, (3, 1, 96, 96, 3), np.uint8)
    with torch.no_grad():
        (want,) = module(torch.from_numpy(frames))
    with open_engine(tmp_path / "small.onnx") as engine:
        got = engine.run(frames)
    assert relative(got["clip"], want.numpy()) < seed_parity(precision, 0)


@pytest.mark.slow
def test_rows_of_a_video_are_those_of_video_features(clip_engines: Any) -> None:
    want = e2e("clip_ViT-B_32")
    got = extract(video("v_GGSY1Qvo990.mp4"), clip_engines("clip_vit_b_32", "fp32"))
    assert got.arrays["clip"].shape == want["clip"].shape
    assert got.fps == pytest.approx(float(want["fps"]))
    np.testing.assert_allclose(got.timestamps_ms[:, 0], want["timestamps_ms"], atol=TIMESTAMP_MS)
    rows = zip(got.arrays["clip"], want["clip"], strict=True)
    assert max(relative(row, target) for row, target in rows) < CLIP_END_TO_END


@pytest.mark.parametrize("name", KEYS)
def test_every_encoder_has_the_keys_of_its_public_checkpoint(name: str) -> None:
    from vfx_export.catalogue import find
    from vfx_export.fitting import key_shapes

    row = find(name)
    with torch.device("meta"):
        shapes = key_shapes(row.network(False))
    assert len(shapes) == KEYS[name]
    assert all(key.startswith("visual.") for key in shapes)
    assert row.download.sha256 is not None
    assert row.download.sha256 in row.download.url
    if name in KITS:
        public = kit(KITS[name]).spec["keys"]
        assert shapes == {
            key: tuple(shape)
            for key, shape in public.items()
            if key.startswith("visual.") and not key.endswith("num_batches_tracked")
        }
