"""The spec that travels with every engine: what it eats, what it gives, and what proved it.

ONNX files carry it in ``metadata_props`` under the key ``vfx``; a ``.plan`` has it beside it as
``<name>.plan.json``. With the spec alone the runtime runs the engine: it never looks a model up.

The JSON layout is a contract (tests/engines/test_spec.py holds its exact bytes). A change that an
older reader would misread raises ``SPEC_VERSION``.
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
"""More than any spec has; one of 20,000 class names has a twentieth of it."""

_MAX_NUMBER = 2**31 - 1
"""Largest size or count: beyond it lie other libraries' errors, not videos."""

METADATA_KEY = "vfx"
"""The ``metadata_props`` key of an ONNX file that holds the spec's JSON."""

Precision = Literal["fp32", "fp16", "bf16"]
Filter = Literal["bilinear", "bicubic", "opencv_linear"]
"""The last one is OpenCV's ``INTER_LINEAR`` of uint8, in its own fixed-point arithmetic."""
Pool = Literal["head", "global", "none"]
Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where an engine's weights came from."""

    file: str
    """File name of the checkpoint, or ``random``."""
    sha256: str | None
    """Of the checkpoint file, in hexadecimal; None for random weights."""
    licence: str
    """SPDX identifier or a short phrase."""
    source: str
    """The publication or repository that the weights come from."""


@dataclass(frozen=True, slots=True)
class Input:
    """What one call of the engine takes."""

    name: str
    modality: Literal["frames", "audio", "text"]
    dtype: Literal["uint8", "float32", "int32"]
    shape: tuple[int | str, ...]
    """Axis sizes; a string names a dynamic axis. Axis 0 is ``batch``.

    Frames are RGB: ``["batch", time, height, width, 3]``. Texts are ids: ``["batch", tokens]``."""
    blank: tuple[int, ...] = (0, 0, 0)
    """The pixel, or sample, that normalisation brings nearest to zero: ``edges: zeros`` pads with it."""
    smallest_side: int = 1
    """Least height and width that the network takes, where those vary."""
    exact_zeros: bool = False
    """Whether the graph takes a frame that is ``blank`` throughout for zeros after normalisation."""

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
    """Which frames make a window. Counts are in frames after ``fps`` was applied.

    Of sound, a frame is one sample, and ``fps`` the sample rate in hertz.
    """

    frames: int
    """Frames in a window."""
    stride: int
    """From one frame of a window to the next."""
    step: int
    """From one window to the next."""
    fps: float | None = None
    """Frame rate that the video is brought to first (rule of ffmpeg's fps filter); None keeps its own."""
    anchor: Literal["start", "centre"] = "start"
    """Window k starts at, or is centred on, frame ``k * step``."""
    edges: Literal["drop", "repeat", "zeros", "loop"] = "drop"
    """A window that reaches outside the video is dropped, or filled with the edge, with blank frames, or with
    its own frames again."""
    lead: int = 0
    """Frames that must follow a window for it to count, though it does not use them (I3D: 1)."""
    target_fps: float | None = None
    """Rate that ``stride`` counts at: a window lasts ``frames * stride / target_fps`` seconds, and takes its
    frames at positions that are rounded down. None: ``stride`` counts the video's own frames."""
    seed: int | None = None
    """With ``loop``, draws the frames that fill a window, and leaves out the windows that the Decord-based
    extractor does; None fills in order."""

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "step"):
            if getattr(self, name) < 1:
                raise SpecError(f"sampling: {name} must be at least 1, found {getattr(self, name)}")
        if self.lead < 0:
            raise SpecError(f"sampling: lead must not be negative, found {self.lead}")
        # Rates are fractions of 31-bit integers, as FFmpeg has them: lower ones are none.
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
        """Frames from the first to the last of a window, both included."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True, slots=True)
class Resize:
    """How a frame is brought to size before the crop."""

    rule: Literal["short_side", "long_side", "exact"]
    height: int
    """Target height; for the side rules, the target of that side (equal to ``width``)."""
    width: int
    filter: Filter = "bilinear"
    antialias: bool = True
    """Widen the filter when shrinking, as PIL does."""
    other_side: Literal["truncate", "round"] = "truncate"
    """Rounding of the side that keeps the aspect ratio."""
    grid: Literal["sides", "scale"] = "sides"
    """How far apart output pixels lie in the source: by the rounded sides, or by the scale from before a
    side was rounded (PyTorch's ``scale_factor``)."""

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
    """The window cut from the middle of a resized frame."""

    height: int
    width: int
    rule: Literal["centre_floor", "centre_round", "centre_ceil"] = "centre_floor"
    """Rounding of half a pixel: down, to even, or up."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise SpecError(f"crop: sizes must be positive, found {self.height}x{self.width}")


@dataclass(frozen=True, slots=True)
class Transform:
    """From a decoded frame to the pixels of the engine's input."""

    resize: Resize | None = None
    crop: Crop | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output of an engine: float32 ``[batch, *shape]``."""

    name: str
    shape: tuple[int | str, ...]
    """Axis sizes; a string is the name of one of the input's axes, and has its size. Where ``per`` is
    ``pair`` the first axis is the pairs of a window."""
    dtype: Literal["float32", "float16"] = "float32"
    kind: Literal["feature", "logits"] = "feature"
    per: Literal["window", "frame", "pair"] = "window"
    labels: tuple[str, ...] | None = None
    """Class names of a classifier's logits, in order."""
    activation: Activation | None = None
    """What makes probabilities of logits: softmax of classes that exclude each other, sigmoid of others."""
    pool: Pool = "head"
    """What became of the positions of the last map: pooled as the published head does it, by the mean over
    all of them, or not at all."""

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
        """``shape`` of an engine that is open, where every axis has a size (`EngineSpec.sized`).

        Raises:
            SpecError: an axis has a name only.
        """
        sizes = tuple(axis for axis in self.shape if isinstance(axis, int))
        if len(sizes) != len(self.shape):
            raise SpecError(f"output {self.name}: {list(self.shape)} has no size yet: give those of its axes")
        return sizes

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of what is saved as one row: of a pair where a window has several.

        Raises:
            SpecError: as of `sizes`.
        """
        return self.sizes[1:] if self.per == "pair" else self.sizes


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison of the exported file with the module it came from."""

    reference: str
    """What it was compared with, and how it was run."""
    tolerance: float
    """Largest relative L2 error that was allowed for any output."""
    error: float
    """Largest relative L2 error that was measured."""
    inputs: int
    """Number of inputs compared."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and math.isfinite(self.error)):
            raise SpecError(f"proof: error {self.error} of {self.tolerance} allowed, expected finite numbers")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a TensorRT plan was built with, and where it runs."""

    tensorrt: str
    """Version that built it, and that must run it unless ``version_compatible``."""
    device: str
    """Name of the GPU that it was tuned on."""
    compute_capability: tuple[int, int]
    """Of that GPU."""
    onnx_sha256: str
    """Of the ONNX file that it was built from, in hexadecimal."""
    batch: tuple[int, ...]
    """Windows per call: the fewest, what it was tuned for, the most."""
    version_compatible: bool = False
    """Whether later versions, and the lean runtime, run it too."""
    hardware: Literal["same", "same_compute_capability", "ampere_plus"] = "same"
    """Which GPUs run it: of the same model, of the same compute capability, or Ampere and later."""

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
    """Name of the model whose features its output is compared with; the weights are of one file."""
    scale: float
    """What a cosine between both is multiplied by before the softmax over texts."""
    merges: str
    """Byte pairs that the tokenizer merges, the first ones first: a line each, two symbols and a space."""
    tokenizer: Literal["clip"] = "clip"
    """CLIP's byte-level BPE (Radford et al., 2021)."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise SpecError(f"text: scale must be positive, found {self.scale}")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything the runtime needs to know of an engine."""

    model: str
    weights: Weights
    precision: Precision
    input: Input
    sampling: Sampling
    transform: Transform
    outputs: tuple[Output, ...]
    macs: int | None = None
    """Multiply-accumulates per window, for the share of the machine's peak; None where not counted."""
    proof: Proof | None = None
    plan: Plan | None = None
    """Of a TensorRT plan; None in an ONNX file."""
    text: Text | None = None
    """Of a text encoder; None where the input is not text."""
    vfx_version: str = ""
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
        """The spec of this engine at one size of its named axes, of which only ``batch`` may be left out.

        Raises:
            SpecError: a name that the input does not have, one that is not given, or a size below 1.
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
            SpecError: not JSON, a field is missing, unknown or of another type, or the spec is newer.
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
    """``data``, parsed JSON, as the dataclass ``kind``; SpecError names the place that does not fit."""
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
        # JSON's numbers have no bounds, and Python's reader takes NaN.
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
    """Names of models and outputs become names of files and of arrays in them; all stand in messages."""
    if not name.isprintable() or name.strip() != name or name in ("", ".", "..") or set("/\\") & set(name):
        raise SpecError(
            f"{what} {_shown(name)}: expected a name of printable text without / and \\ and outer spaces"
        )


def _shown(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."
