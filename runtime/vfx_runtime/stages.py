"""What the stages of a run take, for ``vfx-run --report``; without one nothing is timed."""

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
    """Of one stage, summed over threads."""

    seconds: float = 0.0
    """By the clock; of stages that several threads do at once, more than the run may take."""
    cpu_seconds: float = 0.0
    """Of the threads that did it."""
    times: int = 0


class Stages:
    """Times the stages of a run. Safe to use from all its threads.

    A stage within another counts for itself alone: an image that is decoded while it is resized is
    decoding. CPU time is that of the calling thread; what an engine's own threads take is all of the
    process that no thread of the run took (`engine_cpu`).
    """

    def __init__(self) -> None:
        self.taken: dict[str, Taken] = {}
        self._lock = threading.Lock()
        self._inner = threading.local()
        self._threads_cpu = 0.0
        self._process_cpu = time.process_time()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count what happens within for a stage."""
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
        """A function that is counted for a stage."""

        @wraps(function)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.time(stage):
                return function(*args, **kwargs)

        return counted

    def thread_ends(self) -> None:
        """Called by a thread of the run at its end, of which it took everything."""
        with self._lock:
            self._threads_cpu += time.thread_time()

    def engine_cpu(self, others: float) -> float:
        """CPU-seconds since this was made that no thread of the run took.

        Args:
            others: CPU-seconds of threads that are none of the run, and none of an engine.
        """
        return max(0.0, time.process_time() - self._process_cpu - self._threads_cpu - others)

    def decoder(self, decoder: Decoder) -> Decoder:
        """The decoder, counted."""
        return _TimedDecoder(decoder, self)

    def writer(self, writer: Writer) -> Writer:
        """The writer, counted."""
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
    """Counted functions; equal ones stay equal, since what is alike is done once."""
    wrapped: dict[Callable[P, R], Callable[P, R]] = {}
    return [wrapped.setdefault(item, stages.timed(stage, item)) for item in functions]
