"""What a Ray actor does: the run of one process, on the videos that it is given.

Calls overlap: while the last videos of one call finish, the engine already works on those of the next, so its
slots never run dry in between.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfx_engines.errors import EngineError, VfxError, reason
from vfx_runtime.delivering import Extracted
from vfx_runtime.job import Job
from vfx_runtime.pipeline import Stats
from vfx_runtime.running import Listener, Runner, Task

_IDLE_SECONDS = 0.05
"""If no video comes for this long, the videos under way are finished, without waiting to fill a batch."""

_BROKEN_SECONDS = 2.0
"""Pause after a failure. Without it, an actor with a broken engine would be the fastest to ask for more
videos, and would take them from the actors that work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a call."""

    results: list[Extracted]
    lines: list[str]
    """Lines that the actor has printed since its last answer."""
    stats: Stats
    """What was done since its last answer."""
    fatal: VfxError | None = None
    """Why the actor cannot work at all; None if it can."""


@dataclass(slots=True)
class _Told:
    """What the answers so far have covered, so that the next one reports only what is new."""

    stats: Stats = field(default_factory=Stats)
    lines: int = 0


class Actor:
    """Runs chunks of jobs; the class that is passed to Ray Data's ``map_batches``.

    Args:
        task: what to do with each video. Its paths are absolute, and the same on every machine.
        device: see `vfx_engines.open_engine`.
        total: number of videos of the whole run, or an upper bound.
    """

    def __init__(self, task: Task, device: str | None, total: int) -> None:
        self._task, self._device, self._total = task, device, total
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Extracted]] = {}
        self._lines: list[str] = []
        self._stats, self._told = Stats(), _Told()
        self._lock = threading.Lock()
        self._fatal: VfxError | None = None
        self._runner: Runner | None = None
        try:
            self._runner = self._open()
        except VfxError as error:
            self._fatal = error
        else:
            threading.Thread(target=self._work, name="vfx-actor", daemon=True).start()

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the chunks of a batch.

        Args:
            batch: ``jobs`` holds the chunks, each a pickled list of jobs. They come from this run's driver,
                and are as trustworthy as any message in a Ray cluster.

        Returns:
            ``answer`` holds one pickled `Answer`.
        """
        jobs: list[Job] = [job for chunk in batch["jobs"] for job in pickle.loads(bytes(chunk))]
        futures: list[Future[Extracted]] = []
        if self._fatal is None:
            for job in jobs:
                future: Future[Extracted] = Future()
                futures.append(future)
                self._waiting[job.name] = future
                self._inbox.put(job)
        results = [future.result() for future in futures]
        answer = np.empty(1, object)
        answer[0] = pickle.dumps(self._answer(results))
        return {"answer": answer}

    def _answer(self, results: list[Extracted]) -> Answer:
        with self._lock:
            now, told = self._stats.snapshot(), self._told
            done = Stats(
                now.videos - told.stats.videos,
                now.windows - told.stats.windows,
                now.frames - told.stats.frames,
                now.frames_on_gpu - told.stats.frames_on_gpu,
            )
            lines = self._lines[told.lines :]
            self._told = _Told(now, told.lines + len(lines))
        return Answer(results, lines, done, self._fatal)

    def _open(self) -> Runner:
        def watch(stats: Stats) -> None:
            # If the engine was opened again, the figures continue from where they were.
            stats.videos, stats.windows = self._stats.videos, self._stats.windows
            stats.frames, stats.frames_on_gpu = self._stats.frames, self._stats.frames_on_gpu
            self._stats = stats

        runner = Runner(self._task, self._device, Listener(self._lines.append, watch))
        try:
            runner.open()
        except BaseException:
            runner.close()
            raise
        return runner

    def _work(self) -> None:
        while True:
            first = self._inbox.get()
            taken: list[Job] = []
            try:
                if self._runner is None:
                    self._runner = self._open()
                for done in self._runner.run(chain([first], self._more(taken)), self._total):
                    self._waiting.pop(done.name).set_result(done)
            except Exception as error:
                self._close()
                time.sleep(_BROKEN_SECONDS)
                failure = error if isinstance(error, VfxError) else EngineError(_unexpected(error))
                for job in (first, *taken):
                    future = self._waiting.pop(job.name, None)
                    if future is not None:
                        future.set_result(Extracted.of(job, error=failure))

    def _close(self) -> None:
        runner, self._runner = self._runner, None
        # A device that is lost fails to close, too. That must not end the thread that answers.
        with suppress(Exception):
            if runner is not None:
                runner.close()

    def _more(self, taken: list[Job]) -> Iterator[Job]:
        while True:
            try:
                job = self._inbox.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                return
            taken.append(job)
            yield job


def _unexpected(error: Exception) -> str:
    return f"internal error, please report it: {type(error).__name__}: {reason(error)}"
