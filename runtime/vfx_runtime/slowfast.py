"""The files of slowfast_feature_extractor: one float32 ``.npy`` file per video, ``[rows, dim]``.

The file is ``<folder>/<name>_<frames>.npy``: the folder as in the list, the name up to its first dot, and the
number of frames in a window (github.com/tridivb/slowfast_feature_extractor).

Such a file does not tell what made it, or from what. So it counts as done if it is whole and has rows of the
engine's length. Whoever changes settings or videos must use another output folder. A flipped bit inside the
values goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfx_engines.errors import UsageError, shown
from vfx_engines.spec import Output
from vfx_runtime.atomic import is_file, new_files, part_path, remove
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npy import npy_rows
from vfx_runtime.npz import write_header


class SlowFastWriter:
    """Writes ``<output>/<name>_<frames>.npy``; see `vfx_runtime.writers.Writer`.

    Args:
        output: the output folder.
        outputs: the outputs of all engines; the file has room for one.
        claims: this process's claims on the output folder.
        frames: number of frames in a window.

    Raises:
        UsageError: there are several outputs, or rows are maps.
    """

    def __init__(self, output: Path, outputs: Sequence[Output], claims: Claims, frames: int) -> None:
        if len(outputs) != 1:
            names = ", ".join(item.name for item in outputs)
            raise UsageError(
                f"--format slowfast holds one array per video, and this run gives {names}: take one engine, "
                "exported without --head and --pool none, or --format npz"
            )
        if len(outputs[0].shape) != 1:
            raise UsageError(
                f"--format slowfast holds a row of numbers per window, and {outputs[0].name} is "
                f"{list(outputs[0].shape)}: export it without --pool none, or take --format npz"
            )
        self._output, self._claims, self._frames = output, claims, frames
        (self._column,) = outputs

    def paths(self, job: Job) -> list[Path]:
        """The file of a job."""
        return [self._output / f"{_stem(job)}_{self._frames}.npy"]

    def is_done(self, job: Job) -> bool:
        """Whether the file is whole, with rows of the engine's length."""
        (path,) = self.paths(job)
        return is_file(path) and npy_rows(path, self._column.row, "<f4") is not None

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job. The caller holds the job's claim."""
        if self._claims.active:
            remove([part_path(path) for path in self.paths(job)])

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Write the file and return its path. This format has no place for ``fps`` and ``meta``.

        Raises:
            OutputError: the file cannot be written; nothing of it is left.
        """
        paths = self.paths(job)
        column = rows.outputs[self._column.name]
        with (
            new_files(paths, exclusive=self._claims.active, inside=self._output) as (part,),
            part.open("wb") as file,
        ):
            write_header(file, np.dtype("<f4"), (column.rows, *column.shape))
            for block in column.blocks():
                file.write(np.ascontiguousarray(block, "<f4").data)
        return paths

    def finish(self) -> list[Path]:
        """Nothing is left to do at the end of a run."""
        return []


def refuse_same_stem(jobs: Iterable[Job]) -> None:
    """Refuse videos whose names differ only after their first dot, where this format cuts them.

    Raises:
        UsageError: two videos would write the same file.
    """
    first: dict[str, Job] = {}
    for job in jobs:
        other = first.setdefault(_stem(job), job)
        if other is not job:
            raise UsageError(
                f"{shown(other.where)} and {shown(job.where)} would both write {shown(_stem(job))}: --format "
                "slowfast cuts names at their first dot; rename one, or use --format npz"
            )


def _stem(job: Job) -> str:
    folder, slash, name = job.name.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0] or name}"
