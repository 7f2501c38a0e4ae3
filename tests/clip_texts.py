"""A small CLIP in OpenAI's format, a vocabulary like OpenAI's, and the text encoder's published formula."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchscript_files import save_torchscript
from vfx_engines.spec import Crop, Output, Resize, Sampling, Transform
from vfx_export.backbones.clip_text import CONTEXT, CLIPText
from vfx_export.backbones.clip_vit import CLIPViT
from vfx_export.exporting import random_weights
from vfx_export.model import Download, Model, TextEncoder
from vfx_export.zoo.clip import image_encoder, text_encoder

SIZE, PATCH, WIDTH, LENGTH, LAYERS = 32, 16, 64, 24, 2
VOCABULARY, MERGES = 49408, 48894


def merges(words: Iterable[str] = ("dog", "cat", "photo")) -> list[str]:
    """48894 merges: first those that build ``words`` letter by letter from the left, then pairs of bytes."""
    made: dict[str, None] = {}
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for number in range(1, len(parts)):
            made["".join(parts[:number]) + " " + parts[number]] = None
    symbols = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    for first, second in itertools.product(symbols[::-1], [*symbols, *(f"{item}</w>" for item in symbols)]):
        made.setdefault(f"{first} {second}")
    return list(made)[:MERGES]


def vocabulary_file(path: Path, lines: list[str] | None = None) -> Path:
    """Write a file like OpenAI's: a line with the version, and more merges than are used."""
    text = "\n".join(["a version", *(lines or merges()), "too late", "q u"])
    path.write_bytes(gzip.compress(text.encode(), 1))
    return path


def small_clip(name: str, download: Download, vocabulary: Download) -> Model:
    """A catalogue row with both encoders."""
    return Model(
        name=name,
        source="tests/clip_texts.py",
        licence="Apache-2.0",
        download=download,
        network=lambda head: CLIPViT(SIZE, PATCH, WIDTH, LAYERS, LENGTH),
        layouts=image_encoder,
        sampling=Sampling(1, 1, 1),
        least_frames=1,
        fixed_frames=True,
        transform=Transform(Resize("exact", SIZE, SIZE), Crop(SIZE, SIZE)),
        blank=(123, 117, 104),
        feature=Output("clip", (LENGTH,), per="frame"),
        tolerances={"bf16": 3e-2},
        text=TextEncoder(
            partial(CLIPText, WIDTH, LENGTH, LAYERS), text_encoder, CONTEXT, vocabulary, {"bf16": 3e-2}
        ),
    )


def small_state(seed: int = 0, scale: float = 100.0) -> dict[str, Tensor]:
    """The weights of both encoders, in half precision where OpenAI's are, and the numbers in its archives."""
    images, texts = CLIPViT(SIZE, PATCH, WIDTH, LAYERS, LENGTH), CLIPText(WIDTH, LENGTH, LAYERS)
    random_weights(images, seed)
    random_weights(texts, seed + 1)
    state = {**images.state_dict(), **texts.state_dict()}
    state = {key: value.half().clone() if value.ndim > 1 else value.clone() for key, value in state.items()}
    numbers = {"input_resolution": SIZE, "context_length": CONTEXT, "vocab_size": VOCABULARY}
    state |= {key: torch.tensor(value) for key, value in numbers.items()}
    state["logit_scale"] = torch.tensor(scale).log()
    return state


def small_archive(path: Path, seed: int = 0) -> Path:
    save_torchscript(small_state(seed), path)
    return path


def text_features(state: Mapping[str, Any], ids: Tensor, layers: int) -> Tensor:
    """The published formula with PyTorch's own modules (OpenAI's model.py, CLIP.encode_text)."""
    weights = {key: torch.as_tensor(value).float() for key, value in state.items()}
    width = weights["token_embedding.weight"].shape[1]
    x = weights["token_embedding.weight"][ids.long()] + weights["positional_embedding"]
    mask = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    with torch.no_grad():
        for number in range(layers):
            block = f"transformer.resblocks.{number}"
            attention = nn.MultiheadAttention(width, width // 64, batch_first=True).eval()
            own = {key: weights[f"{block}.attn.{key}"] for key in attention.state_dict()}
            attention.load_state_dict(own)
            y = norm(x, f"{block}.ln_1")
            x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
            x = x + linear(y * torch.sigmoid(1.702 * y), f"{block}.mlp.c_proj")
        x = norm(x, "ln_final")
        return x[torch.arange(len(x)), ids.argmax(-1)] @ weights["text_projection"]
