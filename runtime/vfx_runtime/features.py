"""The features of one video: as the user gets them, and as they are collected during a run."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from vfx_engines.spec import Activation, Output
from vfx_runtime.atomic import output_error

BLOCK_BYTES = 4 << 20
"""Bytes of a column held in memory: before they go to a temporary file, and at a time when written."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Features:
    """The features of one video. Row k of every array belongs to the same window, frame or pair of frames."""

    arrays: dict[str, NDArray[Any]]
    """One per engine output: ``[rows, *shape]``, float32, or float16 if the run asked for it."""
    frame_range: NDArray[np.int64]
    """``[rows, 2]``: the first frame, and the last frame plus 1, in the source's own frame numbers."""
    timestamps_ms: NDArray[np.float64]
    """``[rows, 2]``: when the first frame appears and when the last one ends, in milliseconds."""
    fps: float
    """Frame rate of the frames that the windows were made of, after any conversion."""
    meta: dict[str, Any]
    """The engine's spec, versions and settings, as plain JSON."""

    def __repr__(self) -> str:
        """Shapes only, since a video may have hundreds of thousands of rows."""
        arrays = ", ".join(f"{name}: {list(array.shape)}" for name, array in self.arrays.items())
        return f"Features({arrays}; {len(self.frame_range)} rows, {self.fps:g} fps)"


class Column:
    """An array that grows by rows. Beyond ``BLOCK_BYTES`` its rows go to an unnamed temporary file.

    Args:
        dtype: dtype of the rows, as NumPy writes it.
        shape: shape of one row.
        folder: where the temporary file goes; None for the system's folder.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], folder: Path | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.rows = 0
        self.row_bytes = self.dtype.itemsize * math.prod(shape)
        self._folder = folder
        self._tail = bytearray()
        self._file: IO[bytes] | None = None
        self._in_file = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add a copy of ``rows``, ``[n, *shape]``, cast to the column's dtype.

        Raises:
            OutputError: the temporary file cannot be written.
            ValueError: the rows have another shape.
        """
        if rows.shape[1:] != self.shape:
            raise ValueError(f"rows of shape {rows.shape[1:]}, expected {self.shape}")
        if not rows.size:
            self.rows += len(rows)
            return
        self._tail += np.ascontiguousarray(rows, self.dtype).data.cast("B")
        self.rows += len(rows)
        if len(self._tail) >= BLOCK_BYTES:
            self._spill()

    def blocks(self) -> Iterator[NDArray[Any]]:
        """The rows in order, as arrays ``[n, *shape]`` of at most about ``BLOCK_BYTES``."""
        size = max(1, BLOCK_BYTES // max(1, self.row_bytes)) * self.row_bytes
        if self._file is not None:
            # The file is read, not mapped, because mapped pages count as memory of this process.
            for start in range(0, self._in_file, size):
                yield self._rows(os.pread(self._file.fileno(), min(size, self._in_file - start), start))
        if self._tail:
            yield self._rows(bytes(self._tail))

    def array(self) -> NDArray[Any]:
        """All rows, ``[rows, *shape]``; mapped from the temporary file if there is one.

        The array is writable and outlives the column.
        """
        if self._file is None:
            return self._rows(self._tail[:])
        if self._tail:
            self._spill()
        mapped = np.memmap(self._file, self.dtype, "c", shape=(self.rows, *self.shape))
        return np.asarray(mapped)

    def replaced(self, rows: NDArray[Any]) -> Column:
        """Close this column and give one of the same kind that holds ``rows`` instead."""
        other = Column(self.dtype.str, self.shape, self._folder)
        other.append(rows)
        self.close()
        return other

    def close(self) -> None:
        """Drop the rows."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._tail.clear()
        self.rows = 0

    def _rows(self, data: bytes | bytearray) -> NDArray[Any]:
        count = len(data) // self.row_bytes if self.row_bytes else self.rows
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape)

    def _spill(self) -> None:
        try:
            if self._file is None:
                # In the output folder rather than in /tmp, which is often kept in memory. It has no name, so
                # a kill -9 leaves nothing behind.
                self._file = tempfile.TemporaryFile(  # noqa: SIM115 - close() closes it
                    prefix=".vfx-", dir=self._folder
                )
            self._file.write(self._tail)
            self._file.flush()
        except OSError as error:
            folder = self._folder or Path(tempfile.gettempdir())
            raise output_error(error, folder / "(temporary file)") from None
        self._in_file += len(self._tail)
        self._tail.clear()


def column_dtype(output: Output) -> str:
    """The dtype in which an output's rows are kept, as NumPy writes it."""
    return "<f2" if output.dtype == "float16" else "<f4"


def _mean(rows: NDArray[Any], activation: Activation | None) -> NDArray[np.float64]:
    """The mean of features; or, given an activation, the logits of the mean probabilities. ``[1, ...]``."""
    wide = rows.astype(np.float64)
    if activation is None:
        return np.asarray(wide.mean(0, keepdims=True))
    count = np.log(len(wide))

    def chance(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.logaddexp.reduce(logarithms, 0, keepdims=True) - count)

    if activation == "softmax":
        return chance(wide - np.logaddexp.reduce(wide, -1, keepdims=True))
    return chance(-np.logaddexp(0, -wide)) - chance(-np.logaddexp(0, wide))


class RowSpool:
    """Collects the rows of one video in order, in bounded memory; a context manager.

    Args:
        outputs: the outputs of the engine's spec, with the dtype to keep rows in.
        folder: folder for temporary files, normally the output folder; None for the system's.
    """

    def __init__(self, outputs: Sequence[Output], folder: Path | None = None) -> None:
        self.outputs = {item.name: Column(column_dtype(item), item.row, folder) for item in outputs}
        self._activations = {item.name: item.activation for item in outputs}
        self.frame_range = Column("<i8", (2,), folder)
        self.timestamps_ms = Column("<f8", (2,), folder)

    @classmethod
    def joined(cls, parts: Sequence[RowSpool]) -> RowSpool:
        """Merge the spools of several engines into the first, whose frame ranges and times are kept.

        Raises:
            ValueError: the engines gave different numbers of rows.
        """
        first, *others = parts
        for other in others:
            if other.rows != first.rows:
                raise ValueError(f"{other.rows} rows of one engine, {first.rows} of another")
            first.outputs |= other.outputs
            first._activations |= other._activations
            other.frame_range.close()
            other.timestamps_ms.close()
        return first

    @property
    def rows(self) -> int:
        """Rows collected so far."""
        return self.frame_range.rows

    def append(
        self,
        arrays: Mapping[str, NDArray[Any]],
        frame_range: NDArray[np.int64],
        timestamps_ms: NDArray[np.float64],
    ) -> None:
        """Add copies of n rows.

        Args:
            arrays: for each output, ``[n, *shape]``.
            frame_range: ``[n, 2]``, see `Features`.
            timestamps_ms: ``[n, 2]``, milliseconds.

        Raises:
            OutputError: a temporary file cannot be written.
            ValueError: an output is missing or unknown, or the arrays differ in their number of rows.
        """
        if arrays.keys() != self.outputs.keys():
            raise ValueError(f"outputs {list(arrays)}, expected {list(self.outputs)}")
        if {len(array) for array in (*arrays.values(), timestamps_ms)} != {len(frame_range)}:
            raise ValueError("arrays of different numbers of rows")
        for name, column in self.outputs.items():
            column.append(arrays[name])
        self.frame_range.append(frame_range)
        self.timestamps_ms.append(timestamps_ms)

    def average(self) -> None:
        """Replace all rows by their mean, whose range runs from the earliest frame of any row to the latest.

        Logits are replaced by those whose probabilities are the mean of the rows' probabilities. All rows are
        read into memory, so there should be few.
        """
        for name, column in self.outputs.items():
            self.outputs[name] = column.replaced(_mean(column.array(), self._activations[name]))
        for part in ("frame_range", "timestamps_ms"):
            column = getattr(self, part)
            spans = column.array()
            setattr(self, part, column.replaced(np.array([[spans[:, 0].min(), spans[:, 1].max()]])))

    def features(self, fps: float, meta: Mapping[str, Any]) -> Features:
        """All rows as arrays that outlive the spool; large ones are mapped from a temporary file.

        Args:
            fps: frame rate of the frames that the windows were made of.
            meta: metadata of the run.
        """
        return Features(
            {name: column.array() for name, column in self.outputs.items()},
            self.frame_range.array(),
            self.timestamps_ms.array(),
            float(fps),
            dict(meta),
        )

    def close(self) -> None:
        """Drop the rows and their temporary files."""
        for column in (*self.outputs.values(), self.frame_range, self.timestamps_ms):
            column.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
