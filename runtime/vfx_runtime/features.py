"""The features of one video: as the user gets them, and as they grow while the video is processed."""

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
"""What is held of a column while it is written, and before it goes to a temporary file."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Features:
    """What one video gave. Row k of every array belongs to the same window, frame or pair."""

    arrays: dict[str, NDArray[Any]]
    """One per engine output: ``[rows, *shape]``, float32, or float16 where a run keeps it so."""
    frame_range: NDArray[np.int64]
    """``[rows, 2]``: first frame and one past the last, in the source's own frame numbers."""
    timestamps_ms: NDArray[np.float64]
    """``[rows, 2]``: presentation time of the first frame, and of the end of the last."""
    fps: float
    """Frames per second that the windows were laid over."""
    meta: dict[str, Any]
    """The engine's spec, versions and settings; plain JSON."""

    def __repr__(self) -> str:
        """Shapes only: a video may have hundreds of thousands of rows."""
        arrays = ", ".join(f"{name}: {list(array.shape)}" for name, array in self.arrays.items())
        return f"Features({arrays}; {len(self.frame_range)} rows, {self.fps:g} fps)"


class Column:
    """An array that grows by rows; beyond ``BLOCK_BYTES`` it lives in an unnamed temporary file."""

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
        """Add a copy of ``[n, *shape]``, cast to the column's dtype.

        Raises:
            OutputError: no room for the temporary file.
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
        """The rows in order, in arrays of about ``BLOCK_BYTES``; valid until the next one."""
        size = max(1, BLOCK_BYTES // max(1, self.row_bytes)) * self.row_bytes
        if self._file is not None:
            # Not mapped: pages of a mapped file count as this process's memory.
            for start in range(0, self._in_file, size):
                yield self._rows(os.pread(self._file.fileno(), min(size, self._in_file - start), start))
        if self._tail:
            yield self._rows(bytes(self._tail))

    def array(self) -> NDArray[Any]:
        """All rows, ``[rows, *shape]``; mapped from the temporary file where there is one.

        The array may be written to and outlives the column.
        """
        if self._file is None:
            return self._rows(self._tail[:])
        if self._tail:
            self._spill()
        mapped = np.memmap(self._file, self.dtype, "c", shape=(self.rows, *self.shape))
        return np.asarray(mapped)

    def replaced(self, rows: NDArray[Any]) -> Column:
        """A column of the same kind with other rows; this one is closed."""
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
                # Beside the output, not in /tmp: that is often memory. It has no name, so that
                # nothing is left behind by kill -9.
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
    """How NumPy writes the dtype that rows of an output are kept in."""
    return "<f2" if output.dtype == "float16" else "<f4"


def _mean(rows: NDArray[Any], activation: Activation | None) -> NDArray[np.float64]:
    """The mean of features, or the logits of the mean of probabilities; ``[1, ...]``."""
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
        outputs: of the engine's spec, with the dtype to keep.
        folder: where temporary files go: the output folder; None for the system's.
    """

    def __init__(self, outputs: Sequence[Output], folder: Path | None = None) -> None:
        self.outputs = {item.name: Column(column_dtype(item), item.row, folder) for item in outputs}
        self._activations = {item.name: item.activation for item in outputs}
        self.frame_range = Column("<i8", (2,), folder)
        self.timestamps_ms = Column("<f8", (2,), folder)

    @classmethod
    def joined(cls, parts: Sequence[RowSpool]) -> RowSpool:
        """The rows of several engines as one, which takes them over; ranges and times are the first one's."""
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
        """Add copies of one or more rows: ``[n, *shape]`` per output, and ``[n, 2]`` twice.

        Raises:
            OutputError: no room for the temporary file.
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
        """Make the rows one, their mean, of all frames from the first of any to the last.

        Of logits, the ones whose probabilities are the mean of the rows' probabilities. For few rows: they
        are read into memory.
        """
        for name, column in self.outputs.items():
            self.outputs[name] = column.replaced(_mean(column.array(), self._activations[name]))
        for part in ("frame_range", "timestamps_ms"):
            column = getattr(self, part)
            spans = column.array()
            setattr(self, part, column.replaced(np.array([[spans[:, 0].min(), spans[:, 1].max()]])))

    def features(self, fps: float, meta: Mapping[str, Any]) -> Features:
        """All rows as arrays that outlive the spool; long ones are mapped from a temporary file."""
        return Features(
            {name: column.array() for name, column in self.outputs.items()},
            self.frame_range.array(),
            self.timestamps_ms.array(),
            float(fps),
            dict(meta),
        )

    def close(self) -> None:
        """Drop the rows and the temporary files."""
        for column in (*self.outputs.values(), self.frame_range, self.timestamps_ms):
            column.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
