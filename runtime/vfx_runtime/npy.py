"""The files of video_features: one ``.npy`` or ``.pkl`` file per key, with the same names and dtypes.

``<name>_<output>`` is float64 ``[rows, dim]``, VGGish's float32. ``<name>_fps`` is one float64.
``<name>_timestamps_ms`` is float64: the presentation time of each window's end, or of each frame; for pairs
of frames that is one more than rows. S3D, R(2+1)D and VGGish have neither fps nor times. Without rows, the
shape is ``[0]``. (Source: video_features, section "Saving": github.com/v-iashin/video_features,
utils/utils.py.)

These files do not tell what made them, or from what. So a set counts as done if all its files load, and fit
the engine's outputs and each other. Whoever changes settings or videos must use another output folder. A
flipped bit inside the values goes unnoticed.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vfx_engines.spec import Output
from vfx_runtime.atomic import is_file, new_files, part_path, remove
from vfx_runtime.claims import Claims
from vfx_runtime.features import Column, RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import check_array, write_header

_FLOAT32 = frozenset({"vggish"})
"""Outputs that video_features saves in the network's dtype; all others pass through Python's floats."""

_UNTIMED = frozenset({"s3d", "r21d", "vggish", "pca"})
"""Outputs that video_features saves without fps and times; "pca" is VGGish's post-processed output, which it
computes but does not save."""

_PREFIX = (
    11  # bytes before the first opcode: protocol, frame, and the frame's length, which may hold any byte
)
_BYTEARRAY8 = b"\x96"  # pickle's opcode before the length and the values of an array


class NpyWriter:
    """Writes ``<output>/<name>_<key>.npy`` or ``.pkl``; see `vfx_runtime.writers.Writer`.

    Args:
        output: the output folder.
        outputs: the outputs of the engine's spec, with the dtype to keep.
        claims: this process's claims on the output folder.
        kind: which kind of file.
    """

    def __init__(
        self,
        output: Path,
        outputs: Sequence[Output],
        claims: Claims,
        kind: Literal["npy", "pickle"],
    ) -> None:
        self._output = output
        self._claims = claims
        self._suffix = ".npy" if kind == "npy" else ".pkl"
        self._outputs = tuple(outputs)
        features = {item.name for item in outputs if item.kind == "feature"}
        beside = () if features and features <= _UNTIMED else ("fps", "timestamps_ms")
        # The features are renamed last, so that a partial set is never taken for a whole one.
        self._keys = [*beside, *(item.name for item in outputs)]
        self._dtypes = dict.fromkeys(beside, "<f8")
        for item in outputs:
            usual = "<f4" if item.name in _FLOAT32 else "<f8"
            self._dtypes[item.name] = "<f2" if item.dtype == "float16" else usual
        self._per = outputs[0].per

    def paths(self, job: Job) -> list[Path]:
        """The files of a job."""
        return [self._output / f"{job.name}_{key}{self._suffix}" for key in self._keys]

    def is_done(self, job: Job) -> bool:
        """Whether all files exist, are whole, and agree in their numbers of rows."""
        paths = self.paths(job)
        if not all([is_file(path) for path in paths]):
            return False
        shapes = {"fps": None, "timestamps_ms": (), **{item.name: item.row for item in self._outputs}}
        check = npy_rows if self._suffix == ".npy" else _pickle_rows
        found = {
            key: check(path, shapes[key], self._dtypes[key])
            for path, key in zip(paths, self._keys, strict=True)
        }
        rows = found[self._outputs[0].name]
        wanted = dict.fromkeys(self._keys, rows) | {"fps": 0, "timestamps_ms": self._times_of(rows or 0)}
        return rows is not None and all(found[key] == wanted[key] for key in self._keys)

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job. The caller holds the job's claim."""
        if self._claims.active:
            remove([part_path(path) for path in self.paths(job)])

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Write the files and return their paths. This format has no place for ``meta``.

        Raises:
            OutputError: the files cannot be written; nothing of them is left.
        """
        paths = self.paths(job)
        save = _save_npy if self._suffix == ".npy" else _save_pickle
        with (
            new_files(paths, exclusive=self._claims.active, inside=self._output) as parts,
            self._times(rows, fps) as times,
        ):
            for key, part in zip(self._keys, parts, strict=True):
                with part.open("wb") as file:
                    if key == "fps":
                        _save_one(file, fps, self._suffix)
                    else:
                        column = times if key == "timestamps_ms" else rows.outputs[key]
                        save(file, column, self._dtypes[key], self._output)
        return paths

    def _times_of(self, rows: int) -> int:
        """The number of time stamps that belong to this many rows."""
        return rows + 1 if rows and self._per == "pair" else rows

    @contextmanager
    def _times(self, rows: RowSpool, fps: float) -> Iterator[Column]:
        times = Column("<f8", (), self._output)
        try:
            for block in rows.timestamps_ms.blocks():
                times.append(block[:, 1 if self._per == "window" else 0])
                start, end = block[-1]
            if self._times_of(rows.rows) > rows.rows:
                # No row has the start of the last frame. The published times assume a steady rate there too.
                times.append(np.array([start + (1000 / fps if fps else (end - start) / 2)]))
            yield times
        finally:
            times.close()

    def finish(self) -> list[Path]:
        """Nothing is left to do at the end of a run."""
        return []


def _save_one(file: IO[bytes], value: float, suffix: str) -> None:
    array = np.array(value, np.float64)
    if suffix == ".npy":
        np.save(file, array)
    else:
        pickle.dump(array, file, protocol=5)


def _save_npy(file: IO[bytes], column: Column, dtype: str, _: Path) -> None:
    write_header(file, np.dtype(dtype), (column.rows, *column.shape) if column.rows else (0,))
    for block in column.blocks():
        file.write(np.ascontiguousarray(block, dtype).data)


def _save_pickle(file: IO[bytes], column: Column, dtype: str, folder: Path) -> None:
    wide = Column(dtype, column.shape, folder)
    try:
        for block in column.blocks():
            wide.append(block)
        array: NDArray[Any] = wide.array() if column.rows else np.empty(0, dtype)
        # Protocol 5 writes directly from the (mapped) array; 4 would first copy it into bytes.
        pickle.dump(array, file, protocol=5)
    finally:
        wide.close()


def npy_rows(path: Path, shape: tuple[int, ...] | None, dtype: str) -> int | None:
    """The number of rows in an ``.npy`` file.

    Args:
        path: the file.
        shape: expected shape of a row; None for a file with a single value, which counts 0 rows.
        dtype: expected dtype, as NumPy writes it.

    Returns:
        None if the file is missing, not whole, or different from what is expected.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
        size = path.stat().st_size
    except OSError:
        return None
    rows = check_array(head, size, dtype, shape)
    if rows is None and shape is not None and check_array(head, size, dtype, ()) == 0:
        return 0
    return rows


def _pickle_rows(path: Path, shape: tuple[int, ...] | None, dtype: str) -> int | None:
    """Like `npy_rows`, for a pickle that `_save_pickle` wrote.

    The file is not loaded, only compared with what surrounds the values in such a pickle: a pickle can run
    any code, and a damaged one can make the interpreter do things that raise no exception.
    """
    width = np.dtype(dtype).itemsize
    try:
        with path.open("rb") as file:
            start = file.read(256)
            at = start.find(_BYTEARRAY8, _PREFIX) + 1
            count = int.from_bytes(start[at : at + 8], "little") // width
            if at == 0 or count * width > path.stat().st_size:
                return None
            row = math.prod(shape or ())
            rows = count // row if row and shape is not None else 0
            found = () if shape is None else (rows, *shape) if rows else (0,)
            head, tail = _around(found, dtype)
            file.seek(len(head) + math.prod(found) * width)
            whole = start.startswith(head) and file.read(len(tail) + 1) == tail
    except OSError:
        return None
    return rows if whole else None


def _around(shape: tuple[int, ...], dtype: str) -> tuple[bytes, bytes]:
    """The bytes before and after the values in the pickle of an array."""
    pieces = _Pieces()
    array = np.zeros(shape, dtype)
    pickle.dump(array, pieces, protocol=5)
    # The head contains the opcode once, and the values, which are zeros, never.
    start = pieces.text.index(_BYTEARRAY8, _PREFIX) + 9
    end = start + array.nbytes - pieces.skipped
    return pieces.text[:start], pieces.text[end:]


class _Pieces:
    """A file that skips the values of a large array, whose zeros take no memory if they are never read."""

    def __init__(self) -> None:
        self.text = b""
        self.skipped = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if isinstance(data, pickle.PickleBuffer):
            self.skipped += size
        else:
            self.text += data
        return size
