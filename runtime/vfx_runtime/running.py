"""A run as data, and doing it on one device of this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from vfx_engines.opening import BackendName, open_engine
from vfx_engines.spec import Precision, Sampling
from vfx_runtime.claims import Claims
from vfx_runtime.extracting import Extracted, fingerprint, to_disk
from vfx_runtime.inputs import Job
from vfx_runtime.nvdec import DecoderName, gpu_decoders
from vfx_runtime.pipeline import Pipeline, Stats
from vfx_runtime.writers import Format, open_writer


@dataclass(frozen=True, slots=True)
class Task:
    """What is run, but for the videos and the device. It can be sent to another process."""

    engine: Path
    output: Path
    format: Format
    sampling: Sampling
    precision: Precision | None = None
    backend: BackendName | None = None
    batch: int | None = None
    threads: int | None = None
    workers: int | None = None
    decoder: DecoderName = "auto"
    keep: bool = False
    """Give the features of what was written too."""


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
    with (
        open_engine(
            task.engine,
            device=device,
            precision=task.precision,
            backend=task.backend,
            batch=task.batch,
            threads=task.threads,
        ) as engine,
        Claims(task.output) as claims,
    ):
        listener.said(f"engine: {task.engine.name}, {engine.name}")
        on_gpu = gpu_decoders(engine, task.decoder)
        if on_gpu:
            beside = "" if task.decoder == "nvdec" else ", and on the CPU"
            listener.said(f"decoding: {on_gpu} videos at once on NVDEC{beside}")
        if not claims.active:
            listener.said(f"other processes may do the same videos: {claims.reason}")
        mark = fingerprint(engine, task.sampling)
        writer = open_writer(task.format, task.output, engine.spec.outputs, fingerprint=mark, claims=claims)
        pipeline = Pipeline(
            engine,
            task.sampling,
            workers=0 if task.decoder == "nvdec" else task.workers,
            gpu_decoders=on_gpu,
            spool_folder=task.output,
        )
        listener.stats(pipeline.stats)
        yield from to_disk(
            jobs, total, pipeline, writer, claims, listener.waiting, listener.ended, keep=task.keep
        )
