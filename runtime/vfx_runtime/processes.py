"""Run one list of videos on several devices: one process each, which asks for a video when it has room.

Each device has a process of its own, since one interpreter cannot feed several. If a process dies or its
device fails, its videos go to the others. A video that two processes had when they died is given up.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from vfx_engines.errors import EngineError, OutputError, VfxError, VideoError, shown
from vfx_runtime.delivering import Extracted
from vfx_runtime.job import Job
from vfx_runtime.pipeline import Stats
from vfx_runtime.running import Listener, Task, run_here

_TRIES = 2
_SECONDS_TO_END = 30


class _Next(NamedTuple):
    """The process has room for another video."""


class _Said(NamedTuple):
    line: str


class _Waiting(NamedTuple):
    videos: int


class _Ended(NamedTuple):
    """The process has done all its videos, and waits until the others have too, since packing comes last."""


class _Packed(NamedTuple):
    files: Sequence[Path]


class _Done(NamedTuple):
    result: Extracted
    stats: Stats


class _Failed(NamedTuple):
    error: VfxError


_Message = _Next | _Said | _Waiting | _Ended | _Packed | _Done | _Failed


@dataclass(slots=True, eq=False)
class _Child:
    device: str
    process: BaseProcess
    connection: Connection
    stats: Stats = field(default_factory=Stats)
    jobs: dict[str, Job] = field(default_factory=dict)
    """Jobs given out and not answered yet, by name."""
    error: VfxError | None = None
    ended: bool = False


def run_on_all(
    task: Task, devices: Sequence[str], jobs: Sequence[Job], listener: Listener
) -> Generator[Extracted, None, None]:
    """Run jobs on several devices at once. Results come as videos finish.

    Args:
        task: what to do with each video.
        devices: devices such as ``cuda:0``. One that is given twice gets two processes.
        jobs: all jobs of the run.
        listener: told about progress.

    Raises:
        VfxError: no device is left that can go on.
    """
    stats = Stats()
    listener.stats(stats)
    tries: Counter[str] = Counter()
    left = list(jobs)
    devices = list(devices)
    while left:
        round_ = _Round(task, devices, left, listener, stats)
        try:
            yield from round_.results()
        finally:
            round_.close()
        left = []
        for child in round_.lost:
            devices.remove(child.device)
            listener.said(f"{child.error}; its videos go to the others")
            for job in child.jobs.values():
                tries[job.name] += 1
                if tries[job.name] < _TRIES:
                    left.append(job)
                else:
                    yield Extracted.of(job, error=_given_up(job, child))
        left += round_.queue
        if left and not devices:
            assert round_.lost, "a round ends with jobs left only where its processes were lost"
            raise round_.lost[-1].error or EngineError("no device is left")
        # All videos are done, but no process was able to pack them.
        for error in (child.error for child in round_.lost if not devices):
            if isinstance(error, OutputError):
                raise error


def _given_up(job: Job, child: _Child) -> VideoError:
    return VideoError(
        f"{shown(job.where)}: given up: {_TRIES} processes ended while they had it, the last one with: "
        f"{child.error}; run it alone to see why"
    )


class _Round:
    """Processes on all devices, until the list is done or no process is left."""

    def __init__(
        self, task: Task, devices: Sequence[str], jobs: list[Job], listener: Listener, stats: Stats
    ) -> None:
        self.queue = deque(jobs)
        self.lost: list[_Child] = []
        self._listener, self._stats = listener, stats
        self._before = stats.snapshot()
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._children: list[_Child] = []
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, task, device, len(jobs)), name=f"vfx {device}", daemon=True
            )
            process.start()
            theirs.close()
            self._children.append(_Child(device, process, ours))

    def results(self) -> Iterator[Extracted]:
        running = {child.connection: child for child in self._children}
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                child = running[ready]
                try:
                    message: _Message = ready.recv()
                except (EOFError, OSError):
                    del running[ready]
                    self._note_end(child)
                else:
                    yield from self._answer(child, message)
                if all(item.ended for item in running.values()):
                    for item in running.values():
                        item.ended = False
                        _send(item, None)

    def _answer(self, child: _Child, message: _Message) -> Iterator[Extracted]:
        match message:
            case _Next():
                job = self.queue.popleft() if self.queue else None
                if job is not None:
                    child.jobs[job.name] = job
                _send(child, job)
            case _Said(line):
                self._listener.said(line)
            case _Waiting(videos):
                self._listener.waiting(videos)
            case _Packed(files):
                self._listener.packed(files)
            case _Ended():
                child.ended = True
            case _Failed(error):
                child.error = error
            case _Done(result, stats):
                child.jobs.pop(result.name, None)
                child.stats = stats
                self._add_up()
                yield result

    def _add_up(self) -> None:
        parts = [self._before, *(child.stats for child in self._children)]
        self._stats.videos = sum(part.videos for part in parts)
        self._stats.windows = sum(part.windows for part in parts)
        self._stats.frames = sum(part.frames for part in parts)
        self._stats.frames_on_gpu = sum(part.frames_on_gpu for part in parts)

    def _note_end(self, child: _Child) -> None:
        child.process.join(_SECONDS_TO_END)
        if child.error is None and (child.process.exitcode or child.jobs):
            child.error = EngineError(f"{child.device}: its process ended with {child.process.exitcode}")
        if child.error is not None:
            self.lost.append(child)

    def close(self) -> None:
        """End the processes that still run, as Ctrl-C would."""
        for child in self._children:
            if child.process.is_alive():
                child.process.terminate()
            # Its decoders may wait for an answer, which nobody gives any more.
            child.connection.close()
        for child in self._children:
            child.process.join(_SECONDS_TO_END)
            if child.process.is_alive():
                child.process.kill()
                child.process.join()


def _send(child: _Child, job: Job | None) -> None:
    # If the process died meanwhile, `results` notices that its end of the pipe is closed.
    with suppress(OSError):
        child.connection.send(job)


# In the other process


def _work(connection: Connection, task: Task, device: str, total: int) -> None:
    # A terminal sends Ctrl-C to all processes. They ignore it, and the first process ends them with SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    lock = threading.Lock()

    def send(message: _Message) -> None:
        with lock:
            connection.send(message)

    def asked() -> Iterator[Job]:
        while True:
            send(_Next())
            job: Job | None = connection.recv()
            if job is None:
                return
            yield job

    def ended() -> None:
        send(_Ended())
        connection.recv()

    stats = Stats()

    def found(own: Stats) -> None:
        nonlocal stats
        stats = own

    listener = Listener(
        said=lambda line: send(_Said(f"{line} ({device})")),
        stats=found,
        waiting=lambda videos: send(_Waiting(videos)),
        ended=ended,
        packed=lambda files: send(_Packed(files)),
    )
    # If the first process is gone, there is nobody to tell.
    with suppress(BrokenPipeError, EOFError, KeyboardInterrupt):
        try:
            for done in run_here(task, device, asked(), total, listener):
                # If the engine failed, the videos that it had did not: they go to another process.
                if not isinstance(done.error, EngineError):
                    send(_Done(done, stats.snapshot()))
        except VfxError as error:
            send(_Failed(error))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
