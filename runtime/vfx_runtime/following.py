"""Follow a run: what ``vfx-run`` prints about it, and the files that it writes about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

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

from vfx_engines.errors import VfxError, shown
from vfx_engines.spec import EngineSpec, Output
from vfx_runtime.atomic import check_folder, new_files, output_error
from vfx_runtime.delivering import Extracted
from vfx_runtime.pipeline import Stats
from vfx_runtime.predictions import Classes, prediction_lines
from vfx_runtime.recording import Recorder, Recording
from vfx_runtime.running import Listener

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def follow(
    run: Callable[[Listener], Generator[Extracted, None, None]],
    failures_file: Path,
    specs: list[EngineSpec],
    videos: int,
    classes: list[Classes],
    show_flow: Path | None,
    report: Path | None,
    recording: Recording | None,
) -> int:
    """Run, and print the result of each video.

    Args:
        run: starts the run, given the listener to report to.
        failures_file: where failures are listed; removed if there are none.
        specs: the specs of all engines.
        videos: the number of videos.
        classes: for ``--show-pred``, the classes whose probabilities are printed for each row.
        show_flow: folder for pictures of optical flow.
        report: where to write the HTML page about the run.
        recording: collects the data for that page.

    Returns:
        The number of videos that failed.

    Raises:
        VfxError: the run raised it, or a file cannot be written.
    """
    outputs = [output for spec in specs for output in spec.outputs]
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
        # However the loop ends, the generator is closed here, which stops its threads and processes.
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
    unit = "samples" if specs[0].input.modality == "audio" else "frames"
    _print_summary(counts, failures_file.name, failures, progress.stats, unit, seconds)
    return len(failures)


def _write_report(path: Path, recording: Recording) -> None:
    """Write the page, even if the run was interrupted or failed."""
    from vfx_runtime.run_page import run_page

    with new_files([path], exclusive=False, inside=path.parent) as (part,):
        part.write_text(run_page(recording), "utf-8")


@contextmanager
def _noted(file: Path, failures: list[Extracted]) -> Iterator[None]:
    """Write the list of failures even if an error of the engine or of the pack ends the run."""
    try:
        yield
    except VfxError:
        if failures:
            # If the disk is full, the list does not fit either. Each failure was printed when it happened.
            with suppress(VfxError):
                _write_failures(file, failures)
        raise


def _print_paths(files: Iterable[Path]) -> None:
    try:
        for file in files:
            click.echo(shown(file))
    except BrokenPipeError:
        raise  # the reader has enough, as `head` does: click exits silently
    except OSError as error:
        raise output_error(error, Path("standard output")) from None


def _say(said: list[str], line: str) -> None:
    said.append(line)
    click.echo(line, err=True)


class _RunProgress(Progress):
    """One live line: videos, windows per second, time left. Shown only if stderr is a terminal."""

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
        """Show that other processes are working on the videos that are left."""
        self._note = f", waiting for {videos} videos of other processes"

    def get_renderables(self) -> Iterable[RenderableType]:
        """Update the line; rich calls this ten times a second."""
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
    """Write this run's failures, one JSON object per line; without failures, remove the file."""
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
    counts: str, failures_file: str, failures: list[Extracted], stats: Stats, unit: str, seconds: float
) -> None:
    on_gpu = f", {stats.frames_on_gpu} of them decoded on the GPU" if stats.frames_on_gpu else ""
    # Not a rich table, which would wrap lines if stderr is a file.
    for name, said in (
        ("videos", counts),
        ("windows", f"{stats.windows}, {stats.windows / seconds:.2f} per second"),
        (unit, f"{stats.frames}, {stats.frames / seconds:.0f} per second{on_gpu}"),
        ("time", f"{seconds:.1f} s"),
    ):
        _console.print(f" {name:<7}  {said}", markup=False)
    if failures:
        _console.print(f"{len(failures)} failed, see {failures_file} in the output folder:")
        for item in failures[:20]:
            _console.print(f"  {item.error}", markup=False)
        if len(failures) > 20:
            _console.print(f"  and {len(failures) - 20} more")
