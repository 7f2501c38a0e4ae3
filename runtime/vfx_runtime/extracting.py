"""`extract`: from videos to features, in memory or on disk. ``vfx-run`` is built from the same parts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args, overload

from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, UsageError, VfxError, shown
from vfx_engines.opening import engine_label, open_engine, read_spec
from vfx_engines.spec import EngineSpec, Precision, Sampling
from vfx_engines.versions import vfx_version
from vfx_runtime.atomic import prepare_output
from vfx_runtime.claims import Claims
from vfx_runtime.features import Features
from vfx_runtime.image_names import DEFAULT_FPS, Images
from vfx_runtime.inputs import find_videos
from vfx_runtime.job import Job
from vfx_runtime.laying import FPS_LIMIT
from vfx_runtime.nvdec import gpu_decoders
from vfx_runtime.pipeline import Pipeline, Stats
from vfx_runtime.remote import is_url
from vfx_runtime.sampling import rate
from vfx_runtime.sizing import grouped, is_sized
from vfx_runtime.views import TARGET_FPS, Views
from vfx_runtime.writers import SHARDED, Format, Writer, check_names, open_writer, pack_all

Tail = Literal["drop", "repeat", "zeros", "loop"]
Anchor = Literal["start", "centre"]
Fps = float | Literal["source"]
"""Frames per second to convert videos to; "source" keeps their own even if the engine's spec has a rate."""
StrPath = str | os.PathLike[str]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Extracted:
    """The result of one video of a run."""

    path: Path
    """Path of the video."""
    name: str
    """Name of its output below the output folder, without suffix."""
    features: Features | None
    """The features. None if the video failed, was already done, or its features went to disk only."""
    files: tuple[Path, ...] = ()
    """The files that were written, or that existed already."""
    skipped: bool = False
    """Whether a finished output existed already."""
    error: VfxError | None = None
    """Why the video failed; None if it did not."""
    by_others: bool = False
    """Whether the video was skipped because another process finished it during this run."""
    url: str | None = None
    """URL of a video that is not on this machine; `path` is then not a usable path."""

    @classmethod
    def of(cls, job: Job, features: Features | None = None, **rest: Any) -> Self:
        """The result of a job; further fields are given by name."""
        return cls(job.path, job.name, features, url=job.url, **rest)


def run_sampling(
    own: Sampling,
    *,
    fps: Fps | None = None,
    step: int | None = None,
    tail: Tail | None = None,
    anchor: Anchor | None = None,
    stride: int | None = None,
    target_fps: float | None = None,
    seed: int | None = None,
    views: Views | None = None,
) -> Sampling:
    """An engine's sampling, with the changes that a run asks for; None keeps the engine's own value.

    A target fps, or views, replaces the engine's own ``fps``: the frames are then the video's own.

    Args:
        own: the sampling of the engine's spec.
        fps: see `extract`, like the rest.
        step: frames from one window to the next.
        tail: what to do with a window that reaches beyond the video.
        anchor: whether windows start at their frame or are centred on it.
        stride: frames from one frame of a window to the next.
        target_fps: the frame rate that ``stride`` refers to.
        seed: for the random frames of ``tail`` "loop".
        views: test-time views instead of windows.

    Raises:
        UsageError: a value is out of range, or values contradict each other.
    """
    for name, count in (("step", step), ("stride", stride)):
        if count is not None and not (isinstance(count, int) and count > 0):
            raise UsageError(f"{name} {count!r}: expected 1 or more frames, a whole number")
    for name, choice, known in (("tail", tail, get_args(Tail)), ("anchor", anchor, get_args(Anchor))):
        if choice is not None and choice not in known:
            raise UsageError(f"{name} {choice!r}: expected {', '.join(known)}")
    if isinstance(fps, str) and fps != "source":
        raise UsageError(f"fps {fps!r}: expected a rate, or 'source'")
    if fps is not None and fps != "source" and not 0 < fps < FPS_LIMIT:
        raise UsageError(f"fps {fps:g}: expected a rate between 0 and {FPS_LIMIT}")
    if target_fps is not None and not 0 < target_fps < FPS_LIMIT:
        raise UsageError(f"target fps {target_fps:g}: expected a rate between 0 and {FPS_LIMIT}")
    for asked in (fps, target_fps):
        if isinstance(asked, float | int):
            rate(asked)
    if views is not None:
        given = {"step": step, "anchor": anchor, "tail": tail, "fps": fps, "seed": seed}
        for name in (name for name, value in given.items() if value is not None):
            raise UsageError(
                f"--views and --{name}: views choose among a video's own frames by their own rule; leave "
                f"--{name} out" + ("; --target-fps is the rate that --stride counts at" * (name == "fps"))
            )
        target_fps = target_fps or own.target_fps or own.fps or TARGET_FPS
    if target_fps is not None:
        own = dataclasses.replace(own, fps=None, target_fps=target_fps)
    if fps == "source":
        own, fps = dataclasses.replace(own, fps=None), None
    edges = tail or own.edges
    if edges == "loop" and (anchor or own.anchor) != "start":
        raise UsageError("--tail loop fills windows that begin in the video: leave --anchor out")
    if seed is not None and (edges != "loop" or not 0 <= seed < 2**32):
        raise UsageError(f"seed {seed}: expected 0 to {2**32 - 1}, together with --tail loop")
    if edges != "loop":
        own = dataclasses.replace(own, seed=None)
    return dataclasses.replace(
        own,
        fps=fps or own.fps,
        step=step or own.step,
        edges=edges,
        anchor=anchor or own.anchor,
        stride=stride or own.stride,
        seed=own.seed if seed is None else seed,
    )


def check_frames(
    specs: Iterable[EngineSpec],
    *,
    fps: Fps | None = None,
    target_fps: float | None = None,
    total: int | None = None,
    views: Views | None = None,
) -> None:
    """Check that a run's options for choosing frames fit together; `run_sampling` checks each by itself.

    Raises:
        UsageError: ``total`` is below 1 or combined with ``fps`` or ``views``, or frames are to be chosen for
            an engine that takes sound.
    """
    asked = {"fps": fps, "target-fps": target_fps, "total": total, "views": views}
    given = [name for name, value in asked.items() if value is not None]
    sound = next((spec for spec in specs if spec.input.modality == "audio"), None)
    if sound is not None and given:
        raise UsageError(
            f"--{given[0]}: {sound.model} takes sound at {sound.sampling.fps or 0:g} Hz, to which every "
            f"file is resampled: leave --{given[0]} out"
        )
    if total is None:
        return
    if total < 1:
        raise UsageError(f"total {total}: expected 1 or more frames of a video")
    if fps is not None:
        raise UsageError(f"total {total} and fps {fps}: both choose frames, give one of them")
    if views is not None:
        raise UsageError(f"total {total} and {views.count} views: both choose frames, give one of them")


def check_unchanged(path: StrPath, found: EngineSpec, spec: EngineSpec) -> None:
    """Check that an engine is still the one for which the run laid its windows.

    Engines are opened late: once for each size of video, or by an actor of Ray that starts again.

    Args:
        path: the engine's file or address.
        found: the spec of the engine that is there now.
        spec: the spec that was read there when the run began.

    Raises:
        EngineError: the file was replaced, or the server has another version.
    """
    if found.to_json() != spec.to_json():
        raise EngineError(
            f"{engine_label(path)}: replaced by another engine since this run began: run again, which "
            "also does finished videos again"
        )


def run_meta(pipeline: Pipeline) -> dict[str, Any]:
    """The metadata saved with every video of a run, as plain JSON: specs, samplings as run, versions.

    The first engine's entries are at the top level, those of further engines in the list ``others``.
    """
    parts: list[dict[str, Any]] = [
        {
            "spec": json.loads(engine.spec.to_json()),
            "sampling": dataclasses.asdict(sampling),
            "engine": engine.name,
        }
        for engine, sampling in zip(pipeline.engines, pipeline.samplings, strict=True)
    ]
    first, *others = parts
    if pipeline.total is not None:
        first["total"] = pipeline.total
    if pipeline.views is not None:
        first["views"] = pipeline.views.meta()
    return {**first, "vfx_version": vfx_version(), **({"others": others} if others else {})}


def fingerprint(pipeline: Pipeline) -> str:
    """SHA-256, in hexadecimal, of everything but the video that determines its features."""
    # Versions are left out: another version of vfx or of a library may change the last bits of a row, which
    # is no reason to extract it again.
    parts: list[Any] = [
        [json.loads(engine.spec.to_json()), dataclasses.asdict(sampling), engine.precision]
        for engine, sampling in zip(pipeline.engines, pipeline.samplings, strict=True)
    ]
    if pipeline.views is not None:
        parts.append(pipeline.views.meta())
    if pipeline.total is not None:
        parts.append(pipeline.total)
    if pipeline.float16:
        parts.append("float16")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def writer_for(pipeline: Pipeline, format: Format, output: Path, claims: Claims) -> Writer:
    """The writer for a run's outputs.

    Raises:
        UsageError: see `vfx_runtime.writers.open_writer`.
    """
    return open_writer(
        format,
        output,
        pipeline.outputs,
        fingerprint=fingerprint(pipeline),
        claims=claims,
        frames=pipeline.samplings[0].frames,
    )


@overload
def extract(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; this overload wins
    videos: StrPath,
    engine: StrPath | Engine | Sequence[StrPath | Engine],
    *,
    output: StrPath | None = ...,
    fps: Fps | None = ...,
    total: int | None = ...,
    step: int | None = ...,
    tail: Tail | None = ...,
    anchor: Anchor | None = ...,
    stride: int | None = ...,
    target_fps: float | None = ...,
    seed: int | None = ...,
    views: Views | None = ...,
    images: str | None = ...,
    images_fps: float = ...,
    format: Format = ...,
    float16: bool = ...,
    device: str | None = ...,
    precision: Precision | None = ...,
) -> Features: ...
@overload
def extract(
    videos: Sequence[StrPath],
    engine: StrPath | Engine | Sequence[StrPath | Engine],
    *,
    output: StrPath | None = ...,
    fps: Fps | None = ...,
    total: int | None = ...,
    step: int | None = ...,
    tail: Tail | None = ...,
    anchor: Anchor | None = ...,
    stride: int | None = ...,
    target_fps: float | None = ...,
    seed: int | None = ...,
    views: Views | None = ...,
    images: str | None = ...,
    images_fps: float = ...,
    format: Format = ...,
    float16: bool = ...,
    device: str | None = ...,
    precision: Precision | None = ...,
) -> Iterator[Extracted]: ...
def extract(
    videos: StrPath | Sequence[StrPath],
    engine: StrPath | Engine | Sequence[StrPath | Engine],
    *,
    output: StrPath | None = None,
    fps: Fps | None = None,
    total: int | None = None,
    step: int | None = None,
    tail: Tail | None = None,
    anchor: Anchor | None = None,
    stride: int | None = None,
    target_fps: float | None = None,
    seed: int | None = None,
    views: Views | None = None,
    images: str | None = None,
    images_fps: float = DEFAULT_FPS,
    format: Format = "npz",
    float16: bool = False,
    device: str | None = None,
    precision: Precision | None = None,
) -> Features | Iterator[Extracted]:
    """Extract the features of one video, or of many.

    Args:
        videos: the path or URL of one video; or a sequence of videos, folders, ``.txt`` and ``.csv`` lists.
        engine: a file made by vfx-export, the address of a served engine, or an open engine, which stays
            open. If there are several, each video is decoded once for all of them; their windows must cover
            the same frames.
        output: folder to write to; None returns the features instead. Finished outputs are verified
            and skipped.
        fps: convert videos to this frame rate first, by the rule of ffmpeg's fps filter; "source" keeps
            their own, even if the engine's spec has a rate.
        total: sample about this many frames evenly from each video, instead of using ``fps``.
        step: frames from one window to the next; for sound, samples at the engine's rate. None: from the
            engine's spec.
        tail: what to do with a window that reaches beyond the video: "drop" it, "repeat" the frame at the
            edge, fill it with blank frames ("zeros"), or "loop" over the window's own frames. None: from the
            engine's spec.
        anchor: whether window k starts at frame ``k * step`` ("start") or is centred on it ("centre"). None:
            from the engine's spec.
        stride: frames from one frame of a window to the next. None: from the engine's spec.
        target_fps: the frame rate that ``stride`` refers to, so that windows cover the same time in videos
            of any frame rate. Their frames are the video's own, at positions rounded down.
        seed: with ``tail`` "loop", fill the last window with frames drawn at random, as the Decord-based
            feature extractor for PySlowFast does, and leave out the windows that it leaves out.
        views: test-time views of each video instead of windows, see `vfx_runtime.Views`.
        images: pattern of the names of frame images, see `vfx_runtime.image_names.Images`. Folders of such
            images are then treated as videos, and other folders are searched for them.
        images_fps: frame rate of such a folder.
        format: format of the files in ``output``, see `vfx_runtime.writers.FORMATS`; must be npz if
            ``videos`` is one path.
        float16: return and save features in half precision: half the space, 11 significant bits.
        device: where to run, see `vfx_engines.open_engine`.
        precision: the precision to compute in. None: the engine file's own.

    Returns:
        For one path, its `Features`. For a sequence, an iterator of `Extracted` in the order in which videos
        finish; a video that fails is among them, with its ``error``.

    Raises:
        VideoError: the one video given cannot be decoded, or is too short for one window.
        UsageError: there is nothing to do, or an argument is out of range.
        EngineError: the engine cannot be opened, or it failed.
        OutputError: the output folder cannot be written to.
    """
    given = [videos] if isinstance(videos, str | os.PathLike) else list(videos)
    one = isinstance(videos, str | os.PathLike)
    engines = [engine] if isinstance(engine, str | os.PathLike | Engine) else list(engine)
    if not engines:
        raise UsageError("no engine: give a file made by vfx-export, or an open engine")
    if one and output is not None and format != "npz":
        raise UsageError(
            f"format {format!r}: one video's features come back from npz alone: give a sequence of videos, "
            f"such as [{videos!r}]"
        )
    read_as = None if images is None else Images(images, images_fps)
    if one and output is None:
        found = [_one_job(given[0], read_as)]
    else:
        paths = [os.fspath(path) for path in given]
        # Only a folder needs the spec, to know whether to search for videos or for sound; a file or a list
        # says which files are meant.
        sound = any(map(os.path.isdir, paths)) and _takes_sound(engines[0])
        found = find_videos(paths, sound=sound, images=read_as)
        check_names(format, found)
    sampling = partial(
        run_sampling,
        fps=fps,
        step=step,
        tail=tail,
        anchor=anchor,
        stride=stride,
        target_fps=target_fps,
        seed=seed,
        views=views,
    )
    folder = None if output is None else _local(output)
    specs = [item.spec if isinstance(item, Engine) else read_spec(Path(item)) for item in engines]
    check_frames(specs, fps=fps, target_fps=target_fps, total=total, views=views)
    results = _extract(
        found, engines, specs, folder, sampling, views, total, float16, format, device, precision
    )
    if not one:
        return results
    if len(found) != 1:
        raise UsageError(f"{videos!r} stands for {len(found)} videos: give a sequence, such as [{videos!r}]")
    (result,) = results
    if result.error is not None:
        raise result.error
    if result.features is not None:
        return result.features
    from vfx_runtime.reading import read_features

    return read_features(result.files[0])


def _one_job(video: StrPath, images: Images | None) -> Job:
    """The job of a video whose features are not written, so that its name matters only in messages."""
    path, text = Path(video), os.fspath(video)
    if images is not None and path.is_dir():
        return Job(path, path.name, images)
    return Job(path, path.stem, url=text if is_url(text) else None)


def _local(output: StrPath) -> Path:
    if is_url(os.fspath(output)) or not os.fspath(output):
        raise UsageError(
            f"output {shown(output)}: expected a folder of this machine; mount the place of a URL"
        )
    return Path(output)


def _takes_sound(engine: StrPath | Engine) -> bool:
    spec = engine.spec if isinstance(engine, Engine) else read_spec(Path(engine))
    return spec.input.modality == "audio"


def _extract(
    jobs: list[Job],
    engines: Sequence[StrPath | Engine],
    specs: Sequence[EngineSpec],
    output: Path | None,
    sampling: Callable[[Sampling], Sampling],
    views: Views | None,
    total: int | None,
    float16: bool,
    format: Format,
    device: str | None,
    precision: Precision | None,
) -> Iterator[Extracted]:
    samplings = [sampling(spec.sampling) for spec in specs]
    # Videos of different sizes share shards, so these are packed after the last of them.
    packs_last = format in SHARDED and any(map(is_sized, specs))
    with ExitStack() as stack:
        claims = None
        if output is not None:
            prepare_output(output)
            claims = stack.enter_context(Claims(output))
        for group in grouped(jobs, [] if any(isinstance(item, Engine) for item in engines) else specs):
            yield from (Extracted.of(job, error=error) for job, error in group.failed)
            if group.failed:
                continue
            with ExitStack() as group_stack:
                all_sizes = group.sizes or [{}] * len(engines)
                opened = [
                    item
                    if isinstance(item, Engine)
                    else group_stack.enter_context(
                        open_engine(item, device=device, precision=precision, sizes=sizes)
                    )
                    for item, sizes in zip(engines, all_sizes, strict=True)
                ]
                for item, engine, spec, sizes in zip(engines, opened, specs, all_sizes, strict=True):
                    if not isinstance(item, Engine):
                        check_unchanged(item, engine.spec, spec.sized(sizes))
                members = list(group.jobs)
                pipeline = Pipeline(
                    opened,
                    samplings,
                    views=views,
                    gpu_decoders=gpu_decoders(opened[0]),
                    spool_folder=output,
                    total=total,
                    float16=float16,
                )
                if output is None or claims is None:
                    yield from in_memory(members, pipeline)
                    continue
                writer = writer_for(pipeline, format, output, claims)
                yield from to_disk(members, len(members), pipeline, writer, claims, pack=not packs_last)
        if output is not None and claims is not None and packs_last:
            pack_all(format, output, claims)


def in_memory(jobs: Sequence[Job], pipeline: Pipeline) -> Iterator[Extracted]:
    """Run jobs and yield their features in memory, in the order in which videos finish."""
    meta = run_meta(pipeline)
    for result in pipeline.run(jobs, len(jobs)):
        features = None
        if result.rows is not None:
            with result.rows as rows:
                features = rows.features(result.fps, meta)
        yield Extracted.of(result.job, features, error=result.error)


def to_disk(
    jobs: Iterable[Job],
    total: int,
    pipeline: Pipeline,
    writer: Writer,
    claims: Claims,
    waiting: Callable[[int], None] = lambda count: None,
    ended: Callable[[], None] = lambda: None,
    packed: Callable[[Sequence[Path]], None] = lambda files: None,
    *,
    keep: bool = False,
    pack: bool = True,
) -> Iterator[Extracted]:
    """Run jobs and write their features, next to other processes that may do the same.

    A video that another process has claimed is left to it and checked again at the end. When this returns,
    every video is finished or has failed.

    Args:
        jobs: the jobs, which are taken one at a time.
        total: the number of jobs, or an upper bound. If there are fewer videos than cores, each is decoded by
            several threads.
        pipeline: runs the jobs; its spool folder should be the output folder.
        writer: writes the run's format.
        claims: the claims on the output folder.
        waiting: called with the number of videos left, when other processes are working on all of them.
        ended: called when all jobs are done, before they are packed.
        packed: called with the files of the pack.
        keep: also yield the features of the videos that were written.
        pack: for formats that pack all outputs at the end, whether to do so.

    Raises:
        EngineError: the engine failed.
        OutputError: the pack cannot be written. If a single output cannot be written, its video fails.
    """
    meta = run_meta(pipeline)
    left: Iterable[Job] | None = jobs
    others: set[str] = set()
    while left is not None:
        desk = _Desk(writer, claims, others)
        try:
            for result in pipeline.run(desk.give_out(left), total):
                files: tuple[Path, ...] = ()
                features = None
                error = result.error
                if result.rows is not None:
                    with result.rows as rows:
                        try:
                            files = tuple(writer.write(result.job, rows, result.fps, meta))
                            features = rows.features(result.fps, meta) if keep else None
                        except VfxError as failure:
                            error = failure
                desk.take_back(result.job)
                yield Extracted.of(result.job, features, files=files, error=error)
                yield from desk.settled()
            yield from desk.settled()
        finally:
            desk.close()
        if desk.elsewhere and len(desk.elsewhere) == desk.seen:
            waiting(desk.seen)
            time.sleep(_POLL_SECONDS)
        left, total = desk.elsewhere or None, len(desk.elsewhere)
        others.update(job.name for job in desk.elsewhere)
    ended()
    if pack:
        packed(writer.finish())


class _Desk:
    """Hands jobs out to the pipeline's workers, claiming each one before and releasing it afterwards."""

    def __init__(self, writer: Writer, claims: Claims, others: set[str]) -> None:
        self._writer, self._claims = writer, claims
        self._others = others
        """Names of the jobs that other processes held when we first tried to claim them."""
        self._held: set[str] = set()
        self._settled: list[Extracted] = []
        self.elsewhere: list[Job] = []
        """Jobs that other processes have claimed, to be tried again."""
        self.seen = 0

    def give_out(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs to be done in this process; the workers take them one at a time."""
        for job in jobs:
            self.seen += 1
            if not self._claims.take(job.name):
                self.elsewhere.append(job)
                continue
            self._held.add(job.name)
            settled: Extracted | None = None
            try:
                if self._writer.is_done(job):
                    files = tuple(self._writer.paths(job))
                    by_others = job.name in self._others or _newer(files, self._claims.began)
                    settled = Extracted.of(job, files=files, skipped=True, by_others=by_others)
                else:
                    self._writer.prepare(job)
            except VfxError as error:
                settled = Extracted.of(job, error=error)
            if settled is None:
                yield job
            else:
                self.take_back(job)
                self._settled.append(settled)

    def take_back(self, job: Job) -> None:
        self._held.discard(job.name)
        self._claims.release(job.name)

    def settled(self) -> Iterator[Extracted]:
        """Results of the jobs that needed no work, since the last call."""
        while self._settled:
            yield self._settled.pop(0)

    def close(self) -> None:
        for name in self._held:
            self._claims.release(name)
        self._held.clear()


def _newer(files: Sequence[Path], since: int | None) -> bool:
    try:
        return since is not None and any(file.stat().st_mtime_ns > since for file in files)
    except OSError:  # another process has packed the file meanwhile
        return True


__all__ = ["Extracted", "Stats", "extract", "fingerprint", "in_memory", "run_meta", "run_sampling", "to_disk"]
