"""Exporting the text encoder of a model that compares pictures with texts, with its vocabulary."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import nn

from vfx_engines.errors import CheckpointError, UsageError, reason, shown
from vfx_engines.spec import EngineSpec, Input, Output, Precision, Sampling, Text, Transform, Weights
from vfx_export.catalogue import catalogue_shapes
from vfx_export.checkpoints import read_checkpoint
from vfx_export.exporting import Stage, export_module, random_weights, weights_of
from vfx_export.fitting import fitting, load_into
from vfx_export.model import Model, TextEncoder

SUFFIX = "_text"
"""Added to a model's name, gives the name of its text encoder."""

MERGES = 49_152 - 256 - 2
"""Number of merges that the tokenizer takes from a vocabulary file, which has more lines."""


def text_encoder_of(model: Model) -> TextEncoder:
    """The text encoder of a model.

    Raises:
        UsageError: the model has none.
    """
    if model.text is None:
        raise UsageError(f"--text: {model.name} has no text encoder")
    return model.text


def export_text_encoder(
    model: Model,
    path: Path,
    *,
    checkpoint: Path | None,
    vocabulary: Path,
    precision: Precision = "fp32",
    seed: int = 0,
    stage: Stage = lambda name: None,
) -> EngineSpec:
    """Export the text encoder of a catalogue model.

    Args:
        model: row of the catalogue.
        path: the ``.onnx`` file to write.
        checkpoint: the model's checkpoint, which holds both encoders; None draws random weights.
        vocabulary: the tokenizer's file, see `read_merges`; it becomes part of the spec.
        precision: precision of the graph.
        seed: seed of random weights.
        stage: told the name of each stage as it begins.

    Returns:
        The spec in the file, with the proof. The engine takes int32 token ids ``[batch, tokens]`` and gives
        float32 ``text``, ``[batch, length]``.

    Raises:
        UsageError: the model has no text encoder.
        CheckpointError: the weights are not this model's, or ``vocabulary`` is not a vocabulary.
        ExportError: see `vfx_export.exporting.export_module`.
        OutputError: the file cannot be written.
    """
    encoder = text_encoder_of(model)
    merges = read_merges(vocabulary)
    stage("reading the weights")
    module = encoder.network()
    if checkpoint is None:
        random_weights(module, seed)
        weights = Weights("random", None, "none", f"random, seed {seed}")
    else:
        _load(module, model, encoder, checkpoint)
        weights = weights_of(model, [checkpoint])
    spec = EngineSpec(
        model=f"{model.name}{SUFFIX}",
        weights=weights,
        precision=precision,
        input=Input("tokens", "text", "int32", ("batch", encoder.tokens), blank=(0,)),
        sampling=Sampling(frames=1, stride=1, step=1),
        transform=Transform(),
        outputs=(Output("text", model.feature.shape),),
        text=Text(
            images=model.name, scale=math.exp(module.get_parameter("logit_scale").item()), merges=merges
        ),
    )
    return export_module(module, spec, path, tolerances=encoder.tolerances, stage=stage)


def read_merges(path: Path) -> str:
    """The tokenizer's merges, one per line, from OpenAI's file, compressed with gzip or not.

    The first line of the file is its version. Of the other lines, the first 48894 are taken, as in OpenAI's
    own tokenizer.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or does not hold such lines.
    """
    where = shown(path)
    expected = f"expected CLIP's bpe_simple_vocab_16e6.txt.gz, {MERGES} lines of two symbols after the first"
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{where}: not UTF-8 text; {expected}") from None
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or reason(error)
        raise CheckpointError(f"{where}: cannot be read: {what}; {expected}") from None
    lines = [line.rstrip("\r") for line in text.split("\n")][1 : MERGES + 1]
    wrong = next(
        (i for i, line in enumerate(lines) if len(line.split(" ")) != 2 or not all(line.split(" "))), None
    )
    if wrong is not None:
        raise CheckpointError(f"{where}: line {wrong + 2} is {lines[wrong][:40]!r}; {expected}")
    if len(lines) < MERGES:
        raise CheckpointError(f"{where}: {len(lines)} merges; {expected}")
    return "\n".join(lines)


def _load(module: nn.Module, model: Model, encoder: TextEncoder, checkpoint: Path) -> None:
    state, file = read_checkpoint(checkpoint), shown(checkpoint)
    # The text encoders of several CLIPs have the same shapes; only the image encoders tell them apart.
    with torch.device("meta"):
        images = model.network(False)
    fitting(images, state, model=model.name, rename=model.layouts, others=catalogue_shapes, file=file)
    load_into(module, state, model=f"{model.name}'s text encoder", rename=encoder.layouts, file=file)
