"""A whole run in one HDF5 file: ``features.h5``, with a group per video.

During a run, each video is an ``.npz`` file in a hidden folder. At the end, all of these and the groups of an
earlier ``features.h5`` are packed into a new file, which then replaces it. So a process that is killed at any
moment damages and loses nothing.

The HDF5 library crashes the process when it meets a damaged file or a full disk. So the file's user block
holds a hash of the rest, which is checked before the library opens it, and the disk space for a new file is
reserved before the library fills it. A ``features.h5`` that fails the check is kept as ``features.h5.old``,
and its videos are extracted again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from vfx_engines.errors import OutputError, UsageError, shown
from vfx_engines.spec import Output
from vfx_runtime.atomic import input_error, is_file, new_files, output_error, part_path, remove
from vfx_runtime.claims import Claims
from vfx_runtime.features import BLOCK_BYTES, RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import (
    NpzWriter,
    column_types,
    is_whole,
    read_blocks,
    read_fps,
    read_meta,
    same_run,
    source_of,
)
from vfx_runtime.staging import Staging, text_of

try:
    import h5py
except ImportError:
    h5py = None

_USER_BLOCK = 512  # bytes: the smallest that HDF5 allows; every reader skips it
_VIDEO_OVERHEAD = 16 << 10  # bytes: far more than HDF5 needs for a group and the headers of its arrays
_PACKING = "\0features.h5"  # the claim on packing; no video's name contains a NUL


class Hdf5Writer:
    """Packs a run into ``<output>/features.h5``; see `vfx_runtime.writers.Writer`.

    Raises:
        UsageError: h5py is not installed.
        OutputError: the hidden folder for parts is a link, or ``features.h5`` exists but cannot be read.
    """

    def __init__(self, output: Path, outputs: Sequence[Output], fingerprint: str, claims: Claims) -> None:
        if h5py is None:
            raise UsageError("--format hdf5 needs h5py, which is not installed: pip install h5py")
        self._file = output / "features.h5"
        self._staging = Staging(output / ".features.h5.parts")
        self._staged = NpzWriter(self._staging.folder, outputs, fingerprint, claims, inside=output)
        self._outputs = tuple(outputs)
        self._fingerprint = fingerprint
        self._claims = claims
        self._checked: tuple[tuple[int, int, int], bool] | None = None
        # Checked now: if it cannot be read, that should end the run rather than fail every video.
        if is_file(self._file):
            self._is_intact()

    def paths(self, job: Job) -> list[Path]:
        """The one file that all jobs share; empty before anything is packed."""
        return [self._file] if self._file.exists() else []

    def is_done(self, job: Job) -> bool:
        """Whether the video is staged or packed, undamaged, from this source, by this run's settings."""
        # The order matters: another process that packs removes a staged file only once its group is in place.
        return self._staged.is_done(job) or (is_file(self._file) and self._is_packed(job))

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job. The caller holds the job's claim."""
        self._staged.prepare(job)

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Stage the video; it appears in ``features.h5`` at the end of the run.

        Raises:
            OutputError: the file cannot be written; nothing of it is left.
        """
        self._staged.write(job, rows, fps, meta)
        return []

    def finish(self) -> list[Path]:
        """Pack what is staged.

        Returns:
            ``features.h5``, or nothing if there was nothing to pack, such as after another process packed it.

        Raises:
            OutputError: the file cannot be written, in which case everything stays staged; or the names of
                two videos cannot be in one file, in which case the rest is packed.
        """
        while not self._claims.take(_PACKING):
            time.sleep(0.1)
        try:
            names = [name for name in self._staging.names() if self._is_staged(name)]
            packed = self._pack(names) if names else []
            remove([part_path(self._file)])
            self._staging.tidy()
        finally:
            self._claims.release(_PACKING)
        if len(packed) < len(names):
            left = next(name for name in names if name not in set(packed))
            raise OutputError(
                f"{shown(self._file)}: the group of video {shown(left)} would lie in an array of "
                "another video: rename it, or use --format npz"
            )
        return [self._file] if packed else []

    def _pack(self, staged: list[str]) -> list[str]:
        intact = self._is_intact()
        if not intact and is_file(self._file):
            aside = self._file.with_name(f"{self._file.name}.old")
            try:
                self._file.replace(aside)
            except OSError as error:
                raise output_error(error, aside) from None
        with new_files([self._file], exclusive=self._claims.active, inside=self._file.parent) as (part,):
            room = sum(self._staging.path(name).stat().st_size + _VIDEO_OVERHEAD for name in staged)
            _reserve(part, room + (self._file.stat().st_size if intact else 0))
            with contextlib.ExitStack() as stack:
                new = stack.enter_context(h5py.File(part, "r+", locking=False))
                old: Any = {}
                if intact:
                    old = stack.enter_context(h5py.File(self._file, "r", locking=False))
                groups = {name: text_of(name) for name in staged}
                kept = sorted({*_videos(old)} - {*groups.values()})
                arrays = {*column_types(self._outputs), "fps", "meta"}
                videos = {*kept, *groups.values()}
                packed = [n for n in staged if not _inside_array(groups[n], videos, arrays)]
                for name in kept:
                    _copy(old[name], new.require_group(name))
                for name in packed:
                    self._pack_one(new.require_group(groups[name]), name)
            with part.open("r+b") as file:
                seal = _seal(file)
                file.seek(0)
                file.write(seal)
                file.flush()
                # The staged files are removed next, so this one must be on disk in case of a power cut.
                os.fsync(file.fileno())
        remove([self._staging.path(name) for name in packed])
        return packed

    def _pack_one(self, group: Any, name: str) -> None:
        with zipfile.ZipFile(self._staging.path(name)) as archive:
            for key, (dtype, shape) in column_types(self._outputs).items():
                rows, blocks = read_blocks(archive, key)
                data = group.create_dataset(key, (rows, *shape), dtype)
                start = 0
                for block in blocks:
                    data[start : start + len(block)] = block
                    start += len(block)
            group.create_dataset("fps", data=read_fps(archive))
            group.create_dataset("meta", data=json.dumps(read_meta(archive)))

    def _is_packed(self, job: Job) -> bool:
        if not self._is_intact():
            return False
        with h5py.File(self._file, "r", locking=False) as file:
            group = file.get(text_of(job.name))
            if not isinstance(group, h5py.Group) or "meta" not in _arrays(group):
                return False
            try:
                meta = json.loads(group["meta"][()])
            except (ValueError, TypeError, RecursionError):
                return False  # the hash is right but the contents are not ours
            if not same_run(meta, self._fingerprint, source_of(job)):
                return False
            columns = column_types(self._outputs)
            return {*columns, "fps", "meta"} == {*_arrays(group)} and all(
                group[key].dtype == np.dtype(dtype) and group[key].shape[1:] == shape
                for key, (dtype, shape) in columns.items()
            )

    def _is_intact(self) -> bool:
        """Whether ``features.h5`` is byte for byte what vfx wrote. Read again only if the file has changed.

        Raises:
            OutputError: the file cannot be read, which does not mean that it is damaged.
        """
        try:
            with self._file.open("rb") as file:
                status = os.fstat(file.fileno())
                state = (status.st_ino, status.st_size, status.st_mtime_ns)
                if self._checked is None or self._checked[0] != state:
                    self._checked = (state, _seal(file) == _user_block(file))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise input_error(error, self._file) from None
        return self._checked[1]

    def _is_staged(self, name: str) -> bool:
        path = self._staging.path(name)
        try:
            return is_whole(path, self._outputs, self._fingerprint, strict=True)
        except FileNotFoundError:  # without claims, another process may be packing too
            return False
        except OSError as error:
            raise input_error(error, path) from None


def _seal(file: IO[bytes]) -> bytes:
    """The user block that a file should have: a hash of all bytes after it."""
    file.seek(_USER_BLOCK)
    digest = hashlib.blake2b(digest_size=32)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return f"vfx features blake2b {digest.hexdigest()}\n".encode().ljust(_USER_BLOCK, b"\0")


def _user_block(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_USER_BLOCK)


def _reserve(part: Path, size: int) -> None:
    """Create an empty HDF5 file with room for ``size`` bytes; HDF5 cuts off what it does not use."""
    with h5py.File(part, "w", locking=False, userblock_size=_USER_BLOCK):
        pass
    if hasattr(os, "posix_fallocate"):
        with part.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size + (1 << 20))


def _videos(group: Any, above: str = "") -> Iterator[str]:
    """Names of the groups below ``group`` that hold a video, at any depth."""
    for key in group:
        # vfx makes hard links only. Other kinds may lead to other files, so they are ignored.
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            continue
        item = group[key]
        if isinstance(item, h5py.Group):
            if "meta" in _arrays(item):
                yield f"{above}{key}"
            yield from _videos(item, f"{above}{key}/")


def _arrays(group: Any) -> list[str]:
    return [
        key
        for key in group
        if isinstance(group.get(key, getlink=True), h5py.HardLink) and isinstance(group[key], h5py.Dataset)
    ]


def _copy(group: Any, target: Any) -> None:
    for key in _arrays(group):
        group.copy(key, target)


def _inside_array(name: str, videos: set[str], arrays: set[str]) -> bool:
    """Whether a folder in ``name`` is an array of another video, as in ``a/rgb/b`` next to ``a``."""
    parts = name.split("/")
    return any(parts[i] in arrays and "/".join(parts[:i]) in videos for i in range(1, len(parts)))
