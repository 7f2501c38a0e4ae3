"""The spec that travels with every engine: what it takes, what it gives, and how it was checked.

An ONNX file carries it in ``metadata_props`` under the key ``vfx``. The spec of a TensorRT plan is a file
beside the plan, ``<name>.plan.json``. The spec is all that the runtime needs to run an engine; it never looks
up a model by name.

The JSON layout is a contract: tests/engines/test_spec.py holds its exact bytes. Raise ``SPEC_VERSION`` for a
change that an older reader would misread.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from vfx_engines.errors import SpecError

SPEC_VERSION = 1

MAX_SPEC_BYTES = 1 << 24
"""Upper bound on a spec's size, in bytes. A spec with 20,000 class names takes a twentieth of it."""

_MAX_NUMBER = 2**31 - 1
"""Largest size or count. Larger ones would only cause errors in other libraries."""

METADATA_KEY = "vfx"
"""The ``metadata_props`` key of an ONNX file that holds the spec's JSON."""

Precision = Literal["fp32", "fp16", "bf16"]
"""``fp16``: half-precision tensors between layers; ``bf16``: a float32 graph that is meant to run in bf16."""
Filter = Literal["bilinear", "bicubic", "opencv_linear"]
"""``opencv_linear`` is OpenCV's ``INTER_LINEAR`` for uint8, in its own fixed-point arithmetic."""
Pool = Literal["head", "global", "none"]
Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where an engine's weights came from."""

    file: str
    """File name of the checkpoint, or ``random``."""
    sha256: str | None
    """SHA-256 of the checkpoint file, in hexadecimal; None for random weights."""
    licence: str
    """SPDX identifier or a short phrase."""
    source: str
    """Publication or repository that the weights come from."""


@dataclass(frozen=True, slots=True)
class Input:
    """What one call of the engine takes."""

    name: str
    modality: Literal["frames", "audio", "text"]
    dtype: Literal["uint8", "float32", "int32"]
    shape: tuple[int | str, ...]
    """Axis sizes; a string names a dynamic axis. Axis 0 is ``batch``.

    Frames are uint8 RGB, 0 to 255: ``["batch", time, height, width, 3]``. Audio is float32 mono, -1 to 1:
    ``["batch", samples]``. Texts are int32 token ids: ``["batch", tokens]``."""
    blank: tuple[int, ...] = (0, 0, 0)
    """The pixel (for audio, the sample) that normalisation brings nearest to zero. Windows are filled with it
    where ``Sampling.edges`` is ``zeros``."""
    smallest_side: int = 1
    """Smallest height and width, in pixels, that the network takes, where these may vary."""
    exact_zeros: bool = False
    """Whether the graph treats a frame that is ``blank`` throughout as zeros after normalisation."""

    def __post_init__(self) -> None:
        _check_name("input", self.name)
        if not self.shape or self.shape[0] != "batch":
            raise SpecError(f"input {self.name}: axis 0 must be 'batch', found {list(self.shape)}")
        named = [axis for axis in self.shape if isinstance(axis, str)]
        for axis in named:
            _check_name("axis", axis)
        if len(set(named)) != len(named) or any(axis < 1 for axis in self.shape if isinstance(axis, int)):
            raise SpecError(
                f"input {self.name}: axes are sizes of 1 or more, or names that differ, "
                f"found {list(self.shape)}"
            )
        if (self.modality == "text") != (self.dtype == "int32") or (
            self.modality == "text" and (len(self.shape) != 2 or isinstance(self.shape[1], str))
        ):
            raise SpecError(
                f"input {self.name}: texts are int32 [batch, tokens] of one length, and nothing else is, "
                f"found {self.modality}, {self.dtype} {list(self.shape)}"
            )
        if self.modality == "audio" and len(self.blank) < 1:
            raise SpecError(f"input {self.name}: blank is the sample that fills windows up, found none")
        if self.modality != "frames":
            return
        if len(self.shape) != 5 or self.shape[4] != 3 or self.dtype != "uint8":
            raise SpecError(
                f"input {self.name}: frames are uint8 [batch, time, height, width, 3], "
                f"found {self.dtype} {list(self.shape)}"
            )
        if self.smallest_side < 1:
            raise SpecError(f"input {self.name}: smallest_side is 1 or more, found {self.smallest_side}")
        if len(self.blank) != 3 or not all(0 <= value <= 255 for value in self.blank):
            raise SpecError(
                f"input {self.name}: a blank pixel is three values of 0 to 255, found {list(self.blank)}"
            )


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames make a window. All counts are in frames, after ``fps`` was applied.

    For audio, a frame is one sample, and ``fps`` is the sample rate in hertz.
    """

    frames: int
    """Frames in a window."""
    stride: int
    """Frames from one frame of a window to the next; 1 takes every frame."""
    step: int
    """Frames from one window to the next."""
    fps: float | None = None
    """Frame rate, in frames per second, that a video is converted to first, by the rule of ffmpeg's ``fps``
    filter: frames are dropped or repeated, never blended. None keeps the video's own."""
    anchor: Literal["start", "centre"] = "start"
    """Window k starts at frame ``k * step``, or is centred on it."""
    edges: Literal["drop", "repeat", "zeros", "loop"] = "drop"
    """What happens to a window that reaches beyond the video: it is dropped, or filled with the frame at the
    edge, with ``Input.blank``, or with its own frames from the first on."""
    lead: int = 0
    """Frames that must follow a window for it to count, although it does not use them; only where ``edges``
    is ``drop``. I3D has 1, because its published code reads one frame more than it uses."""
    target_fps: float | None = None
    """Frame rate that ``stride`` refers to: a window lasts ``frames * stride / target_fps`` seconds and takes
    evenly spaced frames, at positions rounded down. None: ``stride`` counts the video's own frames."""
    seed: int | None = None
    """With ``edges`` ``loop``: seed for drawing the frames that fill a window from its own. The windows that
    the Decord-based extractor leaves out are then left out too. None fills in order."""

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "step"):
            if getattr(self, name) < 1:
                raise SpecError(f"sampling: {name} must be at least 1, found {getattr(self, name)}")
        if self.lead < 0:
            raise SpecError(f"sampling: lead must not be negative, found {self.lead}")
        # Rates become fractions of 31-bit integers, as in FFmpeg, so anything lower cannot be represented.
        if self.fps is not None and not 2**-31 < self.fps < 1_000_000:
            raise SpecError(f"sampling: fps must lie between 0 and 1000000, found {self.fps}")
        if self.target_fps is not None and not 2**-31 < self.target_fps < 10_000:
            raise SpecError(f"sampling: target_fps must lie between 0 and 10000, found {self.target_fps}")
        if self.edges == "loop" and self.anchor != "start":
            raise SpecError(f"sampling: edges 'loop' go with anchor 'start', found {self.anchor!r}")
        if self.seed is not None and (self.edges != "loop" or not 0 <= self.seed < 2**32):
            raise SpecError(f"sampling: a seed of 32 bits goes with edges 'loop', found {self.seed}")

    @property
    def span(self) -> int:
        """Frames from the first to the last of a window, both included; without ``target_fps``."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True, slots=True)
class Resize:
    """How a uint8 frame is resized, before the crop."""

    rule: Literal["short_side", "long_side", "exact"]
    """Which side gets the given size; the other side keeps the aspect ratio. ``exact`` sets both."""
    height: int
    """Target height in pixels; for the side rules, the size of that side, equal to ``width``."""
    width: int
    """Target width in pixels."""
    filter: Filter = "bilinear"
    antialias: bool = True
    """Widen the filter when a frame is made smaller, as Pillow does."""
    other_side: Literal["truncate", "round"] = "truncate"
    """Rounding of the side that keeps the aspect ratio."""
    grid: Literal["sides", "scale"] = "sides"
    """What sets the distance of output pixels in the source: the rounded sides, or the scale before a side
    was rounded (PyTorch's ``scale_factor``)."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise SpecError(f"resize: sizes must be positive, found {self.height}x{self.width}")
        if self.rule != "exact" and self.height != self.width:
            raise SpecError(f"resize: rule {self.rule} takes one size, found {self.height}x{self.width}")
        if self.rule == "exact" and self.grid != "sides":
            raise SpecError(f"resize: rule exact has no scale, so its grid is 'sides', found {self.grid!r}")
        if self.filter == "opencv_linear" and (self.antialias or self.grid != "sides"):
            raise SpecError("resize: OpenCV's filter goes with antialias false and grid 'sides'")


@dataclass(frozen=True, slots=True)
class Crop:
    """The rectangle cut from the middle of a resized frame."""

    height: int
    """In pixels."""
    width: int
    """In pixels."""
    rule: Literal["centre_floor", "centre_round", "centre_ceil"] = "centre_floor"
    """Rounding of half a pixel in the offset: down, to even, or up."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise SpecError(f"crop: sizes must be positive, found {self.height}x{self.width}")


@dataclass(frozen=True, slots=True)
class Transform:
    """From a decoded frame to the pixels of the engine's input."""

    resize: Resize | None = None
    """Done first; None keeps the size."""
    crop: Crop | None = None
    """Done second; None keeps the whole frame."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output of an engine, ``[batch, *shape]``."""

    name: str
    """Name of the graph's output, and of the array in the features' files."""
    shape: tuple[int | str, ...]
    """Axis sizes without the batch; a string names one of the input's axes and stands for its size. Where
    ``per`` is ``pair``, the first axis counts the pairs of a window, ``frames - 1``."""
    dtype: Literal["float32", "float16"] = "float32"
    """In the graph; `vfx_engines.engine.Engine` always returns float32."""
    kind: Literal["feature", "logits"] = "feature"
    per: Literal["window", "frame", "pair"] = "window"
    """What a row belongs to: a window, a frame, or a pair of neighbouring frames."""
    labels: tuple[str, ...] | None = None
    """Class names of a classifier's logits, in order."""
    activation: Activation | None = None
    """How logits become probabilities: softmax if a window has one class, sigmoid if it may have several."""
    pool: Pool = "head"
    """How the positions of the last map were pooled: as in the published head, by the mean over all of them
    (``global``), or not at all."""

    def __post_init__(self) -> None:
        _check_name("output", self.name)
        if self.activation is not None and self.kind != "logits":
            raise SpecError(f"output {self.name}: an activation is of logits, and this is a {self.kind}")
        if any(size < 1 for size in self.shape if isinstance(size, int)):
            raise SpecError(f"output {self.name}: sizes must be at least 1, found {list(self.shape)}")
        if self.labels is not None and self.shape != (len(self.labels),):
            raise SpecError(
                f"output {self.name}: {len(self.labels)} labels do not fit shape {list(self.shape)}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """``shape`` where every axis has a size, as in the spec of an open engine (`EngineSpec.sized`).

        Raises:
            SpecError: an axis has only a name.
        """
        sizes = tuple(axis for axis in self.shape if isinstance(axis, int))
        if len(sizes) != len(self.shape):
            raise SpecError(f"output {self.name}: {list(self.shape)} has no size yet: give those of its axes")
        return sizes

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of what is saved as one row: that of a single pair where ``per`` is ``pair``.

        Raises:
            SpecError: as for `sizes`.
        """
        return self.sizes[1:] if self.per == "pair" else self.sizes


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison of an engine file with what it was made from: the torch module, or the ONNX file."""

    reference: str
    """What was compared: the library that ran the reference, and the one that ran the file."""
    tolerance: float
    """Largest relative error that was allowed: the L2 norm of the difference over that of the reference."""
    error: float
    """Largest relative error that was measured, over all outputs."""
    inputs: int
    """Number of inputs compared."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and math.isfinite(self.error)):
            raise SpecError(f"proof: error {self.error} of {self.tolerance} allowed, expected finite numbers")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a TensorRT plan was built with, and where it runs."""

    tensorrt: str
    """Version of TensorRT that built it, and that must run it unless ``version_compatible`` is true."""
    device: str
    """Name of the GPU that it was tuned on."""
    compute_capability: tuple[int, int]
    """Compute capability of that GPU, such as ``(9, 0)``."""
    onnx_sha256: str
    """SHA-256 of the ONNX file that it was built from, in hexadecimal."""
    batch: tuple[int, ...]
    """Windows per call: the fewest, the number it was tuned for, the most."""
    version_compatible: bool = False
    """Whether later versions of TensorRT and the lean runtime can run it too."""
    hardware: Literal["same", "same_compute_capability", "ampere_plus"] = "same"
    """Which GPUs can run it: the same model, the same compute capability, or Ampere and later."""

    def __post_init__(self) -> None:
        if len(self.compute_capability) != 2:
            raise SpecError(
                f"plan: a compute capability is two numbers, found {_shown(list(self.compute_capability))}"
            )
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise SpecError(
                "plan: batch is the fewest windows, those it was tuned for and the most, found "
                f"{_shown(list(self.batch))}"
            )


@dataclass(frozen=True, slots=True)
class Text:
    """How texts become the input of a text encoder, and what its output is compared with."""

    images: str
    """Name of the model whose features the output is compared with. Both have their weights from one file."""
    scale: float
    """Factor of the cosine between text and image, before the softmax over texts."""
    merges: str
    """The tokenizer's merges in order of priority, one per line: two symbols separated by a space."""
    tokenizer: Literal["clip"] = "clip"
    """CLIP's byte-level BPE (Radford et al., 2021)."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise SpecError(f"text: scale must be positive, found {self.scale}")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything that the runtime needs to know about an engine.

    The constructor of each part checks its values, and this one checks that the parts go together; all raise
    `SpecError`.
    """

    model: str
    """Name of the network. It becomes part of file names."""
    weights: Weights
    precision: Precision
    """Precision of the graph, see `Precision`."""
    input: Input
    sampling: Sampling
    transform: Transform
    outputs: tuple[Output, ...]
    """One or more, in the order of the graph, with different names."""
    macs: int | None = None
    """Multiply-accumulates per window, to tell the share of the machine's peak; None if not counted."""
    proof: Proof | None = None
    plan: Plan | None = None
    """For a TensorRT plan; None in an ONNX file."""
    text: Text | None = None
    """For a text encoder; None where the input is not text."""
    vfx_version: str = ""
    """Version of vfx that wrote the file."""
    spec_version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        _check_name("model", self.model)
        if not self.outputs:
            raise SpecError(f"spec of {self.model}: no outputs")
        if (self.input.modality == "text") != (self.text is not None):
            raise SpecError(
                f"spec of {self.model}: text goes with an input of modality 'text', and only with it"
            )
        _check_numbers(self)
        names = [output.name for output in self.outputs]
        if len(set(names)) != len(names):
            raise SpecError(f"spec of {self.model}: two outputs share a name: {names}")
        for output in self.outputs:
            unnamed = [axis for axis in output.shape if isinstance(axis, str)]
            unnamed = [axis for axis in unnamed if axis not in self.input.shape[1:]]
            if unnamed:
                raise SpecError(
                    f"output {output.name}: axis {unnamed[0]!r} is none of {list(self.input.shape)}"
                )
        pairs = self.sampling.frames - 1
        if any(output.per == "pair" for output in self.outputs) and not all(
            output.per == "pair" and output.shape[:1] == (pairs,) for output in self.outputs
        ):
            shapes = ", ".join(f"{output.per} {list(output.shape)}" for output in self.outputs)
            raise SpecError(
                f"spec of {self.model}: windows of {self.sampling.frames} frames have {pairs} pairs, so all "
                f"outputs are per 'pair' and begin with {pairs}, or none is; found {shapes}"
            )
        if self.input.modality == "frames" and self.input.shape[1] not in (
            self.sampling.frames,
            "time",
        ):
            raise SpecError(
                f"spec of {self.model}: input takes {self.input.shape[1]} frames, "
                f"sampling gives {self.sampling.frames}"
            )
        fps = self.sampling.fps
        if self.input.modality == "frames" and fps is not None and fps >= 10_000:
            raise SpecError(f"sampling: fps must lie between 0 and 10000, found {fps}")
        resize = self.transform.resize
        target = self.transform.crop or (resize if resize and resize.rule == "exact" else None)
        if self.input.modality == "frames" and target is not None:
            for axis, size in zip(self.input.shape[2:4], (target.height, target.width), strict=True):
                if isinstance(axis, int) and axis != size:
                    raise SpecError(
                        f"spec of {self.model}: input takes frames of {list(self.input.shape[2:4])}, "
                        f"transform gives {[target.height, target.width]}"
                    )

    def sized(self, sizes: Mapping[str, int]) -> EngineSpec:
        """This spec with sizes in place of the names of the input's axes; ``batch`` keeps its name.

        Args:
            sizes: size of every named axis but ``batch``, 1 or more.

        Raises:
            SpecError: a name that the input does not have, a name without a size, or a size below 1.
        """
        named = [axis for axis in self.input.shape[1:] if isinstance(axis, str)]
        if sorted(sizes) != sorted(named):
            what = f"{', '.join(named)} may vary" if named else "no axis but the batch varies"
            given = ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "none"
            raise SpecError(f"{self.model}: {what}; sizes given: {given}")

        def fixed(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
            return tuple(sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in shape)

        return dataclasses.replace(
            self,
            input=dataclasses.replace(self.input, shape=fixed(self.input.shape)),
            outputs=tuple(dataclasses.replace(item, shape=fixed(item.shape)) for item in self.outputs),
        )

    def to_json(self) -> str:
        """The spec as one JSON document, keys in the order of the fields."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> EngineSpec:
        """Read a spec.

        Raises:
            SpecError: the text is not JSON or too long, a field is missing, unknown, of another type or out
                of range, or the spec is newer than ``SPEC_VERSION``.
        """
        if len(text) > MAX_SPEC_BYTES:
            raise SpecError(f"spec is {len(text)} long, and none has more than {MAX_SPEC_BYTES}")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"spec is not JSON: {error}; export the engine again") from None
        if not isinstance(data, dict):
            raise SpecError(f"spec is a JSON {type(data).__name__}, expected an object")
        version = data.get("spec_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise SpecError(f"spec_version is {_shown(version)}, expected 1 to {SPEC_VERSION}")
        if version > SPEC_VERSION:
            raise SpecError(
                f"spec version {_shown(version)} is newer than {SPEC_VERSION}, the newest that this vfx "
                "reads: upgrade vfx, or export the engine with this one"
            )
        return _read(cls, data, "spec")


_T = TypeVar("_T")


def _read(kind: type[_T], data: object, where: str) -> _T:
    """Parsed JSON as the dataclass ``kind``. A `SpecError` names the place that does not fit."""
    if not isinstance(data, dict):
        raise SpecError(f"{where}: expected an object, found {_shown(data)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise SpecError(f"{where}: unknown field {unknown[0]!r}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING:
            raise SpecError(f"{where}: field {name!r} is missing")
    return kind(**values)


def _value(hint: Any, data: object, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in args:
            return None
        choices = [arg for arg in args if arg is not type(None)]
        if len(choices) == 1:
            return _value(choices[0], data, where)
        if any(type(data) is choice for choice in choices):
            return data
    elif origin is Literal:
        if any(type(data) is type(arg) and data == arg for arg in args):
            return data
        raise SpecError(f"{where}: {_shown(data)} is none of {', '.join(map(repr, args))}")
    elif origin is tuple:
        if isinstance(data, list):
            return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    elif dataclasses.is_dataclass(hint):
        return _read(typing.cast(type[Any], hint), data, where)
    elif hint is float and isinstance(data, int | float) and not isinstance(data, bool):
        # JSON's numbers have no bounds, and Python's reader accepts NaN.
        if -sys.float_info.max <= data <= sys.float_info.max:
            return float(data)
    elif type(data) is hint:
        return data
    expected = getattr(hint, "__name__", str(hint))
    raise SpecError(f"{where}: expected {expected}, found {_shown(data)}")


def _check_numbers(spec: EngineSpec) -> None:
    sampling, transform = spec.sampling, spec.transform
    numbers = [sampling.frames, sampling.stride, sampling.step, sampling.lead]
    numbers += [
        size for part in (transform.resize, transform.crop) if part for size in (part.height, part.width)
    ]
    shapes = [spec.input.shape, *(output.shape for output in spec.outputs)]
    numbers += [axis for shape in shapes for axis in shape if isinstance(axis, int)]
    if max(numbers) > _MAX_NUMBER:
        raise SpecError(
            f"spec of {spec.model}: sizes and counts end at {_MAX_NUMBER}, found {_shown(max(numbers))}"
        )


def _check_name(what: str, name: str) -> None:
    """Refuse names that cannot be part of a file name or of a one-line message."""
    if not name.isprintable() or name.strip() != name or name in ("", ".", "..") or set("/\\") & set(name):
        raise SpecError(
            f"{what} {_shown(name)}: expected a name of printable text without / and \\ and outer spaces"
        )


def _shown(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."
