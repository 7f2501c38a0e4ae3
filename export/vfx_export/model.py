"""What a row of the catalogue says about a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from vfx_engines.errors import UsageError
from vfx_engines.spec import Activation, Input, Output, Pool, Precision, Resize, Sampling, Transform
from vfx_export.lowering import LowPrecision
from vfx_export.pyslowfast_config import Config

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Download:
    """A published checkpoint. At most one of the hashes is given; none if none was published."""

    url: str
    sha256: str | None = None
    """SHA-256 of the file, in hexadecimal."""
    git_blob: str | None = None
    """Git's SHA-1 of the file, for files in a repository."""
    sha256_prefix: str | None = None
    """First digits of the SHA-256, for files that have them in their name, as torchvision's do."""
    dead: str | None = None
    """Why the file is no longer at this address; None if it is."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a network that has a published checkpoint of its own."""

    prefix: str
    """Name of the submodule."""
    download: Download
    layouts: Callable[[State], State]
    """As `Model.layouts`, for this part's keys without the prefix."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A network from texts to features that can be compared with a model's own; from the same checkpoint."""

    network: Callable[[], nn.Module]
    """Builds the module, float32, from token ids to features of the model's length. Its ``logit_scale`` is
    the natural logarithm of the factor of cosines."""
    layouts: Callable[[State], State]
    """Selects from the checkpoint what the network needs."""
    tokens: int
    """Tokens in a row of the input."""
    vocabulary: Download
    """The file with the tokenizer's merges."""
    tolerances: Mapping[Precision, float] = dataclasses.field(default_factory=dict)
    """As `Model.tolerances`."""


@dataclass(frozen=True, slots=True)
class Model:
    """One row of the catalogue."""

    name: str
    source: str
    """Publication or repository of the weights."""
    licence: str
    """Licence of the weights."""
    download: Download
    network: Callable[[bool], nn.Module]
    """Builds the module, float32. The argument tells whether the classifier's logits are a second output."""
    layouts: Callable[[State], State]
    """Renames the keys of other layouts of the checkpoint to the network's own."""
    sampling: Sampling
    least_frames: int
    """Length of the shortest window that the network takes, in frames (in pairs, if ``overlap`` is set)."""
    transform: Transform
    blank: tuple[int, int, int]
    """See `vfx_engines.spec.Input.blank`."""
    feature: Output
    """The network's main output."""
    labels: Callable[[], tuple[str, ...]] | None = None
    """Class names of the head; None without a head, or if only their number is known (``classes``)."""
    low_precision: LowPrecision | None = None
    """A rewriting of the network for matrix units, used unless the precision is fp32."""
    fixed_frames: bool = False
    """Whether the network only takes windows of its own length, as networks for single frames do."""
    modality: Literal["frames", "audio"] = "frames"
    postprocess: Callable[[nn.Module, Path], Output] | None = None
    """Adds the published post-processing to a module, with parameters from a file, and returns the output
    that the module then has in addition."""
    tolerances: Mapping[Precision, float] = dataclasses.field(default_factory=dict)
    """Largest relative L2 errors of an export, where they are not those of `vfx_export.proof.TOLERANCES`."""
    overlap: int = 0
    """Frames that a window shares with the next one: 1 if a window consists of pairs of frames."""
    parts: tuple[Part, ...] = ()
    """The parts of a network that needs several checkpoints. ``download`` and ``layouts`` are then those of
    the first part, and are not used."""
    frames_multiple: int = 1
    """The number of frames in a window must be a multiple of this."""
    classes: int | None = None
    """Length of the head, for heads whose class names we do not have, so that ``labels`` is None."""
    config: Config = dataclasses.field(default_factory=dict)
    """What a config inside the checkpoint must say. Its other options are ignored."""
    network_of: Callable[[Mapping[str, tuple[int, ...]], bool], nn.Module] | None = None
    """As ``network``, but for a checkpoint with the given keys and shapes, for models whose published files
    differ in structure. Only for networks without ``parts``."""
    text: TextEncoder | None = None
    """For models that compare pictures with texts."""
    smallest_side: int = 1
    """See `vfx_engines.spec.Input.smallest_side`."""
    zero_blanks: Callable[[nn.Module], None] | None = None
    """Makes a network treat frames that are ``blank`` throughout as zeros after normalisation."""
    pools: bool = False
    """Whether the network is a `vfx_export.backbones.window_pool.Pooling`."""
    inflates: bool = False
    """Whether the weights can be made from those of a 2D ResNet, see `vfx_export.inflating`."""
    activation: Activation = "softmax"
    """How the head's logits become probabilities."""
    published_half: bool = False
    """Whether the weights were published in half precision, see `vfx_export.lowering.lowered`."""
    float32: tuple[str, ...] = ()
    """Ends of the paths of submodules that stay float32 where an engine runs in bf16. In OpenVINO (2026.4)
    this works for convolutions and reductions; linear layers become nodes of its own, which lose the mark."""

    def windows(self, frames: int | None) -> Sampling:
        """The model's own windows, or windows of another length that follow each other without a gap.

        Args:
            frames: frames in a window (pairs of frames, if ``overlap`` is set); None keeps the model's own.

        Raises:
            UsageError: the network needs more frames, another multiple, or its own length.
        """
        if frames is None:
            return self.sampling
        if self.fixed_frames and frames != self.sampling.frames:
            raise UsageError(
                f"--frames {frames}: {self.name} takes windows of {self.sampling.frames} and no other length"
            )
        if frames < self.least_frames:
            what = "pairs of frames" if self.overlap else "frames"
            raise UsageError(f"--frames {frames}: {self.name} needs at least {self.least_frames} {what}")
        if frames % self.frames_multiple:
            raise UsageError(f"--frames {frames}: {self.name} takes multiples of {self.frames_multiple}")
        step = frames * self.sampling.stride
        return dataclasses.replace(self.sampling, frames=frames + self.overlap, step=step)

    def resized(self, text: str) -> Model:
        """This row with another resize rule.

        Args:
            text: ``short:256`` or ``long:512``, for networks that take any size: the named side gets that
                many pixels, and the other side keeps the aspect ratio, rounded down (bilinear with
                antialiasing, as video_features' ``side_size``). Or ``squash``, for networks that take one
                size: whole frames are resized to that size, whatever their shape, by OpenCV's
                ``INTER_LINEAR``, as in slowfast_feature_extractor.

        Raises:
            UsageError: the text is none of these, or does not go with this network.
        """
        crop = self.transform.crop
        if text == "squash":
            if crop is None:
                raise UsageError(f"--resize squash: {self.name} has no size to bring frames to")
            resize = Resize("exact", crop.height, crop.width, "opencv_linear", antialias=False)
            return dataclasses.replace(self, transform=Transform(resize, crop))
        if crop is not None or self.transform.resize is not None:
            raise UsageError(
                f"--resize {text}: {self.name} takes frames of one size, which its row says, or squash"
            )
        side, _, number = text.partition(":")
        if side not in ("short", "long") or not number.isdecimal() or not 0 < int(number) < 10_000:
            raise UsageError(f"--resize {text}: expected short:PIXELS, long:PIXELS or squash")
        rule: Literal["short_side", "long_side"] = "short_side" if side == "short" else "long_side"
        size = int(number)
        resize = Resize(rule, size, size, "bilinear", antialias=True, other_side="truncate")
        return dataclasses.replace(self, transform=Transform(resize))

    def logits(self) -> Output:
        """The output of the classifier.

        Raises:
            UsageError: the model has no classifier.
        """
        if self.labels is None and self.classes is not None:
            return Output("logits", (self.classes,), kind="logits", activation=self.activation)
        if self.labels is None:
            raise UsageError(f"--head: {self.name} has no classifier")
        labels = self.labels()
        return Output(
            "logits",
            (len(labels),),
            kind="logits",
            per=self.feature.per,
            labels=labels,
            activation=self.activation,
        )

    def check_pool(self, pool: Pool) -> None:
        """Check that the network can be pooled in this way.

        Raises:
            UsageError: the network only has its published pool.
        """
        if pool != "head" and not self.pools:
            raise UsageError(
                f"--pool {pool}: {self.name} gives its published features alone; "
                "PySlowFast's networks can be pooled in other ways"
            )

    def check_inflation(self) -> None:
        """Check that the network's weights can be made from those of a 2D ResNet.

        Raises:
            UsageError: it is not one of PySlowFast's C2D, I3D and Slow.
        """
        if not self.inflates:
            raise UsageError(
                f"--inflate: {self.name} cannot be made of a 2D ResNet's weights; PySlowFast's C2D, I3D and "
                "Slow can"
            )

    def postprocessed(self, module: nn.Module, parameters: Path) -> Output:
        """Add the published post-processing to a module.

        Args:
            module: built by ``network``; changed.
            parameters: file with the parameters of the post-processing.

        Returns:
            The output that the module now has in addition.

        Raises:
            UsageError: the model has no published post-processing.
            CheckpointError: the file does not hold its parameters.
        """
        if self.postprocess is None:
            raise UsageError(f"--pca: {self.name} has no published post-processing")
        return self.postprocess(module, parameters)

    def with_exact_zeros(self, module: nn.Module) -> None:
        """Make ``module`` treat frames that are ``blank`` throughout as zeros after normalisation.

        Raises:
            UsageError: this model does not support it.
        """
        self.check_exact_zeros()
        assert self.zero_blanks is not None
        self.zero_blanks(module)

    def check_exact_zeros(self) -> None:
        """Check that the model supports `with_exact_zeros`.

        Raises:
            UsageError: it does not.
        """
        if self.zero_blanks is None:
            raise UsageError(f"--exact-zeros: {self.name} does not have it, PySlowFast's networks do")

    def input(self, frames: int) -> Input:
        """The engine's input for windows of ``frames`` frames (for audio, samples)."""
        if self.modality == "audio":
            return Input("samples", "audio", "float32", ("batch", frames), blank=self.blank[:1])
        crop = self.transform.crop
        size: tuple[int | str, int | str] = (crop.height, crop.width) if crop else ("height", "width")
        shape = ("batch", frames, *size, 3)
        return Input("frames", "frames", "uint8", shape, self.blank, self.smallest_side)

    def output(self, frames: int) -> Output:
        """The engine's feature output for windows of ``frames`` frames."""
        if self.feature.per != "pair":
            return self.feature
        return dataclasses.replace(self.feature, shape=(frames - 1, *self.feature.shape[1:]))
