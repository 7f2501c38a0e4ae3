"""A run described as data, and running it on one device of this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vfx_engines.opening import BackendName, check_unchanged, engine_label, open_engine, read_spec
from vfx_engines.spec import EngineSpec, Precision, Sampling
from vfx_runtime.claims import Claims
from vfx_runtime.delivering import Extracted, to_disk, writer_for
from vfx_runtime.job import Job
from vfx_runtime.nvdec import DecoderName, gpu_decoders
from vfx_runtime.pipeline import Pipeline, Stats
from vfx_runtime.sizing import Sizes, grouped, is_sized
from vfx_runtime.stages import Stages
from vfx_runtime.views import Views
from vfx_runtime.writers import SHARDED, Format, Writer, pack_all


@dataclass(frozen=True, slots=True)
class Task:
    """Everything about a run except its videos and its device. It can be sent to another process.

    Fields without a comment are as in `vfx_engines.open_engine` and `vfx_runtime.pipeline.Pipeline`.
    """

    engines: tuple[Path, ...]
    output: Path
    format: Format
    samplings: tuple[Sampling, ...]
    """One per engine."""
    precision: Precision | None = None
    backend: BackendName | None = None
    batch: int | None = None
    threads: int | None = None
    workers: int | None = None
    decoder: DecoderName = "auto"
    views: Views | None = None
    total: int | None = None
    """About how many frames to sample from each video, see `vfx_runtime.laying.spread`; None for all."""
    float16: bool = False
    """Whether to save features in half precision."""
    keep: bool = False
    """Whether results also carry the features that were written."""
    measure: bool = False
    """Whether to time the stages, see `vfx_runtime.pipeline.Stats.stages`."""
    pack: bool = True
    """For formats that pack all outputs at the end: whether to do so; otherwise the caller does."""
    specs: tuple[EngineSpec, ...] = ()
    """The engines' specs as read when the run began; empty to take those of now."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Callbacks about a run's progress, called from the thread that iterates over the run."""

    said: Callable[[str], None]
    """Called with each line about what runs, such as the engine."""
    stats: Callable[[Stats], None]
    """Called with the run's figures, which are updated while it goes on."""
    waiting: Callable[[int], None] = lambda videos: None
    """Called with the number of videos left, when other processes are working on all of them."""
    ended: Callable[[], None] = lambda: None
    """Called when all videos are done, before they are packed."""
    packed: Callable[[Sequence[Path]], None] = lambda files: None
    """Called with the files of the pack."""


def run_here(
    task: Task, device: str | None, jobs: Iterable[Job], total: int, listener: Listener
) -> Generator[Extracted, None, None]:
    """Run jobs on one device.

    Args:
        task: what to do with each video.
        device: see `vfx_engines.open_engine`.
        jobs: the jobs, which are taken one at a time.
        total: the number of jobs, or an upper bound.
        listener: told about progress.

    Raises:
        VfxError: see `vfx_engines.open_engine` and `vfx_runtime.delivering.to_disk`.
    """
    with Runner(task, device, listener) as runner:
        yield from runner.run(jobs, total)


class Runner:
    """Runs a task on one device for one list after another; engines and claims stay open in between.

    A context manager.

    Args:
        task: what to do with each video.
        device: see `vfx_engines.open_engine`.
        listener: told about progress.

    Raises:
        VfxError: a file is not an engine, or this process already writes to the output folder.
    """

    def __init__(self, task: Task, device: str | None, listener: Listener) -> None:
        self._task, self._device, self._listener = task, device, listener
        self._specs = tuple(map(read_spec, task.engines))
        for path, found, spec in zip(task.engines, self._specs, task.specs or self._specs, strict=True):
            check_unchanged(path, found, spec)
        self._sized = any(map(is_sized, self._specs))
        self._packs_last = self._sized and task.format in SHARDED
        self._seen: set[str] = set()
        self._engines = ExitStack()
        self._open: tuple[list[Sizes], Pipeline, Writer] | None = None
        self._stats = Stats(stages=Stages() if task.measure else None)
        listener.stats(self._stats)
        self._claims = Claims(task.output)
        if not self._claims.active:
            self._say_once(f"other processes may do the same videos: {self._claims.reason}")

    def run(self, jobs: Iterable[Job], total: int) -> Generator[Extracted, None, None]:
        """Run a list. Results come as videos finish.

        Args:
            jobs: the jobs, which are taken one at a time.
            total: the number of jobs, or an upper bound.

        Raises:
            VfxError: see `vfx_engines.open_engine` and `vfx_runtime.delivering.to_disk`.
        """
        for group in grouped(jobs, self._specs):
            for job, error in group.failed:
                self._stats.videos += 1
                yield Extracted.of(job, error=error)
            if group.failed:
                continue
            pipeline, writer = self._at(group.sizes)
            yield from to_disk(
                group.jobs,
                total,
                pipeline,
                writer,
                self._claims,
                self._listener.waiting,
                # `ended` makes processes wait for each other. Those that run different sizes must not.
                (lambda: None) if self._sized else self._listener.ended,
                self._listener.packed,
                keep=self._task.keep,
                pack=self._task.pack and not self._packs_last,
            )
        if self._task.pack and self._packs_last:
            self._listener.packed(pack_all(self._task.format, self._task.output, self._claims))

    def open(self) -> None:
        """Open the engines now, unless they must first know the size of a video.

        Raises:
            VfxError: see `vfx_engines.open_engine`.
        """
        if not self._sized:
            self._at([{} for _ in self._specs])

    def close(self) -> None:
        """Close the engines and give up the claims, even if an engine fails to close."""
        try:
            self._engines.close()
        finally:
            self._open = None
            self._claims.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _at(self, sizes: list[Sizes]) -> tuple[Pipeline, Writer]:
        """The pipeline and writer for videos of one size. Those of the last size are kept open."""
        if self._open is not None and self._open[0] == sizes:
            return self._open[1:]
        self._open = None
        self._engines.close()
        task, engines = self._task, []
        for path, spec, axes in zip(task.engines, self._specs, sizes, strict=True):
            engine = open_engine(
                path,
                device=self._device,
                precision=task.precision,
                backend=task.backend,
                batch=task.batch,
                threads=task.threads,
                sizes=axes,
            )
            engines.append(self._engines.enter_context(engine))
            check_unchanged(path, engine.spec, spec.sized(axes))
            self._say_once(f"engine: {engine_label(path)}, {engine.name}")
        on_gpu = gpu_decoders(engines[0], task.decoder, self._say_once)
        if on_gpu:
            beside = "" if task.decoder == "nvdec" else ", and on the CPU"
            self._say_once(f"decoding: {on_gpu} videos at once on NVDEC{beside}")
        pipeline = Pipeline(
            engines,
            task.samplings,
            views=task.views,
            workers=0 if task.decoder == "nvdec" else task.workers,
            gpu_decoders=on_gpu,
            spool_folder=task.output,
            stats=self._stats,
            total=task.total,
            float16=task.float16,
        )
        writer = writer_for(pipeline, task.format, task.output, self._claims)
        if self._stats.stages is not None:
            writer = self._stats.stages.writer(writer)
        self._open = (sizes, pipeline, writer)
        return self._open[1:]

    def _say_once(self, line: str) -> None:
        if line not in self._seen:
            self._seen.add(line)
            self._listener.said(line)
