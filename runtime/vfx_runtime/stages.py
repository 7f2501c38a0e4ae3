"""Time the stages of a run, for ``vfx-run --report``. Without a report, nothing is timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vfx_runtime.decode import Decoder, Frame, Pixels
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.picture import Picture
from vfx_runtime.writers import Writer

P = ParamSpec("P")
R = TypeVar("R")

DECODE, RESIZE, GATHER, WRITE, VERIFY = "decode", "resize", "gather", "write", "verify"
WAIT_SLOT, WAIT_WINDOWS = "wait for the engine", "wait for windows"


@dataclass(slots=True)
class Taken:
    """The time that one stage took, summed over threads."""

    seconds: float = 0.0
    """Wall-clock time; if several threads are in the stage at once, this can exceed the run's."""
    cpu_seconds: float = 0.0
    """CPU time of the threads in the stage."""
    times: int = 0
    """How often the stage was entered."""


class Stages:
    """Times the stages of a run. All its threads share it.

    If one stage happens inside another, its time counts only for the inner one: decoding an image while it is
    resized counts as decoding. CPU time is that of the calling thread. The CPU time of engines' own threads
    is what the process used minus what the run's threads used (`engine_cpu`).
    """

    def __init__(self) -> None:
        self.taken: dict[str, Taken] = {}
        self._lock = threading.Lock()
        self._inner = threading.local()
        self._threads_cpu = 0.0
        self._process_cpu = time.process_time()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count the time spent inside the context for a stage."""
        before = getattr(self._inner, "taken", (0.0, 0.0))
        self._inner.taken = (0.0, 0.0)
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            within = self._inner.taken
            self._inner.taken = (before[0] + wall, before[1] + cpu)
            with self._lock:
                taken = self.taken.setdefault(stage, Taken())
                taken.seconds += wall - within[0]
                taken.cpu_seconds += cpu - within[1]
                taken.times += 1

    def timed(self, stage: str, function: Callable[P, R]) -> Callable[P, R]:
        """A function whose time counts for a stage."""

        @wraps(function)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.time(stage):
                return function(*args, **kwargs)

        return counted

    def thread_ends(self) -> None:
        """Add the calling thread's CPU time; every thread of the run calls this when it ends."""
        with self._lock:
            self._threads_cpu += time.thread_time()

    def engine_cpu(self, others: float) -> float:
        """CPU-seconds of engines' own threads since this object was made.

        Args:
            others: CPU-seconds of threads that belong neither to the run nor to an engine.
        """
        return max(0.0, time.process_time() - self._process_cpu - self._threads_cpu - others)

    def decoder(self, decoder: Decoder) -> Decoder:
        """A decoder whose time counts for decoding."""
        return _TimedDecoder(decoder, self)

    def writer(self, writer: Writer) -> Writer:
        """A writer whose time counts for verifying and writing."""
        return _TimedWriter(writer, self)


class _TimedDecoder:
    def __init__(self, decoder: Decoder, stages: Stages) -> None:
        self._decoder, self._stages = decoder, stages
        self.info = decoder.info
        self._next = stages.timed(DECODE, lambda: next(decoder, None))
        self.skip_to = stages.timed(DECODE, decoder.skip_to)
        self.close = decoder.close

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        frame = self._next()
        if frame is None:
            raise StopIteration
        return _TimedFrame(frame, self._stages)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _TimedFrame:
    __slots__ = ("_frame", "_stages", "end", "index", "start")

    def __init__(self, frame: Frame, stages: Stages) -> None:
        self._frame, self._stages = frame, stages
        self.index: int = frame.index
        self.start: Fraction = frame.start
        self.end: Fraction = frame.end

    def rgb(self) -> Pixels:
        with self._stages.time(DECODE):
            return self._frame.rgb()

    def picture(self) -> Picture:
        with self._stages.time(DECODE):
            return self._frame.picture()


class _TimedWriter:
    def __init__(self, writer: Writer, stages: Stages) -> None:
        self._writer, self._stages = writer, stages
        self.paths, self.prepare = writer.paths, writer.prepare

    def is_done(self, job: Job) -> bool:
        with self._stages.time(VERIFY):
            return self._writer.is_done(job)

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        with self._stages.time(WRITE):
            return self._writer.write(job, rows, fps, meta)

    def finish(self) -> list[Path]:
        with self._stages.time(WRITE):
            return self._writer.finish()


def timed_alike(stages: Stages, stage: str, functions: Iterable[Callable[P, R]]) -> list[Callable[P, R]]:
    """Time several functions. Equal ones stay equal, since the pipeline does equal work only once."""
    wrapped: dict[Callable[P, R], Callable[P, R]] = {}
    return [wrapped.setdefault(item, stages.timed(stage, item)) for item in functions]
