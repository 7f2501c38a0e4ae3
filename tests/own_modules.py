"""A small torch module as a user might write it, its spec, and ways in which such a module can be wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfx_engines.spec import Crop, EngineSpec, Input, Output, Precision, Resize, Sampling, Transform, Weights
from vfx_export.model import Download, Model

FRAMES, SIZE = 4, 8


def own_spec(precision: Precision = "fp32") -> EngineSpec:
    return EngineSpec(
        model="own",
        weights=Weights("own.pt", None, "Apache-2.0", "tests/own_modules.py"),
        precision=precision,
        input=Input("frames", "frames", "uint8", ("batch", FRAMES, SIZE, SIZE, 3)),
        sampling=Sampling(frames=FRAMES, stride=1, step=FRAMES),
        transform=Transform(Resize("short_side", SIZE, SIZE), Crop(SIZE, SIZE)),
        outputs=(Output("features", (4,)), Output("logits", (5,), kind="logits")),
    )


class Own(nn.Module):
    """A convolution and a classifier. It computes in the dtype of its weights, as fp16 requires."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv3d(3, 4, 2)
        self.classify = nn.Linear(4, 5)
        self.chunks = 2  # an attribute of the user's: only a `Chunked` network is computed in chunks
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        x = (frames.permute(0, 4, 1, 2, 3).float() / 255).to(self.conv.weight.dtype)
        features = torch.relu(self.conv(x)).mean((2, 3, 4))
        return features.float(), self.classify(features).float()


def own_row(url: str = "http://127.0.0.1:9/own.pt") -> Model:
    """A catalogue row with `Own` as its network."""
    return Model(
        name="own",
        source="tests/own_modules.py",
        licence="Apache-2.0",
        download=Download(url),
        network=lambda head: Own() if head else OneOutput(),
        layouts=lambda state: state,
        sampling=Sampling(frames=FRAMES, stride=1, step=FRAMES, lead=1),
        least_frames=2,
        transform=own_spec().transform,
        blank=(128, 128, 128),
        feature=Output("features", (4,)),
        labels=lambda: ("run", "jump", "sit", "stand", "lie"),
    )


class Swapped(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return super().forward(frames)[::-1]


class OneOutput(Own):
    def forward(self, frames: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(frames)[0]


class OneRow(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return tuple(output[:1] for output in super().forward(frames))


class Mapping(Own):
    def forward(self, frames: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"features": super().forward(frames)[0]}


class Nothing(Own):
    def forward(self, frames: Tensor) -> None:  # type: ignore[override]
        return None


class Raises(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        raise ValueError("the first line\nand a second")


class RaisesNothing(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError


class NotANumber(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features, logits = super().forward(frames)
        return features, logits / (logits - logits)


class DependsOnData(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features, logits = super().forward(frames)
        return (features if features.sum() > 0 else -features), logits


class Untranslatable(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features, logits = super().forward(frames)
        return torch.linalg.svdvals(features[:, :, None]).expand(-1, 4), logits


class Random(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features, logits = super().forward(frames)
        return features + torch.rand_like(features), logits


class Counts(Own):
    calls = 0

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        features, logits = super().forward(frames)
        return features + self.calls, logits


class Baked(Own):
    """Always gives the batch size of the example, whatever its input."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return torch.ones(2, 4), super().forward(frames)[1]


class Fewer(Own):
    """The number of rows depends on the pixels."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features, logits = super().forward(frames)
        return features[features[:, 0] > -1e9], logits


class Double(Own):
    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features, logits = super().forward(frames)
        return features.double(), logits


class NoCast(Own):
    """Correct in float32, but the pixels are not cast to the weights' dtype in half precision."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        features = torch.relu(self.conv(frames.permute(0, 4, 1, 2, 3) / 255)).mean((2, 3, 4))
        return features, self.classify(features)


class Sound(nn.Module):
    """The loudness of each quarter of a window of sound."""

    def forward(self, samples: Tensor) -> Tensor:
        return samples.reshape(samples.shape[0], 4, -1).abs().mean(2)


class Sizeless(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return frames.float().mean((1, 2, 3))
