"""Measure how fast each stage of an extraction is, alone and together, and the limit that follows.

Each function runs one stage for some seconds on all cores, and returns a `Cost`. The stages share the cores
of a CPU, so together they allow at most cores / (CPU-seconds that a window takes in all stages). This is the
limit that an end-to-end run is compared with.
"""

from __future__ import annotations

import itertools
import os
import platform
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np

from vfx_engines.devices import available_cores
from vfx_engines.engine import Engine
from vfx_engines.errors import VfxError
from vfx_engines.spec import EngineSpec, Sampling, Transform
from vfx_engines.versions import vfx_version
from vfx_runtime.audio import sound_windows
from vfx_runtime.claims import Claims
from vfx_runtime.decode import Pixels
from vfx_runtime.delivering import to_disk, writer_for
from vfx_runtime.job import Job
from vfx_runtime.opening import open_video
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.resize import plan

PACKAGES = ("openvino", "av", "llvmlite", "numpy")
"""Packages whose versions are recorded with each measurement, if installed."""

_KEPT_FRAMES = 64
"""Number of decoded frames that the resize stage cycles through: more than the CPU's caches hold."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One measurement of a stage."""

    stage: str
    """``engine``, ``decode``, ``resize`` or ``end to end``."""
    windows: int
    """Number of windows processed; 0 for a stage that handles frames only."""
    frames: int
    """Number of source frames, or of samples of sound; 0 for a stage that handles windows only."""
    seconds: float
    """Wall-clock time."""
    cpu_seconds: float
    """CPU time of all threads of this process."""
    peak_bytes: int
    """Peak memory of the process during the measurement."""
    batch: int | None = None
    """Windows per call of the engine; None for a stage without an engine."""

    @property
    def windows_per_second(self) -> float:
        """Windows per second of wall-clock time."""
        return self.windows / self.seconds

    @property
    def frames_per_second(self) -> float:
        """Source frames per second of wall-clock time."""
        return self.frames / self.seconds

    @property
    def cpu_per_window(self) -> float:
        """CPU-seconds per window."""
        return self.cpu_seconds / self.windows

    @property
    def cpu_per_frame(self) -> float:
        """CPU-seconds per source frame."""
        return self.cpu_seconds / self.frames


def cpu_limit(engine: Cost, decode: Cost, resize: Cost | None, frames_per_window: float, cores: int) -> float:
    """Windows per second that the stages' CPU time allows on this many cores.

    Args:
        engine: cost of the engine alone.
        decode: cost of decoding alone, including conversion to RGB.
        resize: cost of resizing alone; None for sound.
        frames_per_window: source frames that a run decodes for each window.
        cores: number of cores that all stages share.
    """
    per_frame = decode.cpu_per_frame + (0.0 if resize is None else resize.cpu_per_frame)
    return cores / (engine.cpu_per_window + frames_per_window * per_frame)


def gpu_limit(engine: Cost, decode: Cost, frames_per_window: float) -> float:
    """Windows per second that the slower side allows: the engine on the GPU, or decoding.

    Args:
        engine: cost of the engine alone.
        decode: cost of decoding alone, by all decoders of a run; everything after that happens on the GPU.
        frames_per_window: source frames that a run decodes for each window.
    """
    return min(engine.windows_per_second, decode.frames_per_second / frames_per_window)


def measure_engine(engine: Engine, seconds: float) -> Cost:
    """Run an engine alone on random pixels or samples for about ``seconds``, with all slots in flight."""
    random, shape = np.random.default_rng(0), engine.buffer(0).shape
    is_sound = engine.spec.input.modality == "audio"
    noise: Any = random.uniform(-1, 1, shape) if is_sound else random.integers(0, 256, shape, np.uint8)
    for slot in range(engine.slots):
        engine.buffer(slot)[:] = noise
    _rounds(engine, 0)  # the first calls allocate
    with _Meter() as meter:
        calls = _rounds(engine, seconds)
    return meter.cost("engine", windows=calls * engine.batch, batch=engine.batch)


def _rounds(engine: Engine, seconds: float) -> int:
    """Keep all slots in flight for ``seconds``, and call each at least once; returns the number of calls."""
    end = time.perf_counter() + seconds
    flying = deque(range(engine.slots))
    for slot in flying:
        engine.submit(slot, engine.batch)
    calls = 0
    while flying:
        slot = flying.popleft()
        engine.collect(slot)
        calls += 1
        if time.perf_counter() < end:
            engine.submit(slot, engine.batch)
            flying.append(slot)
    return calls


def measure_decode(
    videos: Sequence[Path], seconds: float, decoders: Sequence[int | None], convert: bool = True
) -> Cost:
    """Only decode videos, with as many threads as a run uses.

    Args:
        videos: the videos, which are decoded in turn.
        seconds: time to measure for.
        decoders: an entry for each decoder of a run: None for one on the CPU, otherwise the GPU's index.
        convert: whether to convert each frame to RGB, as a run does if it resizes on the CPU.

    Raises:
        VideoError: a video cannot be decoded.
    """
    turns, places, lock = itertools.cycle(videos), iter(decoders), threading.Lock()

    def work(stop: Callable[[], bool]) -> int:
        with lock:
            gpu = next(places)
        count = 0
        while not stop():
            with lock:
                video = next(turns)
            with open_video(video, 1, gpu) as decoder:
                for frame in decoder:
                    if convert:
                        frame.rgb()
                    count += 1
                    if stop():
                        break
        return count

    with _Meter() as meter:
        frames = _on_threads(work, len(decoders), seconds)
    return meter.cost("decode", frames=frames)


def measure_sound(
    files: Sequence[Path], spec: EngineSpec, sampling: Sampling, seconds: float, workers: int
) -> Cost:
    """Only decode, resample and cut the sound of files into windows, with as many threads as a run uses.

    Args:
        files: sound or video files, which are decoded in turn.
        spec: the spec of an engine of sound.
        sampling: the sampling of the run.
        seconds: time to measure for.
        workers: number of threads.

    Raises:
        VideoError: a file has no sound, or cannot be decoded.
    """
    turns, lock = itertools.cycle(files), threading.Lock()

    def work(stop: Callable[[], bool]) -> int:
        counts: list[int] = []
        while not stop():
            with lock:
                file = next(turns)
            for _ in sound_windows(file, spec, sampling, lambda count, share: counts.append(count)):
                if stop():
                    break
        return sum(counts)

    with _Meter() as meter:
        samples = _on_threads(work, workers, seconds)
    return meter.cost("decode", frames=samples)


def keep_frames(videos: Sequence[Path]) -> list[Pixels]:
    """Decode some frames from the beginning of each video, for `measure_resize`.

    Returns:
        At most 64 frames, each uint8 ``[height, width, 3]``.
    """
    kept: list[Pixels] = []
    each = max(1, _KEPT_FRAMES // len(videos))
    for video in videos[:_KEPT_FRAMES]:
        with open_video(video) as decoder:
            kept.extend(frame.rgb().copy() for frame in itertools.islice(decoder, each))
    return kept


def measure_resize(frames: Sequence[Pixels], transform: Transform, seconds: float, workers: int) -> Cost:
    """Only resize and crop frames, with as many threads as a run uses.

    Args:
        frames: each uint8 ``[height, width, 3]``, of any size.
        transform: the transform of the engine's spec.
        seconds: time to measure for.
        workers: number of threads.
    """
    plans = [plan(transform, *frame.shape[:2]) for frame in frames]

    def work(stop: Callable[[], bool]) -> int:
        count = 0
        outs = [np.empty((item.out_height, item.out_width, 3), np.uint8) for item in plans]
        while not stop():
            for frame, item, out in zip(frames, plans, outs, strict=True):
                item.apply(frame, out)
                count += 1
        return count

    plans[0].apply(frames[0], np.empty((plans[0].out_height, plans[0].out_width, 3), np.uint8))  # compiles it
    with _Meter() as meter:
        count = _on_threads(work, workers, seconds)
    return meter.cost("resize", frames=count)


def measure_end_to_end(
    engine: Engine,
    sampling: Sampling,
    videos: Sequence[Path],
    turns: int,
    folder: Path,
    gpu_decoders: int = 0,
) -> Cost:
    """Extract videos from file to ``.npz``, as vfx-run does.

    Args:
        engine: an open engine.
        sampling: the sampling of the run.
        videos: the videos to extract.
        turns: how often to extract each video.
        folder: an empty folder to write to.
        gpu_decoders: number of videos decoded at the same time on the engine's GPU, in addition to those
            decoded on the CPU.

    Raises:
        VfxError: a video fails.
    """
    pipeline = Pipeline(engine, sampling, spool_folder=folder, gpu_decoders=gpu_decoders)
    jobs = [Job(video, f"{turn}-{number}") for turn in range(turns) for number, video in enumerate(videos)]
    with Claims(folder) as claims, _Meter() as meter:
        writer = writer_for(pipeline, "npz", folder, claims)
        for done in to_disk(jobs, len(jobs), pipeline, writer, claims):
            if done.error is not None:
                raise done.error
    stats = pipeline.stats
    return meter.cost("end to end", windows=stats.windows, frames=stats.frames, batch=engine.batch)


def make_video(path: Path, seconds: int = 20) -> Path:
    """Encode a 320x240 H.264 video of moving gradients at 25 fps, for measurements without a given video."""
    with av.open(os.fspath(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        rows, columns = np.mgrid[0:240, 0:320]
        for number in range(seconds * 25):
            shift = 3 * number
            picture = np.stack([rows + shift, columns - shift, (rows ^ columns) + shift], 2).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def make_sound(path: Path, seconds: int = 120) -> Path:
    """Encode two channels of a rising tone as AAC at 44.1 kHz, for measurements without a given file."""
    rate = 44_100
    with av.open(os.fspath(path), "w") as out:
        stream = out.add_stream("aac", rate=rate, layout="stereo")
        for number in range(seconds):
            times = number + np.arange(rate) / rate
            tone = np.sin(2 * np.pi * (100 + 20 * times) * times).astype(np.float32) / 2
            frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), number * rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def machine_facts() -> dict[str, Any]:
    """The facts without which a measurement means nothing: date, processor, cores, versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "vfx": vfx_version(),
        **{package: version(package) for package in PACKAGES if find_spec(package)},
    }


class Others:
    """Measures how much CPU time other processes, or other guests on the same host, take."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), _busy_seconds(), time.process_time()

    @property
    def share(self) -> float | None:
        """Share of all cores' time since this object was made; None if the system does not tell."""
        wall, busy, own = self._started
        now = _busy_seconds()
        if busy is None or now is None:
            return None
        elapsed = (time.perf_counter() - wall) * (os.cpu_count() or 1)
        return max(0.0, (now - busy - (time.process_time() - own)) / elapsed)


def _busy_seconds() -> float | None:
    """Busy seconds of all cores since the system started, including time stolen by other guests."""
    try:
        ticks = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class _Meter:
    """Measures wall-clock time, CPU time and peak memory of a block."""

    def __enter__(self) -> _Meter:
        _forget_peak()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self._wall, self._cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self._peak = peak_memory()

    def cost(self, stage: str, *, windows: int = 0, frames: int = 0, batch: int | None = None) -> Cost:
        return Cost(stage, windows, frames, self._wall, self._cpu, self._peak, batch)


def peak_memory() -> int:
    """Peak memory of this process in bytes: on Linux since the last measurement began, otherwise ever."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return  # not Linux: the peak is then that of the whole run


def _on_threads(work: Callable[[Callable[[], bool]], int], workers: int, seconds: float) -> int:
    """Run ``work`` on threads and return the sum of their counts; raises the first error of any thread."""
    end = time.perf_counter() + seconds
    counts: list[int] = []
    errors: list[VfxError] = []

    def body() -> None:
        try:
            counts.append(work(lambda: bool(errors) or time.perf_counter() >= end))
        except VfxError as error:
            errors.append(error)

    threads = [threading.Thread(target=body) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts)
