"""The models: a row of data and a network each. The runtime reads specs, never this."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vfx_engines.errors import UsageError
from vfx_engines.spec import Crop, Input, Output, Resize, Sampling, Transform
from vfx_export.backbones.i3d import I3D, pack_i3d
from vfx_export.fitting import Shapes, key_shapes, rename_i3d
from vfx_export.labels import kinetics400
from vfx_export.trace import LowPrecision

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Download:
    """A published checkpoint."""

    url: str
    sha256: str | None = None
    git_blob: str | None = None
    """SHA-1 that git gives the file: all that is known where a repository holds it."""


@dataclass(frozen=True, slots=True)
class Model:
    """One row of the catalogue."""

    name: str
    source: str
    """Publication or repository of the weights."""
    licence: str
    """Of the weights."""
    download: Download
    network: Callable[[bool], nn.Module]
    """Builds the module, float32, with the classifier's logits as a second output or without."""
    layouts: Callable[[State], State]
    """Brings other layouts of the checkpoint's keys to the network's own."""
    sampling: Sampling
    least_frames: int
    """Shortest window that the network takes."""
    transform: Transform
    blank: tuple[int, int, int]
    """See `vfx_engines.spec.Input.blank`."""
    feature: Output
    labels: Callable[[], tuple[str, ...]]
    """Class names of the head."""
    low_precision: LowPrecision | None = None

    def windows(self, frames: int | None) -> Sampling:
        """The model's own windows, or ones of ``frames`` frames side by side.

        Raises:
            UsageError: the network cannot take so few.
        """
        if frames is None:
            return self.sampling
        if frames < self.least_frames:
            raise UsageError(f"--frames {frames}: {self.name} needs at least {self.least_frames} frames")
        return dataclasses.replace(self.sampling, frames=frames, step=frames)

    def input(self, frames: int) -> Input:
        """The engine's input for windows of ``frames`` frames."""
        crop = self.transform.crop
        assert crop is not None, "rows whose size is the video's own name their axes"
        return Input(
            "frames", "frames", "uint8", ("batch", frames, crop.height, crop.width, 3), blank=self.blank
        )


def catalogue_shapes() -> dict[str, Shapes]:
    """Key and shape of every tensor of each model's checkpoint: what a wrong file is compared with."""
    with torch.device("meta"):
        return {model.name: key_shapes(model.network(False)) for model in CATALOGUE}


def find(name: str) -> Model:
    """The row of a model.

    Raises:
        UsageError: no such model; the nearest names are listed.
    """
    for model in CATALOGUE:
        if model.name == name:
            return model
    names = [model.name for model in CATALOGUE]
    near = difflib.get_close_matches(name, names, 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"available: {', '.join(names)}"
    raise UsageError(f"unknown model {name!r}; {hint}")


CATALOGUE: tuple[Model, ...] = (
    Model(
        name="i3d",
        source="hassony2/kinetics_i3d_pytorch model_rgb.pth (DeepMind's rgb_imagenet, converted)",
        licence="MIT",
        download=Download(
            "https://github.com/hassony2/kinetics_i3d_pytorch/raw/master/model/model_rgb.pth",
            git_blob="2a7c22e23e6c74f50a0166ce61110bccd2ab48bb",
        ),
        network=lambda head: I3D(head=head),
        layouts=rename_i3d,
        sampling=Sampling(frames=64, stride=1, step=64, lead=1),
        least_frames=10,
        transform=Transform(
            Resize("short_side", 256, 256, "bilinear", antialias=True, other_side="truncate"),
            Crop(224, 224, "centre_floor"),
        ),
        blank=(128, 128, 128),
        feature=Output("rgb", (1024,)),
        labels=kinetics400,
        low_precision=pack_i3d,
    ),
)
