"""``vfx-bench``: how fast an engine and its stages are on this machine, and how close to the limit."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from vfx_engines.ending import ends
from vfx_engines.errors import UsageError, shown
from vfx_engines.opening import BackendName, cuda_index, engine_label, open_engine, read_spec
from vfx_engines.paths import LocalPath
from vfx_engines.spec import EngineSpec, Precision
from vfx_engines.triton.address import is_address
from vfx_runtime.chart import check_chart
from vfx_runtime.inputs import find_videos
from vfx_runtime.job import Job
from vfx_runtime.measuring import (
    Cost,
    Others,
    keep_frames,
    machine_facts,
    make_sound,
    make_video,
    measure_decode,
    measure_end_to_end,
    measure_engine,
    measure_resize,
    measure_sound,
)
from vfx_runtime.nvdec import gpu_decoders
from vfx_runtime.report import Report, draw, summary, table
from vfx_runtime.run_sampling import Tail, run_sampling
from vfx_runtime.sizing import Sizes, grouped


@click.command("vfx-bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("videos", nargs=-1, metavar="[VIDEO]...")
@click.option(
    "--engine",
    required=True,
    type=LocalPath(url=True),
    metavar="FILE|URL",
    help="Engine file made by vfx-export, or the address of a served engine, as for vfx-run.",
)
@click.option(
    "--batch",
    "batches",
    type=int,
    multiple=True,
    metavar="N",
    help="Windows per call when the engine is measured alone; may be given several times.  [default: the "
    "batch of vfx-run; for a file, also twice and four times that]",
)
@click.option(
    "--device",
    metavar="cpu|cuda|cuda:N",
    help="Where to run.  [default: cuda for a .plan file, cpu for an .onnx file]",
)
@click.option(
    "--backend",
    type=click.Choice(get_args(BackendName)),
    help="Library that runs an .onnx file on a CPU.  [default: openvino]",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Precision to compute in.  [default: the engine's own]",
)
@click.option("--fps", type=float, metavar="RATE", help="Convert videos to this frame rate first.")
@click.option("--step", type=int, metavar="N", help="Frames from one window to the next.")
@click.option(
    "--tail", type=click.Choice(get_args(Tail)), help="As for vfx-run.  [default: from the engine's spec]"
)
@click.option(
    "--seconds",
    type=float,
    default=3.0,
    show_default=True,
    metavar="S",
    help="Time to measure each stage for, in each round.",
)
@click.option(
    "--rounds",
    type=int,
    default=3,
    show_default=True,
    metavar="N",
    help="Rounds of all stages; their medians are shown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all measurements as JSON.")
@click.option("--chart", type=LocalPath(), metavar="FILE.png", help="Draw a chart of the results.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="vfx", prog_name="vfx-bench")
def main(debug: bool, as_json: bool, chart: Path | None, **options: Any) -> None:
    """Measure how fast an engine, decoding and resizing are, alone and together.

    VIDEO is a video, a folder or a list, as for vfx-run; without any, a video of 320x240 pixels is made,
    or a file with sound for an engine that takes sound.
    Each stage runs alone on all cores, then all of them run end to end. This is repeated in rounds, so
    that other load on the machine affects all stages alike. The limit is what the CPU-seconds of the
    stages allow together; the peak is the speed of plain matrix products, measured on the same machine.

    \b
    vfx-bench --engine i3d.onnx
    vfx-bench --engine i3d.onnx clips/ --rounds 5 --json > bench.json
    """  # noqa: D301  # click reads the backspace
    with ends("vfx-bench", debug):
        if chart is not None:
            check_chart(chart)
        report = _measure(**options)
        if chart is not None:
            draw(report, chart)
            click.echo(f"vfx-bench: wrote {chart}", err=True)
    if as_json:
        click.echo(json.dumps(report.plain(), indent=1))
    else:
        Console(highlight=False).print(table(report))
        Console(highlight=False, soft_wrap=True).print(summary(report))


def _measure(
    videos: tuple[str, ...],
    engine: Path,
    batches: tuple[int, ...],
    device: str | None,
    backend: BackendName | None,
    precision: Precision | None,
    fps: float | None,
    step: int | None,
    tail: Tail | None,
    seconds: float,
    rounds: int,
) -> Report:
    if rounds < 1 or not 0 < seconds < 3600:
        raise UsageError(
            f"--rounds {rounds} --seconds {seconds:g}: expected 1 round or more, and seconds above 0 and "
            "below 3600"
        )
    with tempfile.TemporaryDirectory(prefix="vfx-bench-") as scratch:
        folder = Path(scratch)
        if videos:
            jobs = find_videos(videos)
            for job in jobs:
                if job.url is not None:
                    raise UsageError(f"{shown(job.url)}: vfx-bench measures local videos: copy it first")
            paths = [job.path for job in jobs]
        else:
            paths = []
        return measure(
            engine,
            paths,
            folder,
            batches=batches,
            device=device,
            backend=backend,
            precision=precision,
            fps=fps,
            step=step,
            tail=tail,
            seconds=seconds,
            rounds=rounds,
            say=_say,
        )


def measure(
    file: Path,
    videos: Sequence[Path],
    folder: Path,
    *,
    batches: Sequence[int] = (),
    device: str | None = None,
    backend: BackendName | None = None,
    precision: Precision | None = None,
    fps: float | None = None,
    step: int | None = None,
    tail: Tail | None = None,
    seconds: float = 3.0,
    rounds: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure all stages of an extraction, in rounds.

    Args:
        file: the engine.
        videos: the videos to decode, resize, and extract end to end; for an engine of sound, files with
            sound. If empty, one is made.
        folder: an empty folder for scratch files.
        batches: batch sizes to measure the engine with, in addition to its default one. If empty, also twice
            and four times the default; not for a served engine, whose server has a largest batch.
        device: where to run, see `vfx_engines.open_engine`.
        backend: the library that runs the graph.
        precision: the precision to compute in.
        fps: frames per second to convert videos to first; None leaves the choice to the engine's spec.
        step: frames from one window to the next.
        tail: what to do with a window that reaches beyond the end of the video.
        seconds: time to measure each stage for, in each round.
        rounds: number of rounds; each measures all stages.
        say: called with a line on what is being measured.

    Raises:
        VfxError: the engine cannot be opened, or a video fails.
    """
    machine, others = machine_facts(), Others()
    workers = max(1, min(machine["cores"], 16))

    written, served = read_spec(file), is_address(file)
    modality = written.input.modality
    if modality not in ("frames", "audio"):
        raise UsageError(
            f"{engine_label(file)} takes {modality}, vfx-bench measures engines of frames and of sound"
        )
    is_sound = modality == "audio"
    if not videos:
        say(f"no VIDEO given: making one of {'120 s of sound' if is_sound else '320x240 pixels, 20 s'}")
        videos = [make_sound(folder / "made.m4a") if is_sound else make_video(folder / "made.mp4")]
    sizes = _one_size(file, written, videos)

    def opened(batch: int | None) -> Any:
        return open_engine(
            file, device=device, backend=backend, precision=precision, batch=batch, sizes=sizes
        )

    from vfx_engines.peak import matrix_peak  # imports OpenVINO: 0.3 s, which --help should not take

    with opened(None) as engine:
        spec: EngineSpec = engine.spec
        usual, name, computed, where = engine.batch, engine.name, engine.precision, engine.device
        sampling = run_sampling(spec.sampling, fps=fps, step=step, tail=tail)
        on_gpu = gpu_decoders(engine)
        decoders = [cuda_index(where)] * on_gpu + [None] * workers
        say(f"engine: {engine_label(file) if served else file}, {name}")
        # One pass over the videos first: it warms everything up, and tells how long a pass takes.
        turn = measure_end_to_end(engine, sampling, videos, 1, _fresh(folder, "turn"), on_gpu)
    turns = max(1, math.ceil(seconds / turn.seconds))
    frames = [] if is_sound else keep_frames(videos)
    costs: list[list[Cost]] = []
    peaks: list[float] = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        if where == "cpu" and not served:
            peaks.append(matrix_peak(computed, machine["cores"], min(seconds, 1.0)))
        measured = (
            [measure_sound(videos, spec, sampling, seconds, workers)]
            if is_sound
            else [
                measure_decode(videos, seconds, decoders, convert=where == "cpu"),
                measure_resize(frames, spec.transform, seconds, workers),
            ]
        )
        for batch in sorted({usual, *(batches or (() if served else (usual * 2, usual * 4)))}):
            with opened(batch) as engine:
                measured.append(measure_engine(engine, seconds))
                if batch == usual:
                    into = _fresh(folder, f"round{number}")
                    measured.append(measure_end_to_end(engine, sampling, videos, turns, into, on_gpu))
        costs.append(measured)
    unit = "samples" if is_sound else "frames"
    return Report(
        engine={
            "file": engine_label(file),
            "model": spec.model,
            "frames": spec.sampling.frames,
            "step": sampling.step,
            "runs": name,
            "precision": computed,
            "device": "server" if served else where,
            "macs": spec.macs,
        },
        machine=machine,
        others=others.share,
        videos={"count": len(videos), "size": f"{turn.frames} {unit}, {turn.windows} windows"},
        peak=statistics.median(peaks) if peaks else None,
        rounds=costs,
        batch=usual,
        unit=unit,
    )


def _one_size(file: Path, spec: EngineSpec, videos: Sequence[Path]) -> Sizes:
    """The sizes of the engine's open axes, which must be the same for all videos.

    Raises:
        VfxError: a video cannot be opened, or the sizes differ.
    """
    groups = list(grouped([Job(video, video.stem) for video in videos], [spec]))
    for group in groups:
        for _, error in group.failed:
            raise error
    if len(groups) > 1:
        raise UsageError(f"{shown(file)} takes frames of the video's own size: give videos of one size")
    return groups[0].sizes[0]


def _fresh(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def _say(text: str) -> None:
    click.echo(f"vfx-bench: {text}", err=True)
