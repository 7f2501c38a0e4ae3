"""What ``--show-pred`` prints: the most likely classes of each row, by a classifier or by texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vfx_engines.engine import Array
from vfx_engines.errors import shown
from vfx_engines.spec import Output
from vfx_runtime.features import Features
from vfx_runtime.zero_shot import ZeroShot, sigmoid, softmax

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Classes:
    """Classes, and how to score rows against them."""

    output: str
    """Name of the engine's output that is scored."""
    labels: Sequence[str]
    """Names of the classes."""
    logits: Callable[[Array], Array] = lambda rows: rows
    """From rows of that output to logits, ``[rows, labels]``."""
    probabilities: Callable[[Array], Array] = softmax
    """From the logits of one row to probabilities, both ``[labels]``."""


def heads(outputs: Sequence[Output]) -> list[Classes]:
    """The classifiers among the outputs of engines."""
    return [
        Classes(
            item.name,
            item.labels or [f"class {i}" for i in range(int(item.shape[0]))],
            probabilities=sigmoid if item.activation == "sigmoid" else softmax,
        )
        for item in outputs
        if item.kind == "logits"
    ]


def texts(output: str, judge: ZeroShot) -> Classes:
    """Texts as classes, for the output that they are compared with."""
    return Classes(output, judge.texts, judge.logits)


def prediction_lines(name: str, features: Features, classes: Sequence[Classes]) -> Iterator[str]:
    """A line for each row of a video: its times, and the five most likely classes with probabilities."""
    for item in classes:
        logits = item.logits(features.arrays[item.output])
        for (start, end), row in zip(features.timestamps_ms / 1000, logits, strict=True):
            chances = item.probabilities(row)
            best = np.argsort(-row, kind="stable")[:_SHOWN]
            # Names come from the engine's file and could contain control codes for the terminal.
            top = ", ".join(f"{shown(item.labels[i])} {chances[i]:.3f}" for i in best)
            yield f"{shown(name)} {start:.2f}-{end:.2f} s: {top}"
