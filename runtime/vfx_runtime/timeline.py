"""Where rows are in time, and how to say so."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from vfx_runtime.charts import Axis, clock, number_axis, time_axis


class Timeline:
    """Rows along an axis: of seconds if all times are known, otherwise of row numbers.

    Args:
        timestamps_ms: ``[rows, 2]`` as saved; an array of another shape or type is ignored.
        rows: number of rows.
    """

    def __init__(self, timestamps_ms: NDArray[np.generic], rows: int) -> None:
        fits = timestamps_ms.shape == (rows, 2) and np.issubdtype(timestamps_ms.dtype, np.number)
        self.timed = bool(fits and rows and np.isfinite(timestamps_ms).all())
        self.rows = rows
        if self.timed:
            self.starts = timestamps_ms[:, 0].astype(np.float64) / 1000
            self.ends = timestamps_ms[:, 1].astype(np.float64) / 1000
        else:
            self.starts = np.arange(rows, dtype=np.float64)
            self.ends = self.starts + 1

    @property
    def begin(self) -> float:
        """Where the first row starts."""
        return float(self.starts.min(initial=np.inf)) if self.rows else 0.0

    @property
    def end(self) -> float:
        """Where the last row ends."""
        return float(self.ends.max(initial=-np.inf)) if self.rows else 0.0

    def axis(self) -> Axis:
        """The axis from `begin` to `end`."""
        if self.timed:
            return time_axis(self.begin, self.end)
        whole = number_axis(self.begin, max(self.end, 1))
        return Axis(self.begin, max(self.end, 1), tuple(t for t in whole.ticks if t[0] <= self.end))

    def places(self, bounds: NDArray[np.int64]) -> list[float]:
        """The position of the middle of each group of rows on the axis."""
        return [float(self.starts[a] + self.ends[b - 1]) / 2 for a, b in itertools.pairwise(bounds)]

    def said(self, first: int, last: int) -> str:
        """Text for the rows from one to another, both included, with their time."""
        rows = f"row {first}" if first == last else f"rows {first}–{last}"
        return f"{rows}, {self.time(first, last)}" if self.timed else rows

    def time(self, first: int, last: int) -> str:
        """Text for the time from the start of one row to the end of another; empty if unknown."""
        if not self.timed:
            return ""
        if self.end >= 600:
            return f"{clock(self.starts[first], 60)}–{clock(self.ends[last], 60)}"
        return f"{self.starts[first]:.2f}–{self.ends[last]:.2f} s"

    def labels(self, bounds: NDArray[np.int64]) -> list[str]:
        """Text for each group of rows."""
        return [self.said(int(a), int(b) - 1) for a, b in itertools.pairwise(bounds)]
