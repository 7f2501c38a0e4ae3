"""Videos in, rows of features out, with every stage overlapped and nothing unbounded.

Worker threads decode, resize and gather, on the CPU or on the engine's own GPU (`vfx_runtime.preprocess`);
the engine's slots are the queue between them and the device. A window is gathered straight into its place
in a slot, so windows of different videos share a batch, and a worker that runs ahead waits for a free slot:
memory depends neither on the length of a video nor on their number. One thread collects finished slots in
the order they were submitted, which keeps the rows of each video in order.
"""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vfx_engines.engine import Engine, Outputs
from vfx_engines.errors import EngineError, VfxError, VideoError, shown
from vfx_engines.opening import cuda_index
from vfx_engines.spec import Sampling
from vfx_runtime.audio import check_audio, sound_windows
from vfx_runtime.decode import Decoder, Frame
from vfx_runtime.features import RowSpool
from vfx_runtime.inputs import Job
from vfx_runtime.opening import open_video
from vfx_runtime.preprocess import Preprocess, prepares_on_device, preprocess_for
from vfx_runtime.sampling import Held, Window, Windows, resample

_AHEAD = 64
"""Videos that may be begun before the oldest unfinished one is done: bounds what is held of each."""

_LONGEST_SHOWN = 3600
"""Seconds that a frame may last where a frame rate asks for it again and again: a damaged time stamp can
make it years."""

_SKIP_WORTH = 32
"""Samples to the next needed one from which asking the decoder to seek can pay."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one video: rows, or the reason why there are none."""

    job: Job
    rows: RowSpool | None
    """To be closed by whoever takes the result."""
    fps: float
    """Frames per second that the windows were laid over; 0 for a failure."""
    error: VfxError | None


@dataclass(slots=True)
class Stats:
    """How far a run is; written by its threads, read by anyone."""

    videos: int = 0
    """Finished, failed ones included."""
    windows: int = 0
    frames: int = 0
    """Decoded."""
    frames_on_gpu: int = 0
    """Decoded on a GPU, of those."""
    _fractions: dict[int, float] = field(default_factory=dict)

    @property
    def videos_done(self) -> float:
        """Finished videos, and the decoded share of those under way."""
        return self.videos + sum(list(self._fractions.values()))


class Pipeline:
    """Runs videos through an engine.

    Args:
        engine: open; its slots are the pipeline's while a run lasts.
        sampling: the spec's own, or with another step, frame rate or edge rule. The number of frames
            is the engine's.
        workers: videos decoded at once on the CPU; None chooses by cores.
        gpu_decoders: videos decoded at once on the engine's GPU, beside those. Both kinds take the next
            video when they are done with one, so each gets as many as it is fast.
        spool_folder: where rows that outgrow memory go; None for the system's temporary folder.

    Raises:
        UsageError: the engine takes sound in a way that cannot be given to it.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling | None = None,
        *,
        workers: int | None = None,
        gpu_decoders: int = 0,
        spool_folder: Path | None = None,
    ) -> None:
        self.engine = engine
        self.sampling = sampling or engine.spec.sampling
        if engine.spec.input.modality == "audio":
            check_audio(engine.spec, self.sampling)
        self.stats = Stats()
        self._cores = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self._workers = max(1, min(self._cores, 16)) if workers is None else workers
        self._gpu_decoders = gpu_decoders
        self._folder = spool_folder

    def run(self, jobs: Iterable[Job], total: int | None = None) -> Iterator[Result]:
        """Process videos; results come as videos finish, which is nearly their own order.

        Args:
            jobs: taken one at a time, as workers become free, in the caller's order.
            total: their number, where known: fewer videos than cores are decoded by several threads each.

        Raises:
            EngineError: the engine failed; no video can go on.
        """
        decoders = [cuda_index(self.engine.device)] * self._gpu_decoders + [None] * self._workers
        if total:
            decoders = decoders[:total]
        threads = max(1, self._cores // len(decoders)) if total and total < self._cores else 1
        run = _Run(self, jobs, decoders, threads)
        try:
            yield from run.results()
        finally:
            run.stop()


@dataclass(slots=True, eq=False)
class _Video:
    """A video under way."""

    number: int
    job: Job
    rows: RowSpool
    fps: float = 0.0
    gathered: int = 0
    """Windows handed to the engine; final once ``ended``."""
    collected: int = 0
    ended: bool = False
    error: VfxError | None = None


@dataclass(slots=True, eq=False)
class _Place:
    """A window's place in a slot, and what its row is."""

    video: _Video
    frame_range: tuple[int, int]
    timestamps_ms: tuple[float, float]


class _Stopped(Exception):
    """The run is being given up; not an error of any video."""


class _Run:
    """One call of `Pipeline.run`: its threads and what they share."""

    def __init__(
        self, pipeline: Pipeline, jobs: Iterable[Job], decoders: Sequence[int | None], threads: int
    ) -> None:
        self._engine = pipeline.engine
        self._on_device = prepares_on_device(self._engine)
        self._sampling = pipeline.sampling
        self._stats = pipeline.stats
        self._folder = pipeline._folder
        self._threads = threads
        self._jobs = iter(jobs)
        self._jobs_lock = threading.Lock()
        self._done: queue.Queue[Result | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = threading.Event()

        self._slots = threading.Condition()
        """Guards all below."""
        self._free = deque(range(self._engine.slots))
        self._filling: int | None = None
        self._places: list[list[_Place]] = [[] for _ in range(self._engine.slots)]
        self._copying = [0] * self._engine.slots
        self._sealed: deque[int] = deque()
        """Slots that get no more windows, in the order in which they were filled."""
        self._submitted: deque[int] = deque()
        self._engine_failure: Exception | None = None
        self._working = len(decoders)
        self._begun = 0
        self._open: set[int] = set()
        """Numbers of the videos begun and not yet finished."""

        self._workers = [
            threading.Thread(
                target=self._guard, args=(partial(self._work, gpu),), name=f"vfx-decode-{i}", daemon=True
            )
            for i, gpu in enumerate(decoders)
        ]
        self._collector = threading.Thread(
            target=self._guard, args=(self._collect,), name="vfx-collect", daemon=True
        )

    def results(self) -> Iterator[Result]:
        for thread in (*self._workers, self._collector):
            thread.start()
        while (item := self._done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """End all threads, whatever they wait for, and leave the engine with every slot free."""
        self._stop.set()
        with self._slots:
            self._slots.notify_all()
        threads = [thread for thread in (*self._workers, self._collector) if thread.ident is not None]
        while any(thread.is_alive() for thread in threads):
            try:
                item = self._done.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(item, Result) and item.rows is not None:
                item.rows.close()
        while self._submitted:
            # An engine that failed has said so already.
            with suppress(VfxError):
                self._engine.collect(self._submitted.popleft())

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except _Stopped:
            pass
        except BaseException as error:
            self._put(error)

    def _put(self, item: Result | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._done.put(item, timeout=0.2)
                return
            except queue.Full:
                continue
        if isinstance(item, Result) and item.rows is not None:
            item.rows.close()

    # Workers

    def _work(self, gpu: int | None) -> None:
        """What a worker does: one video after the other, on the GPU of this number where there is one."""
        try:
            with closing(self._preprocess()) as preprocess:
                self._work_through(preprocess, gpu)
        finally:
            with self._slots:
                self._working -= 1
                if not self._working:
                    self._seal()
                self._slots.notify_all()

    def _preprocess(self) -> Preprocess[Any]:
        try:
            return preprocess_for(self._engine)
        except VfxError as error:
            raise self._fail(error) from error

    def _work_through(self, preprocess: Preprocess[Any], gpu: int | None) -> None:
        while (video := self._next_video()) is not None:
            try:
                self._process(video, preprocess, gpu)
            except EngineError as error:
                raise self._fail(error) from error
            except VfxError as error:
                video.error = error
            except _Stopped:
                raise
            except Exception as error:  # a defect of ours or a library's: it costs one video, not the run
                frame = traceback.extract_tb(error.__traceback__)[-1]
                video.error = VideoError(
                    f"{shown(video.job.path)}: internal error, please report it: "
                    f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
                )
            with self._slots:
                video.ended = True
                finished = self._finished(video)
            if finished:
                self._finish(video)

    def _fail(self, error: Exception) -> _Stopped:
        """Note a failure that is not that of one video, for the collector to end the run with."""
        with self._slots:
            self._engine_failure = self._engine_failure or error
            self._slots.notify_all()
        return _Stopped()

    def _next_video(self) -> _Video | None:
        with self._slots:
            if self._far_ahead():
                # What the oldest video waits for may lie in the slot that is being filled.
                self._seal()
            while self._far_ahead():
                self._wait()
        with self._jobs_lock:
            job = None if self._stop.is_set() else next(self._jobs, None)
            if job is None:
                return None
            with self._slots:
                video = _Video(self._begun, job, RowSpool(self._engine.spec.outputs, self._folder))
                self._open.add(video.number)
                self._begun += 1
                return video

    def _far_ahead(self) -> bool:
        return bool(self._open) and self._begun - min(self._open) >= _AHEAD

    def _process(self, video: _Video, preprocess: Preprocess[Any], gpu: int | None) -> None:
        if self._engine.spec.input.modality == "audio":
            self._process_sound(video)
            return
        with closing(open_video(video.job.path, self._threads, gpu)) as decoder:
            video.fps = self._sampling.fps or decoder.info.fps
            frames = _Counted(decoder, self._stats, video, self._stop)
            if self._sampling.fps:
                frames.longest_shown = _LONGEST_SHOWN
            try:
                for window, samples in windows(frames, self._sampling, preprocess.prepare):
                    self._gather(video, window, samples, preprocess)
            finally:
                with self._slots:
                    self._stats.frames += frames.count
                    self._stats.frames_on_gpu += frames.count if decoder.info.on_gpu else 0
                    self._stats._fractions.pop(video.number, None)
        if not video.gathered:
            raise _too_short(video.job, self._engine, self._sampling, frames.count)

    def _process_sound(self, video: _Video) -> None:
        def progress(samples: int, share: float) -> None:
            if self._stop.is_set():
                raise _Stopped
            with self._slots:
                self._stats.frames += samples
                self._stats._fractions[video.number] = share

        video.fps = self._sampling.fps or 0.0
        try:
            for window in sound_windows(video.job.path, self._engine.spec, self._sampling, progress):
                slot, row = self._reserve(_Place(video, window.frame_range, window.timestamps_ms))
                try:
                    self._engine.buffer(slot)[row] = window.samples
                finally:
                    self._commit(slot)
        finally:
            with self._slots:
                self._stats._fractions.pop(video.number, None)

    def _gather(
        self, video: _Video, window: Window, samples: dict[int, _Sample], preprocess: Preprocess[Any]
    ) -> None:
        first, last = samples[window.first], samples[window.last]
        place = _Place(
            video,
            (first.frame, last.frame + 1),
            (float(first.start * 1000), float(last.end * 1000)),
        )
        slot, row = self._reserve(place)
        try:
            prepared = [None if number < 0 else samples[number].prepared for number in window.samples]
            preprocess.place(slot, row, prepared)
        finally:
            self._commit(slot)

    # Slots

    def _wait(self) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._slots.wait(1)

    def _reserve(self, place: _Place) -> tuple[int, int]:
        with self._slots:
            while self._filling is None:
                if self._free:
                    self._filling = self._free.popleft()
                else:
                    self._wait()
            slot = self._filling
            row = len(self._places[slot])
            self._places[slot].append(place)
            self._copying[slot] += 1
            place.video.gathered += 1
            if row + 1 == self._engine.batch:
                self._seal()
            return slot, row

    def _commit(self, slot: int) -> None:
        with self._slots:
            self._copying[slot] -= 1
            self._submit_ready()

    def _seal(self) -> None:
        """No more windows for the slot that is being filled."""
        if self._filling is not None:
            slot, self._filling = self._filling, None
            self._sealed.append(slot)
            self._submit_ready()

    def _submit_ready(self) -> None:
        # In the order of filling, though a later slot may be copied first: rows keep their order by it.
        while self._sealed and not self._copying[self._sealed[0]]:
            slot = self._sealed.popleft()
            try:
                self._engine.submit(slot, len(self._places[slot]), on_device=self._on_device)
            except Exception as error:  # not of the video that happened to fill the slot
                raise self._fail(error) from error
            self._submitted.append(slot)
            self._slots.notify_all()

    # Collecting

    def _collect(self) -> None:
        while (slot := self._next_submitted()) is not None:
            outputs = self._engine.collect(slot)
            with self._slots:
                places, self._places[slot] = self._places[slot], []
                self._free.append(slot)
                self._slots.notify_all()
            self._stats.windows += len(places)
            self._hand_out(places, outputs)
        for worker in self._workers:
            worker.join()  # what ended it comes before the end
        self._put(None)

    def _next_submitted(self) -> int | None:
        with self._slots:
            while not self._submitted:
                if self._engine_failure is not None:
                    raise self._engine_failure
                # Failed videos need no row to be finished, so only slots and workers count.
                if not self._working and self._filling is None and not self._sealed:
                    return None
                self._wait()
            return self._submitted.popleft()

    def _hand_out(self, places: list[_Place], outputs: Outputs) -> None:
        start = 0
        while start < len(places):
            video, end = places[start].video, start + 1
            while end < len(places) and places[end].video is video:
                end += 1
            own = places[start:end]
            try:
                if video.error is None:
                    video.rows.append(
                        {name: array[start:end] for name, array in outputs.items()},
                        np.array([place.frame_range for place in own], np.int64),
                        np.array([place.timestamps_ms for place in own], np.float64),
                    )
            except VfxError as error:
                video.error = error
            with self._slots:
                video.collected += len(own)
                finished = self._finished(video)
            if finished:
                self._finish(video)
            start = end

    def _finished(self, video: _Video) -> bool:
        """Whether this was the last that was missing; true once per video."""
        if video.ended and video.collected == video.gathered and video.number in self._open:
            self._open.remove(video.number)
            self._slots.notify_all()
            return True
        return False

    def _finish(self, video: _Video) -> None:
        with self._slots:
            self._stats.videos += 1
        if video.error is not None:
            video.rows.close()
            self._put(Result(video.job, None, 0.0, video.error))
        else:
            self._put(Result(video.job, video.rows, video.fps, None))


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """A resized frame as the windows see it."""

    prepared: Any
    """What `Preprocess.prepare` made of it."""
    frame: int
    """Number of the source frame."""
    start: Fraction
    end: Fraction


def windows(
    frames: Iterable[Frame], sampling: Sampling, prepare: Callable[[Frame], Any]
) -> Iterator[tuple[Window, dict[int, _Sample]]]:
    """The windows of a video, each with the samples that it is made of.

    A frame is prepared once, however many windows use it, and not even converted if none does. What
    is kept never exceeds a window's span.
    """
    planner = Windows(sampling)
    kept: dict[int, _Sample] = {}
    number = -1
    # Where windows lie far apart the decoder may seek; frames that fill up edges are known at the end only.
    may_skip = sampling.fps is None and sampling.edges == "drop"
    seekable = frames if may_skip and isinstance(frames, _Counted) else None
    for held, is_last in _last_marked(resample(frames, sampling.fps)):
        prepared = None
        first = held.first if sampling.fps else held.frame.index
        if first > number + 1:
            planner.skip(first)
        for i in range(held.count):
            number = first + i
            if planner.needs(number, last=is_last and i == held.count - 1):
                if prepared is None:
                    prepared = prepare(held.frame)
                start = held.start + i * held.length
                kept[number] = _Sample(prepared, held.frame.index, start, start + held.length)
            window = planner.add(number)
            if window is not None:
                yield window, kept
            for old in [n for n in kept if n < planner.floor]:
                del kept[old]
        if seekable is not None and planner.floor > number + _SKIP_WORTH:
            seekable.skip_to(planner.floor)
    for window in planner.finish():
        yield window, kept


def _last_marked(items: Iterator[Held[Frame]]) -> Iterator[tuple[Held[Frame], bool]]:
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following


class _Counted:
    """The frames of a decoder, counted; ends early when the run is given up."""

    def __init__(self, decoder: Decoder, stats: Stats, video: _Video, stop: threading.Event) -> None:
        self._decoder, self._stats, self._video, self._stop = decoder, stats, video, stop
        self._expected = decoder.info.frames or 0
        self.longest_shown: int | None = None
        self.count = 0

    def skip_to(self, index: int) -> None:
        self._decoder.skip_to(index)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._decoder:
            if self._stop.is_set():
                raise _Stopped
            self.count += 1
            if self._expected:
                self._stats._fractions[self._video.number] = min(1.0, frame.index / self._expected)
            if self.longest_shown and frame.end - frame.start > self.longest_shown:
                raise VideoError(
                    f"{shown(self._video.job.path)}: frame {frame.index} is shown for "
                    f"{float(frame.end - frame.start):.0f} s, and --fps would repeat it all that time: its "
                    "time stamps are damaged, or leave --fps out"
                )
            yield frame


def _too_short(job: Job, engine: Engine, sampling: Sampling, frames: int) -> VideoError:
    needed = f"{sampling.span + sampling.lead} frames"
    if sampling.lead:
        needed += f" ({sampling.span} and {sampling.lead} that must follow)"
    if sampling.fps:
        needed += f" at {sampling.fps:g} fps"
    return VideoError(
        f"{shown(job.path)}: {frames} frame{'s' * (frames != 1)}, a window of {engine.spec.model} needs "
        f"{needed}: use --tail repeat to fill it up, or an engine exported with fewer --frames"
    )
