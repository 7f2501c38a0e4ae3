"""``vfx-run``: from videos to feature files."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vfx_engines.devices import device_list
from vfx_engines.ending import ends
from vfx_engines.errors import UsageError, VfxError, shown
from vfx_engines.opening import BackendName, read_spec
from vfx_engines.paths import LocalPath
from vfx_engines.spec import EngineSpec, Output, Precision
from vfx_runtime.atomic import check_folder, check_page, new_files, output_error, prepare_output
from vfx_runtime.extracting import Anchor, Extracted, Fps, Tail, check_frames, run_sampling
from vfx_runtime.image_names import DEFAULT_FPS, Images
from vfx_runtime.inputs import find_videos
from vfx_runtime.laying import check_alike
from vfx_runtime.nvdec import DECODERS, DecoderName
from vfx_runtime.pipeline import Stats
from vfx_runtime.predictions import Classes, heads, prediction_lines, texts
from vfx_runtime.processes import run_on_all
from vfx_runtime.ray_run import LOCAL, check_address, run_on_ray
from vfx_runtime.recording import Recorder, Recording
from vfx_runtime.running import Listener, Task, run_here
from vfx_runtime.shares import Share
from vfx_runtime.views import Views
from vfx_runtime.writers import FORMATS, Format, check_names
from vfx_runtime.zero_shot import zero_shot_of

FAILURES_FILE = "failures.jsonl"

_console = Console(stderr=True, highlight=False, soft_wrap=True)


@click.command("vfx-run", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--engine",
    "engines",
    required=True,
    multiple=True,
    type=LocalPath(url=True),
    metavar="FILE|URL",
    help="Made by vfx-export, or grpc://host:8001/model or http://host:8000/model of a "
    "server. Several share one decode, and each gives a part of a row.",
)
@click.option(
    "--output",
    type=LocalPath(),
    default=Path("features"),
    show_default=True,
    metavar="FOLDER",
    help="Where to write.",
)
@click.option(
    "--root",
    type=LocalPath(url=True),
    metavar="FOLDER",
    help="Outputs are named by the path of their video below it.  [default: the folder of each list, the "
    "folder itself, or the file's own]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="npz",
    show_default=True,
    help="npz: one file a video; npy, pickle: video_features' files; slowfast: slowfast_feature_extractor's; "
    "hdf5: one file a run; webdataset, parquet: shards of many videos, tar files or tables.",
)
@click.option("--float16", is_flag=True, help="Save features in half precision: optical flow is large.")
@click.option(
    "--images",
    metavar="PATTERN",
    help="Folders of frame images are videos: those whose files look like 'frame_%06d.jpg', "
    "'frame_{:06d}.jpg' or '*.png'.",
)
@click.option(
    "--images-fps",
    type=float,
    metavar="RATE",
    help=f"Frames per second of such a folder.  [default: {DEFAULT_FPS:g}]",
)
@click.option(
    "--fps",
    callback=lambda context, option, value: _fps(value),
    metavar="RATE|source",
    help="Bring videos to this frame rate first; source: keep their own.  [default: what the spec says]",
)
@click.option(
    "--total", type=int, metavar="N", help="Bring each video to N frames, evenly spread over it, instead."
)
@click.option(
    "--step",
    type=int,
    metavar="N",
    help="Frames from one window to the next; of sound, samples at the engine's rate (VGGish: 16 are 1 ms).",
)
@click.option(
    "--stride",
    type=int,
    metavar="N",
    help="Frames from one frame of a window to the next.  [default: what the engine's spec says]",
)
@click.option(
    "--anchor",
    type=click.Choice(get_args(Anchor)),
    help="Window k starts at, or is centred on, frame k times the step.  [default: what the spec says]",
)
@click.option(
    "--tail",
    type=click.Choice(get_args(Tail)),
    help="A window that reaches outside the video: drop it, or fill it with the edge frame, blank ones, or "
    "its own frames again.  [default: what the engine's spec says]",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="With --tail loop: draw the frames that fill the last window, and leave out a last window that ends "
    "with the video and videos shorter than one, as the Decord-based extractor of PySlowFast does.",
)
@click.option(
    "--target-fps",
    type=float,
    metavar="RATE",
    help="Rate that --stride counts at: a window lasts as long in videos of any rate, and takes their own "
    "frames, at positions rounded down.",
)
@click.option(
    "--views",
    "view_count",
    type=int,
    metavar="T",
    help="Test-time views: T clips spread over each video, in place of windows, and their mean as one row.",
)
@click.option(
    "--crops",
    type=click.Choice(["1", "3"]),
    help="Of each view: the centre, or three along the longer side, resized to fit the shorter one.  "
    "[default: 1]",
)
@click.option("--keep-views", is_flag=True, help="A row for each crop of each view, not their mean.")
@click.option(
    "--offset-sampling",
    is_flag=True,
    help="The last view ends with the video (MViT's DATA.USE_OFFSET_SAMPLING).",
)
@click.option(
    "--device",
    metavar="cpu|cuda|cuda:N,...|all",
    help="Where to run; several GPUs share the list.  [default: cuda for a .plan, cpu for an .onnx file]",
)
@click.option(
    "--backend",
    type=click.Choice(get_args(BackendName)),
    help="What executes the graph.  [default: openvino]",
)
@click.option("--precision", type=click.Choice(get_args(Precision)), help="[default: the engine's own]")
@click.option("--batch", type=int, metavar="N", help="Windows per call.  [default: by their size]")
@click.option("--threads", type=int, metavar="N", help="Cores for the engine.  [default: all]")
@click.option(
    "--workers", type=int, metavar="N", help="Videos decoded at once on the CPU.  [default: one per core]"
)
@click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default="auto",
    show_default=True,
    help="nvdec: on the engine's GPU alone; auto: there and on the CPU, each video by who is free first.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Do share I of N, counted from 0: by the names of the videos, however the list is sorted.",
)
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value=LOCAL,
    metavar="[ADDRESS]",
    help="Run on a Ray cluster: HOST:PORT, ray://HOST:PORT or auto; without an address on a Ray of its own.",
)
@click.option(
    "--actors",
    type=int,
    metavar="N",
    help="With --ray: processes.  [default: one for each GPU, or for each 4 cores]",
)
@click.option("--show-pred", is_flag=True, help="Print the five likeliest classes of each window.")
@click.option(
    "--pred-texts",
    type=LocalPath(),
    metavar="FILE",
    help="CLIP, with --show-pred: the classes are the texts of this file, one a line.",
)
@click.option(
    "--text-engine",
    type=LocalPath(),
    metavar="FILE",
    help="Made by vfx-export --text.  [default: <model>_text.onnx beside the engine]",
)
@click.option(
    "--show-flow",
    type=LocalPath(),
    metavar="FOLDER",
    help="Write optical flow as pictures too: a PNG for each pair of frames, direction as colour.",
)
@click.option(
    "--report",
    type=LocalPath(),
    metavar="FILE.html",
    help="Write a page about the run: speed over time, what each stage takes, failures.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and leave.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="vfx", prog_name="vfx-run")
def main(debug: bool, **options: Any) -> None:
    """Extract features from videos.

    INPUT is a video, a folder that is searched for videos, or a list: a .txt file with one path a
    line, or a .csv file with paths in its first column or in one called video or path. Paths in a
    list are relative to the list, and may lack the suffix of their file. With --images PATTERN, a
    folder of frame images is a video, and folders are searched for those.

    Outputs that are finished are verified and skipped, so a run can be stopped at any moment and
    started again, and several processes may share one list and one folder. The paths of new files
    are printed on stdout. Exit code 0: all done; 1: some inputs failed, named at the end and in
    failures.jsonl; 2: the command itself is wrong.

    \b
    vfx-run --engine i3d.onnx videos.txt
    vfx-run --engine i3d.onnx a.mp4 clips/ list.csv --output features --fps 25 --step 32
    """  # noqa: D301  # click reads the backspace
    # A job scheduler's TERM leaves the folder as clean as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    with ends("vfx-run", debug, "interrupted; finished outputs are kept, run it again to go on"):
        failed = _run(**options)
    sys.exit(1 if failed else 0)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(
    inputs: tuple[str, ...],
    engines: tuple[Path, ...],
    output: Path,
    root: Path | None,
    format_: Format,
    float16: bool,
    images: str | None,
    images_fps: float | None,
    fps: Fps | None,
    total: int | None,
    step: int | None,
    stride: int | None,
    anchor: Anchor | None,
    tail: Tail | None,
    seed: int | None,
    target_fps: float | None,
    view_count: int | None,
    crops: str | None,
    keep_views: bool,
    offset_sampling: bool,
    device: str | None,
    backend: BackendName | None,
    precision: Precision | None,
    batch: int | None,
    threads: int | None,
    workers: int | None,
    decoder: DecoderName,
    shard: str | None,
    address: str | None,
    actors: int | None,
    show_pred: bool,
    pred_texts: Path | None,
    text_engine: Path | None,
    show_flow: Path | None,
    report: Path | None,
    dry_run: bool,
) -> int:
    """Number of videos that failed."""
    specs = [read_spec(engine) for engine in engines]
    sound = specs[0].input.modality == "audio"
    if sound and images is not None:
        raise UsageError(f"--images {shown(images)}: {specs[0].model} takes sound, which images have none of")
    if images_fps is not None and images is None:
        raise UsageError(f"--images-fps {images_fps:g} goes with --images")
    jobs = find_videos(
        inputs,
        root,
        sound=sound,
        images=None if images is None else Images(images, DEFAULT_FPS if images_fps is None else images_fps),
    )
    check_names(format_, jobs)
    share = None if shard is None else Share.from_text(shard)
    if share is not None:
        listed, jobs = len(jobs), share.of(jobs)
        click.echo(f"share {shard}: {len(jobs)} of {listed} videos", err=True)
        if not jobs:
            return 0
    views = _views(view_count, crops, keep_views, offset_sampling)
    check_frames(specs, fps=fps, target_fps=target_fps, total=total, views=views)
    change = partial(
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
    samplings = tuple(change(spec.sampling) for spec in specs)
    check_alike(specs, samplings, views)
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more")
    outputs = [output for spec in specs for output in spec.outputs]
    if pred_texts is not None and not show_pred:
        raise UsageError("--pred-texts goes with --show-pred")
    if text_engine is not None and pred_texts is None:
        raise UsageError("--text-engine goes with --pred-texts")
    if show_pred and pred_texts is None and not any(item.kind == "logits" for item in outputs):
        raise UsageError(
            f"--show-pred: {engines[0]} has no classifier: export it with --head, or give --pred-texts (CLIP)"
        )
    if show_flow is not None and not any(item.per == "pair" for item in outputs):
        raise UsageError(f"--show-flow: {engines[0]} gives no optical flow: export raft_sintel, say")
    if report is not None:
        check_page("--report", report)
    classes = heads(outputs) if show_pred else []
    if pred_texts is not None:
        output_name, judge = zero_shot_of(engines, specs, pred_texts, text_engine, backend)
        classes.append(texts(output_name, judge))
        click.echo(f"texts: {len(judge.texts)}, {judge.spec.model}, {judge.name}", err=True)
    devices: list[str | None] = [None] if device is None else [*device_list(device)]
    if address is not None:
        check_address(address)
        if device not in (None, "cpu", "cuda"):
            raise UsageError(
                f"--device {shown(device)}: with --ray expected cpu or cuda; Ray shares the GPUs out"
            )
        if format_ == "hdf5":
            raise UsageError(
                "--format hdf5 is the file of one machine: with --ray take webdataset, parquet or npz"
            )
    if actors is not None and (address is None or actors < 1):
        raise UsageError(f"--actors {actors}: expected 1 or more, beside --ray")
    for spec in specs:
        if "random" in spec.weights.file.split(" + "):
            click.echo(f"vfx-run: RANDOM WEIGHTS: the features of {spec.model} mean nothing", err=True)
    if dry_run:
        rows = f"windows of {samplings[0].span} {'samples' if sound else 'frames'} every {samplings[0].step}"
        if views is not None:
            rows = f"{views.count} views of {samplings[0].frames} frames, {views.crops} crops of each"
        elif total is not None:
            rows += f" of {total}"
        elif samplings[0].fps is not None:
            rows += f" at {samplings[0].fps:g} per second"
        models = ", ".join(spec.model for spec in specs)
        click.echo(f"{len(jobs)} video{'s' * (len(jobs) != 1)}, {rows}, {models}; nothing is run", err=True)
        for job in jobs:
            click.echo(f"{shown(job.where)} -> {shown(output / job.name)}")
        return 0
    prepare_output(output)
    if show_flow is not None:
        prepare_output(show_flow)
    task = Task(
        engines=engines,
        output=output,
        format=format_,
        samplings=samplings,
        precision=precision,
        backend=backend,
        batch=batch,
        threads=threads,
        workers=workers,
        decoder=decoder,
        views=views,
        total=total,
        float16=float16,
        keep=show_pred or show_flow is not None,
        measure=report is not None and len(devices) == 1 and address is None,
    )
    recording = None if report is None else _recording(specs, task, len(jobs))
    run: Callable[[Listener], Generator[Extracted, None, None]]
    if address is not None:
        run = partial(run_on_ray, task, device, jobs, address=address, actors=actors)
    elif len(devices) == 1:
        run = partial(run_here, task, devices[0], jobs, len(jobs))
    else:
        run = partial(run_on_all, task, [item for item in devices if item], jobs)
    failures_file = FAILURES_FILE if share is None else f"failures-{share.number}-of-{share.count}.jsonl"
    return _extract(run, output / failures_file, outputs, len(jobs), classes, show_flow, report, recording)


def _recording(specs: list[EngineSpec], task: Task, videos: int) -> Recording:
    from vfx_runtime.measuring import machine_facts

    return Recording(
        command=["vfx-run", *sys.argv[1:]],
        facts=machine_facts(),
        specs=specs,
        samplings=list(task.samplings),
        videos=videos,
        output=os.fspath(task.output),
    )


def _fps(value: str | None) -> Fps | None:
    try:
        return "source" if value == "source" else None if value is None else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no rate, and not source") from None


def _views(count: int | None, crops: str | None, keep: bool, offset: bool) -> Views | None:
    if count is not None:
        return Views(count, 3 if crops == "3" else 1, keep, offset)
    given = {"--crops": crops, "--keep-views": keep, "--offset-sampling": offset}
    for option in (option for option, value in given.items() if value):
        raise UsageError(f"{option} says something of views: give their number with --views")
    return None


def _extract(
    run: Callable[[Listener], Generator[Extracted, None, None]],
    failures_file: Path,
    outputs: list[Output],
    videos: int,
    classes: list[Classes],
    show_flow: Path | None,
    report: Path | None,
    recording: Recording | None,
) -> int:
    skipped = others = written = 0
    failures: list[Extracted] = []
    started = time.perf_counter()
    with ExitStack() as stack:
        progress = stack.enter_context(_RunProgress(videos))
        said: list[str] = []
        if recording is not None and report is not None:
            stack.callback(_write_report, report, recording)
            stack.enter_context(Recorder(recording, lambda: progress.stats))
            said = recording.said
        results = run(Listener(partial(_say, said), progress.watch, progress.waiting, packed=_print_paths))
        # Closed here, whatever ends the loop: its end is what ends threads and other processes.
        with closing(results), _noted(failures_file, failures):
            for done in results:
                if recording is not None:
                    recording.note(done)
                if done.error is not None:
                    failures.append(done)
                    _console.print(f"failed: {done.error}", markup=False)
                elif done.skipped:
                    skipped += not done.by_others
                    others += done.by_others
                    progress.skipped += 1
                else:
                    written += 1
                    _print_paths(done.files)
                if done.features is not None:
                    for line in prediction_lines(done.name, done.features, classes):
                        _console.print(line, markup=False)
                if done.features is not None and show_flow is not None:
                    _write_pictures(done, outputs, show_flow)
    if (classes or show_flow is not None) and skipped + others:
        click.echo(
            "videos that were done before are not shown again: take another --output for that", err=True
        )
    _write_failures(failures_file, failures)
    seconds = time.perf_counter() - started
    counts = f"{written} done, {skipped} were done before, {len(failures)} failed"
    if others:
        counts += f", {others} were done by other processes meanwhile"
    _print_summary(counts, failures_file.name, failures, progress.stats, seconds)
    return len(failures)


def _write_report(path: Path, recording: Recording) -> None:
    """The page, also of a run that was interrupted or failed."""
    from vfx_runtime.run_page import run_page

    with new_files([path], exclusive=False, inside=path.parent) as (part,):
        part.write_text(run_page(recording), "utf-8")


@contextmanager
def _noted(file: Path, failures: list[Extracted]) -> Iterator[None]:
    """Where an error ends the run, as of an engine or a full disk, what failed before is listed still."""
    try:
        yield
    except VfxError:
        if failures:
            # On a full disk there is no room for the list either; each was named when it failed.
            with suppress(VfxError):
                _write_failures(file, failures)
        raise


def _print_paths(files: Iterable[Path]) -> None:
    try:
        for file in files:
            click.echo(shown(file))
    except BrokenPipeError:
        raise  # of a reader that has enough, as head does: click leaves without a word
    except OSError as error:
        raise output_error(error, Path("standard output")) from None


def _say(said: list[str], line: str) -> None:
    said.append(line)
    click.echo(line, err=True)


class _RunProgress(Progress):
    """One live line: videos, windows per second, time left. Nothing where stderr is no terminal."""

    def __init__(self, videos: int) -> None:
        self._videos = videos
        self.stats = Stats()
        self._since = time.perf_counter()
        self._note = ""
        self.skipped = 0
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.fields[said]}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=_console,
            transient=True,
            disable=not _console.is_terminal,
        )
        self.add_task("", total=videos, said="")

    def watch(self, stats: Stats) -> None:
        """Show these figures from now on."""
        self.stats = stats

    def waiting(self, videos: int) -> None:
        """Say that other processes work on what is left."""
        self._note = f", waiting for {videos} of another process"

    def get_renderables(self) -> Iterable[RenderableType]:
        """Brings the line up to date; rich calls it ten times a second."""
        stats, seconds = self.stats, max(time.perf_counter() - self._since, 1e-3)
        said = (
            f"{stats.videos + self.skipped}/{self._videos} videos, {stats.windows} windows, "
            f"{stats.windows / seconds:.1f} windows/s{self._note}"
        )
        for task in self.tasks:
            task.completed = stats.videos_done + self.skipped
            task.fields["said"] = said
        yield from super().get_renderables()


def _write_pictures(done: Extracted, outputs: list[Output], folder: Path) -> None:
    assert done.features is not None
    from vfx_runtime.flow_picture import write_flow_pictures

    for item in outputs:
        if item.per == "pair":
            write_flow_pictures(done.features.arrays[item.name], folder / done.name)


def _write_failures(path: Path, failures: list[Extracted]) -> None:
    """One JSON object a line, of this run's failures; no file where there are none."""
    if not failures:
        check_folder(path.parent)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(error, path) from None
        return
    lines = [
        json.dumps({"video": item.url or os.fspath(item.path), "name": item.name, "error": str(item.error)})
        for item in failures
    ]
    with new_files([path], exclusive=False, inside=path.parent) as (part,):
        part.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _print_summary(
    counts: str, failures_file: str, failures: list[Extracted], stats: Stats, seconds: float
) -> None:
    on_gpu = f", {stats.frames_on_gpu} of them decoded on the GPU" if stats.frames_on_gpu else ""
    # Not a table of rich's, which folds lines where stderr is a file.
    for name, said in (
        ("videos", counts),
        ("windows", f"{stats.windows}, {stats.windows / seconds:.2f} per second"),
        ("frames", f"{stats.frames}, {stats.frames / seconds:.0f} per second{on_gpu}"),
        ("time", f"{seconds:.1f} s"),
    ):
        _console.print(f" {name:<7}  {said}", markup=False)
    if failures:
        _console.print(f"{len(failures)} failed, see {failures_file} in the output folder:")
        for item in failures[:20]:
            _console.print(f"  {item.error}", markup=False)
        if len(failures) > 20:
            _console.print(f"  and {len(failures) - 20} more")
