"""The default output: one ``.npz`` per video, written in bounded memory and checked byte by byte.

``numpy.load`` finds in it one float32 (or float16) array per engine output, ``frame_range``,
``timestamps_ms``, ``fps`` and ``meta`` (a JSON string). Members are stored uncompressed and without dates, so
the same features give the same bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vfx_engines.errors import OutputError, shown
from vfx_engines.spec import Output
from vfx_runtime.atomic import is_file, new_files, part_path, remove
from vfx_runtime.claims import Claims
from vfx_runtime.features import BLOCK_BYTES, Features, RowSpool, column_dtype
from vfx_runtime.image_names import folder_bytes
from vfx_runtime.job import Job
from vfx_runtime.remote import size_of

_DATE = (1980, 1, 1, 0, 0, 0)

# Exactly what NumPy writes. NumPy's own reader is not used because it evaluates the text as Python, and
# prints warnings to stderr about what damage can turn it into.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<|]\w+)', 'fortran_order': False, "
    rb"'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_DTYPES = re.compile(rb"<f[248]|<i[48]|<U[1-9][0-9]{0,8}")
_ROW_DTYPES = (b"<f2", b"<f4", b"<i8", b"<f8")
_HEAD_BYTES = 512

_MAX_META_BYTES = 64 << 20
"""Upper bound for ``meta``, since a damaged file may claim any length. It has some ten thousand characters,
of four bytes each."""

DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError),
    *(struct.error, zipfile.BadZipFile),
)
"""Exceptions that reading a damaged archive may raise; `system_failure` tells which of them are not
damage."""


def system_failure(error: BaseException) -> OSError | None:
    """The system's failure (of a disk, or too many open files) behind an exception raised by reading a file.

    None if the file's bytes are at fault, in which case reading it again would fail again.
    """
    # zipfile says "not a zip file" even if the disk failed, while h5py and Arrow raise OSError for damage.
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno not in (None, errno.EINVAL):
            return found
        found = found.__cause__ or found.__context__
    return None


class NpzWriter:
    """Writes ``<output>/<name>.npz``; see `vfx_runtime.writers.Writer`.

    Args:
        output: the folder that the files go to.
        outputs: the outputs of the engine's spec, with the dtype to keep.
        fingerprint: the run's fingerprint, see `vfx_runtime.writers.open_writer`.
        claims: this process's claims on the output folder.
        inside: the output folder, if ``output`` is a folder in it.
    """

    def __init__(
        self,
        output: Path,
        outputs: Sequence[Output],
        fingerprint: str,
        claims: Claims,
        inside: Path | None = None,
    ) -> None:
        self._output, self._inside = output, inside or output
        self._outputs = tuple(outputs)
        self._fingerprint = fingerprint
        self._claims = claims
        self._sources: dict[str, dict[str, Any] | None] = {}
        """The sources of jobs under way, as they were before they were read. So if a source changes while it
        is read, the next run does it again."""

    def paths(self, job: Job) -> list[Path]:
        """The file of a job."""
        return [self._output / f"{job.name}.npz"]

    def is_done(self, job: Job) -> bool:
        """Whether the file is whole, and made from this source with this run's settings."""
        (path,) = self.paths(job)
        return is_file(path) and is_whole(path, self._outputs, self._fingerprint, source_of(job))

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job. The caller holds the job's claim."""
        self._sources[job.name] = source_of(job)
        if self._claims.active:
            remove([part_path(path) for path in self.paths(job)])

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Write the file and return its path.

        Raises:
            OutputError: the file cannot be written; nothing of it is left.
        """
        source = self._sources.pop(job.name) if job.name in self._sources else source_of(job)
        full = {
            **meta,
            "source": source or {"size": None},
            "fingerprint": self._fingerprint,
        }
        paths = self.paths(job)
        with (
            new_files(paths, exclusive=self._claims.active, inside=self._inside) as (part,),
            part.open("wb") as file,
        ):
            _write(file, rows, fps, full)
        return paths

    def finish(self) -> list[Path]:
        """Nothing is left to do at the end of a run."""
        return []


def read_features(path: str | Path) -> Features:
    """Read an ``.npz`` file written by vfx into memory.

    Raises:
        OutputError: there is no such file, it is damaged, or vfx did not write it.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("no regular file")
        with open(path, "rb") as file:
            return features_of(file, os.stat(path).st_size)
    except FileNotFoundError:
        raise OutputError(f"{shown(path)}: no such file") from None
    except (*DAMAGE, TypeError, AttributeError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str | Path, error: Exception) -> OutputError:
    """An error that says in one line that ``path`` is not a sound feature file of vfx."""
    text = " ".join(str(error).split())
    return OutputError(
        f"{shown(path)}: not a feature file of vfx, or damaged ({text}); make it again with vfx-run"
    )


def features_of(file: IO[bytes], size: int) -> Features:
    """The features in an open ``.npz`` file of ``size`` bytes.

    Raises:
        Exception: one of `DAMAGE`, TypeError or AttributeError, if the file is not what vfx writes.
    """
    with zipfile.ZipFile(file) as archive:
        check_members(archive, size)
        names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        arrays = {name: _read_array(archive, name) for name in names}
    frame_range, timestamps = arrays.pop("frame_range"), arrays.pop("timestamps_ms")
    fps, meta = float(arrays.pop("fps")), json.loads(str(arrays.pop("meta")))
    return Features(arrays, frame_range, timestamps, fps, meta)


def source_of(job: Job) -> dict[str, Any] | None:
    """What identifies a video's contents, to notice when it has changed; None if it is missing or not a file.

    For a file, its size in bytes. For a folder of images, the size of all frames together, which changes when
    a frame is added, lost or made again, and the pattern and rate, which give frames their order and times.
    """
    if job.images is not None:
        size = folder_bytes(os.fspath(job.path), job.images)
        return None if size is None else {"size": size, **dataclasses.asdict(job.images)}
    if job.url is not None:
        size = size_of(job.url)
        return None if size is None else {"size": size}
    try:
        status = job.path.stat()
    except (OSError, ValueError):
        return None
    return {"size": status.st_size} if stat.S_ISREG(status.st_mode) else None


def is_whole(
    path: Path,
    outputs: Iterable[Output],
    fingerprint: str,
    source: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
) -> bool:
    """Whether ``path`` holds exactly these outputs, undamaged and with equal numbers of rows.

    Args:
        path: an ``.npz`` file.
        outputs: the expected outputs.
        fingerprint: the fingerprint that ``meta`` must have.
        source: the source that ``meta`` must have, see `source_of`; None accepts any.
        strict: if the system cannot read the file, which may be temporary, raise the error instead of
            returning False.

    Raises:
        OSError: the file cannot be read, and ``strict`` is set.
    """
    columns = column_types(outputs)
    try:
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != sorted(f"{k}.npy" for k in (*columns, "fps", "meta")):
                return False
            check_members(archive, path.stat().st_size)
            if not same_run(read_meta(archive), fingerprint, source):
                return False
            # ZipFile compares a member's checksum when the member has been read to its end.
            rows = {
                check_array(*_drain(archive.open(f"{name}.npy")), dtype, shape)
                for name, (dtype, shape) in columns.items()
            }
            fps = check_array(*_drain(archive.open("fps.npy")), "<f8", None)
    except DAMAGE as error:
        failure = system_failure(error)
        if strict and failure is not None:
            raise failure from None
        return False
    return len(rows) == 1 and None not in rows and fps == 0


def column_types(outputs: Iterable[Output]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For the name of every array with rows: its dtype, as NumPy writes it, and the shape of a row."""
    return {
        **{output.name: (column_dtype(output), output.row) for output in outputs},
        "frame_range": ("<i8", (2,)),
        "timestamps_ms": ("<f8", (2,)),
    }


def same_run(meta: object, fingerprint: str, source: Mapping[str, Any] | None) -> bool:
    """Whether ``meta`` has this run's fingerprint and, unless ``source`` is None, this source."""
    if not isinstance(meta, dict) or meta.get("fingerprint") != fingerprint:
        return False
    return source is None or meta.get("source") == source


def read_meta(archive: zipfile.ZipFile) -> Any:
    """The parsed ``meta`` of an open archive; raises one of `DAMAGE` if it is not valid."""
    if archive.getinfo("meta.npy").file_size > _MAX_META_BYTES:
        raise ValueError("meta is too long")
    data = archive.read("meta.npy")
    head = _HEADER.match(data)
    if head is None or not head[2].startswith(b"<U"):
        raise ValueError("meta is not a text")
    return json.loads(data[head.end() :].decode("utf-32-le"))


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Check that no member takes more memory than file, as a compressed or overlapping one would.

    Raises:
        ValueError: a member is compressed, which vfx never writes, or together they exceed ``size`` bytes.
    """
    members = archive.infolist()
    if any(
        member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size
        for member in members
    ):
        raise ValueError("compressed")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its arrays are longer than the file")


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array that vfx wrote; raises one of `DAMAGE` if it is not valid."""
    total = archive.getinfo(f"{name}.npy").file_size
    with archive.open(f"{name}.npy") as file:
        head = file.read(_HEAD_BYTES)
        match = _HEADER.match(head)
        if match is None or not _DTYPES.fullmatch(match[2]):
            raise ValueError(f"{name} is no array of numbers or text")
        shape = tuple(int(number) for number in match[3].split(b",") if number.strip())
        kind = np.dtype(match[2].decode())
        if total != match.end() + kind.itemsize * math.prod(shape):
            raise ValueError(f"{name} has another size than its header says")
        # The size is checked against the file by now, so a header's false claim cannot take memory.
        values = bytearray(head[match.end() :])
        while data := file.read(BLOCK_BYTES):
            values += data
    return np.frombuffer(values, kind).reshape(shape) if values else np.empty(shape, kind)


def read_fps(archive: zipfile.ZipFile) -> float:
    """The ``fps`` of an archive that has been checked."""
    return float(np.frombuffer(archive.read("fps.npy")[-8:], "<f8")[0])


def read_columns(archive: zipfile.ZipFile) -> tuple[int, dict[str, tuple[str, tuple[int, ...]]]]:
    """The number of rows in an archive checked by `check_members`, and its columns as in `column_types`.

    Raises one of `DAMAGE` if the archive is not what vfx writes.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    counts: set[int | None] = set()
    for name in (info.filename.removesuffix(".npy") for info in archive.infolist()):
        if name in ("fps", "meta"):
            continue
        with archive.open(f"{name}.npy") as file:
            head = file.read(_HEAD_BYTES)
        match = _HEADER.match(head)
        shape = () if match is None else tuple(int(n) for n in match[3].split(b",") if n.strip())
        if match is None or match[2] not in _ROW_DTYPES or not shape:
            raise ValueError(f"{name} has no rows of numbers")
        found[name] = (match[2].decode(), shape[1:])
        counts.add(check_array(head, archive.getinfo(f"{name}.npy").file_size, *found[name]))
    (rows,) = counts
    fps = check_array(*_drain(archive.open("fps.npy")), "<f8", None)
    if rows is None or fps is None or not found.items() >= column_types(()).items():
        raise ValueError("not what vfx writes")
    return rows, found


def read_blocks(
    archive: zipfile.ZipFile, name: str, rows: int | None = None
) -> tuple[int, Iterator[NDArray[Any]]]:
    """An array of a checked archive: its number of rows, and its blocks.

    Args:
        archive: an archive that has been checked.
        name: name of the array.
        rows: rows per block; None for blocks of about ``BLOCK_BYTES``.
    """
    with archive.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    row_bytes = max(1, dtype.itemsize * math.prod(shape[1:]))

    def blocks() -> Iterator[NDArray[Any]]:
        with archive.open(f"{name}.npy") as file:
            file.seek(start)
            while data := file.read((rows or max(1, BLOCK_BYTES // row_bytes)) * row_bytes):
                yield np.frombuffer(data, dtype).reshape(-1, *shape[1:])

    return shape[0], blocks()


def check_array(head: bytes, size: int, dtype: str, shape: tuple[int, ...] | None) -> int | None:
    """The number of rows of an ``.npy`` file of ``size`` bytes that starts with ``head``.

    None if it is not a whole array of this dtype and row shape. Shape None stands for a single value, which
    counts 0 rows.
    """
    match = _HEADER.match(head)
    if match is None or match.end() != 10 + int.from_bytes(match[1], "little"):
        return None
    numbers = match[3].replace(b" ", b"").rstrip(b",").split(b",")
    if not all(number.isdigit() for number in numbers if numbers != [b""]):
        return None
    found = tuple(int(number) for number in numbers if number)
    expected = () if shape is None else (*found[:1], *shape)
    kind = np.dtype(dtype)
    if match[2] != dtype.encode() or found != expected:
        return None
    if size != match.end() + kind.itemsize * math.prod(found):
        return None
    return found[0] if found else 0


def write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write the header of an ``.npy`` file; the values follow in C order."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})


def _drain(file: IO[bytes]) -> tuple[bytes, int]:
    """Read a stream to its end; returns its first bytes and its length."""
    with file:
        head = file.read(_HEAD_BYTES)
        size = len(head)
        while chunk := file.read(BLOCK_BYTES):
            size += len(chunk)
    return head, size


def _write(file: IO[bytes], rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> None:
    columns = {
        **rows.outputs,
        "frame_range": rows.frame_range,
        "timestamps_ms": rows.timestamps_ms,
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, column in columns.items():
            _write_member(archive, name, column.dtype, (column.rows, *column.shape), column.blocks())
        for name, value in (
            ("fps", np.array(fps, "<f8")),
            ("meta", np.array(json.dumps(meta), "<U")),
        ):
            _write_member(archive, name, value.dtype, (), [value])


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    blocks: Iterable[NDArray[Any]],
) -> None:
    header = io.BytesIO()
    write_header(header, dtype, shape)
    info = zipfile.ZipInfo(f"{name}.npy", _DATE)
    info.create_system = 3  # the same bytes on every system
    info.external_attr = 0o600 << 16
    # ZipFile must know before the first byte whether 64-bit lengths are needed.
    info.file_size = len(header.getvalue()) + dtype.itemsize * math.prod(shape)
    with archive.open(info, "w") as member:
        member.write(header.getvalue())
        for block in blocks:
            member.write(block.tobytes() if block.ndim == 0 else block.data)
