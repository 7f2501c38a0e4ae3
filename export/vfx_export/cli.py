"""``vfx-export``: from a model's name to an engine file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vfx_engines.errors import ExportError, SpecError, UsageError, VfxError, reason, shown
from vfx_engines.spec import EngineSpec, Precision

if TYPE_CHECKING:
    from torch import nn

# torch is imported by the functions that need it: --help and --list must not wait three seconds for it.

_console = Console(stderr=True, highlight=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", metavar="NAME", help="Catalogue model to export; --list names them.")
@click.option(
    "--checkpoint",
    metavar="FILE|URL",
    help="Weights to use instead of downloading the published ones.",
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
    help="File to write.  [default: plan where TensorRT is installed, else onnx]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="FILE|FOLDER",
    help="Where to write; a folder gets <model>.onnx.  [default: the current folder]",
)
@click.option("--frames", type=int, metavar="N", help="Frames of a window, if not the model's own.")
@click.option("--head", is_flag=True, help="Give the classifier's logits too, with their labels.")
@click.option("--list", "list_", is_flag=True, help="Print the catalogue and leave.")
@click.option("--json", "json_", is_flag=True, help="With --list: as JSON.")
@click.option(
    "--module",
    metavar="FILE.py:FACTORY",
    help="Export your own torch module: FACTORY() in FILE.py returns it. Needs --spec.",
)
@click.option(
    "--spec",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="What the module eats and gives, as JSON (see docs/spec.md).",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="vfx", prog_name="vfx-export")
def main(debug: bool, **options: Any) -> None:
    r"""Cut a video backbone at its features, and write it as an engine that vfx-run runs.

    The file is compared with the torch module on two inputs before it gets its name; one that
    computes anything else is not written. Its path is printed on stdout.

    \b
    vfx-export --list
    vfx-export --model i3d
    vfx-export --model i3d --checkpoint i3d_rgb.pt --precision bf16 --head
    vfx-export --model i3d --frames 16 --output engines/i3d_16.onnx
    """
    try:
        path = _run(**options)
    except VfxError as error:
        if debug:
            _console.print_exception()
        click.echo(f"vfx-export: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    if path is not None:
        click.echo(shown(path))


def _run(
    model: str | None,
    checkpoint: str | None,
    random_weights: bool,
    precision: Precision | None,
    format_: str | None,
    output: Path,
    frames: int | None,
    head: bool,
    list_: bool,
    json_: bool,
    module: str | None,
    spec: Path | None,
) -> Path | None:
    _require_torch()
    if json_ and not list_:
        raise UsageError("--json goes with --list")
    if list_:
        _print_catalogue(json_)
        return None
    if (model is None) == (module is None):
        raise UsageError("give --model NAME (--list shows them) or --module FILE.py:FACTORY")
    if format_ == "plan" or (format_ is None and importlib.util.find_spec("tensorrt") is not None):
        line = "TensorRT plans cannot be built by this version of vfx"
        if format_ == "plan":
            raise UsageError(f"{line}: use --format onnx")
        click.echo(f"vfx-export: {line}: writing ONNX", err=True)
    if (module is None) != (spec is None):
        raise UsageError("--module FILE.py:FACTORY and --spec FILE.json go together")
    if module is not None:
        if spec is None or checkpoint or random_weights or frames or head:
            raise UsageError("--module takes --spec, --precision and --output; weights are its own business")
        return _export_own(module, spec, precision, output)
    assert model is not None
    return _export_catalogue(model, checkpoint, random_weights, precision or "fp32", output, frames, head)


def _export_catalogue(
    name: str,
    checkpoint: str | None,
    random: bool,
    precision: Precision,
    output: Path,
    frames: int | None,
    head: bool,
) -> Path:
    from vfx_export.catalogue import find
    from vfx_export.exporting import export_model

    model = find(name)
    if checkpoint is not None and random:
        raise UsageError("--checkpoint and --random-weights exclude each other")
    model.windows(frames)  # refuses what the network cannot take, before anything is downloaded
    path = _output_file(output, name)
    with _progress() as progress:
        weights = None if random else _weights(checkpoint, model.download, progress)
        task = progress.add_task("", total=None)
        spec = export_model(
            model,
            path,
            checkpoint=weights,
            precision=precision,
            frames=frames,
            head=head,
            stage=lambda stage: progress.update(task, description=stage),
        )
    _report(path, spec)
    return path


def _export_own(module: str, spec_file: Path, precision: Precision | None, output: Path) -> Path:
    from vfx_export.exporting import export_module

    try:
        spec = EngineSpec.from_json(spec_file.read_bytes())
    except OSError as error:
        raise UsageError(f"--spec {shown(spec_file)}: {error.strerror}") from None
    except SpecError as error:
        raise SpecError(f"{shown(spec_file)}: {error}") from None
    if precision is not None:
        spec = dataclasses.replace(spec, precision=precision)
    built = _build(module)
    path = _output_file(output, spec.model)
    with _progress() as progress:
        task = progress.add_task("", total=None)
        spec = export_module(built, spec, path, stage=lambda stage: progress.update(task, description=stage))
    _report(path, spec)
    return path


def _build(text: str) -> nn.Module:
    """What the factory of ``FILE.py:NAME`` returns. The user's own code runs here, and only here."""
    from torch import nn

    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise UsageError(f"--module {shown(text)}: expected FILE.py:FACTORY with a file that exists")
    loaded = importlib.util.spec_from_file_location(f"_vfx_module_{Path(file).stem}", file)
    assert loaded is not None
    assert loaded.loader is not None
    code = importlib.util.module_from_spec(loaded)
    # Dataclasses and pickling look a class's module up there.
    sys.modules[code.__name__] = code
    sys.path.insert(0, str(Path(file).resolve().parent))
    try:
        loaded.loader.exec_module(code)
        factory = getattr(code, name, None)
        built = factory() if callable(factory) else None
    except (Exception, SystemExit) as error:  # anyone's code: it may raise anything
        raise ExportError(
            f"--module {shown(text)}: {type(error).__name__}: {reason(error)} (--debug shows where)"
        ) from error
    if not callable(factory):
        raise UsageError(f"--module {shown(text)}: the file has no function {name!r}")
    if not isinstance(built, nn.Module):
        raise ExportError(
            f"--module {shown(text)}: {name} returned a {type(built).__name__}, no torch module"
        )
    return built


def _weights(checkpoint: str | None, download: Any, progress: Progress) -> Path:
    """A local file as it is; a URL, or the published file of a row, through the cache."""
    from vfx_export.download import cache_folder, fetch, is_url

    if checkpoint is not None and not is_url(checkpoint):
        return Path(checkpoint)
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
            progress=seen,
        )
    progress.remove_task(task)
    return path


def _output_file(output: Path, name: str) -> Path:
    if output.is_dir():
        return output / f"{name}.onnx"
    if output.suffix == ".onnx":
        return output
    if output.suffix == ".plan":
        raise UsageError(f"--output {shown(output)}: this version of vfx writes .onnx files")
    return output / f"{name}.onnx"


def _report(path: Path, spec: EngineSpec) -> None:
    assert spec.proof is not None
    if spec.weights.file == "random":
        _console.print("[bold red]RANDOM WEIGHTS[/]: the features of this engine mean nothing")
    outputs = ", ".join(f"{output.name} {list(output.shape)}" for output in spec.outputs)
    _console.print(
        f"{shown(path.name)}: {spec.model}, {spec.precision}, {spec.sampling.frames} frames -> {outputs}, "
        f"{os.path.getsize(path) / 2**20:.1f} MiB",
        markup=False,
        soft_wrap=True,
    )
    _console.print(
        f"compared on {spec.proof.inputs} inputs with {spec.proof.reference}: relative error "
        f"{spec.proof.error:.1e} (at most {spec.proof.tolerance:.0e} allowed)",
        markup=False,
        soft_wrap=True,
    )


def _print_catalogue(as_json: bool) -> None:
    from vfx_export.catalogue import CATALOGUE

    rows = [
        {
            "model": model.name,
            "source": model.source,
            "licence": model.licence,
            "frames": model.sampling.frames,
            "step": model.sampling.step,
            "input": "x".join(map(str, model.input(model.sampling.frames).shape[2:4])),
            "output": model.feature.name,
            "length": model.feature.shape[0],
            "checkpoint": model.download.url,
        }
        for model in CATALOGUE
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(highlight=False).print(table)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=_console,
        transient=True,
        disable=not _console.is_terminal,
    )


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("vfx-export needs torch: pip install 'vfx[export]'")
