"""What a row of the catalogue holds."""

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
    """A published checkpoint."""

    url: str
    sha256: str | None = None
    git_blob: str | None = None
    """SHA-1 that git gives the file: all that is known where a repository holds it."""
    sha256_prefix: str | None = None
    """First digits of the sha256, which torchvision puts into file names: all that is known of those."""
    dead: str | None = None
    """Why the address gives no file any more."""


@dataclass(frozen=True, slots=True)
class Part:
    """A network inside a network, with a published checkpoint of its own."""

    prefix: str
    """Name of the submodule that it is."""
    download: Download
    layouts: Callable[[State], State]
    """As `Model.layouts`, for this part's keys without the prefix."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """The network that makes features of texts to compare a model's own with, in the same checkpoint."""

    network: Callable[[], nn.Module]
    """Builds the module, float32: from token ids to features of the model's length. Its ``logit_scale`` is
    the natural logarithm of what cosines are multiplied by."""
    layouts: Callable[[State], State]
    """Takes what the network needs from the checkpoint."""
    tokens: int
    """In a row of its input."""
    vocabulary: Download
    """The file of its tokenizer's merges."""
    tolerances: Mapping[Precision, float] = dataclasses.field(default_factory=dict)
    """As `Model.tolerances`."""


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
    """Shortest window that the network takes; in pairs of frames where windows overlap."""
    transform: Transform
    blank: tuple[int, int, int]
    """See `vfx_engines.spec.Input.blank`."""
    feature: Output
    labels: Callable[[], tuple[str, ...]] | None = None
    """Class names of the head; None where there is no head, or where ``classes`` counts them alone."""
    low_precision: LowPrecision | None = None
    fixed_frames: bool = False
    """Whether it takes windows of its own length only, as networks of single frames do."""
    modality: Literal["frames", "audio"] = "frames"
    postprocess: Callable[[nn.Module, Path], Output] | None = None
    """Adds the published post-processing to a module, with a file's parameters; the output it then gives."""
    tolerances: Mapping[Precision, float] = dataclasses.field(default_factory=dict)
    """Largest error that an export may have where it is not `vfx_export.proof.TOLERANCES`."""
    overlap: int = 0
    """Frames of a window that are the next one's too: 1 where a window is pairs of frames."""
    parts: tuple[Part, ...] = ()
    """What the network is made of, where no one file holds all of it; then ``download`` and ``layouts``
    are those of the first part and are not read."""
    frames_multiple: int = 1
    """What the frames of a window must be a multiple of."""
    classes: int | None = None
    """Length of the head where its class names are not at hand, so that ``labels`` is None."""
    config: Config = dataclasses.field(default_factory=dict)
    """What a config inside the checkpoint must say; its other options are not looked at."""
    network_of: Callable[[Mapping[str, tuple[int, ...]], bool], nn.Module] | None = None
    """As ``network``, for a checkpoint of these keys and shapes: where published files differ in structure.
    Of a network of one part."""
    text: TextEncoder | None = None
    """Of models that compare pictures with texts."""
    smallest_side: int = 1
    """See `vfx_engines.spec.Input.smallest_side`."""
    zero_blanks: Callable[[nn.Module], None] | None = None
    """Makes a network take frames that are ``blank`` throughout for zeros after normalisation."""
    pools: bool = False
    """Whether the network is a `vfx_export.backbones.window_pool.Pooling`."""
    inflates: bool = False
    """Whether its weights can be made of a 2D ResNet's, see `vfx_export.inflating`."""
    activation: Activation = "softmax"
    """What makes probabilities of the head's logits."""
    published_half: bool = False
    """Whether the weights were published in half precision, see `vfx_export.lowering.lowered`."""
    float32: tuple[str, ...] = ()
    """Ends of paths of submodules that stay float32 where an engine runs in bf16. OpenVINO (2026.4) heeds it
    for convolutions and reductions; linear layers become nodes of its own, which lose it."""

    def windows(self, frames: int | None) -> Sampling:
        """The model's own windows, or ones of ``frames`` frames, or pairs, side by side.

        Raises:
            UsageError: the network cannot take so few, or takes its own length only.
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
        """This row with its frames brought to size in another way: ``short:256``, ``long:512`` or ``squash``.

        Of a network that takes any size, the side that is named gets so many pixels and the other one what
        keeps the shape, rounded down; bilinear with antialiasing, as video_features' ``side_size``. Of one
        that takes one size, whole frames are brought to that, whatever their shape, by OpenCV's
        ``INTER_LINEAR``, as slowfast_feature_extractor does.

        Raises:
            UsageError: the network takes one size only, or the text is none of these.
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
        """The output of the head.

        Raises:
            UsageError: there is none.
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
        """Refuse a pool that the network does not have.

        Raises:
            UsageError: it has its published one alone.
        """
        if pool != "head" and not self.pools:
            raise UsageError(
                f"--pool {pool}: {self.name} gives its published features alone; "
                "PySlowFast's networks can be pooled in other ways"
            )

    def check_inflation(self) -> None:
        """Refuse a network that no 2D weights are made for.

        Raises:
            UsageError: it is none of PySlowFast's ResNets of one pathway.
        """
        if not self.inflates:
            raise UsageError(
                f"--inflate: {self.name} cannot be made of a 2D ResNet's weights; PySlowFast's C2D, I3D and "
                "Slow can"
            )

    def postprocessed(self, module: nn.Module, parameters: Path) -> Output:
        """Add the published post-processing to ``module``; the output that it now gives too.

        Raises:
            UsageError: there is none.
            CheckpointError: the file holds other parameters.
        """
        if self.postprocess is None:
            raise UsageError(f"--pca: {self.name} has no published post-processing")
        return self.postprocess(module, parameters)

    def with_exact_zeros(self, module: nn.Module) -> None:
        """Let ``module`` take frames that are ``blank`` throughout for zeros after normalisation.

        Raises:
            UsageError: it cannot.
        """
        self.check_exact_zeros()
        assert self.zero_blanks is not None
        self.zero_blanks(module)

    def check_exact_zeros(self) -> None:
        """Whether there is a `with_exact_zeros`.

        Raises:
            UsageError: there is none.
        """
        if self.zero_blanks is None:
            raise UsageError(f"--exact-zeros: {self.name} does not have it, PySlowFast's networks do")

    def input(self, frames: int) -> Input:
        """The engine's input for windows of ``frames`` frames, or samples."""
        if self.modality == "audio":
            return Input("samples", "audio", "float32", ("batch", frames), blank=self.blank[:1])
        crop = self.transform.crop
        size: tuple[int | str, int | str] = (crop.height, crop.width) if crop else ("height", "width")
        shape = ("batch", frames, *size, 3)
        return Input("frames", "frames", "uint8", shape, self.blank, self.smallest_side)

    def output(self, frames: int) -> Output:
        """The engine's feature for windows of ``frames`` frames."""
        if self.feature.per != "pair":
            return self.feature
        return dataclasses.replace(self.feature, shape=(frames - 1, *self.feature.shape[1:]))
