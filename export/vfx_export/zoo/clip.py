"""OpenAI's CLIP image encoders, frame by frame, as video_features runs them (Radford et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

from vfx_engines.spec import Crop, Output, Precision, Resize, Sampling, Transform
from vfx_export.backbones.clip_resnet import CLIPResNet
from vfx_export.backbones.clip_text import CONTEXT, CLIPText
from vfx_export.backbones.clip_vit import CLIPViT
from vfx_export.model import Download, Model, State, TextEncoder

_TEXT = ("transformer.", "token_embedding.", "ln_final.")
_TEXT_ROOT = frozenset(("positional_embedding", "text_projection", "logit_scale"))
_NUMBERS = frozenset(("input_resolution", "context_length", "vocab_size"))

VOCABULARY = Download(
    "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
    sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)
"""The merges of the tokenizer of all CLIPs, as in OpenAI's repository and open_clip's wheels."""


def image_encoder(state: State) -> dict[str, Tensor]:
    """The weights of the image encoder, from a whole CLIP: without text encoder and the archive's numbers."""
    others = _TEXT_ROOT | _NUMBERS
    return {key: value for key, value in state.items() if key not in others and not key.startswith(_TEXT)}


def text_encoder(state: State) -> dict[str, Tensor]:
    """The weights of the text encoder, from a whole CLIP: without image encoder and the archive's numbers."""
    return {
        key: value for key, value in state.items() if key not in _NUMBERS and not key.startswith("visual.")
    }


# The residual stream is rounded at each of its 48 sums. ViT-B/32 has an error of 1.0e-2, a hundredth of the
# difference between two pictures.
_VIT_TOLERANCES: dict[Precision, float] = {"bf16": 3e-2}
# A head of the attention pool may look at a single position. If two positions are almost tied, rounding
# decides. With the parity kit's generated weights, all heads do so (scores deviate by 240 to 3000, so softmax
# is one-hot). In RN101, the smallest lead is 5 in 3000, and a head that looks elsewhere causes an error of
# 4e-2.
#
# fp16 keeps the published weights exactly (error 2e-6 to 8e-6 if computed in float32, 1.2e-3 or less in half
# precision), but rounds random weights. In bf16, the error is 8e-3 for RN50, 3.4e-2 for RN101 and 4.6e-2 for
# RN50x4, and which heads change is chance.
#
# Errors in bf16 with everything from some block on in float32, and the time relative to no such block:
#   RN101, the kit's pictures: from layer3.17 5e-3 (1.2e-1 on other pictures), 2 times; from layer3.2 3e-3,
#   3.3 times; from layer3.0 4e-2 again.
#   RN50x4: from layer4.0 2.2e-2, 1.9 times; from layer3.0 1.9e-2, 3.3 times.
_RESNET_TOLERANCES: dict[Precision, float] = {"fp32": 5e-4, "fp16": 8e-2, "bf16": 8e-2}


def _row(
    name: str,
    file: str,
    sha256: str,
    size: int,
    length: int,
    text_width: int,
    network: Callable[[], nn.Module],
    tolerances: Mapping[Precision, float],
) -> Model:
    return Model(
        name=f"clip_{name}",
        source=f"OpenAI CLIP {file} (WebImageText)",
        licence="MIT",
        download=Download(f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}", sha256=sha256),
        network=lambda head: network(),
        layouts=image_encoder,
        sampling=Sampling(frames=1, stride=1, step=1),
        least_frames=1,
        fixed_frames=True,
        transform=Transform(
            Resize("short_side", size, size, "bicubic", antialias=True, other_side="truncate"),
            Crop(size, size, "centre_round"),
        ),
        blank=(123, 117, 104),
        feature=Output("clip", (length,), per="frame"),
        published_half=True,
        tolerances=tolerances,
        text=TextEncoder(
            partial(CLIPText, text_width, length), text_encoder, CONTEXT, VOCABULARY, _VIT_TOLERANCES
        ),
    )


def _resnet(
    name: str,
    file: str,
    sha256: str,
    size: int,
    width: int,
    blocks: tuple[int, int, int, int],
    length: int,
    text_width: int,
) -> Model:
    build = partial(CLIPResNet, size, width, blocks, length)
    return _row(name, file, sha256, size, length, text_width, build, _RESNET_TOLERANCES)


def _vit(
    name: str,
    file: str,
    sha256: str,
    size: int,
    patch: int,
    width: int,
    layers: int,
    length: int,
    text_width: int,
) -> Model:
    build = partial(CLIPViT, size, patch, width, layers, length)
    return _row(name, file, sha256, size, length, text_width, build, _VIT_TOLERANCES)


ROWS = (
    _resnet(
        "rn50",
        "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        size=224,
        width=64,
        blocks=(3, 4, 6, 3),
        length=1024,
        text_width=512,
    ),
    _resnet(
        "rn101",
        "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        size=224,
        width=64,
        blocks=(3, 4, 23, 3),
        length=512,
        text_width=512,
    ),
    _resnet(
        "rn50x4",
        "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        size=288,
        width=80,
        blocks=(4, 6, 10, 6),
        length=640,
        text_width=640,
    ),
    _resnet(
        "rn50x16",
        "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        size=384,
        width=96,
        blocks=(6, 8, 18, 8),
        length=768,
        text_width=768,
    ),
    _resnet(
        "rn50x64",
        "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        size=448,
        width=128,
        blocks=(3, 15, 36, 10),
        length=1024,
        text_width=1024,
    ),
    _vit(
        "vit_b_32",
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        size=224,
        patch=32,
        width=768,
        layers=12,
        length=512,
        text_width=512,
    ),
    _vit(
        "vit_b_16",
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        size=224,
        patch=16,
        width=768,
        layers=12,
        length=512,
        text_width=512,
    ),
    _vit(
        "vit_l_14",
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        size=224,
        patch=14,
        width=1024,
        layers=24,
        length=768,
        text_width=768,
    ),
    _vit(
        "vit_l_14_336px",
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        size=336,
        patch=14,
        width=1024,
        layers=24,
        length=768,
        text_width=768,
    ),
)
