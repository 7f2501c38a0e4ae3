"""Every exported file is compared with the module it came from; one that differs too much is not written.

Two different inputs are run through torch in float32, and through the engine as a user would open it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vfx_engines.errors import EngineError, ExportError, reason
from vfx_engines.opening import open_engine
from vfx_engines.spec import EngineSpec, Precision, Proof

TOLERANCES: dict[Precision, float] = {
    "fp32": 1e-4,  # sums in another order: I3D has 2e-7, deeper networks have up to 1e-5
    "fp16": 5e-3,  # 11 bits of mantissa in every tensor between layers: I3D has 4e-4
    "bf16": 1e-2,  # 8 bits of mantissa, sums in float32: I3D has 4e-3
}
"""Largest relative L2 error that a row of an output may have, by precision."""

INPUTS = 2
"""Number of inputs that are compared."""


def example_sizes(spec: EngineSpec) -> dict[str, int]:
    """The sizes at which an engine is compared: 256 for each axis, other than the batch, that may vary."""
    return {axis: 256 for axis in spec.input.shape[1:] if isinstance(axis, str)}


def example_inputs(spec: EngineSpec) -> NDArray[Any]:
    """Two different inputs of the spec's shape and dtype, somewhat like pictures or audio: waves with noise.

    uint8 uses its whole range, float32 that of audio, -1 to 1. Named axes have `example_sizes`. For a text
    encoder, the inputs are a short text and one of the full length: random ids between the markers of start
    and end.
    """
    if spec.text is not None:
        return _example_texts(spec)
    sized = spec.sized(example_sizes(spec))
    shape = [INPUTS, *(int(axis) for axis in sized.input.shape[1:])]
    rng = np.random.default_rng(20_261_121)
    out = np.empty(shape, np.float32)
    for row in out:
        axes = np.meshgrid(*(np.linspace(0, 6.28, n) for n in row.shape), indexing="ij", sparse=True)
        wave = sum(np.sin(rng.integers(1, 5) * a + rng.uniform(0, 6.28)) for a in axes) / len(axes)
        noise = rng.standard_normal(row.shape, np.float32)
        row[:] = np.clip(127.5 + 90 * wave + 30 * noise, 0, 255)
    return out.astype(np.uint8) if spec.input.dtype == "uint8" else out / 127.5 - 1


def _example_texts(spec: EngineSpec) -> NDArray[np.int32]:
    assert spec.text is not None, "the caller looked"
    largest = 512 + spec.text.merges.count("\n") + 2
    rng = np.random.default_rng(20_261_121)
    rows = np.zeros((INPUTS, int(spec.input.shape[1])), np.int32)
    for row, words in zip(rows, (8, len(rows[0]) - 2), strict=True):
        row[: words + 2] = [largest - 1, *rng.integers(0, largest - 1, words), largest]
    return rows


def reference(
    module: nn.Module, spec: EngineSpec, inputs: NDArray[Any]
) -> tuple[list[NDArray[np.float32]], int]:
    """Run the module in torch, in float32, one input at a time: a window of MViTv2-L takes 8 GB.

    Args:
        module: in evaluation mode.
        spec: what the module should take and give.
        inputs: from `example_inputs`.

    Returns:
        An array for each output, float32 ``[batch, *shape]``; and the multiply-accumulates of one row
        (convolutions and matrix products).

    Raises:
        ExportError: the module fails, its outputs are not those of the spec, or one is not finite.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        rows = [_row(module, spec, given[None]) for given in inputs]
    arrays = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    for output, array in zip(spec.outputs, arrays, strict=True):
        if not np.isfinite(array).all():
            raise ExportError(
                f"{spec.model}: the module itself gives NaN or infinity in {output.name}: check its weights"
            )
    return arrays, counter.get_total_flops() // (2 * len(inputs))


def _row(module: nn.Module, spec: EngineSpec, given: NDArray[Any]) -> list[NDArray[np.float32]]:
    try:
        outputs = module(torch.from_numpy(given))
    except Exception as error:  # a user's module may raise anything
        raise ExportError(
            f"{spec.model}: the module does not run on {given.dtype} {list(given.shape)}: {reason(error)}"
        ) from error
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    if not isinstance(outputs, tuple | list) or not all(isinstance(output, Tensor) for output in outputs):
        raise ExportError(
            f"{spec.model}: the module gives a {type(outputs).__name__}, expected a tensor or a tuple of them"
        )
    shapes = [list(output.shape) for output in outputs]
    expected = [[1, *output.shape] for output in spec.sized(example_sizes(spec)).outputs]
    if shapes != expected:
        raise ExportError(
            f"{spec.model}: the module gives {shapes} for one row, the spec says {expected}: "
            "correct the spec's outputs, or the module"
        )
    return [output.float().numpy() for output in outputs]


def prove(
    path: Path,
    spec: EngineSpec,
    inputs: NDArray[Any],
    expected: list[NDArray[np.float32]],
    *,
    quantised: Collection[str] = (),
    tolerances: Mapping[Precision, float] = TOLERANCES,
) -> Proof:
    """Run the exported file, and measure how far it is from the reference.

    A bf16 file has float32 tensors, so it is first run in fp32, with the tolerance of fp32. The errors that
    bf16 causes with some weights could otherwise hide a wrong graph.

    Args:
        path: the ONNX file.
        spec: its spec.
        inputs: what the reference was given.
        expected: what the reference returned, an array for each output.
        quantised: names of outputs that are rounded to whole numbers, where a difference of 1 is no error.
        tolerances: largest relative L2 errors, where they are not those of `TOLERANCES`.

    Returns:
        The proof, with the largest relative L2 error of any row of any output.

    Raises:
        ExportError: the file does not run, an output is not finite, or its error is larger than allowed.
    """
    allowed = {**TOLERANCES, **tolerances}
    if spec.precision == "bf16":
        _compare(path, spec, "fp32", inputs, expected, quantised, allowed["fp32"])
    tolerance = allowed[spec.precision]
    worst, name = _compare(path, spec, spec.precision, inputs, expected, quantised, tolerance)
    return Proof(f"torch {torch.__version__}, float32, eager; {name}", tolerance, worst, len(inputs))


def _compare(
    path: Path,
    spec: EngineSpec,
    precision: Precision,
    inputs: NDArray[Any],
    expected: list[NDArray[np.float32]],
    quantised: Collection[str],
    tolerance: float,
) -> tuple[float, str]:
    """Largest relative L2 error of an output's row, and the name of the engine that was run."""
    try:
        with open_engine(path, sizes=example_sizes(spec), precision=precision) as engine:
            outputs = engine.run(inputs)
            name = engine.name
    except EngineError as error:
        raise ExportError(f"{spec.model}: what was exported does not run: {error}") from error
    worst = 0.0
    for output, want in zip(spec.outputs, expected, strict=True):
        got = outputs[output.name]
        if not np.isfinite(got).all():
            raise ExportError(
                f"{spec.model}: {output.name} is not finite in {precision}: "
                "use --precision fp32, or check the weights"
            )
        for row, target in zip(got.astype(np.float64), want.astype(np.float64), strict=True):
            size = max(float(np.linalg.norm(target)), 1e-30)
            apart = np.abs(row - target)
            if output.name in quantised:
                # A value between two levels may be rounded to either.
                apart = np.maximum(apart - 1, 0)
            worst = max(worst, float(np.linalg.norm(apart)) / size)
    if worst > tolerance:
        advice = (
            "the module must compute the same at every call, from its input alone"
            if precision == "fp32"
            else "use --precision fp32"
        )
        raise ExportError(
            f"{spec.model}: {precision} differs from torch by {worst:.1e}, at most {tolerance:.0e} is "
            f"allowed, so no file was left: {advice}"
        )
    return worst, name
