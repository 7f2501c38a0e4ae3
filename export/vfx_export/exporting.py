"""One export from start to end: weights, module, graph, proof, file."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from vfx_engines.errors import OutputError, UsageError, shown
from vfx_engines.onnx_file import embed_spec
from vfx_engines.spec import EngineSpec, Output, Precision, Weights
from vfx_engines.versions import vfx_version
from vfx_export.catalogue import catalogue_shapes
from vfx_export.checkpoints import read_with_config
from vfx_export.fitting import load_into
from vfx_export.model import Model
from vfx_export.proof import example_inputs, prove, reference
from vfx_export.pyslowfast_config import check_config
from vfx_export.trace import LowPrecision, lowered, trace

Stage = Callable[[str], None]
"""Told the name of each stage as it begins."""


def export_module(
    module: nn.Module,
    spec: EngineSpec,
    path: Path,
    *,
    low_precision: LowPrecision | None = None,
    quantised: Collection[str] = (),
    tolerance: float | None = None,
    stage: Stage = lambda name: None,
) -> EngineSpec:
    """Export any torch module as an engine: trace it, prove it, and write the file whole or not at all.

    Args:
        module: takes one tensor of ``spec.input`` (uint8 frames, or float32 samples) and returns a tensor
            or a tuple of tensors, float32 ``[batch, *shape]``, in the order of ``spec.outputs``. For fp16 its
            forward pass casts to the dtype of its own weights. It is put into evaluation mode.
        spec: what it eats and gives; ``precision`` is that of the graph.
        path: the ``.onnx`` file to write; one that is there is replaced.
        low_precision: a rewriting of the module for matrix units, used unless the precision is fp32.
        quantised: names of outputs that the module rounds to whole numbers: the proof lets them be one apart.
        tolerance: largest relative L2 error, if not the precision's usual one.
        stage: progress.

    Returns:
        The spec as it stands in the file, with the proof.

    Raises:
        ExportError: the module does not give what the spec says, cannot be traced, or the file does not
            compute what the module does.
        OutputError: the file cannot be written.
    """
    module.eval()
    inputs = example_inputs(spec)
    with _part_of(path) as part:
        stage("running the module in torch")
        expected, macs = reference(module, spec, inputs)
        spec = dataclasses.replace(spec, macs=macs or None, proof=None, vfx_version=vfx_version())
        stage("tracing")
        low = lowered(module, spec.precision, inputs.shape[1], low_precision)
        model = trace(low, torch.from_numpy(inputs), spec)
        onnx.save(model, part)
        stage("comparing the file with the module")
        proof = prove(part, spec, inputs, expected, quantised=quantised, tolerance=tolerance)
        spec = dataclasses.replace(spec, proof=proof)
        embed_spec(model, spec)
        onnx.save(model, part)
    return spec


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its name at the end, and is gone if anything fails before."""
    part = path.with_name(f".{path.stem}.part.onnx")
    try:
        # Now, so that a folder that cannot be written is said before the work and not after it.
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part.parent.mkdir(parents=True, exist_ok=True)
        # A link of that name would have its target overwritten.
        part.unlink(missing_ok=True)
        part.touch()
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{shown(path)}: cannot be written: {error.strerror or error}") from None


def export_model(
    model: Model,
    path: Path,
    *,
    checkpoint: Path | Sequence[Path] | None,
    precision: Precision = "fp32",
    frames: int | None = None,
    head: bool = False,
    seed: int = 0,
    pca: Path | None = None,
    stage: Stage = lambda name: None,
) -> EngineSpec:
    """Export a catalogue model.

    Args:
        model: its row.
        path: the ``.onnx`` file to write.
        checkpoint: the weights; None draws random ones, and the spec says so. A model of several parts
            takes a file for each, in the order of its row.
        precision: of the graph.
        frames: frames of a window, if not the model's own. The step becomes the same.
        head: give the classifier's logits as a second output.
        seed: of random weights.
        pca: parameters of the published post-processing, whose result becomes an output too (VGGish).
        stage: progress.

    Raises:
        UsageError: the network cannot take ``frames``, has no head or post-processing, or is made of another
            number of files.
        CheckpointError: the weights or the parameters are not this model's.
        ExportError: see `export_module`.
    """
    sampling = model.windows(frames)
    feature = model.output(sampling.frames)
    outputs: tuple[Output, ...] = (feature, model.logits()) if head else (feature,)
    stage("reading the weights")
    if checkpoint is None:
        module = model.network(head)
        random_weights(module, seed)
        weights = Weights("random", None, "none", f"random, seed {seed}")
    else:
        module, weights = _load(model, head, [checkpoint] if isinstance(checkpoint, Path) else checkpoint)
    quantised: tuple[str, ...] = ()
    if pca is not None:
        quantiser = model.postprocessed(module, pca)
        outputs, quantised = (*outputs, quantiser), (quantiser.name,)
        source = f"{weights.source}; post-processing of {shown(pca.name)}, SHA-256 {_sha256(pca)}"
        weights = dataclasses.replace(weights, source=source)
    spec = EngineSpec(
        model=model.name,
        weights=weights,
        precision=precision,
        input=model.input(sampling.frames),
        sampling=sampling,
        transform=model.transform,
        outputs=outputs,
    )
    return export_module(
        module,
        spec,
        path,
        low_precision=model.low_precision,
        tolerance=model.tolerances.get(precision),
        quantised=quantised,
        stage=stage,
    )


def _load(model: Model, head: bool, files: Sequence[Path]) -> tuple[nn.Module, Weights]:
    """The module filled from its file, or each of its parts from its own."""
    if len(files) != max(1, len(model.parts)):
        wanted = ", ".join(part.prefix for part in model.parts) or "one"
        expected = max(1, len(model.parts))
        raise UsageError(f"{model.name}: {len(files)} checkpoints given, expected {expected} ({wanted})")
    read = [read_with_config(file) for file in files]
    if model.network_of is None:
        module = model.network(head)
    else:
        module = model.network_of({key: tuple(value.shape) for key, value in read[0][0].items()}, head)
    parts = [(module.get_submodule(part.prefix), part.layouts) for part in model.parts]
    parts = parts or [(module, model.layouts)]
    for file, (state, config), (part, layouts) in zip(files, read, parts, strict=True):
        if config is not None:
            check_config(config, model.config, model=model.name, file=shown(file))
        load_into(
            part,
            state,
            model=model.name,
            rename=layouts,
            others=catalogue_shapes,
            file=shown(file),
        )
    names, hashes = ([*map(what, files)] for what in (lambda file: shown(file.name), _sha256))
    return module, Weights(" + ".join(names), " + ".join(hashes), model.licence, model.source)


def random_weights(module: nn.Module, seed: int = 0) -> None:
    """Fill a module so that activations neither fade nor grow with depth (He et al., 2015), for trials.

    A block that adds to what it is given names its ``LAST_LAYER`` before the sum: that one is made small, or
    50 blocks would multiply activations by 1e7, and 20 updates of a flow would make it a matter of chance.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim >= 2:
                fan_in = math.prod(parameter.shape[1:])
                parameter.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.05, generator=generator)
    for part in module.modules():
        path = getattr(part, "LAST_LAYER", None)
        if path is not None:
            weight = part.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            with torch.no_grad():
                weight.mul_(0.25)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
