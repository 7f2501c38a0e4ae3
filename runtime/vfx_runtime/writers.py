"""The formats that features are saved in, behind one interface.

For each job, a run takes the job's claim; skips the job if ``is_done``; otherwise calls ``prepare``,
extracts, and calls ``write``; and releases the claim. At the end it calls ``finish``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from vfx_engines.errors import UsageError
from vfx_engines.spec import Output
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npy import NpyWriter
from vfx_runtime.npz import NpzWriter
from vfx_runtime.packing import ShardWriter, pack
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.slowfast import SlowFastWriter, refuse_same_stem
from vfx_runtime.webdataset import TarLayout

Format = Literal["npz", "npy", "pickle", "slowfast", "hdf5", "webdataset", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

SHARDED: tuple[Format, ...] = ("webdataset", "parquet")
"""Formats that pack many videos into each of several files, see `pack_all`. Videos of different sizes share
them, so with an engine that is opened for each size they are packed after the last of them."""

RESERVED = ("frame_range", "timestamps_ms", "fps", "meta")
"""Names of the arrays that are saved in addition to the engine's outputs."""


class Writer(Protocol):
    """Saves the features of videos. Several threads may use it at once, for different jobs."""

    def paths(self, job: Job) -> list[Path]:
        """Where the features of a job are when the run is finished; empty if that is not known before."""
        ...

    def is_done(self, job: Job) -> bool:
        """Whether a finished output exists: undamaged, and made from this video with this run's settings.

        Formats that do not record source or settings only check what they can. Reads the whole output.

        Raises:
            OutputError: such a file cannot exist, for example because its name is too long or a folder in its
                path is a file; or it cannot be read.
        """
        ...

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job. The caller holds the job's claim."""
        ...

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Save the features of a job, all or nothing, and return the files that are now final.

        Args:
            job: a job whose claim the caller holds.
            rows: the rows, which are not changed.
            fps: frame rate of the frames that the windows were made of.
            meta: plain JSON: the spec, versions, settings. It has no times of day or host names, so that the
                same run gives the same bytes. The writer adds ``fingerprint`` and ``source``.

        Raises:
            OutputError: the files cannot be written; nothing of them is left.
        """
        ...

    def finish(self) -> list[Path]:
        """End the run: complete what is incomplete, and return the files that are now final.

        Raises:
            OutputError: a file cannot be completed; nothing that was saved is lost.
        """
        ...


def check_names(format: str, jobs: Iterable[Job]) -> None:
    """Refuse videos with different names that would write the same file in this format.

    Raises:
        UsageError: there are two such videos.
    """
    if format == "slowfast":
        refuse_same_stem(jobs)


def open_writer(
    format: str,
    output: Path,
    outputs: Sequence[Output],
    *,
    fingerprint: str,
    claims: Claims,
    frames: int = 0,
) -> Writer:
    """Make the writer of a format.

    Args:
        format: one of ``FORMATS``.
        output: the output folder; see `vfx_runtime.atomic.prepare_output`.
        outputs: the outputs of the engines' specs, with the dtype in which rows are kept.
        fingerprint: hash of the spec and the run's settings. A finished output with another one is redone.
        claims: this process's claims on the output folder.
        frames: number of frames in a window, which is part of the names of slowfast's files.

    Raises:
        UsageError: the format is unknown, a package is missing, an output has a reserved name, or the format
            cannot hold these outputs.
    """
    for name in (item.name for item in outputs):
        if name in RESERVED:
            raise UsageError(
                f"the engine has an output called {name!r}, a name that is reserved for what is saved beside "
                "the outputs: export it with another name"
            )
    match format:
        case "npz":
            return NpzWriter(output, outputs, fingerprint, claims)
        case "npy" | "pickle":
            return NpyWriter(output, outputs, claims, format)
        case "slowfast":
            if any(item.dtype == "float16" for item in outputs):
                raise UsageError("format 'slowfast' holds float32: leave float16 out, or take another format")
            return SlowFastWriter(output, outputs, claims, frames)
        case "hdf5":
            # Imported late, because h5py takes as long to import as the rest of this module.
            from vfx_runtime.hdf5 import Hdf5Writer

            return Hdf5Writer(output, outputs, fingerprint, claims)
        case "webdataset":
            return ShardWriter(TarLayout(), output, outputs, fingerprint, claims)
        case "parquet":
            return ShardWriter(ParquetLayout(outputs), output, outputs, fingerprint, claims)
    raise UsageError(f"format {format!r} is none of {', '.join(FORMATS)}")


def pack_all(format: str, output: Path, claims: Claims) -> list[Path]:
    """Pack the videos that the processes of a run left staged, if the format has shards.

    Returns:
        The paths of the new shards.

    Raises:
        OutputError: a shard cannot be written; what is not packed stays staged.
        UsageError: a package is missing.
    """
    match format:
        case "webdataset":
            return pack(TarLayout(), output, claims)
        case "parquet":
            return pack(ParquetLayout(), output, claims)
    return []
