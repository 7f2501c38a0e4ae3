"""`extract`: from videos to features, in memory or on disk. The command line is made of it."""

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
from vfx_engines.errors import UsageError, VfxError, shown
from vfx_engines.opening import open_engine, read_spec
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
from vfx_runtime.sizing import grouped
from vfx_runtime.views import TARGET_FPS, Views
from vfx_runtime.writers import Format, Writer, check_names, open_writer

Tail = Literal["drop", "repeat", "zeros", "loop"]
Anchor = Literal["start", "centre"]
Fps = float | Literal["source"]
"""A rate to bring videos to, or their own, whatever the engine's spec says."""
StrPath = str | os.PathLike[str]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Extracted:
    """What became of one video of a run."""

    path: Path
    """Of the video."""
    name: str
    """Of its output, below the output folder, without suffix."""
    features: Features | None
    """None for a failure, a video that was done before, and where the run writes to disk."""
    files: tuple[Path, ...] = ()
    """What was written, or was there already."""
    skipped: bool = False
    """Whether a finished output was there already."""
    error: VfxError | None = None
    by_others: bool = False
    """Of a skipped one: whether another process finished it while this run went on."""
    url: str | None = None
    """Of a video that is not on this machine; `path` only looks like it then."""

    @classmethod
    def of(cls, job: Job, features: Features | None = None, **rest: Any) -> Self:
        """The result of a job; further fields by name."""
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
    """An engine's sampling with what a run may change of it; None keeps the engine's own.

    With a target fps or views the engine's own ``fps`` gives way: frames are the video's own.

    Raises:
        UsageError: a value out of range, or values that do not go together.
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
    """Whether a run may choose frames as it asks to; see `run_sampling` for what each may be.

    Raises:
        UsageError: ``total`` is below 1 or stands beside another choice, or an engine takes sound.
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


def run_meta(pipeline: Pipeline) -> dict[str, Any]:
    """What is saved with every video of a run: specs, the samplings in force, versions.

    That of the first engine stands at the top; those of others in ``others``.
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
    """Of all that decides a video's features but the video: SHA-256 in hexadecimal."""
    # Another version of vfx or of a library may differ in the last bits; that is no reason to redo.
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
    """The writer of a run.

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
def extract(  # type: ignore[overload-overlap]  # a str is a sequence too; the first one is meant
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
        engine: a file made by vfx-export, or an engine that is open and stays so. Several share one decode
            and give one row each; their windows must lie alike.
        output: folder to write to; None returns the features instead. Finished outputs are verified
            and skipped.
        fps: bring videos to this frame rate first, by the rule of ffmpeg's fps filter; "source" keeps their
            own, also where the engine's spec says another.
        total: bring each video to about so many frames, evenly spread over it, in place of ``fps``.
        step: frames from one window to the next, if not the engine's own; of sound, samples at the
            engine's rate.
        tail: what becomes of a window that reaches over the end, if not what the engine's spec says.
        anchor: whether window k starts at frame ``k * step`` or is centred on it, if not as the spec says.
        stride: frames from one frame of a window to the next, if not the engine's own.
        target_fps: the rate that ``stride`` counts at: windows last as long in videos of any rate. Their
            frames are the video's own, at positions rounded down.
        seed: with ``tail`` "loop", draws the frames that fill the last window, as the Decord-based extractor
            of PySlowFast's features does, and leaves out the windows that it leaves out.
        views: test-time views of each video in place of windows, see `vfx_runtime.Views`.
        images: what names of frame images look like, see `vfx_runtime.image_names.Images`: folders of them
            are then videos, and folders are searched for those.
        images_fps: frames per second of such a folder.
        format: of the files in ``output``, see `vfx_runtime.writers.FORMATS`; of one path npz.
        float16: give and save features in half precision: half the space, 11 bits of mantissa.
        device: where to run, see `vfx_engines.open_engine`.
        precision: to compute in, if not the file's own.

    Returns:
        For one path its `Features`. For a sequence an iterator of `Extracted`, in the order in which
        videos finish; a video that fails is one of them, with its ``error``.

    Raises:
        VideoError: the one video given cannot be decoded, or is too short for one window.
        UsageError: nothing to do, or an argument out of range.
        EngineError: the engine cannot be opened, or failed.
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
        # A spec is read for folders alone: a file or a list says itself what is meant.
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
    """A video whose features are not written; its name is only for messages."""
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
                opened = [
                    item
                    if isinstance(item, Engine)
                    else group_stack.enter_context(
                        open_engine(item, device=device, precision=precision, sizes=sizes)
                    )
                    for item, sizes in zip(engines, group.sizes or [{}] * len(engines), strict=True)
                ]
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
                yield from to_disk(members, len(members), pipeline, writer, claims)


def in_memory(jobs: Sequence[Job], pipeline: Pipeline) -> Iterator[Extracted]:
    """Run jobs and hand their features over."""
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
    """Run jobs and write what they give, beside other processes that do the same.

    A video that another process has claimed is left to it, and looked at again at the end: when
    this returns, each is finished or has failed.

    Args:
        jobs: what to do; taken one at a time.
        total: their number, or more: fewer videos than cores are decoded by several threads each.
        pipeline: its spool folder should be the output folder.
        writer: of the run's format.
        claims: on the output folder.
        waiting: told how many videos are left that other processes work on.
        ended: called when all are done, before a pack is made of them.
        packed: told the files of that pack.
        keep: give the features of what was written too.
        pack: make the pack that some formats have at the end.

    Raises:
        EngineError: the engine failed.
        OutputError: a pack of all outputs cannot be written; single ones are failures of their video.
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
    """Hands jobs out to the pipeline's workers, each claimed before and released after."""

    def __init__(self, writer: Writer, claims: Claims, others: set[str]) -> None:
        self._writer, self._claims = writer, claims
        self._others = others
        """Names that other processes had claimed when this one came to them."""
        self._held: set[str] = set()
        self._settled: list[Extracted] = []
        self.elsewhere: list[Job] = []
        """Jobs that other processes have claimed."""
        self.seen = 0

    def give_out(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs that are to be done here; workers take them, one at a time."""
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
        """Jobs that needed no work, since the last call."""
        while self._settled:
            yield self._settled.pop(0)

    def close(self) -> None:
        for name in self._held:
            self._claims.release(name)
        self._held.clear()


def _newer(files: Sequence[Path], since: int | None) -> bool:
    try:
        return since is not None and any(file.stat().st_mtime_ns > since for file in files)
    except OSError:  # packed meanwhile
        return True


__all__ = ["Extracted", "Stats", "extract", "fingerprint", "in_memory", "run_meta", "run_sampling", "to_disk"]
