"""Zero-shot classification: how likely each text is for a row of features (Radford et al., 2021)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfx_engines.engine import Array, Engine
from vfx_engines.errors import InputError, UsageError, shown
from vfx_engines.opening import BackendName, open_engine, read_spec
from vfx_engines.spec import EngineSpec
from vfx_runtime.tokenizer import Tokenizer

_MOST_AT_ONCE = 16


class ZeroShot:
    """Texts as classes. They are encoded once, and can then be compared with any number of rows.

    Args:
        engine: a text encoder, made by ``vfx-export --text``. It runs on the CPU.
        texts: one or more texts, such as ``a photo of a dog``.
        backend: see `vfx_engines.open_engine`.

    Raises:
        UsageError: there is no text, a text is too long, or the engine is not a text encoder.
        EngineError: the engine cannot be opened, or it failed.
    """

    texts: tuple[str, ...]
    spec: EngineSpec
    """The spec of the text encoder."""
    name: str
    """What ran the text encoder: library, version, device, precision."""

    def __init__(
        self, engine: str | os.PathLike[str], texts: Sequence[str], *, backend: BackendName | None = None
    ) -> None:
        path = Path(engine)
        self.spec = read_spec(path)
        if self.spec.text is None:
            raise UsageError(
                f"{shown(path)}: {self.spec.model} takes {self.spec.input.modality}, expected a text "
                "encoder: export one with --text"
            )
        if isinstance(texts, str) or not texts:
            raise UsageError("no texts: expected a sequence of one or more")
        self.texts = tuple(texts)
        self._scale = self.spec.text.scale
        ids = Tokenizer(self.spec.text, int(self.spec.input.shape[1]))(self.texts)
        with open_engine(path, device="cpu", backend=backend, batch=min(len(ids), _MOST_AT_ONCE)) as opened:
            self.name = opened.name
            self._features = _normalised(_run(opened, ids))

    def check(self, spec: EngineSpec) -> None:
        """Check that features of an engine can be compared with these texts.

        Args:
            spec: the spec of the engine that makes the features.

        Raises:
            UsageError: the engine is of another model, of other weights, or gives features of another length.
        """
        assert self.spec.text is not None, "of a text encoder"
        if spec.model != self.spec.text.images:
            raise UsageError(
                f"{self.spec.model} goes with {self.spec.text.images}, the engine is {spec.model}: export "
                "its own with --text"
            )
        if spec.weights.sha256 != self.spec.weights.sha256:
            raise UsageError(
                f"{self.spec.model} is of the weights {self.spec.weights.file}, {spec.model} of "
                f"{spec.weights.file}, another file: export both from one checkpoint"
            )
        own, other = self.spec.outputs[0].shape, spec.outputs[0].shape
        if own != other:
            raise UsageError(
                f"{self.spec.model} gives {list(own)}, {spec.model} {list(other)}: export both with one vfx"
            )

    def logits(self, features: Array) -> NDArray[np.float64]:
        """Scaled cosines between features and texts, float64 ``[rows, texts]``.

        Args:
            features: features of the image engine, float ``[rows, length]``.

        Raises:
            InputError: the features have another length than the texts'.
        """
        if features.ndim != 2 or features.shape[1] != self._features.shape[1]:
            raise InputError(
                f"features {list(features.shape)}: expected {self._features.shape[1]} numbers per row, as "
                f"{self.spec.model} gives"
            )
        product: NDArray[np.float64] = self._scale * (_normalised(features) @ self._features.T)
        return product

    def probabilities(self, features: Array) -> NDArray[np.float64]:
        """How likely each text is, float64 ``[rows, texts]``; each row sums to 1. See `logits`."""
        return softmax(self.logits(features))


def softmax(logits: Array) -> NDArray[np.float64]:
    """Softmax along the last axis, in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    chances: NDArray[np.float64] = shifted / shifted.sum(-1, keepdims=True)
    return chances


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """Sigmoid of each number, in double precision."""
    chances: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return chances


def read_texts(path: Path) -> tuple[str, ...]:
    """Read texts from a file, one per line; empty lines are left out.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, or has no texts.
    """
    where = shown(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--pred-texts {where}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--pred-texts {where}: byte {error.start} is not UTF-8; expected UTF-8, one text per line"
        ) from None
    texts = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not texts:
        raise UsageError(f"--pred-texts {where}: no texts in it, expected one per line")
    return texts


def zero_shot_of(
    engines: Sequence[Path],
    specs: Sequence[EngineSpec],
    texts: Path,
    text_engine: Path | None,
    backend: BackendName | None,
) -> tuple[str, ZeroShot]:
    """Encode the texts in a file, to classify the rows of one of a run's engines.

    Args:
        engines: the run's engine files.
        specs: their specs.
        texts: a file of texts, see `read_texts`.
        text_engine: the text encoder; None looks for ``<model>_text.onnx`` next to the engines.
        backend: the library that runs the text encoder.

    Returns:
        The name of the output that the texts are compared with, and the encoded texts.

    Raises:
        UsageError: see `read_texts`; or there is no text encoder, or it belongs to another model.
        EngineError: the text encoder cannot be opened.
    """
    lines = read_texts(texts)
    beside = [path.with_name(f"{spec.model}_text.onnx") for path, spec in zip(engines, specs, strict=True)]
    found = text_engine or next((path for path in beside if path.is_file()), None)
    if found is None:
        raise UsageError(
            f"--pred-texts: no text encoder at {shown(beside[0])}: export it with --text, or name it: "
            "--text-engine FILE"
        )
    judge = ZeroShot(found, lines, backend=backend)
    assert judge.spec.text is not None, "of a text encoder"
    images = judge.spec.text.images
    spec = next((spec for spec in specs if spec.model == images), specs[0])
    judge.check(spec)
    return spec.outputs[0].name, judge


def _run(engine: Engine, ids: NDArray[np.int32]) -> Array:
    """Like `Engine.run`, but with all slots in flight, since a slot uses one core on small machines."""
    name = engine.spec.outputs[0].name
    parts = [ids[first : first + engine.batch] for first in range(0, len(ids), engine.batch)]
    rows: list[Array] = []
    for number in range(len(parts) + engine.slots):
        slot = number % engine.slots
        if number >= engine.slots and number - engine.slots < len(parts):
            rows.append(engine.collect(slot)[name])
        if number < len(parts):
            engine.buffer(slot)[: len(parts[number])] = parts[number]
            engine.submit(slot, len(parts[number]))
    return np.concatenate(rows)


def _normalised(rows: Array) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    return unit
