"""An export from start to end: weights, module, graph, comparison, file."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import onnx
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vfx_engines.errors import OutputError, UsageError, shown
from vfx_engines.onnx_file import embed_spec
from vfx_engines.spec import EngineSpec, Output, Pool, Precision, Weights
from vfx_engines.versions import vfx_version
from vfx_export.backbones.window_pool import Pooling
from vfx_export.catalogue import catalogue_shapes
from vfx_export.checkpoints import read_with_config
from vfx_export.fitting import key_shapes, load_into
from vfx_export.inflating import inflated
from vfx_export.lowering import LowPrecision, lowered
from vfx_export.model import Model
from vfx_export.proof import TOLERANCES, example_inputs, prove, reference
from vfx_export.pyslowfast_config import check_config
from vfx_export.trace import trace

Stage = Callable[[str], None]
"""Called with the name of each stage as it begins."""


def export_module(
    module: nn.Module,
    spec: EngineSpec,
    path: Path,
    *,
    low_precision: LowPrecision | None = None,
    published_half: bool = False,
    quantised: Collection[str] = (),
    tolerances: Mapping[Precision, float] = TOLERANCES,
    float32: Collection[str] = (),
    stage: Stage = lambda name: None,
) -> EngineSpec:
    """Export any torch module as an engine: trace it, compare the result, and write the file if it is right.

    Args:
        module: takes one tensor as described by ``spec.input`` (uint8 frames, float32 samples or int32 token
            ids), and returns a tensor or a tuple of tensors, float32 ``[batch, *shape]``, in the order of
            ``spec.outputs``. For fp16, its forward pass must cast to the dtype of its own weights. It is put
            into evaluation mode.
        spec: what the module takes and gives; ``precision`` is that of the graph.
        path: the ``.onnx`` file to write; an existing file is replaced.
        low_precision: a rewriting of the module for matrix units, used unless the precision is fp32.
        published_half: see `vfx_export.lowering.lowered`.
        quantised: names of outputs that the module rounds to whole numbers. In the comparison, they may
            differ by 1.
        tolerances: largest relative L2 errors, where they are not those of `vfx_export.proof.TOLERANCES`.
        float32: ends of the paths of submodules that stay float32 where the engine runs in bf16 (OpenVINO).
        stage: told the name of each stage as it begins.

    Returns:
        The spec in the file, with the proof.

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
        low = lowered(module, spec.precision, inputs.shape[1], low_precision, published_half)
        model = trace(low, torch.from_numpy(inputs), spec, float32 if spec.precision == "bf16" else ())
        onnx.save(model, part)
        stage("comparing the file with the module")
        proof = prove(part, spec, inputs, expected, quantised=quantised, tolerances=tolerances)
        spec = dataclasses.replace(spec, proof=proof)
        embed_spec(model, spec)
        onnx.save(model, part)
    return spec


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, renamed to it at the end, or removed if anything fails before."""
    part = path.with_name(f".{path.stem}.part.onnx")
    try:
        # Checked now, so that a folder that cannot be written is reported before the work rather than after.
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part.parent.mkdir(parents=True, exist_ok=True)
        # If this were a link, writing would overwrite its target.
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
    exact_zeros: bool = False,
    pool: Pool = "head",
    inflate: bool = False,
    stage: Stage = lambda name: None,
) -> EngineSpec:
    """Export a model of the catalogue.

    Args:
        model: row of the catalogue.
        path: the ``.onnx`` file to write.
        checkpoint: the weights; None draws random ones, and the spec says so. A model of several parts takes
            one file for each, in the order of its row.
        precision: precision of the graph.
        frames: frames of a window (for optical flow, pairs); None keeps the model's own. Windows then follow
            each other without a gap.
        head: also output the classifier's logits.
        seed: seed of random weights.
        pca: file with the parameters of the published post-processing, whose result becomes another output
            (VGGish).
        exact_zeros: frames that are ``spec.input.blank`` throughout are zeros for the network (PySlowFast).
        pool: how the positions of the last map are pooled; ``none`` outputs the map, or the tokens, instead
            of the feature (PySlowFast). Logits are computed from the feature as pooled; for ``none``, as the
            published head pools it.
        inflate: the checkpoint is that of a 2D ResNet, whose kernels are repeated over time (PySlowFast's
            C2D, I3D and Slow).
        stage: told the name of each stage as it begins.

    Returns:
        The spec in the file, with the proof.

    Raises:
        UsageError: the network cannot take ``frames``; has no head, post-processing, exact zeros or other
            pool; needs another number of files; or cannot be inflated.
        CheckpointError: the weights or the parameters are not this model's.
        ExportError: see `export_module`.
        OutputError: the file cannot be written.
    """
    sampling = model.windows(frames)
    model.check_pool(pool)
    if inflate:
        model.check_inflation()
    logits = (model.logits(),) if head else ()
    stage("reading the weights")
    if checkpoint is None:
        module = model.network(head)
        random_weights(module, seed)
        weights = Weights("random", None, "none", f"random, seed {seed}")
    else:
        files = [checkpoint] if isinstance(checkpoint, Path) else checkpoint
        module, weights = _load(model, head, files, inflate)
    if exact_zeros:
        model.with_exact_zeros(module)
    outputs = _pooled(module, model, sampling.frames, pool, logits)
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
        input=dataclasses.replace(model.input(sampling.frames), exact_zeros=exact_zeros),
        sampling=sampling,
        transform=model.transform,
        outputs=outputs,
    )
    return export_module(
        module,
        spec,
        path,
        low_precision=model.low_precision,
        published_half=model.published_half,
        # In unpooled maps, no mean reduces the noise: SlowFast 4x16's have an error of 1.3e-2 in bf16.
        tolerances={"bf16": 2e-2, **model.tolerances} if pool == "none" else model.tolerances,
        float32=model.float32,
        quantised=quantised,
        stage=stage,
    )


def _pooled(
    module: nn.Module, model: Model, frames: int, pool: Pool, logits: tuple[Output, ...]
) -> tuple[Output, ...]:
    """Make ``module`` pool as asked, and return the outputs that it then has."""
    feature = dataclasses.replace(model.output(frames), pool=pool)
    if pool == "head":
        return feature, *logits
    cast(Pooling, module).pool = pool
    if pool == "none":
        return *map_outputs(module, feature, model.input(frames).shape), *logits
    return feature, *(dataclasses.replace(item, pool=pool) for item in logits)


def map_outputs(module: nn.Module, feature: Output, shape: tuple[int | str, ...]) -> tuple[Output, ...]:
    """The unpooled outputs of a network. Their shapes are found on fake tensors, without computing anything.

    Args:
        module: a `Pooling` whose ``pool`` is ``none``.
        feature: the output that they replace.
        shape: shape of the engine's input.
    """
    names = cast(Pooling, module).MAPS
    sizes = [1, *(size for size in shape if isinstance(size, int))]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        maps = module(torch.zeros(sizes, dtype=torch.uint8))
    return tuple(
        dataclasses.replace(feature, name=name, shape=tuple(x.shape[1:]))
        for name, x in zip(names, maps, strict=False)
    )


def _load(
    model: Model, head: bool, files: Sequence[Path], inflate: bool = False
) -> tuple[nn.Module, Weights]:
    """The module with the weights of its file, or of one file for each of its parts."""
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
        if inflate:
            state = inflated(state, key_shapes(part), head=head, file=shown(file))
        elif config is not None:
            check_config(config, model.config, model=model.name, file=shown(file))
        load_into(
            part,
            state,
            model=model.name,
            rename=layouts,
            others=catalogue_shapes,
            file=shown(file),
        )
    weights = weights_of(model, files)
    if inflate:
        licence, source = "that of the 2D weights", "2D weights inflated over time, not trained on video"
        weights = dataclasses.replace(weights, licence=licence, source=source)
    return module, weights


def weights_of(model: Model, files: Sequence[Path]) -> Weights:
    """The spec's description of weights that were read from ``files``: names and SHA-256, joined by " + "."""
    names, hashes = ([*map(what, files)] for what in (lambda file: shown(file.name), _sha256))
    return Weights(" + ".join(names), " + ".join(hashes), model.licence, model.source)


def random_weights(module: nn.Module, seed: int = 0) -> None:
    """Fill a module with random weights under which activations keep their size with depth (He et al., 2015).

    Residual blocks name the layers whose weights should be smaller in ``random_gains``. Otherwise 50 blocks
    would multiply activations by 1e7, and 20 updates of a flow would make it a matter of chance.

    Args:
        module: changed in place.
        seed: seed of the generator.
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
        gains: Mapping[str, float] = getattr(part, "random_gains", {})
        for path, gain in gains.items():
            weight = part.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            with torch.no_grad():
                weight.mul_(gain)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
