"""``vfx-run``: from videos to feature files."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vfx_engines.devices import device_list
from vfx_engines.errors import UsageError, VfxError, shown
from vfx_engines.opening import BackendName, read_spec
from vfx_engines.spec import Output, Precision
from vfx_runtime.atomic import check_folder, new_files, output_error, prepare_output
from vfx_runtime.extracting import Anchor, Extracted, Tail, run_sampling
from vfx_runtime.image_names import DEFAULT_FPS, Images
from vfx_runtime.inputs import Job, find_videos
from vfx_runtime.laying import check_alike
from vfx_runtime.nvdec import DECODERS, DecoderName
from vfx_runtime.pipeline import Stats
from vfx_runtime.processes import run_on_all
from vfx_runtime.running import Listener, Task, run_here
from vfx_runtime.writers import FORMATS, Format, check_names

FAILURES_FILE = "failures.jsonl"

_console = Console(stderr=True, highlight=False, soft_wrap=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--engine",
    "engines",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Made by vfx-export. Several share one decode, and each gives a part of a row.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("features"),
    show_default=True,
    metavar="FOLDER",
    help="Where to write.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
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
    "hdf5: one file a run.",
)
@click.option(
    "--images",
    metavar="PATTERN",
    help="Folders of frame images are videos: those whose files look like 'frame_%06d.jpg', "
    "'frame_{:06d}.jpg' or '*.png'.",
)
@click.option(
    "--images-fps",
    type=float,
    default=DEFAULT_FPS,
    show_default=True,
    metavar="RATE",
    help="Frames per second of such a folder.",
)
@click.option("--fps", type=float, metavar="RATE", help="Bring videos to this frame rate first.")
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
    help="A window that reaches outside the video: drop it, or fill it with the edge frame or blank ones.  "
    "[default: what the engine's spec says]",
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
@click.option("--show-pred", is_flag=True, help="Print the five likeliest classes of each window.")
@click.option(
    "--show-flow",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write optical flow as pictures too: a PNG for each pair of frames, direction as colour.",
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
    try:
        failed = _run(**options)
    except VfxError as error:
        if debug:
            _console.print_exception()
        click.echo(f"vfx-run: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        click.echo("vfx-run: interrupted; finished outputs are kept, run it again to go on", err=True)
        sys.exit(130)
    sys.exit(1 if failed else 0)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(
    inputs: tuple[str, ...],
    engines: tuple[Path, ...],
    output: Path,
    root: Path | None,
    format_: Format,
    images: str | None,
    images_fps: float,
    fps: float | None,
    step: int | None,
    stride: int | None,
    anchor: Anchor | None,
    tail: Tail | None,
    device: str | None,
    backend: BackendName | None,
    precision: Precision | None,
    batch: int | None,
    threads: int | None,
    workers: int | None,
    decoder: DecoderName,
    show_pred: bool,
    show_flow: Path | None,
    dry_run: bool,
) -> int:
    """Number of videos that failed."""
    specs = [read_spec(engine) for engine in engines]
    sound = specs[0].input.modality == "audio"
    if sound and images is not None:
        raise UsageError(f"--images {shown(images)}: {specs[0].model} takes sound, which images have none of")
    jobs = find_videos(
        inputs, root, sound=sound, images=None if images is None else Images(images, images_fps)
    )
    check_names(format_, jobs)
    change = partial(run_sampling, fps=fps, step=step, tail=tail, anchor=anchor, stride=stride)
    samplings = tuple(change(spec.sampling) for spec in specs)
    check_alike(specs, samplings)
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more")
    outputs = [output for spec in specs for output in spec.outputs]
    if show_pred and not any(item.labels for item in outputs):
        raise UsageError(f"--show-pred: {engines[0]} has no classifier: export it with --head")
    if show_flow is not None and not any(item.per == "pair" for item in outputs):
        raise UsageError(f"--show-flow: {engines[0]} gives no optical flow: export raft_sintel, say")
    devices: list[str | None] = [*device_list(device)] if device else [None]
    for spec in specs:
        if "random" in spec.weights.file.split(" + "):
            click.echo(f"vfx-run: RANDOM WEIGHTS: the features of {spec.model} mean nothing", err=True)
    if dry_run:
        rows = f"windows of {samplings[0].span} {'samples' if sound else 'frames'} every {samplings[0].step}"
        click.echo(f"{len(jobs)} videos, {rows}, {specs[0].model}; nothing is run", err=True)
        for job in jobs:
            click.echo(f"{shown(job.path)} -> {shown(output / job.name)}")
        return 0
    prepare_output(output)
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
        keep=show_pred or show_flow is not None,
    )
    return _extract(task, outputs, devices, jobs, show_pred, show_flow)


def _extract(
    task: Task,
    outputs: list[Output],
    devices: list[str | None],
    jobs: list[Job],
    show_pred: bool,
    show_flow: Path | None,
) -> int:
    skipped = written = 0
    failures: list[Extracted] = []
    started = time.perf_counter()
    with _RunProgress(len(jobs)) as progress:
        listener = Listener(_say, progress.watch, progress.waiting)
        results = (
            run_here(task, devices[0], jobs, len(jobs), listener)
            if len(devices) == 1
            else run_on_all(task, [item for item in devices if item], jobs, listener)
        )
        # Closed here, whatever ends the loop: its end is what ends threads and other processes.
        with closing(results):
            for done in results:
                if done.error is not None:
                    failures.append(done)
                    _console.print(f"failed: {done.error}", markup=False)
                elif done.skipped:
                    skipped += 1
                    progress.skipped += 1
                else:
                    written += 1
                    for file in done.files:
                        click.echo(shown(file))
                if done.features is not None and show_pred:
                    _print_predictions(done, outputs)
                if done.features is not None and show_flow is not None:
                    _write_pictures(done, outputs, show_flow)
    _write_failures(task.output, failures)
    seconds = time.perf_counter() - started
    _print_summary(written, skipped, failures, progress.stats, seconds)
    return len(failures)


def _say(line: str) -> None:
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


def _print_predictions(done: Extracted, outputs: list[Output]) -> None:
    assert done.features is not None
    for item in outputs:
        if item.labels is None:
            continue
        for row, logits in enumerate(done.features.arrays[item.name]):
            start, end = done.features.timestamps_ms[row] / 1000
            shifted = np.exp(logits - logits.max())
            chances = shifted / shifted.sum()
            best = np.argsort(-logits, kind="stable")[:5]
            # Names come from the engine's file and might hold what a terminal obeys.
            top = ", ".join(f"{shown(item.labels[i])} {chances[i]:.3f}" for i in best)
            _console.print(f"{shown(done.name)} {start:.2f}-{end:.2f} s: {top}", markup=False)


def _write_pictures(done: Extracted, outputs: list[Output], folder: Path) -> None:
    assert done.features is not None
    from vfx_runtime.flow_picture import write_flow_pictures

    for item in outputs:
        if item.per == "pair":
            write_flow_pictures(done.features.arrays[item.name], folder / done.name)


def _write_failures(output: Path, failures: list[Extracted]) -> None:
    """One JSON object a line, of this run's failures; no file where there are none."""
    path = output / FAILURES_FILE
    if not failures:
        check_folder(output)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(error, path) from None
        return
    lines = [
        json.dumps({"video": os.fspath(item.path), "name": item.name, "error": str(item.error)})
        for item in failures
    ]
    with new_files([path], exclusive=False, inside=output) as (part,):
        part.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _print_summary(
    written: int, skipped: int, failures: list[Extracted], stats: Stats, seconds: float
) -> None:
    table = Table(box=None, show_header=False)
    table.add_row("videos", f"{written} done, {skipped} were done before, {len(failures)} failed")
    table.add_row("windows", f"{stats.windows}, {stats.windows / seconds:.2f} per second")
    on_gpu = f", {stats.frames_on_gpu} of them decoded on the GPU" if stats.frames_on_gpu else ""
    table.add_row("frames", f"{stats.frames}, {stats.frames / seconds:.0f} per second{on_gpu}")
    table.add_row("time", f"{seconds:.1f} s")
    _console.print(table)
    if failures:
        _console.print(f"{len(failures)} failed, see {FAILURES_FILE} in the output folder:")
        for item in failures[:20]:
            _console.print(f"  {item.error}", markup=False)
        if len(failures) > 20:
            _console.print(f"  and {len(failures) - 20} more")
