"""From videos to rows of features, with all stages overlapping and memory bounded.

Worker threads decode, resize and gather windows, on the CPU or on the engine's own GPU
(`vfx_runtime.preprocess`). The engine's slots are the queue between them and the device. A window is gathered
directly into its place in a slot, so windows of different videos share a batch. A worker that is ahead waits
for a free slot, so memory depends neither on the length of the videos nor on their number. One thread per
engine collects the slots in the order in which they were submitted, which keeps the rows of each video in
order.
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vfx_engines.devices import available_cores
from vfx_engines.engine import Array, Engine, Outputs
from vfx_engines.errors import EngineError, VfxError, VideoError, shown
from vfx_engines.opening import cuda_index
from vfx_engines.spec import EngineSpec, Output, Sampling
from vfx_runtime.audio import check_audio, sound_windows
from vfx_runtime.decode import Decoder, Frame
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.lane import Lane
from vfx_runtime.laying import Sample, check_alike, spread, windows
from vfx_runtime.opening import count_frames, open_video
from vfx_runtime.preprocess import Preprocess, preprocess_for
from vfx_runtime.remote import at_hand
from vfx_runtime.resize import FrameError
from vfx_runtime.sampling import Window, Windows
from vfx_runtime.stages import DECODE, GATHER, RESIZE, WAIT_SLOT, WAIT_WINDOWS, Stages, timed_alike
from vfx_runtime.views import Crops, Views, ViewWindows

_AHEAD = 64
"""How many videos may be begun before the oldest unfinished one is done, which bounds the rows that are
held."""

SECONDS_TO_STOP = 10.0
"""How long an abandoned run waits for threads that read files: one that hangs must not hold it up for
ever."""

_LONGEST_SHOWN = 3600
"""How many seconds a frame may last if converting to a frame rate repeats it. A damaged time stamp can make
it last years."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one video: its rows, or the reason why there are none."""

    job: Job
    rows: RowSpool | None
    """The rows, to be closed by whoever takes the result; None for a failure."""
    fps: float
    """Frame rate of the frames that the windows were made of; 0 for a failure."""
    error: VfxError | None
    """Why the video failed; None if it did not."""


@dataclass(slots=True)
class Stats:
    """The progress of a run, written by its threads and read by anyone."""

    videos: int = 0
    """Finished videos, including failed ones."""
    windows: int = 0
    """Windows whose rows were collected."""
    frames: int = 0
    """Decoded frames; for audio, decoded samples."""
    frames_on_gpu: int = 0
    """Those of the decoded frames that a GPU decoded."""
    stages: Stages | None = None
    """Times the stages of a run; None measures nothing."""
    _fractions: dict[int, float] = field(default_factory=dict)

    def snapshot(self) -> Stats:
        """A copy of the figures as they are now, without the stages."""
        return Stats(self.videos, self.windows, self.frames, self.frames_on_gpu)

    @property
    def videos_done(self) -> float:
        """Number of finished videos, plus the decoded fraction of each video under way."""
        return self.videos + sum(list(self._fractions.values()))


class Pipeline:
    """Runs videos through one engine, or through several that share one decode.

    Args:
        engines: open engines, whose slots belong to the pipeline during a run. The windows of several engines
            must cover the same frames (`check_alike`); a row of the result then has the outputs of all.
        samplings: one per engine: the spec's own, possibly with another step, frame rate or edge rule. The
            number of frames is the engine's. None takes the specs' own samplings.
        views: clips spread over each video instead of windows; `Sampling.fps` must then be None.
        workers: number of videos decoded at the same time on the CPU; None chooses one per core, at most 16.
        gpu_decoders: number of videos decoded at the same time on the first engine's GPU, in addition.
            Workers of both kinds take the next video when they are done with one, so each kind gets its share
            by speed.
        spool_folder: folder for rows that exceed memory; None for the system's temporary folder.
        stats: figures to add to; None starts from zero.
        total: sample about this many frames evenly from each video, see `vfx_runtime.laying.spread`.
        float16: keep rows in half precision.

    Raises:
        UsageError: the engines do not fit together, or this runtime cannot feed them.
    """

    def __init__(
        self,
        engines: Engine | Sequence[Engine],
        samplings: Sampling | Sequence[Sampling] | None = None,
        *,
        views: Views | None = None,
        workers: int | None = None,
        gpu_decoders: int = 0,
        spool_folder: Path | None = None,
        stats: Stats | None = None,
        total: int | None = None,
        float16: bool = False,
    ) -> None:
        self.engines = (engines,) if isinstance(engines, Engine) else tuple(engines)
        given = (samplings,) if isinstance(samplings, Sampling) else samplings
        self.samplings = tuple(given or [engine.spec.sampling for engine in self.engines])
        self.views = views
        check_alike([engine.spec for engine in self.engines], self.samplings, views)
        self.total, self.float16 = total, float16
        self.sound = self.engines[0].spec.input.modality == "audio"
        if self.sound:
            check_audio(self.engines[0].spec, self.samplings[0])
        self.stats = stats or Stats()
        self._cores = available_cores()
        self._workers = max(1, min(self._cores, 16)) if workers is None else workers
        self._gpu_decoders = gpu_decoders
        self._folder = spool_folder

    @property
    def outputs(self) -> list[Output]:
        """The outputs of all engines, with the dtype in which their rows are kept."""
        return [output for engine in self.engines for output in self.kept(engine)]

    def kept(self, engine: Engine) -> list[Output]:
        """The outputs of one engine, with the dtype in which its rows are kept."""
        dtype: Literal["float16", "float32"] = "float16" if self.float16 else "float32"
        return [dataclasses.replace(output, dtype=dtype) for output in engine.spec.outputs]

    def run(self, jobs: Iterable[Job], total: int | None = None) -> Generator[Result, None, None]:
        """Process videos. Results come as videos finish, which is roughly the order of ``jobs``.

        Args:
            jobs: taken one at a time, in order, as workers become free.
            total: the number of jobs, if known. If there are fewer videos than cores, each is decoded by
                several threads.

        Raises:
            EngineError: an engine failed, so no video can go on. The results of the videos under way come
                first; those that are incomplete have this error.
        """
        decoders = [cuda_index(self.engines[0].device)] * self._gpu_decoders + [None] * self._workers
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
    rows: list[RowSpool]
    """One spool per engine."""
    fps: float = 0.0
    gathered: int = 0
    """Windows handed to all engines together; final once ``ended``."""
    collected: int = 0
    """Windows whose rows came back, of all engines together."""
    ended: bool = False
    """Whether a worker has finished with the video, so that no more windows will come."""
    error: VfxError | None = None


@dataclass(slots=True, eq=False)
class _Place:
    """What is kept about a window in a slot: the frames and times of its row (or rows, one per pair)."""

    video: _Video
    frame_range: Sequence[tuple[int, int]]
    timestamps_ms: Sequence[tuple[float, float]]


class _Stopped(Exception):
    """The run is being abandoned. This is not an error of any video."""


class _Run:
    """One call of `Pipeline.run`: its threads and what they share."""

    def __init__(
        self, pipeline: Pipeline, jobs: Iterable[Job], decoders: Sequence[int | None], threads: int
    ) -> None:
        self._engines = pipeline.engines
        self._kept = [pipeline.kept(engine) for engine in pipeline.engines]
        self._samplings = pipeline.samplings
        self._views = pipeline.views
        self._crops: Crops = pipeline.views.crops if pipeline.views else 1
        self._total = pipeline.total
        self._sound = pipeline.sound
        self._stats = pipeline.stats
        self._folder = pipeline._folder
        self._threads = threads
        self._jobs = iter(jobs)
        self._jobs_lock = threading.Lock()
        self._done: queue.Queue[Result | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = threading.Event()

        self._slots = threading.Condition()
        """Guards everything below."""
        self._lanes: list[Lane[_Place]] = [
            Lane(engine, self._slots, self._wait, self._fail) for engine in self._engines
        ]
        self._engine_failure: Exception | None = None
        self._working = len(decoders)
        self._begun = 0
        self._open: dict[int, _Video] = {}
        """Videos that are begun but not finished, by number."""
        self._late: list[Result] = []
        """Results of videos that were finished while the run was being abandoned."""

        self._workers = [
            threading.Thread(
                target=self._guard, args=(partial(self._work, gpu),), name=f"vfx-decode-{i}", daemon=True
            )
            for i, gpu in enumerate(decoders)
        ]
        self._collectors = [
            threading.Thread(
                target=self._guard, args=(partial(self._collect, i),), name=f"vfx-collect-{i}", daemon=True
            )
            for i in range(len(self._lanes))
        ]
        self._collecting = len(self._collectors)

    def results(self) -> Iterator[Result]:
        for thread in (*self._workers, *self._collectors):
            thread.start()
        while (item := self._done.get()) is not None:
            if isinstance(item, EngineError):
                yield from self._under_way(item)
            if isinstance(item, BaseException):
                raise item
            yield item

    def _under_way(self, failure: EngineError) -> Iterator[Result]:
        """Results of the videos that were under way when an engine failed: complete, or failed with it."""
        self._end_threads()
        while self._late:
            yield self._late.pop(0)
        for number in sorted(self._open):
            video = self._open.pop(number)
            for rows in video.rows:
                rows.close()
            error = video.error or EngineError(f"{shown(video.job.where)}: {failure}")
            yield Result(video.job, None, 0.0, error)

    def stop(self) -> None:
        """End all threads, whatever they are waiting for, and free all slots of the engines."""
        self._end_threads()
        for result in self._late:
            if result.rows is not None:
                result.rows.close()
        for lane in self._lanes:
            lane.drain()

    def _end_threads(self) -> None:
        self._stop.set()
        with self._slots:
            self._slots.notify_all()
        started = [thread for thread in (*self._workers, *self._collectors) if thread.ident is not None]
        patience = time.monotonic() + SECONDS_TO_STOP
        while threads := [thread for thread in started if thread.is_alive()]:
            if time.monotonic() > patience:
                waiting = [n for n, thread in enumerate(self._collectors) if thread in threads]
                for number in waiting:
                    # A server that does not answer would be waited for until all tries are used up.
                    self._lanes[number].engine.abandon()
                if not waiting:
                    # These threads wait for a file system that does not answer. They end with the process, or
                    # when it does answer, since they check whether the run is over before they touch the
                    # engine.
                    break
            try:
                item = self._done.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(item, Result):
                self._late.append(item)
        with suppress(queue.Empty):
            while True:
                item = self._done.get_nowait()
                if isinstance(item, Result):
                    self._late.append(item)

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
        if isinstance(item, Result):
            self._late.append(item)

    def _wait(self) -> None:
        if self._engine_failure is not None:
            raise self._engine_failure
        if self._stop.is_set():
            raise _Stopped
        if self._stats.stages is None:
            self._slots.wait(1)
        else:
            collects = threading.current_thread() in self._collectors
            with self._stats.stages.time(WAIT_WINDOWS if collects else WAIT_SLOT):
                self._slots.wait(1)

    def _fail(self, error: Exception) -> Exception:
        """Record a failure that does not belong to a single video; a collector then ends the run with it.

        Returns:
            The exception for the calling thread to raise.
        """
        with self._slots:
            self._engine_failure = self._engine_failure or error
            self._slots.notify_all()
        return _Stopped()

    # Workers

    def _work(self, gpu: int | None) -> None:
        """The body of a worker: process videos until there are none, decoding on this GPU if one is given."""
        try:
            with ExitStack() as stack:
                try:
                    preprocess: list[Preprocess[Any]] = []
                    for engine in self._engines:
                        made = preprocess_for(engine, self._crops, preprocess)
                        preprocess.append(stack.enter_context(closing(made)))
                except VfxError as error:
                    raise self._fail(error) from error
                self._work_through(preprocess, gpu)
        finally:
            if self._stats.stages is not None:
                self._stats.stages.thread_ends()
            with self._slots:
                self._working -= 1
                if not self._working:
                    for lane in self._lanes:
                        lane.seal()
                self._slots.notify_all()

    def _work_through(self, preprocess: Sequence[Preprocess[Any]], gpu: int | None) -> None:
        while (video := self._next_video()) is not None:
            try:
                if self._sound:
                    self._process_sound(video)
                else:
                    self._process(video, preprocess, gpu)
            except EngineError as error:
                raise self._fail(error) from error
            except FrameError as error:
                video.error = VideoError(f"{shown(video.job.where)}: {error}")
            except VfxError as error:
                video.error = error
            except _Stopped:
                raise
            # A bug in vfx or in a library should cost one video, not the run. That includes SystemExit, which
            # would silently end this thread.
            except (Exception, SystemExit) as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                video.error = VideoError(
                    f"{shown(video.job.where)}: internal error, please report it: "
                    f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
                )
            with self._slots:
                video.ended = True
                finished = self._finished(video)
            if finished:
                self._finish(video)

    def _next_video(self) -> _Video | None:
        with self._slots:
            if self._far_ahead():
                # The oldest video may be waiting for windows in a slot that is not full yet.
                for lane in self._lanes:
                    lane.seal()
            while self._far_ahead():
                self._wait()
        with self._jobs_lock:
            job = None if self._stop.is_set() else next(self._jobs, None)
            if job is None:
                return None
            with self._slots:
                rows = [RowSpool(outputs, self._folder) for outputs in self._kept]
                video = _Video(self._begun, job, rows)
                self._open[video.number] = video
                self._begun += 1
                return video

    def _far_ahead(self) -> bool:
        return bool(self._open) and self._begun - min(self._open) >= _AHEAD

    def _process(self, video: _Video, preprocess: Sequence[Preprocess[Any]], gpu: int | None) -> None:
        job, stages = video.job, self._stats.stages
        opened = open_video if stages is None else stages.timed(DECODE, open_video)
        with at_hand(job) as path, closing(opened(path, self._threads, gpu, job.images)) as decoder:
            samplings: Sequence[Sampling] = self._samplings
            if self._total is not None:
                samplings = spread(samplings, self._total, decoder.info, shown(job.where))
            video.fps = samplings[0].fps or decoder.info.fps
            read = decoder if stages is None else stages.decoder(decoder)
            frames = _Counted(read, self._stats, video, self._stop)
            if samplings[0].fps:
                frames.longest_shown = _LONGEST_SHOWN
            try:
                prepares: list[Callable[[Frame], Any]] = [item.maker.prepare for item in preprocess]
                if stages is not None:
                    prepares = timed_alike(stages, RESIZE, prepares)
                planners = self._planners(job, path, samplings, decoder.info.fps)
                laid = windows(frames, planners, prepares)
                for number, window, samples in laid:
                    for crop in range(self._crops):
                        self._gather(video, number, window, samples, preprocess[number], crop)
            finally:
                with self._slots:
                    self._stats.frames += frames.count
                    self._stats.frames_on_gpu += frames.count if decoder.info.on_gpu else 0
                    self._stats._fractions.pop(video.number, None)
            planner = planners[0][1]
            if isinstance(planner, ViewWindows) and not planner.done:
                raise VideoError(
                    f"{shown(job.where)}: its packets announce {planner.total} frames, and it ends before: "
                    "re-encode it, or leave --views out"
                )
        if not video.gathered:
            span = planner.span if isinstance(planner, Windows) else 1
            raise _too_short(video.job, self._engines[0].spec, samplings[0], frames.count, span)

    def _planners(
        self, job: Job, path: Path, samplings: Sequence[Sampling], fps: float
    ) -> list[tuple[Sampling, Windows | ViewWindows]]:
        timed = self._views or any(item.target_fps for item in samplings)
        if timed and not (fps or samplings[0].fps):
            raise VideoError(
                f"{shown(job.where)}: its frame rate is unknown, and --target-fps and --views need it: "
                "re-encode it"
            )
        if self._views is None:
            return [(item, Windows(item, item.fps or fps)) for item in samplings]
        total = count_frames(path, job.images)
        return [(item, ViewWindows(item, self._views, total, fps)) for item in samplings]

    def _process_sound(self, video: _Video) -> None:
        def progress(samples: int, share: float) -> None:
            if self._stop.is_set():
                raise _Stopped
            with self._slots:
                self._stats.frames += samples
                self._stats._fractions[video.number] = share

        (engine,), (sampling,), (lane,) = self._engines, self._samplings, self._lanes
        video.fps = sampling.fps or 0.0
        try:
            with at_hand(video.job) as path:
                for window in sound_windows(path, engine.spec, sampling, progress):
                    place = _Place(video, [window.frame_range], [window.timestamps_ms])
                    slot, row = lane.reserve(place, partial(_count, video))
                    try:
                        engine.buffer(slot)[row] = window.samples
                    finally:
                        lane.commit(slot)
        finally:
            with self._slots:
                self._stats._fractions.pop(video.number, None)

    def _gather(
        self,
        video: _Video,
        number: int,
        window: Window,
        samples: dict[int, Sample],
        preprocess: Preprocess[Any],
        crop: int,
    ) -> None:
        spans = [(window.first, window.last)]
        if self._engines[number].spec.outputs[0].per == "pair":
            # Repetitions of the last frame do not make pairs.
            real = [item for item in window.samples if item >= 0]
            spans = [pair for pair in itertools.pairwise(real) if pair[0] != pair[1]]
            if not spans:
                return
        place = _Place(
            video,
            [(samples[first].frame, samples[last].frame + 1) for first, last in spans],
            [(float(samples[first].start * 1000), float(samples[last].end * 1000)) for first, last in spans],
        )
        lane = self._lanes[number]
        slot, row = lane.reserve(place, partial(_count, video))
        try:
            prepared = [None if item < 0 else samples[item].prepared for item in window.samples]
            stages = self._stats.stages
            place_window = preprocess.place if stages is None else stages.timed(GATHER, preprocess.place)
            place_window(slot, row, prepared, crop)
        finally:
            lane.commit(slot)

    # Collecting

    def _collect(self, number: int) -> None:
        lane = self._lanes[number]
        # A failed video finishes without rows, so only slots and workers decide when this ends.
        while (collected := lane.collect(self._no_more)) is not None:
            places, outputs = collected
            if number == 0:
                self._stats.windows += len(places)
            self._hand_out(number, places, outputs)
        for worker in self._workers:
            worker.join()  # an exception that ended it must be queued before the final None
        with self._slots:
            self._collecting -= 1
            last = not self._collecting
        if last:
            self._put(None)

    def _no_more(self) -> bool:
        if self._engine_failure is not None:
            raise self._engine_failure
        return not self._working

    def _hand_out(self, number: int, places: list[_Place], outputs: Outputs) -> None:
        start = 0
        while start < len(places):
            video, end = places[start].video, start + 1
            while end < len(places) and places[end].video is video:
                end += 1
            own = places[start:end]
            arrays = {name: array[start:end] for name, array in outputs.items()}
            if self._engines[number].spec.outputs[0].per == "pair":
                arrays = {name: _pairs(array, own) for name, array in arrays.items()}
            try:
                if video.error is None:
                    video.rows[number].append(
                        arrays,
                        np.array([item for place in own for item in place.frame_range], np.int64),
                        np.array([item for place in own for item in place.timestamps_ms], np.float64),
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
        """Whether the video is complete. True only once per video."""
        if video.ended and video.collected == video.gathered and video.number in self._open:
            del self._open[video.number]
            self._slots.notify_all()
            return True
        return False

    def _finish(self, video: _Video) -> None:
        with self._slots:
            self._stats.videos += 1
        if video.error is not None:
            for rows in video.rows:
                rows.close()
            self._put(Result(video.job, None, 0.0, video.error))
        else:
            rows = RowSpool.joined(video.rows)
            if self._views is not None and not self._views.keep:
                rows.average()
            self._put(Result(video.job, rows, video.fps, None))


def _count(video: _Video) -> None:
    video.gathered += 1


def _pairs(array: Array, places: Sequence[_Place]) -> Array:
    """Turn rows of windows, ``[n, pairs, ...]``, into rows of pairs, leaving out those of repeated frames."""
    rows = [window[: len(place.frame_range)] for window, place in zip(array, places, strict=True)]
    return np.concatenate(rows)


class _Counted:
    """The frames of a decoder, counted. Raises `_Stopped` if the run is being abandoned."""

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
                    f"{shown(self._video.job.where)}: frame {frame.index} is shown for "
                    f"{float(frame.end - frame.start):.0f} s, and --fps would repeat it all that time: its "
                    "time stamps are damaged, or leave --fps out"
                )
            yield frame


def _too_short(job: Job, spec: EngineSpec, sampling: Sampling, frames: int, span: int) -> VideoError:
    found = f"{shown(job.where)}: {frames} frame{'s' * (frames != 1)}"
    if spec.outputs[0].per == "pair" and frames < 2:
        return VideoError(f"{found}, a pair of {spec.model} needs 2: use a longer video")
    lead = sampling.lead if sampling.seed is None else 1
    needed = f"{span + lead} frames"
    if lead:
        needed += f" ({span} and {lead} that must follow)"
    if sampling.fps:
        needed += f" at {sampling.fps:g} fps"
        if sampling.edges != "drop" and sampling.seed is None:
            return VideoError(f"{found}, of which {sampling.fps:g} fps take none: use a higher --fps")
    return VideoError(
        f"{found}, a window of {spec.model} needs "
        f"{needed}: use --tail repeat to fill it up, or an engine exported with fewer --frames"
    )
