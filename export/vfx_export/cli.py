"""``vfx-export``: from a model's name to an engine file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from vfx_engines.ending import ends
from vfx_engines.errors import shown
from vfx_engines.paths import LocalPath
from vfx_engines.spec import Pool, Precision
from vfx_export.options import Options, run


@click.command("vfx-export", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", metavar="NAME", help="Model to export; --list shows all of them.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="FILE|URL",
    help="Weights to use instead of downloading the published ones. Give one for each network of a model "
    "that is made of several (i3d_flow_raft: first the flow network's, then I3D's).",
)
@click.option(
    "--random-weights", is_flag=True, help="Use random weights, to try things out; the spec says so."
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="fp32; fp16: half-precision tensors in the graph; bf16: a float32 graph, optimised for bf16 and run "
    "in it.  [default: fp32 for onnx, fp16 for plan]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "plan"]),
    help="Kind of file to write.  [default: plan if TensorRT and a GPU are there, else onnx]",
)
@click.option(
    "--output",
    type=LocalPath(),
    default=Path(),
    metavar="FILE|FOLDER",
    help="Where to write; in a folder, the file is called <model>.onnx or <model>.plan.  [default: the "
    "current folder]",
)
@click.option(
    "--triton",
    "repository",
    type=LocalPath(),
    metavar="REPO",
    help="Write into a Triton model repository instead: REPO/<model>/config.pbtxt and the next "
    "REPO/<model>/<version>.",
)
@click.option(
    "--instances",
    metavar="cpu|gpu[:N]",
    help="With --triton: where the server runs the model, and how many copies of it.  [default: gpu for a "
    ".plan file, cpu for an .onnx file]",
)
@click.option(
    "--frames",
    type=int,
    metavar="N",
    help="Frames in a window (for optical flow, pairs of frames).  [default: the model's own]",
)
@click.option(
    "--resize",
    metavar="short:N|long:N|squash",
    help="Optical flow: resize frames so that the short or long side has N pixels.  [default: the video's "
    "own size]  Other models: squash resizes whole frames to the input's size, as "
    "slowfast_feature_extractor does, instead of keeping their shape and cropping the centre.",
)
@click.option(
    "--exact-zeros",
    is_flag=True,
    help="PySlowFast models: frames outside the video (vfx-run --tail zeros) are exactly zero after "
    "normalisation, instead of the nearest grey.",
)
@click.option("--head", is_flag=True, help="Also output the classifier's logits, with their labels.")
@click.option(
    "--pool",
    type=click.Choice(get_args(Pool)),
    default="head",
    show_default=True,
    help="PySlowFast models: pool as the published head does (head), average over all positions (global), or "
    "output the unpooled map or tokens (none).",
)
@click.option(
    "--inflate",
    is_flag=True,
    help="PySlowFast's C2D, I3D and Slow: --checkpoint is a 2D ResNet-50, such as torchvision's, whose "
    "kernels are repeated over time.",
)
@click.option(
    "--pca",
    type=LocalPath(),
    metavar="FILE.npz",
    help="VGGish: also output the PCA-transformed and quantised features, with the parameters in this file.",
)
@click.option(
    "--text",
    is_flag=True,
    help="CLIP: export the text encoder, for vfx-run --pred-texts; in a folder, the file is called "
    "<model>_text.onnx.",
)
@click.option(
    "--vocabulary",
    type=LocalPath(),
    metavar="FILE",
    help="With --text: the merges of the tokenizer.  [default: OpenAI's, downloaded]",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    metavar="N|MIN,OPT,MAX",
    help="Plan, Triton: windows per call. N is the most, and what the plan is tuned for; or give the fewest, "
    "the tuned and the most. Repeat it for several optimisation profiles.  [default: 1,8,8]",
)
@click.option(
    "--level",
    type=int,
    default=3,
    show_default=True,
    metavar="N",
    help="Plan: TensorRT's builder optimisation level, 0 to 5.",
)
@click.option("--workspace", type=float, metavar="GIB", help="Plan: scratch memory that a layer may use.")
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Plan: let later TensorRT versions and the lean runtime run it.",
)
@click.option(
    "--hardware",
    type=click.Choice(["same", "same_compute_capability", "ampere_plus"]),
    default="same",
    show_default=True,
    help="Plan: which GPUs may run it: those of the same model, of the same compute capability, or Ampere "
    "and later.",
)
@click.option(
    "--device",
    default="cuda:0",
    show_default=True,
    metavar="cuda:N",
    help="Plan: the GPU to build or inspect on.",
)
@click.option(
    "--inspect",
    type=LocalPath(),
    metavar="FILE.plan",
    help="Print the layers of a plan and the time that each takes, and exit.",
)
@click.option("--list", "list_", is_flag=True, help="Print the catalogue, and exit.")
@click.option("--json", "json_", is_flag=True, help="With --list: print it as JSON.")
@click.option(
    "--module",
    metavar="FILE.py:FACTORY",
    help="Export your own PyTorch module: FACTORY() in FILE.py returns it. Needs --spec.",
)
@click.option(
    "--spec",
    type=LocalPath(),
    metavar="FILE.json",
    help="What the module takes and gives, as JSON; see docs/spec.md.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="vfx", prog_name="vfx-export")
def main(debug: bool, **options: Any) -> None:
    """Export a video backbone as an engine file, which vfx-run runs.

    The network is cut at its features, and traced to ONNX. The file is then compared with the PyTorch
    module on two inputs; if it does not compute the same, it is not written. The path of the file is
    printed to stdout.

    \b
    vfx-export --list
    vfx-export --model i3d
    vfx-export --model i3d --checkpoint i3d_rgb.pt --precision bf16 --head
    vfx-export --model i3d --frames 16 --output engines/i3d_16.onnx
    vfx-export --model i3d --triton models --instances gpu --batch 8
    """  # noqa: D301  # click reads the backspace
    with ends("vfx-export", debug):
        path = run(Options(**options))
    if path is not None:
        click.echo(shown(path))
