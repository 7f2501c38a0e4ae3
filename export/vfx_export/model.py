"""What a row of the catalogue holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vfx_engines.errors import UsageError
from vfx_engines.spec import Input, Output, Precision, Sampling, Transform
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
    labels: Callable[[], tuple[str, ...]] | None = None
    """Class names of the head; None where the network has none."""
    low_precision: LowPrecision | None = None
    most_frames: int | None = None
    """Longest window that the network takes; 1 for networks of single frames."""
    tolerances: Mapping[Precision, float] = dataclasses.field(default_factory=dict)
    """Largest error that an export may have where it is not `vfx_export.proof.TOLERANCES`."""

    def windows(self, frames: int | None) -> Sampling:
        """The model's own windows, or ones of ``frames`` frames side by side.

        Raises:
            UsageError: the network cannot take so few, or so many.
        """
        if frames is None:
            return self.sampling
        if frames < self.least_frames:
            raise UsageError(f"--frames {frames}: {self.name} needs at least {self.least_frames} frames")
        if self.most_frames is not None and frames > self.most_frames:
            raise UsageError(f"--frames {frames}: {self.name} takes at most {self.most_frames}")
        return dataclasses.replace(self.sampling, frames=frames, step=frames)

    def input(self, frames: int) -> Input:
        """The engine's input for windows of ``frames`` frames."""
        crop = self.transform.crop
        assert crop is not None, "rows whose size is the video's own name their axes"
        return Input(
            "frames", "frames", "uint8", ("batch", frames, crop.height, crop.width, 3), blank=self.blank
        )
