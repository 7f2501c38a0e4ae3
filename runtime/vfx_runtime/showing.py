"""Compute what pages show about features: similarity and length of rows, motion, predictions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfx_engines.spec import Activation
from vfx_runtime.zero_shot import sigmoid, softmax

Doubles = NDArray[np.float64]

CELLS = 256
"""Most rows and columns of a similarity matrix; if there are more rows, groups of them are averaged."""
POINTS = 600
"""Most points of a line; if there are more rows, groups of them are averaged."""
LISTED = 250
"""Most rows whose predictions are listed; if there are more, evenly spaced ones are chosen."""
TOP = 5
"""Number of classes listed for each row."""
_LONGEST_ROW = 65536
"""Rows with at most this many numbers are compared as features; longer ones are not."""


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """Cosines between rows, or between groups of consecutive rows."""

    values: Doubles
    """``[n, n]``, -1 to 1; NaN where no row of one of the groups has a direction."""
    bounds: NDArray[np.int64]
    """``[n + 1]``: group k has the rows from bounds[k] up to, but not including, bounds[k + 1]."""

    @property
    def averaged(self) -> bool:
        """Whether a cell stands for several pairs of rows."""
        return bool(np.any(np.diff(self.bounds) > 1))

    @property
    def scale(self) -> tuple[float, float]:
        """The values at the ends of a colour scale: the extremes off the diagonal."""
        beside = self.values[~np.eye(len(self.values), dtype=bool)]
        beside = beside[np.isfinite(beside)]
        if not beside.size:
            return 0.0, 1.0
        low, high = float(beside.min()), float(beside.max())
        return (low, high) if high - low > 1e-6 else (low - 0.5, low + 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One number for each row, or for groups of consecutive rows."""

    mean: Doubles
    """``[n]``; NaN where no row of a group has a finite number."""
    low: Doubles
    """``[n]``, the smallest of each group."""
    high: Doubles
    """``[n]``, the largest of each group."""
    bounds: NDArray[np.int64]
    """``[n + 1]``, as in `Similarity`."""


def groups(rows: int, most: int) -> NDArray[np.int64]:
    """Bounds of at most ``most`` groups of rows, as equal as possible: int64 ``[groups + 1]``."""
    return np.linspace(0, rows, min(rows, most) + 1).round().astype(np.int64)


def is_feature(array: NDArray[np.generic]) -> bool:
    """Whether the rows are vectors that can be compared, rather than maps or something else."""
    numbers = np.issubdtype(array.dtype, np.floating)
    return bool(numbers and array.ndim == 2 and 0 < array.shape[1] <= _LONGEST_ROW)


def similarity(rows: NDArray[np.floating], most: int = CELLS) -> Similarity:
    """The self-similarity of rows.

    The mean of all cosines between two groups is the dot product of the groups' mean directions, so the
    matrix of all pairs is never computed.

    Args:
        rows: ``[rows, dim]``. Rows that are all zeros, or not finite, have no direction and are left out.
        most: most rows and columns of the result.
    """
    bounds = groups(len(rows), most)
    count = len(bounds) - 1
    sums, counts = np.zeros((count, rows.shape[1])), np.zeros(count)
    for k, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = rows[start:end].astype(np.float64)
        part = part[np.isfinite(part).all(1)]
        # Divided by the largest number first, so that squares neither overflow nor vanish, even for doubles.
        largest = np.abs(part).max(1, initial=0)
        part = part[largest > 0] / largest[largest > 0, None]
        sums[k] = (part / np.linalg.norm(part, axis=1, keepdims=True)).sum(0)
        counts[k] = len(part)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / counts[:, None]
        values = np.clip(mean @ mean.T, -1, 1)
    return Similarity(values, bounds)


def norms(rows: NDArray[np.floating]) -> Doubles:
    """Euclidean norm of each row, ``[rows]``; NaN if a number of the row is not finite.

    Args:
        rows: ``[rows, ...]``; all further axes count as one.
    """
    lengths = np.empty(len(rows))
    for k, row in enumerate(rows):
        lengths[k] = np.linalg.norm(row.astype(np.float64))
    return np.where(np.isfinite(lengths), lengths, np.nan)


def motion(flows: NDArray[np.floating]) -> Doubles:
    """Mean length of the vectors of each flow field, in pixels, ``[rows]``; NaN if any is not finite.

    Args:
        flows: ``[rows, 2, height, width]``.
    """
    lengths = np.empty(len(flows))
    for k, (x, y) in enumerate(flows):
        lengths[k] = np.hypot(x, y, dtype=np.float64).mean()
    return np.where(np.isfinite(lengths), lengths, np.nan)


def line(values: Doubles, most: int = POINTS) -> Line:
    """One number per row, ``[rows]``, as a line of at most ``most`` points."""
    bounds = groups(len(values), most)
    parts = [values[start:end] for start, end in itertools.pairwise(bounds)]
    parts = [part[np.isfinite(part)] for part in parts]
    mean, low, high = (
        np.array([function(part) if part.size else np.nan for part in parts], np.float64)
        for function in (np.mean, np.min, np.max)
    )
    return Line(mean, low, high, bounds)


def not_finite(rows: NDArray[np.floating]) -> NDArray[np.int64]:
    """Indices of the rows that contain NaN or an infinity."""
    return np.array([k for k, row in enumerate(rows) if not np.isfinite(row).all()], np.int64)


def chances(logits: NDArray[np.floating], activation: Activation = "softmax") -> Doubles:
    """Class probabilities of each row, ``[rows, classes]``; all NaN for a row that is not finite."""
    known = logits.astype(np.float64)
    bad = ~np.isfinite(known).all(1)
    known[bad] = 0
    shares = sigmoid(known) if activation == "sigmoid" else softmax(known)
    shares[bad] = np.nan
    return shares


def top(shares: Doubles, count: int = TOP) -> NDArray[np.int64]:
    """Indices of a row's most likely classes, best first; ties in the order of the classes."""
    return np.argsort(-shares, kind="stable")[:count]


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` evenly spaced indices below ``count``, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
