"""CLIP's ResNets, from pixels to the image's embedding.

Unlike other ResNets, they have three convolutions in the stem instead of one, average pools instead of
strides, and attention instead of the mean at the end. Radford et al., "Learning Transferable Visual Models
From Natural Language Supervision", 2021. Keys are those of OpenAI's checkpoints (github.com/openai/CLIP).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfx_export.backbones.clip_attention import OneQuery
from vfx_export.backbones.clip_vit import MEAN, STD


class _Shortcut(nn.Module):
    BATCH_NORMS: ClassVar = {"0": "1"}

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.add_module("0", nn.Conv2d(c_in, c_out, 1, bias=False))
        self.add_module("1", nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        for part in self.children():
            x = part(x)
        return x


class _Bottleneck(nn.Module):
    BATCH_NORMS: ClassVar = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(4 * width)
        changes = c_in != 4 * width or stride > 1
        self.downsample = _Shortcut(c_in, 4 * width, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        if self.stride > 1:
            out = F.avg_pool2d(out, self.stride)
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class _AttentionPool(nn.Module):
    """Attention pool: a single query, the mean of all positions, attends to the positions and to itself."""

    def __init__(self, places: int, width: int, length: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(places + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, length)
        self.folded: OneQuery | None = None

    def fold_constants(self) -> None:
        """Rearrange the weights once, so that this is not part of the graph."""
        self.folded = self._one_query()

    def forward(self, x: Tensor) -> Tensor:
        places = x.float().flatten(2)
        tokens = torch.cat([places.mean(2, keepdim=True), places], dim=2)
        tokens = tokens + self.positional_embedding.float().t()
        attend = self.folded or self._one_query()
        mixed = attend(tokens[:, :, 0], tokens)
        return F.linear(mixed, self.c_proj.weight.float(), self.c_proj.bias.float())

    def _one_query(self) -> OneQuery:
        q, k, v = self.q_proj, self.k_proj, self.v_proj
        return OneQuery(
            (q.weight.detach(), q.bias.detach()), k.weight.detach(), (v.weight.detach(), v.bias.detach())
        )


class _Vision(nn.Module):
    BATCH_NORMS: ClassVar = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}

    def __init__(self, size: int, width: int, blocks: tuple[int, int, int, int], length: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, blocks[3], stride=2)
        self.attnpool = _AttentionPool((size // 32) ** 2, 32 * width, length)

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[2:4]
        x = frames.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float()
        # Not folded into the convolution, because its padding must be zero after normalisation. In float32,
        # because 1/255 is not exact.
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
        x = (x * (1 / (255 * std)) - mean / std).to(self.conv1.weight.dtype)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = self.attnpool(x)
        return pooled


def _stage(c_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Bottleneck(c_in, width, stride)
    return nn.Sequential(first, *(_Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))


class CLIPResNet(nn.Module):
    """CLIP's image encoder, from pixels to the embedding that is compared with that of a text.

    The embedding is not normalised.

    Args:
        size: height and width of a frame, in pixels.
        width: channels after the stem.
        blocks: blocks in each of the four stages.
        length: length of the embedding.
    """

    def __init__(self, size: int, width: int, blocks: tuple[int, int, int, int], length: int) -> None:
        super().__init__()
        self.visual = _Vision(size, width, blocks, length)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The embedding.

        Args:
            frames: uint8 ``[batch, 1, size, size, 3]``, RGB, 0 to 255.

        Returns:
            float32 ``[batch, length]``.
        """
        return (self.visual(frames),)
