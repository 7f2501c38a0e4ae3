"""``vfx-export``: from a model's name to an engine file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from vfx_engines.build_settings import BuildSettings
from vfx_engines.ending import ends
from vfx_engines.errors import SpecError, UsageError, shown
from vfx_engines.opening import cuda_index
from vfx_engines.paths import LocalPath
from vfx_engines.spec import EngineSpec, Input, Output, Pool, Precision
from vfx_export.target import CONSOLE, Target, batch, missing_for_plan
from vfx_export.triton_config import Serving, parse_instances

if TYPE_CHECKING:
    pass

# torch is imported by the functions that need it: --help and --list must not wait three seconds for it.


@click.command("vfx-export", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", metavar="NAME", help="Catalogue model to export; --list names them.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="FILE|URL",
    help="Weights to use instead of downloading the published ones; once for each part of a model "
    "that is made of several (i3d_flow_raft: the flow network's, then I3D's).",
)
@click.option("--random-weights", is_flag=True, help="Random weights, for trials; the spec says so.")
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="fp32; fp16: tensors of the graph in half precision; bf16: a float32 graph, laid out for and run "
    "in bf16.  [default: fp32 for onnx, fp16 for plan]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "plan"]),
    help="File to write.  [default: plan where TensorRT and a GPU are, else onnx]",
)
@click.option(
    "--output",
    type=LocalPath(),
    default=Path(),
    metavar="FILE|FOLDER",
    help="Where to write; a folder gets <model>.onnx or .plan.  [default: the current folder]",
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
    help="Triton: where it runs the model, and how many copies of it there.  [default: gpu for a .plan, "
    "cpu for an .onnx file]",
)
@click.option("--frames", type=int, metavar="N", help="Frames of a window, if not the model's own.")
@click.option(
    "--resize",
    metavar="short:N|long:N|squash",
    help="Optical flow: bring a side of the frames to N pixels first.  [default: the video's own size]  "
    "Others: squash brings whole frames to the input's size, as slowfast_feature_extractor does, instead of "
    "cutting it from the middle.",
)
@click.option(
    "--exact-zeros",
    is_flag=True,
    help="PySlowFast's networks: frames outside a video (vfx-run --tail zeros) are zeros to the network, "
    "and not the nearest grey.",
)
@click.option("--head", is_flag=True, help="Give the classifier's logits too, with their labels.")
@click.option(
    "--pool",
    type=click.Choice(get_args(Pool)),
    default="head",
    show_default=True,
    help="PySlowFast: pool as the published head does, by the mean over all positions, or give the map "
    "itself, or the tokens.",
)
@click.option(
    "--inflate",
    is_flag=True,
    help="PySlowFast's C2D, I3D and Slow: --checkpoint is a 2D ResNet-50, as torchvision's; its kernels are "
    "repeated over time.",
)
@click.option(
    "--pca",
    type=LocalPath(),
    metavar="FILE.npz",
    help="vggish: give its PCA-transformed, quantised features too, with this file's parameters.",
)
@click.option(
    "--text",
    is_flag=True,
    help="CLIP: export the text encoder, for vfx-run --pred-texts; a folder gets <model>_text.onnx.",
)
@click.option(
    "--vocabulary",
    type=LocalPath(),
    metavar="FILE",
    help="With --text: the tokenizer's merges.  [default: OpenAI's, downloaded]",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    metavar="N|MIN,OPT,MAX",
    help="Plan, Triton: windows per call, up to N and tuned for it; or the fewest, what is tuned for, the "
    "most. Once for each optimisation profile.  [default: 1,8,8]",
)
@click.option(
    "--level",
    type=int,
    default=3,
    show_default=True,
    metavar="N",
    help="Plan: TensorRT's builder level, 0 to 5.",
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
    help="Plan: which GPUs run it, beside those of this model.",
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
    help="Print a plan's layers and the time of each, and leave.",
)
@click.option("--list", "list_", is_flag=True, help="Print the catalogue and leave.")
@click.option("--json", "json_", is_flag=True, help="With --list: as JSON.")
@click.option(
    "--module",
    metavar="FILE.py:FACTORY",
    help="Export your own torch module: FACTORY() in FILE.py returns it. Needs --spec.",
)
@click.option(
    "--spec",
    type=LocalPath(),
    metavar="FILE.json",
    help="What the module eats and gives, as JSON (see docs/spec.md).",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="vfx", prog_name="vfx-export")
def main(debug: bool, **options: Any) -> None:
    """Cut a video backbone at its features, and write it as an engine that vfx-run runs.

    The file is compared with the torch module on two inputs before it gets its name; one that
    computes anything else is not written. Its path is printed on stdout.

    \b
    vfx-export --list
    vfx-export --model i3d
    vfx-export --model i3d --checkpoint i3d_rgb.pt --precision bf16 --head
    vfx-export --model i3d --frames 16 --output engines/i3d_16.onnx
    vfx-export --model i3d --triton models --instances gpu --batch 8
    """  # noqa: D301  # click reads the backspace
    with ends("vfx-export", debug):
        path = _run(**options)
    if path is not None:
        click.echo(shown(path))


def _run(
    model: str | None,
    checkpoints: tuple[str, ...],
    random_weights: bool,
    precision: Precision | None,
    format_: str | None,
    output: Path,
    repository: Path | None,
    instances: str | None,
    frames: int | None,
    resize: str | None,
    exact_zeros: bool,
    head: bool,
    pool: Pool,
    inflate: bool,
    pca: Path | None,
    text: bool,
    vocabulary: Path | None,
    list_: bool,
    json_: bool,
    module: str | None,
    spec: Path | None,
    batches: tuple[str, ...],
    level: int,
    workspace: float | None,
    version_compatible: bool,
    hardware: Any,
    device: str,
    inspect: Path | None,
) -> Path | None:
    if inspect is not None:
        from vfx_engines.inspection import inspect_plan, layer_table

        click.echo(layer_table(*inspect_plan(inspect, cuda_index(device) or 0)))
        return None
    _require_torch()
    if json_ and not list_:
        raise UsageError("--json goes with --list")
    if list_:
        _print_catalogue(json_)
        return None
    if (model is None) == (module is None):
        raise UsageError("give --model NAME (--list shows them) or --module FILE.py:FACTORY")
    if "" in checkpoints:
        raise UsageError("--checkpoint: found the empty text, expected a file or a URL")
    if (module is None) != (spec is None):
        raise UsageError("--module FILE.py:FACTORY and --spec FILE.json go together")
    if vocabulary is not None and not text:
        raise UsageError("--vocabulary goes with --text")
    pooled = pool != "head"
    of_frames = bool(frames or resize or exact_zeros or head or pooled or inflate or pca)
    if text and (of_frames or format_ == "plan" or output.suffix == ".plan"):
        raise UsageError("--text takes --checkpoint, --precision and --output only, and writes ONNX")
    if module is not None and (checkpoints or random_weights or of_frames or text):
        raise UsageError("--module takes --spec, --precision and --output; weights are its own business")
    settings = BuildSettings(
        tuple(batch(text) for text in batches) or ((1, 8, 8),),
        level,
        None if workspace is None else int(workspace * 2**30),
        version_compatible,
        hardware,
    )
    if instances is not None and repository is None:
        raise UsageError(f"--instances {instances}: goes with --triton REPO")
    if repository is not None and output != Path():
        raise UsageError(f"--output {shown(output)}: --triton {shown(repository)} says where to write")
    if repository is not None and precision == "bf16":
        raise UsageError("--precision bf16 is for OpenVINO on CPUs: Triton takes fp16 or fp32")
    if text and repository is not None:
        raise UsageError("--text and --triton: texts are encoded beside the runtime, not on a server")
    missing = "" if text else missing_for_plan(format_, output)
    if missing == "":
        _refuse_plan_options(served=repository is not None)
    target = Target(output, settings if missing is None else None, cuda_index(device) or 0, missing or "")
    if target.settings and precision == "bf16":
        raise UsageError("--precision bf16 is for CPUs: a plan takes fp16 or fp32")
    if module is not None:
        assert spec is not None
        target = _for_triton(target, repository, instances, settings)
        return _export_own(module, spec, precision, target)
    assert model is not None
    from vfx_export.catalogue import find

    if text:
        return _export_text(model, checkpoints, random_weights, precision or "fp32", target, vocabulary)
    if target.settings and not (format_ == "plan" or output.suffix == ".plan"):
        target = target.for_network(find(model))
    target = _for_triton(target, repository, instances, settings)
    usual: Precision = "fp16" if target.settings else "fp32"
    return _export_catalogue(
        model,
        checkpoints,
        random_weights,
        precision or usual,
        target,
        frames,
        resize,
        exact_zeros,
        head,
        pool,
        inflate,
        pca,
    )


_OF_PLANS = {"level", "workspace", "version_compatible", "hardware", "device"}


def _refuse_plan_options(*, served: bool) -> None:
    """An .onnx file was asked for: what says something of a plan would be ignored."""
    # Triton batches for ONNX too.
    names = _OF_PLANS if served else _OF_PLANS | {"batches"}
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in names:
            raise UsageError(f"{option.opts[0]} is of plans, and this writes ONNX: leave it out")


def _for_triton(
    target: Target, repository: Path | None, instances: str | None, settings: BuildSettings
) -> Target:
    if repository is None:
        return target
    for least, _, most in settings.batches:
        if least > 1:
            raise UsageError(f"--batch: Triton may send one window alone: expected 1 to {most}, not {least}")
    kind, count = parse_instances(instances, target.settings is not None)
    serving = Serving(repository, settings.batches, kind, count)
    return dataclasses.replace(target, serving=serving)


def _export_catalogue(
    name: str,
    checkpoints: tuple[str, ...],
    random: bool,
    precision: Precision,
    target: Target,
    frames: int | None,
    resize: str | None,
    exact_zeros: bool,
    head: bool,
    pool: Pool,
    inflate: bool,
    pca: Path | None,
) -> Path:
    from vfx_export.catalogue import find
    from vfx_export.exporting import export_model

    model = find(name)
    if checkpoints and random:
        raise UsageError("--checkpoint and --random-weights exclude each other")
    # What cannot be is refused before anything is downloaded.
    model.windows(frames)
    if resize is not None:
        model = model.resized(resize)
    if head:
        model.logits()
    if exact_zeros:
        model.check_exact_zeros()
    model.check_pool(pool)
    if inflate:
        model.check_inflation()
        if not checkpoints:
            raise UsageError("--inflate: give the 2D weights with --checkpoint")
    if pca is not None and model.postprocess is None:
        raise UsageError(f"--pca: {name} has no published post-processing")
    target.path(name)
    with _progress() as progress:
        downloads = [part.download for part in model.parts] or [model.download]
        given: tuple[str | None, ...] = checkpoints or (None,) * len(downloads)
        if len(given) != len(downloads):
            raise UsageError(
                f"{name}: {len(given)} --checkpoint given, expected {len(downloads)}"
                + "".join(f", {part.prefix}" for part in model.parts)
            )
        weights = (
            None if random else [_weights(*pair, progress) for pair in zip(given, downloads, strict=True)]
        )
        task = progress.add_task("", total=None)
        return target.write(
            name,
            lambda path: export_model(
                model,
                path,
                checkpoint=weights,
                precision=precision,
                frames=frames,
                head=head,
                pca=pca,
                pool=pool,
                inflate=inflate,
                exact_zeros=exact_zeros,
                stage=lambda stage: progress.update(task, description=stage),
            ),
            progress,
            task,
        )


def _export_text(
    name: str,
    checkpoints: tuple[str, ...],
    random: bool,
    precision: Precision,
    target: Target,
    vocabulary: Path | None,
) -> Path:
    from vfx_export.catalogue import find
    from vfx_export.text_exporting import SUFFIX, export_text_encoder, text_encoder_of

    model = find(name)
    encoder = text_encoder_of(model)
    if len(checkpoints) + random > 1:
        raise UsageError("--text takes one --checkpoint, or --random-weights")
    name += SUFFIX
    target.path(name)
    with _progress() as progress:
        given = checkpoints[0] if checkpoints else None
        weights = None if random else _weights(given, model.download, progress)
        merges = vocabulary or _weights(None, encoder.vocabulary, progress)
        task = progress.add_task("", total=None)
        return target.write(
            name,
            lambda path: export_text_encoder(
                model,
                path,
                checkpoint=weights,
                vocabulary=merges,
                precision=precision,
                stage=lambda stage: progress.update(task, description=stage),
            ),
            progress,
            task,
        )


def _export_own(module: str, spec_file: Path, precision: Precision | None, target: Target) -> Path:
    from vfx_export.exporting import export_module
    from vfx_export.own_module import build

    try:
        spec = EngineSpec.from_json(spec_file.read_bytes())
    except OSError as error:
        raise UsageError(f"--spec {shown(spec_file)}: {error.strerror}") from None
    except SpecError as error:
        raise SpecError(f"{shown(spec_file)}: {error}") from None
    if precision is not None:
        spec = dataclasses.replace(spec, precision=precision)
    if target.serving is not None and spec.precision == "bf16":
        raise UsageError("--precision bf16 is for OpenVINO on CPUs: Triton takes fp16 or fp32")
    built = build(module)
    with _progress() as progress:
        task = progress.add_task("", total=None)
        return target.write(
            spec.model,
            lambda path: export_module(
                built, spec, path, stage=lambda stage: progress.update(task, description=stage)
            ),
            progress,
            task,
        )


def _weights(checkpoint: str | None, download: Any, progress: Progress) -> Path:
    """A local file as it is; a URL, or the published file of a row, through the cache."""
    from vfx_export.download import cache_folder, fetch, is_url

    if checkpoint is not None and not is_url(checkpoint):
        return Path(checkpoint)
    if checkpoint is None and download.dead:
        raise UsageError(
            f"the published weights are no longer at {download.url}: {download.dead}; "
            "give a file with --checkpoint"
        )
    task = progress.add_task("downloading the weights", total=None)

    def seen(done: int, total: int | None) -> None:
        progress.update(task, completed=done, total=total)

    if checkpoint is not None:
        path = fetch(checkpoint, cache_folder(), progress=seen)
    else:
        path = fetch(
            download.url,
            cache_folder(),
            sha256=download.sha256,
            git_blob=download.git_blob,
            sha256_prefix=download.sha256_prefix,
            progress=seen,
        )
    progress.remove_task(task)
    return path


def _print_catalogue(as_json: bool) -> None:
    from vfx_export.catalogue import CATALOGUE

    rows = [
        {
            "model": model.name,
            "source": model.source,
            "licence": model.licence,
            "frames": model.sampling.frames,
            "stride": model.sampling.stride,
            "step": model.sampling.step,
            "input": _size(model.input(model.sampling.frames)),
            "output": model.feature.name,
            "length": _length(model.feature),
            "checkpoint": " ".join(part.download.url for part in model.parts) or model.download.url,
            "dead": model.download.dead,
        }
        for model in CATALOGUE
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    # As wide as the oldest terminal; what does not fit into columns stands below.
    table = Table(box=None, pad_edge=False)
    for name in ("model", "output", "length", "window", "step", "input"):
        table.add_column(name, no_wrap=True)
    by_licence: dict[str, list[str]] = {}
    for row in rows:
        size, length = (re.sub("(h)eight|(w)idth", r"\1\2", str(row[key])) for key in ("input", "length"))
        window = f"{row['frames']}x{row['stride']}"
        table.add_row(str(row["model"]), str(row["output"]), length, window, str(row["step"]), size)
        by_licence.setdefault(str(row["licence"]), []).append(str(row["model"]))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nA window is frames x stride, a step counts from one window to the next; of sound in samples."
    )
    console.print("Sources and addresses of the weights: --list --json. Their licences:")
    for licence, names in by_licence.items():
        console.print(f"  {licence}: {', '.join(names)}", markup=False)
    for row in rows:
        if row["dead"]:
            console.print(f"No longer at its address, {row['dead']}: {row['model']}", markup=False)


def _length(feature: Output) -> int | str:
    """Numbers of a row; the shape of a field of flow, which has the size of its frames."""
    row = feature.shape[1:] if feature.per == "pair" else feature.shape
    (length, *others) = row
    return "x".join(map(str, row)) if others else length


def _size(taken: Input) -> str:
    """Height and width of frames; the length of sound is its window's."""
    return "audio" if taken.modality == "audio" else "x".join(map(str, taken.shape[2:4]))


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=CONSOLE,
        transient=True,
        disable=not CONSOLE.is_terminal,
    )


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("vfx-export needs torch: pip install torch onnxscript safetensors")
