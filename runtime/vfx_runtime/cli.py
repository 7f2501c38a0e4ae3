"""``vfx-run``: from videos to feature files."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, get_args

import click

from vfx_engines.ending import ends
from vfx_engines.errors import UsageError
from vfx_engines.opening import BackendName
from vfx_engines.paths import LocalPath
from vfx_engines.spec import Precision
from vfx_runtime.image_names import DEFAULT_FPS
from vfx_runtime.nvdec import DECODERS
from vfx_runtime.options import Options, run
from vfx_runtime.ray_run import LOCAL, check_address
from vfx_runtime.run_sampling import Anchor, Fps, Tail
from vfx_runtime.writers import FORMATS


@click.command("vfx-run", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--engine",
    "engines",
    required=True,
    multiple=True,
    type=LocalPath(url=True),
    metavar="FILE|URL",
    help="Engine file made by vfx-export, or a served engine: grpc://host:8001/model or "
    "http://host:8000/model. May be given several times: the engines share one decode, and their "
    "outputs go into one file.",
)
@click.option(
    "--output",
    type=LocalPath(),
    default=Path("features"),
    show_default=True,
    metavar="FOLDER",
    help="Folder to write to.",
)
@click.option(
    "--root",
    type=LocalPath(url=True),
    metavar="FOLDER",
    help="Name each output by its video's path below this folder.  [default: the folder of the list, the "
    "folder given, or the file's own folder]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="npz",
    show_default=True,
    help="npz: one file per video; npy, pickle: the files of video_features; slowfast: those of "
    "slowfast_feature_extractor; hdf5: one file for the whole run; webdataset, parquet: many videos per "
    "file, as tar shards or tables.",
)
@click.option(
    "--float16", is_flag=True, help="Save features in half precision, for example large optical flow."
)
@click.option(
    "--images",
    metavar="PATTERN",
    help="Treat folders of frame images as videos. PATTERN is how the files are named: 'frame_%06d.jpg', "
    "'frame_{:06d}.jpg' or '*.png'.",
)
@click.option(
    "--images-fps",
    type=float,
    metavar="RATE",
    help=f"Frame rate of such folders.  [default: {DEFAULT_FPS:g}]",
)
@click.option(
    "--fps",
    callback=lambda context, option, value: _fps(value),
    metavar="RATE|source",
    help="Convert videos to this frame rate first; source keeps each video's own.  [default: from the "
    "engine's spec]",
)
@click.option(
    "--total",
    type=int,
    metavar="N",
    help="Sample about N frames evenly from each video, instead of using a frame rate.",
)
@click.option(
    "--step",
    type=int,
    metavar="N",
    help="Frames from one window to the next; for audio, samples at the engine's rate (VGGish: 16 samples "
    "are 1 ms).  [default: from the engine's spec]",
)
@click.option(
    "--stride",
    type=int,
    metavar="N",
    help="Frames from one frame of a window to the next; 1 takes every frame.  [default: from the engine's "
    "spec]",
)
@click.option(
    "--anchor",
    type=click.Choice(get_args(Anchor)),
    help="Whether window k starts at frame k * step or is centred on it.  [default: from the engine's spec]",
)
@click.option(
    "--tail",
    type=click.Choice(get_args(Tail)),
    help="What to do with a window that reaches beyond the video: drop it, repeat the frame at the edge, "
    "fill it with blank frames (zeros), or loop over the window's own frames.  [default: from the "
    "engine's spec]",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="With --tail loop: fill the last window with frames drawn at random, as the Decord-based extractor "
    "for PySlowFast does. Like it, leave out a last window that ends exactly with the video, and videos "
    "shorter than a window.",
)
@click.option(
    "--target-fps",
    type=float,
    metavar="RATE",
    help="Frame rate that --stride refers to: windows then cover the same time in videos of any frame rate. "
    "Their frames are the video's own, at positions rounded down.",
)
@click.option(
    "--views",
    "view_count",
    type=int,
    metavar="T",
    help="Test-time views: T clips spread over each video instead of windows. Their mean is saved as one "
    "row.",
)
@click.option(
    "--crops",
    type=click.Choice(["1", "3"]),
    help="Crops of each view: 1 is the centre; 3 are taken along the longer side, after a resize to fit the "
    "shorter one.  [default: 1]",
)
@click.option("--keep-views", is_flag=True, help="Save a row for each crop of each view, not their mean.")
@click.option(
    "--offset-sampling",
    is_flag=True,
    help="Let the last view end with the video (DATA.USE_OFFSET_SAMPLING in MViT's configs).",
)
@click.option(
    "--device",
    metavar="cpu|cuda|cuda:N,...|all",
    help="Where to run; several GPUs share the list.  [default: cuda for a .plan file, cpu for an .onnx "
    "file]",
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
@click.option(
    "--batch", type=int, metavar="N", help="Windows per call.  [default: chosen by the size of a window]"
)
@click.option("--threads", type=int, metavar="N", help="CPU cores for the engine.  [default: all]")
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Videos to decode at the same time on the CPU.  [default: one per core, at most 16]",
)
@click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default="auto",
    show_default=True,
    help="cpu or nvdec: decode only there. auto: use both; whichever is free takes the next video.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Do share I of N, counted from 0. Which share a video belongs to depends on its name alone, not on "
    "the order of the list.",
)
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value=LOCAL,
    callback=lambda context, option, value: _address(value),
    metavar="[ADDRESS]",
    help="Run on a Ray cluster: HOST:PORT, ray://HOST:PORT or auto. Without an address, start Ray on this "
    "machine for this run.",
)
@click.option(
    "--actors",
    type=int,
    metavar="N",
    help="With --ray: number of processes.  [default: one per GPU, or one per 4 cores]",
)
@click.option("--show-pred", is_flag=True, help="Print the five most likely classes of each window.")
@click.option(
    "--pred-texts",
    type=LocalPath(),
    metavar="FILE",
    help="With --show-pred, for CLIP: use the lines of this file as the classes.",
)
@click.option(
    "--text-engine",
    type=LocalPath(),
    metavar="FILE",
    help="With --pred-texts: text encoder made by vfx-export --text.  [default: <model>_text.onnx beside the "
    "engine]",
)
@click.option(
    "--show-flow",
    type=LocalPath(),
    metavar="FOLDER",
    help="Also write optical flow as images: a PNG for each pair of frames, with direction as colour.",
)
@click.option(
    "--report",
    type=LocalPath(),
    metavar="FILE.html",
    help="Write an HTML report of the run: speed over time, time of each stage, failures.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and exit.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="vfx", prog_name="vfx-run")
def main(debug: bool, **options: Any) -> None:
    """Extract features from videos.

    INPUT is a video, a folder to search for videos, or a list: a .txt file with one path per line, or a
    .csv file with paths in its first column or in a column called video, path or video_path. Paths in a
    list are relative to the list, and may omit the file's suffix. With --images PATTERN, a folder of
    frame images is a video, and folders are searched for such folders.

    Finished outputs are verified and skipped. So a run can be stopped at any moment and started again,
    and several processes can share one list and one output folder. The paths of new files are printed to
    stdout. Exit code: 0 if everything is done; 1 if some inputs failed, which are then listed at the end
    and in failures.jsonl; 2 if the command itself is wrong.

    \b
    vfx-run --engine i3d.onnx videos.txt
    vfx-run --engine i3d.onnx a.mp4 clips/ list.csv --output features --fps 25 --step 32
    """  # noqa: D301  # click reads the backspace
    # A SIGTERM from a job scheduler should leave the folder as clean as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    with ends("vfx-run", debug, "interrupted; finished outputs are kept, run it again to go on"):
        failed = run(Options(**options))
    sys.exit(1 if failed else 0)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _address(value: str | None) -> str | None:
    # Checked here, since --ray may have taken the only INPUT, and click would say that one is missing.
    try:
        if value is not None:
            check_address(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _fps(value: str | None) -> Fps | None:
    try:
        return "source" if value == "source" else None if value is None else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a frame rate nor 'source'") from None
