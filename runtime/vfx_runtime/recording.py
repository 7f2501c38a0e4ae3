"""Record a run for ``vfx-run --report``: figures over time, failures, stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from vfx_engines.errors import shown
from vfx_engines.spec import EngineSpec, Sampling
from vfx_runtime.delivering import Extracted
from vfx_runtime.pipeline import Stats
from vfx_runtime.stages import Stages

_MOST = 512
"""Number of moments to keep. When there are twice as many, every second one is dropped."""
_FIRST_SECONDS = 0.1
"""Time between moments at first; it doubles whenever moments are dropped."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The figures of a run at one moment, all counted from its start."""

    seconds: float
    """Wall-clock time."""
    videos: int
    windows: int
    frames: int
    """Decoded frames; for audio, samples."""
    cpu_seconds: float
    """CPU time of this process."""


@dataclass(slots=True)
class Recording:
    """The data of a report."""

    command: list[str]
    facts: dict[str, Any]
    """Facts about the machine and versions, by name."""
    specs: list[EngineSpec]
    samplings: list[Sampling]
    """One per engine."""
    videos: int
    """Number of videos in the run."""
    output: str
    failures_file: str = "failures.jsonl"
    """Name of the list of failures in the output folder."""
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))
    said: list[str] = field(default_factory=list)
    """Lines printed about engines and decoders."""
    written: int = 0
    skipped: int = 0
    others: int = 0
    """Number of videos that other processes finished during the run."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Path or URL of each video that failed, and why."""
    ended: str = ""
    """Why the run did not reach its end; empty if it did."""
    seconds: float = 0.0
    """Wall-clock time of the run."""
    moments: list[Moment] = field(default_factory=list)
    stages: Stages | None = None
    """None if several processes shared the list: one per GPU, or Ray actors."""
    engine_cpu: float = 0.0
    """CPU-seconds of the engines' own threads."""

    def note(self, done: Extracted) -> None:
        """Count the result of a video."""
        if done.error is not None:
            self.failures.append((shown(done.url or done.path), str(done.error)))
        elif done.skipped:
            self.skipped += not done.by_others
            self.others += done.by_others
        else:
            self.written += 1


class Recorder:
    """Records a run's figures at regular times, less often as the run gets longer; a context manager.

    Args:
        recording: the recording to add to.
        stats: returns the run's current figures.
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
