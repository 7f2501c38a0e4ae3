"""Check the options of ``vfx-run``, and run what they ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from vfx_engines.devices import device_list
from vfx_engines.errors import UsageError, shown
from vfx_engines.opening import BackendName, read_spec
from vfx_engines.spec import EngineSpec, Output, Precision, Sampling
from vfx_runtime.atomic import check_page, prepare_output
from vfx_runtime.delivering import Extracted
from vfx_runtime.following import follow
from vfx_runtime.image_names import DEFAULT_FPS, Images
from vfx_runtime.inputs import find_videos
from vfx_runtime.job import Job
from vfx_runtime.laying import check_alike
from vfx_runtime.nvdec import DecoderName
from vfx_runtime.predictions import Classes, heads, texts
from vfx_runtime.processes import run_on_all
from vfx_runtime.ray_run import run_on_ray
from vfx_runtime.recording import Recording
from vfx_runtime.run_sampling import Anchor, Fps, Tail, check_frames, run_sampling
from vfx_runtime.running import Listener, Task, run_here
from vfx_runtime.shares import Share
from vfx_runtime.views import Views
from vfx_runtime.writers import Format, check_names
from vfx_runtime.zero_shot import zero_shot_of


@dataclass(frozen=True, slots=True)
class Options:
    """The options of ``vfx-run``; its help explains them. None means that an option was not given."""

    inputs: tuple[str, ...]
    engines: tuple[Path, ...]
    output: Path
    root: Path | None
    format_: Format
    float16: bool
    images: str | None
    images_fps: float | None
    fps: Fps | None
    total: int | None
    step: int | None
    stride: int | None
    anchor: Anchor | None
    tail: Tail | None
    seed: int | None
    target_fps: float | None
    view_count: int | None
    crops: str | None
    keep_views: bool
    offset_sampling: bool
    device: str | None
    backend: BackendName | None
    precision: Precision | None
    batch: int | None
    threads: int | None
    workers: int | None
    decoder: DecoderName
    shard: str | None
    address: str | None
    actors: int | None
    show_pred: bool
    pred_texts: Path | None
    text_engine: Path | None
    show_flow: Path | None
    report: Path | None
    dry_run: bool


def run(given: Options) -> int:
    """Do what the command line asks for.

    Returns:
        The number of videos that failed.

    Raises:
        VfxError: the options contradict each other or do not fit the engines; or see
            `vfx_runtime.running.run_here`.
    """
    specs = [read_spec(engine) for engine in given.engines]
    share = None if given.shard is None else Share.from_text(given.shard)
    jobs = _videos(given, specs[0], share)
    if not jobs:
        return 0
    views = _views(given)
    samplings = _samplings(given, specs, views)
    outputs = [output for spec in specs for output in spec.outputs]
    _check_shown(given, outputs)
    classes = _classes(given, specs, outputs)
    devices = _devices(given)
    for spec in specs:
        if "random" in spec.weights.file.split(" + "):
            click.echo(f"vfx-run: RANDOM WEIGHTS: the features of {spec.model} mean nothing", err=True)
    if given.dry_run:
        _say_plan(given, specs, samplings[0], views, jobs)
        return 0
    prepare_output(given.output)
    if given.show_flow is not None:
        prepare_output(given.show_flow)
    task = _task(given, specs, samplings, views, measure=len(devices) == 1 and given.address is None)
    failures = "failures.jsonl" if share is None else f"failures-{share.number}-of-{share.count}.jsonl"
    recording = None if given.report is None else _recording(specs, task, len(jobs), failures)
    results: Callable[[Listener], Generator[Extracted, None, None]]
    if given.address is not None:
        results = partial(run_on_ray, task, given.device, jobs, address=given.address, actors=given.actors)
    elif len(devices) == 1:
        results = partial(run_here, task, devices[0], jobs, len(jobs))
    else:
        results = partial(run_on_all, task, [item for item in devices if item], jobs)
    return follow(
        results,
        given.output / failures,
        specs,
        len(jobs),
        classes,
        given.show_flow,
        given.report,
        recording,
    )


def _videos(given: Options, spec: EngineSpec, share: Share | None) -> list[Job]:
    """The videos to extract. There may be none if only a share of the list is asked for."""
    sound = spec.input.modality == "audio"
    if sound and given.images is not None:
        raise UsageError(f"--images {shown(given.images)}: {spec.model} takes sound, and images have none")
    if given.images_fps is not None and given.images is None:
        raise UsageError(f"--images-fps {given.images_fps:g} goes with --images")
    images = None
    if given.images is not None:
        images = Images(given.images, DEFAULT_FPS if given.images_fps is None else given.images_fps)
    jobs = find_videos(given.inputs, given.root, sound=sound, images=images)
    check_names(given.format_, jobs)
    if share is None:
        return jobs
    own = share.of(jobs)
    click.echo(f"share {given.shard}: {len(own)} of {len(jobs)} videos", err=True)
    return own


def _views(given: Options) -> Views | None:
    if given.view_count is not None:
        return Views(
            given.view_count, 3 if given.crops == "3" else 1, given.keep_views, given.offset_sampling
        )
    options = {
        "--crops": given.crops,
        "--keep-views": given.keep_views,
        "--offset-sampling": given.offset_sampling,
    }
    for option in (option for option, value in options.items() if value):
        raise UsageError(f"{option} applies to views only: give their number with --views")
    return None


def _samplings(given: Options, specs: Sequence[EngineSpec], views: Views | None) -> tuple[Sampling, ...]:
    """The sampling of each engine, with the changes that the command line asks for."""
    check_frames(specs, fps=given.fps, target_fps=given.target_fps, total=given.total, views=views)
    samplings = tuple(
        run_sampling(
            spec.sampling,
            fps=given.fps,
            step=given.step,
            tail=given.tail,
            anchor=given.anchor,
            stride=given.stride,
            target_fps=given.target_fps,
            seed=given.seed,
            views=views,
        )
        for spec in specs
    )
    check_alike(specs, samplings, views)
    if given.workers is not None and given.workers < 1:
        raise UsageError(f"--workers {given.workers}: expected 1 or more")
    return samplings


def _check_shown(given: Options, outputs: Sequence[Output]) -> None:
    """Check that the engines give what is to be shown, and that the report can be written."""
    if given.pred_texts is not None and not given.show_pred:
        raise UsageError("--pred-texts goes with --show-pred")
    if given.text_engine is not None and given.pred_texts is None:
        raise UsageError("--text-engine goes with --pred-texts")
    has_logits = any(item.kind == "logits" for item in outputs)
    if given.show_pred and given.pred_texts is None and not has_logits:
        raise UsageError(
            f"--show-pred: {given.engines[0]} has no classifier: export it with --head, or give --pred-texts "
            "(CLIP)"
        )
    if given.show_flow is not None and not any(item.per == "pair" for item in outputs):
        raise UsageError(
            f"--show-flow: {given.engines[0]} gives no optical flow: export raft_sintel, for example"
        )
    if given.report is not None:
        check_page("--report", given.report)


def _classes(given: Options, specs: Sequence[EngineSpec], outputs: Sequence[Output]) -> list[Classes]:
    """The classes that ``--show-pred`` scores rows against."""
    classes = heads(outputs) if given.show_pred else []
    if given.pred_texts is not None:
        output_name, judge = zero_shot_of(
            given.engines, specs, given.pred_texts, given.text_engine, given.backend
        )
        classes.append(texts(output_name, judge))
        click.echo(f"texts: {len(judge.texts)}, {judge.spec.model}, {judge.name}", err=True)
    return classes


def _devices(given: Options) -> list[str | None]:
    """The devices to run on; None stands for the engine file's default."""
    devices: list[str | None] = [None] if given.device is None else [*device_list(given.device)]
    if given.address is not None:
        if given.device not in (None, "cpu", "cuda"):
            raise UsageError(
                f"--device {shown(given.device)}: with --ray expected cpu or cuda; Ray shares the GPUs out"
            )
        if given.format_ == "hdf5":
            raise UsageError(
                "--format hdf5 is the file of one machine: with --ray take webdataset, parquet or npz"
            )
    if given.actors is not None and (given.address is None or given.actors < 1):
        raise UsageError(f"--actors {given.actors}: expected 1 or more, beside --ray")
    return devices


def _say_plan(
    given: Options,
    specs: Sequence[EngineSpec],
    sampling: Sampling,
    views: Views | None,
    jobs: Sequence[Job],
) -> None:
    """Print the plan, for ``--dry-run``."""
    unit = "samples" if specs[0].input.modality == "audio" else "frames"
    rows = f"windows of {sampling.span} {unit} every {sampling.step}"
    if views is not None:
        rows = f"{views.count} views of {sampling.frames} frames, {views.crops} crops of each"
    elif given.total is not None:
        rows += f" of {given.total}"
    elif sampling.fps is not None:
        rows += f" at {sampling.fps:g} per second"
    models = ", ".join(spec.model for spec in specs)
    click.echo(f"{len(jobs)} video{'s' * (len(jobs) != 1)}, {rows}, {models}; nothing is run", err=True)
    for job in jobs:
        click.echo(f"{shown(job.where)} -> {shown(given.output / job.name)}")


def _task(
    given: Options,
    specs: Sequence[EngineSpec],
    samplings: tuple[Sampling, ...],
    views: Views | None,
    *,
    measure: bool,
) -> Task:
    return Task(
        engines=given.engines,
        output=given.output,
        format=given.format_,
        samplings=samplings,
        precision=given.precision,
        backend=given.backend,
        batch=given.batch,
        threads=given.threads,
        workers=given.workers,
        decoder=given.decoder,
        views=views,
        total=given.total,
        float16=given.float16,
        keep=given.show_pred or given.show_flow is not None,
        measure=given.report is not None and measure,
        specs=tuple(specs),
    )


def _recording(specs: list[EngineSpec], task: Task, videos: int, failures_file: str) -> Recording:
    from vfx_runtime.measuring import machine_facts

    return Recording(
        command=["vfx-run", *sys.argv[1:]],
        facts=machine_facts(),
        specs=specs,
        samplings=list(task.samplings),
        videos=videos,
        output=os.fspath(task.output),
        failures_file=failures_file,
    )
