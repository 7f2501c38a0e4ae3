"""How fast each stage of an extraction is, alone and together, and what the stages allow.

Each function runs one stage for some seconds on all cores and gives a `Cost`. The stages share the
cores of a CPU, so what they allow together is cores / (CPU-seconds of a window in all of them): the
limit that an end-to-end run is held against.
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
from vfx_engines.spec import Sampling, Transform
from vfx_engines.versions import vfx_version
from vfx_runtime.claims import Claims
from vfx_runtime.decode import Pixels
from vfx_runtime.extracting import to_disk, writer_for
from vfx_runtime.job import Job
from vfx_runtime.opening import open_video
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.resize import plan

PACKAGES = ("openvino", "av", "numba", "numpy")
"""Whose versions stand beside a figure, where they are installed."""

_KEPT_FRAMES = 64
"""Decoded frames that the resize stage goes round on: more than the caches hold."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage did in one measurement."""

    stage: str
    """``engine``, ``decode``, ``resize`` or ``end to end``."""
    windows: int
    """0 for a stage that knows frames only."""
    frames: int
    """0 for a stage that knows windows only."""
    seconds: float
    """By the clock."""
    cpu_seconds: float
    """Of all threads of this process."""
    peak_bytes: int
    """Most memory that the process held meanwhile."""
    batch: int | None = None
    """Windows per call of the engine."""

    @property
    def windows_per_second(self) -> float:
        """Clips per second."""
        return self.windows / self.seconds

    @property
    def frames_per_second(self) -> float:
        """Source frames per second."""
        return self.frames / self.seconds

    @property
    def cpu_per_window(self) -> float:
        """CPU-seconds."""
        return self.cpu_seconds / self.windows

    @property
    def cpu_per_frame(self) -> float:
        """CPU-seconds."""
        return self.cpu_seconds / self.frames


def cpu_limit(engine: Cost, decode: Cost, resize: Cost, frames_per_window: float, cores: int) -> float:
    """Windows per second that the stages' own CPU-seconds allow on this many cores.

    Args:
        engine: of the engine alone.
        decode: of decoding alone, conversion to RGB included.
        resize: of resizing alone.
        frames_per_window: source frames that a run decodes for each window.
        cores: that all stages share.
    """
    per_window = engine.cpu_per_window + frames_per_window * (decode.cpu_per_frame + resize.cpu_per_frame)
    return cores / per_window


def gpu_limit(engine: Cost, decode: Cost, frames_per_window: float) -> float:
    """Windows per second that the slower side allows: the GPU its engine, or whoever decodes the frames.

    Args:
        engine: of the engine alone.
        decode: of decoding alone, by all decoders of a run; what follows happens on the GPU.
        frames_per_window: source frames that a run decodes for each window.
    """
    return min(engine.windows_per_second, decode.frames_per_second / frames_per_window)


def measure_engine(engine: Engine, seconds: float) -> Cost:
    """Run an engine alone, every slot in flight, on pixels of noise."""
    noise = np.random.default_rng(0).integers(0, 256, engine.buffer(0).shape, np.uint8)
    for slot in range(engine.slots):
        engine.buffer(slot)[:] = noise
    _rounds(engine, 0)  # the first calls allocate
    with _Meter() as meter:
        calls = _rounds(engine, seconds)
    return meter.cost("engine", windows=calls * engine.batch, batch=engine.batch)


def _rounds(engine: Engine, seconds: float) -> int:
    """Keep all slots in flight for so long, once round at least; number of calls."""
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
    """Decode videos alone, by as many threads as a run has.

    Args:
        videos: decoded in turns.
        seconds: to measure for.
        decoders: of a run: None for each that is on the CPU, else the number of its GPU.
        convert: each frame to RGB, as a run does that resizes on the CPU.

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


def keep_frames(videos: Sequence[Path]) -> list[Pixels]:
    """Some decoded frames of the videos, from their beginnings, for `measure_resize`."""
    kept: list[Pixels] = []
    each = max(1, _KEPT_FRAMES // len(videos))
    for video in videos[:_KEPT_FRAMES]:
        with open_video(video) as decoder:
            kept.extend(frame.rgb().copy() for frame in itertools.islice(decoder, each))
    return kept


def measure_resize(frames: Sequence[Pixels], transform: Transform, seconds: float, workers: int) -> Cost:
    """Resize and crop frames alone, by as many threads as a run has.

    Args:
        frames: uint8 [height, width, 3] each, of any sizes.
        transform: of the engine's spec.
        seconds: to measure for.
        workers: threads.
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
    """Run videos from file to ``.npz``, as vfx-run does.

    Args:
        engine: open.
        sampling: of the run.
        videos: what to run.
        turns: how often.
        folder: an empty one, to write to.
        gpu_decoders: videos decoded at once on the engine's GPU, beside those on the CPU.

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
    """Encode a 320x240 video of moving gradients, for measurements where no video is given."""
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


def machine_facts() -> dict[str, Any]:
    """What a figure is worth nothing without: date, processor, cores, versions."""
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
    """Watches how much of the machine other processes, or other machines on the same host, take."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), _busy_seconds(), time.process_time()

    @property
    def share(self) -> float | None:
        """Part of all cores' time since this was made; None where the system does not tell."""
        wall, busy, own = self._started
        now = _busy_seconds()
        if busy is None or now is None:
            return None
        elapsed = (time.perf_counter() - wall) * (os.cpu_count() or 1)
        return max(0.0, (now - busy - (time.process_time() - own)) / elapsed)


def _busy_seconds() -> float | None:
    """Of all processors together, since the system started, time stolen by other guests included."""
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
    """Time, CPU time and peak memory of a block."""

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
    """Most bytes that this process held: on Linux since the last measurement began, else ever."""
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
        return  # no Linux: the peak is then that of the whole process


def _on_threads(work: Callable[[Callable[[], bool]], int], workers: int, seconds: float) -> int:
    """Sum of what the threads counted; the first error of any is raised."""
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
