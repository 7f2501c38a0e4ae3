"""The configuration that Triton reads beside a model, ``config.pbtxt``, in protobuf's text format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vfx_engines.errors import UsageError
from vfx_engines.spec import EngineSpec, Output
from vfx_engines.triton.served import dimensions, spec_parameter
from vfx_engines.triton.tensors import DATATYPES

QUEUE_DELAY = 5000
"""Microseconds that a request may wait for others to share its call: little beside computing a window."""

_WARM_UP_SIZE = 256
"""Size, in warm-up requests, of axes that otherwise depend on the video."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Where Triton finds a model, and how it should run it."""

    repository: Path
    batches: tuple[tuple[int, int, int], ...] = ((1, 8, 8),)
    """Windows per call, for each optimisation profile: the fewest, the number it is tuned for, the most."""
    kind: str = "cpu"
    """``cpu`` or ``gpu``."""
    instances: int = 1
    """Copies of the model; with ``gpu``, on each GPU."""


def parse_instances(text: str | None, plan: bool) -> tuple[str, int]:
    """Kind and number of instances, from a value of ``--instances``.

    Args:
        text: such as ``gpu`` or ``cpu:2``; None takes one on a GPU for a plan, and one on a CPU for ONNX.
        plan: whether the model is a TensorRT plan.

    Raises:
        UsageError: the text is none of these, or asks for a plan on a CPU.
    """
    found = re.fullmatch(r"(cpu|gpu)(?::([1-9]\d?))?", text or ("gpu" if plan else "cpu"))
    if found is None:
        raise UsageError(f"--instances {text}: expected cpu, gpu, or with their number gpu:2")
    if plan and found[1] == "cpu":
        raise UsageError(f"--instances {text}: a TensorRT plan runs on a GPU: use --format onnx")
    return found[1], int(found[2] or 1)


def config_text(name: str, version: int, spec: EngineSpec, serving: Serving, kept: Iterable[str] = ()) -> str:
    """The configuration of a model, in protobuf's text format.

    Args:
        name: name of the model and of its folder.
        version: the version that ``spec`` belongs to.
        spec: spec of the engine.
        serving: how Triton should run it.
        kept: specs of other versions, as lines of an older configuration; see `spec_lines`.
    """
    plan = spec.plan is not None
    most = max(batch[2] for batch in serving.batches)
    preferred = sorted({batch[1] for batch in serving.batches} | {most})
    profiles = [f"  profile: [ {', '.join(_quoted(str(i)) for i in range(len(serving.batches)))} ]"]
    blocks = [
        f"name: {_quoted(name)}",
        f'backend: "{"tensorrt" if plan else "onnxruntime"}"',
        f"max_batch_size: {most}",
        _block(
            "input", [f"name: {_quoted(spec.input.name)}", *_tensor(spec.input.dtype, spec.input.shape[1:])]
        ),
        *(_block("output", _output(output)) for output in spec.outputs),
        _block(
            "instance_group",
            [f"kind: KIND_{serving.kind.upper()}", f"count: {serving.instances}"]
            + (profiles if plan and len(serving.batches) > 1 else []),
        ),
        _block(
            "dynamic_batching",
            [
                f"preferred_batch_size: [ {', '.join(map(str, preferred))} ]",
                f"max_queue_delay_microseconds: {QUEUE_DELAY}",
            ],
        ),
        _warm_up(spec, sorted({1, *preferred})),
        *_tuning(spec, serving),
        *kept,
        _parameter(spec_parameter(version), _compact(spec)),
    ]
    return "\n".join(blocks) + "\n"


def spec_lines(config: str) -> dict[int, str]:
    """Version -> the line with its spec, from a configuration that vfx wrote."""
    pattern = r'^parameters \{ key: "vfx_(\d{1,18})" value \{ string_value: "(?:[^"\\\n]|\\.)*" \} \}$'
    return {int(found[1]): found[0] for found in re.finditer(pattern, config, re.MULTILINE)}


def label_files(spec: EngineSpec) -> Mapping[str, str]:
    """Name -> content of the label files, with one class per line, in the order of the logits."""
    return {
        _label_file(output): "".join(f"{' '.join(label.split())}\n" for label in output.labels)
        for output in spec.outputs
        if output.labels is not None
    }


def _label_file(output: Output) -> str:
    return f"{output.name}_labels.txt"


def _output(output: Output) -> list[str]:
    lines = [f"name: {_quoted(output.name)}", *_tensor(output.dtype, output.shape)]
    return lines if output.labels is None else [*lines, f"label_filename: {_quoted(_label_file(output))}"]


def _tensor(dtype: str, shape: tuple[int | str, ...]) -> list[str]:
    dims = ", ".join(map(str, dimensions(shape)))
    return [f"data_type: TYPE_{DATATYPES[dtype]}", f"dims: [ {dims} ]"]


def _warm_up(spec: EngineSpec, batches: Iterable[int]) -> str:
    """Warm-up calls of each common size: first calls allocate, choose kernels and record CUDA graphs."""
    shape = tuple(axis if isinstance(axis, int) else _WARM_UP_SIZE for axis in spec.input.shape[1:])
    value = " ".join(_tensor(spec.input.dtype, shape))
    pixels = f"inputs {{ key: {_quoted(spec.input.name)} value {{ {value} random_data: true }} }}"
    return "\n".join(
        f'model_warmup {{ name: "{size} of noise" batch_size: {size} {pixels} }}' for size in batches
    )


def _tuning(spec: EngineSpec, serving: Serving) -> list[str]:
    if spec.plan is not None:
        return ["optimization { cuda { graphs: true } }"]
    if serving.kind == "gpu":
        # As in vfx-run: all algorithms of a convolution are tried, once for each shape.
        return [_parameter("cudnn_conv_algo_search", "0")]
    return []


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


def _compact(spec: EngineSpec) -> str:
    return json.dumps(json.loads(spec.to_json()), separators=(",", ":"))


def _block(name: str, lines: Iterable[str]) -> str:
    return "\n".join([f"{name} {{", *(f"  {line.strip()}" for line in lines), "}"])


def _quoted(text: str) -> str:
    """A quoted string of the text format, on one line; escapes are octal, as the format only has C's."""
    escaped = "".join(
        f"\\{char}" if char in '"\\' else char if char >= " " and char != "\x7f" else f"\\{ord(char):03o}"
        for char in text
    )
    return f'"{escaped}"'
