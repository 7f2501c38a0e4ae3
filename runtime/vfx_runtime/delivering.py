"""From the rows of a pipeline to results: in memory, or on disk next to other processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vfx_engines.errors import VfxError
from vfx_engines.versions import vfx_version
from vfx_runtime.claims import Claims
from vfx_runtime.features import Features
from vfx_runtime.job import Job
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.writers import Format, Writer, open_writer

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Extracted:
    """The result of one video of a run."""

    path: Path
    """Path of the video."""
    name: str
    """Name of its output below the output folder, without suffix."""
    features: Features | None
    """The features. None if the video failed, was already done, or its features went to disk only."""
    files: tuple[Path, ...] = ()
    """The files that were written, or that existed already."""
    skipped: bool = False
    """Whether a finished output existed already."""
    error: VfxError | None = None
    """Why the video failed; None if it did not."""
    by_others: bool = False
    """Whether the video was skipped because another process finished it during this run."""
    url: str | None = None
    """URL of a video that is not on this machine; `path` is then not a usable path."""

    @classmethod
    def of(cls, job: Job, features: Features | None = None, **rest: Any) -> Self:
        """The result of a job; further fields are given by name."""
        return cls(job.path, job.name, features, url=job.url, **rest)


def run_meta(pipeline: Pipeline) -> dict[str, Any]:
    """The metadata saved with every video of a run, as plain JSON: specs, samplings as run, versions.

    The first engine's entries are at the top level, those of further engines in the list ``others``.
    """
    parts: list[dict[str, Any]] = [
        {
            "spec": json.loads(engine.spec.to_json()),
            "sampling": dataclasses.asdict(sampling),
            "engine": engine.name,
        }
        for engine, sampling in zip(pipeline.engines, pipeline.samplings, strict=True)
    ]
    first, *others = parts
    if pipeline.total is not None:
        first["total"] = pipeline.total
    if pipeline.views is not None:
        first["views"] = pipeline.views.meta()
    return {**first, "vfx_version": vfx_version(), **({"others": others} if others else {})}


def fingerprint(pipeline: Pipeline) -> str:
    """SHA-256, in hexadecimal, of everything but the video that determines its features."""
    # Versions are left out: another version of vfx or of a library may change the last bits of a row, which
    # is no reason to extract it again.
    parts: list[Any] = [
        [json.loads(engine.spec.to_json()), dataclasses.asdict(sampling), engine.precision]
        for engine, sampling in zip(pipeline.engines, pipeline.samplings, strict=True)
    ]
    if pipeline.views is not None:
        parts.append(pipeline.views.meta())
    if pipeline.total is not None:
        parts.append(pipeline.total)
    if pipeline.float16:
        parts.append("float16")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def writer_for(pipeline: Pipeline, format: Format, output: Path, claims: Claims) -> Writer:
    """The writer for a run's outputs.

    Raises:
        UsageError: see `vfx_runtime.writers.open_writer`.
    """
    return open_writer(
        format,
        output,
        pipeline.outputs,
        fingerprint=fingerprint(pipeline),
        claims=claims,
        frames=pipeline.samplings[0].frames,
    )


def in_memory(jobs: Sequence[Job], pipeline: Pipeline) -> Iterator[Extracted]:
    """Run jobs and yield their features in memory, in the order in which videos finish."""
    meta = run_meta(pipeline)
    for result in pipeline.run(jobs, len(jobs)):
        features = None
        if result.rows is not None:
            with result.rows as rows:
                features = rows.features(result.fps, meta)
        yield Extracted.of(result.job, features, error=result.error)


def to_disk(
    jobs: Iterable[Job],
    total: int,
    pipeline: Pipeline,
    writer: Writer,
    claims: Claims,
    waiting: Callable[[int], None] = lambda count: None,
    ended: Callable[[], None] = lambda: None,
    packed: Callable[[Sequence[Path]], None] = lambda files: None,
    *,
    keep: bool = False,
    pack: bool = True,
) -> Iterator[Extracted]:
    """Run jobs and write their features, next to other processes that may do the same.

    A video that another process has claimed is left to it and checked again at the end. When this returns,
    every video is finished or has failed.

    Args:
        jobs: the jobs, which are taken one at a time.
        total: the number of jobs, or an upper bound. If there are fewer videos than cores, each is decoded by
            several threads.
        pipeline: runs the jobs; its spool folder should be the output folder.
        writer: writes the run's format.
        claims: the claims on the output folder.
        waiting: called with the number of videos left, when other processes are working on all of them.
        ended: called when all jobs are done, before they are packed.
        packed: called with the files of the pack.
        keep: also yield the features of the videos that were written.
        pack: for formats that pack all outputs at the end, whether to do so.

    Raises:
        EngineError: the engine failed.
        OutputError: the pack cannot be written. If a single output cannot be written, its video fails.
    """
    meta = run_meta(pipeline)
    left: Iterable[Job] | None = jobs
    others: set[str] = set()
    while left is not None:
        desk = _Desk(writer, claims, others)
        try:
            for result in pipeline.run(desk.give_out(left), total):
                files: tuple[Path, ...] = ()
                features = None
                error = result.error
                if result.rows is not None:
                    with result.rows as rows:
                        try:
                            files = tuple(writer.write(result.job, rows, result.fps, meta))
                            features = rows.features(result.fps, meta) if keep else None
                        except VfxError as failure:
                            error = failure
                desk.take_back(result.job)
                yield Extracted.of(result.job, features, files=files, error=error)
                yield from desk.settled()
            yield from desk.settled()
        finally:
            desk.close()
        if desk.elsewhere and len(desk.elsewhere) == desk.seen:
            waiting(desk.seen)
            time.sleep(_POLL_SECONDS)
        left, total = desk.elsewhere or None, len(desk.elsewhere)
        others.update(job.name for job in desk.elsewhere)
    ended()
    if pack:
        packed(writer.finish())


class _Desk:
    """Hands jobs out to the pipeline's workers, claiming each one before and releasing it afterwards."""

    def __init__(self, writer: Writer, claims: Claims, others: set[str]) -> None:
        self._writer, self._claims = writer, claims
        self._others = others
        """Names of the jobs that other processes held when we first tried to claim them."""
        self._held: set[str] = set()
        self._settled: list[Extracted] = []
        self.elsewhere: list[Job] = []
        """Jobs that other processes have claimed, to be tried again."""
        self.seen = 0

    def give_out(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs to be done in this process; the workers take them one at a time."""
        for job in jobs:
            self.seen += 1
            if not self._claims.take(job.name):
                self.elsewhere.append(job)
                continue
            self._held.add(job.name)
            settled: Extracted | None = None
            try:
                if self._writer.is_done(job):
                    files = tuple(self._writer.paths(job))
                    by_others = job.name in self._others or _newer(files, self._claims.began)
                    settled = Extracted.of(job, files=files, skipped=True, by_others=by_others)
                else:
                    self._writer.prepare(job)
            except VfxError as error:
                settled = Extracted.of(job, error=error)
            if settled is None:
                yield job
            else:
                self.take_back(job)
                self._settled.append(settled)

    def take_back(self, job: Job) -> None:
        self._held.discard(job.name)
        self._claims.release(job.name)

    def settled(self) -> Iterator[Extracted]:
        """Results of the jobs that needed no work, since the last call."""
        while self._settled:
            yield self._settled.pop(0)

    def close(self) -> None:
        for name in self._held:
            self._claims.release(name)
        self._held.clear()


def _newer(files: Sequence[Path], since: int | None) -> bool:
    try:
        return since is not None and any(file.stat().st_mtime_ns > since for file in files)
    except OSError:  # another process has packed the file meanwhile
        return True
