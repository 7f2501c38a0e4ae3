"""`extract`: from videos to features, in memory or on disk. ``vfx-run`` is built from the same parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import overload

from vfx_engines.engine import Engine
from vfx_engines.errors import UsageError, shown
from vfx_engines.opening import check_unchanged, open_engine, read_spec
from vfx_engines.spec import EngineSpec, Precision, Sampling
from vfx_runtime.atomic import prepare_output
from vfx_runtime.claims import Claims
from vfx_runtime.delivering import Extracted, in_memory, to_disk, writer_for
from vfx_runtime.features import Features
from vfx_runtime.image_names import DEFAULT_FPS, Images
from vfx_runtime.inputs import find_videos
from vfx_runtime.job import Job
from vfx_runtime.nvdec import gpu_decoders
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.remote import is_url
from vfx_runtime.run_sampling import Anchor, Fps, Tail, check_frames, run_sampling
from vfx_runtime.sizing import grouped, is_sized
from vfx_runtime.views import Views
from vfx_runtime.writers import SHARDED, Format, check_names, pack_all

StrPath = str | os.PathLike[str]


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
