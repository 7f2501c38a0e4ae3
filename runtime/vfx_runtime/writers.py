"""The formats that features are saved in, behind one interface.

How a run uses a writer, for each job: take the job's claim; skip the job if ``is_done``; else
``prepare``, compute, ``write``; release the claim. At the end, ``finish``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from vfx_engines.errors import UsageError
from vfx_engines.spec import Output
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.hdf5 import Hdf5Writer
from vfx_runtime.job import Job
from vfx_runtime.npy import NpyWriter
from vfx_runtime.npz import NpzWriter
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.shards import ShardWriter, pack
from vfx_runtime.slowfast import SlowFastWriter, refuse_same_stem
from vfx_runtime.webdataset import TarLayout

Format = Literal["npz", "npy", "pickle", "slowfast", "hdf5", "webdataset", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

RESERVED = ("frame_range", "timestamps_ms", "fps", "meta")
"""Names of what is saved beside the engine's outputs."""


class Writer(Protocol):
    """Saves the features of videos. Safe to use from several threads, for different jobs."""

    def paths(self, job: Job) -> list[Path]:
        """Where the features of a job are when the run is finished."""
        ...

    def is_done(self, job: Job) -> bool:
        """Whether a finished output is there: whole, undamaged, of this run's settings and this video.

        Reads all of it.

        Raises:
            OutputError: no such file can exist: a name is too long, a folder of it is a file.
        """
        ...

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job, whose claim the caller holds."""
        ...

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Save the features of a job, all or nothing, and return the files that are now final.

        Args:
            job: the caller holds its claim.
            rows: left as they are.
            fps: frames per second that the windows were laid over.
            meta: plain JSON: the spec, versions, settings. No clock times or host names: the same
                run must give the same bytes. The writer adds ``fingerprint`` and ``source``.

        Raises:
            OutputError: they cannot be written; nothing is left of them.
        """
        ...

    def finish(self) -> list[Path]:
        """End of the run: complete what has to be, and return the files that are now final.

        Raises:
            OutputError: it cannot be completed; nothing saved is lost.
        """
        ...


def check_names(format: str, jobs: Iterable[Job]) -> None:
    """Refuse videos that would write one file in this format, though their names differ.

    Raises:
        UsageError: two such videos.
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
    """The writer of a format.

    Args:
        format: one of ``FORMATS``.
        output: the output folder; see `vfx_runtime.atomic.prepare_output`.
        outputs: of the engine's spec, with the dtype that rows are kept in.
        fingerprint: of the spec and the run's settings; a finished output with another is redone.
        claims: of this process on the output folder.
        frames: in a window, which stands in the names of slowfast's files.

    Raises:
        UsageError: an unknown format, a package that is missing, an engine with an output of a
            reserved name, or with several where the format holds one.
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
            return Hdf5Writer(output, outputs, fingerprint, claims)
        case "webdataset":
            return ShardWriter(TarLayout(), output, outputs, fingerprint, claims)
        case "parquet":
            return ShardWriter(ParquetLayout(outputs), output, outputs, fingerprint, claims)
    raise UsageError(f"format {format!r} is none of {', '.join(FORMATS)}")


def pack_all(format: str, output: Path, claims: Claims) -> list[Path]:
    """Put into shards what the processes of a run left waiting, in a format that has shards; those shards.

    Raises:
        OutputError: a shard cannot be written; all stays staged.
        UsageError: a package is missing.
    """
    match format:
        case "webdataset":
            return pack(TarLayout(), output, claims)
        case "parquet":
            return pack(ParquetLayout(), output, claims)
    return []
