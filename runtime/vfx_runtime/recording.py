"""A run as it went, for ``vfx-run --report``: figures over time, failures, stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from vfx_engines.errors import shown
from vfx_engines.spec import EngineSpec, Sampling
from vfx_runtime.extracting import Extracted
from vfx_runtime.pipeline import Stats
from vfx_runtime.stages import Stages

_MOST = 512
"""Moments that are kept; when there are twice as many, every second one is dropped."""
_FIRST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Moment:
    """The figures of a run at one time."""

    seconds: float
    videos: int
    windows: int
    frames: int
    cpu_seconds: float


@dataclass(slots=True)
class Recording:
    """What a report is made of."""

    command: list[str]
    facts: dict[str, Any]
    """Machine and versions, by name."""
    specs: list[EngineSpec]
    samplings: list[Sampling]
    """One for each engine."""
    videos: int
    output: str
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))
    said: list[str] = field(default_factory=list)
    """Lines about engines and decoders."""
    written: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Path or URL of a video, and why it failed."""
    ended: str = ""
    """Why it did not reach its end."""
    seconds: float = 0.0
    moments: list[Moment] = field(default_factory=list)
    stages: Stages | None = None
    """None where several processes shared the list: one for each GPU, or actors of Ray."""
    engine_cpu: float = 0.0

    def note(self, done: Extracted) -> None:
        """Count what became of a video."""
        if done.error is not None:
            self.failures.append((shown(done.url or done.path), str(done.error)))
        elif done.skipped:
            self.skipped += 1
        else:
            self.written += 1


class Recorder:
    """Notes a run's figures, ever less often; a context manager that ends with the run.

    Args:
        recording: to add to.
        stats: gives the figures.
    """

    def __init__(self, recording: Recording, stats: Callable[[], Stats]) -> None:
        self._recording, self._stats = recording, stats
        self._stop = threading.Event()
        self._cpu = 0.0
        self._thread = threading.Thread(target=self._watch, name="vfx-report", daemon=True)

    def __enter__(self) -> Recorder:
        self._started, self._process = time.perf_counter(), time.process_time()
        self._own = time.thread_time()
        self._note()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._note()
        self._recording.seconds = self._recording.moments[-1].seconds
        self._recording.stages = self._stats().stages
        if error is not None:
            self._recording.ended = str(error) or "interrupted"
        if self._recording.stages is not None:
            own = time.thread_time() - self._own + self._cpu
            self._recording.engine_cpu = self._recording.stages.engine_cpu(own)

    def _watch(self) -> None:
        every, moments = _FIRST_SECONDS, self._recording.moments
        while not self._stop.wait(every):
            self._note()
            if len(moments) > 2 * _MOST:
                del moments[1::2]
                every *= 2
        self._cpu = time.thread_time()

    def _note(self) -> None:
        stats = self._stats()
        self._recording.moments.append(
            Moment(
                time.perf_counter() - self._started,
                stats.videos,
                stats.windows,
                stats.frames,
                time.process_time() - self._process,
            )
        )
