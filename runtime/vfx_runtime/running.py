"""A run as data, and doing it on one device of this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vfx_engines.opening import BackendName, engine_label, open_engine, read_spec
from vfx_engines.spec import Precision, Sampling
from vfx_runtime.claims import Claims
from vfx_runtime.extracting import Extracted, to_disk, writer_for
from vfx_runtime.inputs import Job
from vfx_runtime.nvdec import DecoderName, gpu_decoders
from vfx_runtime.pipeline import Pipeline, Stats
from vfx_runtime.sizing import grouped, is_sized
from vfx_runtime.stages import Stages
from vfx_runtime.views import Views
from vfx_runtime.writers import Format


@dataclass(frozen=True, slots=True)
class Task:
    """What is run, but for the videos and the device. It can be sent to another process."""

    engines: tuple[Path, ...]
    output: Path
    format: Format
    samplings: tuple[Sampling, ...]
    """One for each engine."""
    precision: Precision | None = None
    backend: BackendName | None = None
    batch: int | None = None
    threads: int | None = None
    workers: int | None = None
    decoder: DecoderName = "auto"
    views: Views | None = None
    total: int | None = None
    """Frames that each video is brought to; see `vfx_runtime.laying.spread`."""
    float16: bool = False
    """Save features in half precision."""
    keep: bool = False
    """Give the features of what was written too."""
    measure: bool = False
    """Time the stages, see `vfx_runtime.pipeline.Stats.stages`."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told how a run goes; called from the thread that iterates over it."""

    said: Callable[[str], None]
    """Told, a line at a time, what runs."""
    stats: Callable[[Stats], None]
    """Given the run's figures once, to be read while it goes on."""
    waiting: Callable[[int], None] = lambda videos: None
    """Told how many videos are left that other processes work on."""
    ended: Callable[[], None] = lambda: None
    """Called when all videos are done, before a pack is made of them."""


def run_here(
    task: Task, device: str | None, jobs: Iterable[Job], total: int, listener: Listener
) -> Generator[Extracted, None, None]:
    """Run jobs on one device.

    Args:
        task: what to do.
        device: see `vfx_engines.open_engine`.
        jobs: taken one at a time.
        total: their number, or more.
        listener: told how it goes.

    Raises:
        VfxError: see `vfx_engines.open_engine` and `vfx_runtime.extracting.to_disk`.
    """
    specs = [read_spec(engine) for engine in task.engines]
    sized = any(map(is_sized, specs))
    seen: set[str] = set()

    def say_once(line: str) -> None:
        if line not in seen:
            seen.add(line)
            listener.said(line)

    stats = Stats(stages=Stages() if task.measure else None)
    listener.stats(stats)
    with Claims(task.output) as claims:
        if not claims.active:
            listener.said(f"other processes may do the same videos: {claims.reason}")
        for group in grouped(jobs, specs):
            for job, error in group.failed:
                stats.videos += 1
                yield Extracted(job.path, job.name, None, error=error)
            if group.failed:
                continue
            with ExitStack() as stack:
                engines = []
                for path, sizes in zip(task.engines, group.sizes, strict=True):
                    engine = open_engine(
                        path,
                        device=device,
                        precision=task.precision,
                        backend=task.backend,
                        batch=task.batch,
                        threads=task.threads,
                        sizes=sizes,
                    )
                    engines.append(stack.enter_context(engine))
                    say_once(f"engine: {engine_label(path)}, {engine.name}")
                on_gpu = gpu_decoders(engines[0], task.decoder)
                if on_gpu:
                    beside = "" if task.decoder == "nvdec" else ", and on the CPU"
                    say_once(f"decoding: {on_gpu} videos at once on NVDEC{beside}")
                pipeline = Pipeline(
                    engines,
                    task.samplings,
                    views=task.views,
                    workers=0 if task.decoder == "nvdec" else task.workers,
                    gpu_decoders=on_gpu,
                    spool_folder=task.output,
                    stats=stats,
                    total=task.total,
                    float16=task.float16,
                )
                writer = writer_for(pipeline, task.format, task.output, claims)
                if stats.stages is not None:
                    writer = stats.stages.writer(writer)
                yield from to_disk(
                    group.jobs,
                    total,
                    pipeline,
                    writer,
                    claims,
                    listener.waiting,
                    # Processes that run other sizes must not wait for each other.
                    (lambda: None) if sized else listener.ended,
                    keep=task.keep,
                )
