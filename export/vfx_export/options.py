"""Checking and carrying out what the command line of ``vfx-export`` asks for.

Functions that need torch import it themselves, because ``--help`` must not wait three seconds for it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vfx_engines.build_settings import BuildSettings
from vfx_engines.errors import SpecError, UsageError, shown
from vfx_engines.opening import cuda_index
from vfx_engines.spec import EngineSpec, Pool, Precision
from vfx_export.target import CONSOLE, Target, batch, missing_for_plan
from vfx_export.triton_config import Serving, parse_instances

if TYPE_CHECKING:
    from vfx_export.model import Model


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the command line's options; `vfx_export.cli` describes them."""

    model: str | None
    checkpoints: tuple[str, ...]
    random_weights: bool
    precision: Precision | None
    format_: str | None
    output: Path
    repository: Path | None
    instances: str | None
    frames: int | None
    resize: str | None
    exact_zeros: bool
    head: bool
    pool: Pool
    inflate: bool
    pca: Path | None
    text: bool
    vocabulary: Path | None
    list_: bool
    json_: bool
    module: str | None
    spec: Path | None
    batches: tuple[str, ...]
    level: int
    workspace: float | None
    version_compatible: bool
    hardware: Literal["same", "same_compute_capability", "ampere_plus"]
    device: str
    inspect: Path | None

    @property
    def of_frames(self) -> bool:
        """Whether an option is given that only applies to frame and audio models of the catalogue."""
        pooled = self.pool != "head"
        return bool(
            self.frames is not None
            or self.resize
            or self.exact_zeros
            or self.head
            or pooled
            or self.inflate
            or self.pca
        )


def run(given: Options) -> Path | None:
    """Carry out what the command line asks for.

    Returns:
        The file that was written; None if only something was printed.

    Raises:
        UsageError: the options do not go together, or a package is missing.
        VfxError: see `vfx_export.exporting.export_model` and `export_module`.
    """
    if given.inspect is not None:
        from vfx_engines.inspection import inspect_plan, layer_table

        click.echo(layer_table(*inspect_plan(given.inspect, _gpu(given.device))))
        return None
    if importlib.util.find_spec("torch") is None:
        raise UsageError("vfx-export needs torch: pip install torch onnxscript safetensors")
    if given.json_ and not given.list_:
        raise UsageError("--json goes with --list")
    if given.list_:
        from vfx_export.listing import print_catalogue

        print_catalogue(as_json=given.json_)
        return None
    _check_what(given)
    settings = _settings(given)
    _check_repository(given)
    target = _target(given, settings)
    if given.module is not None:
        return _export_own(given, _for_triton(given, target, settings))
    if given.text:
        return _export_text(given, target)
    from vfx_export.catalogue import find

    assert given.model is not None
    if target.settings and not (given.format_ == "plan" or given.output.suffix == ".plan"):
        target = target.for_network(find(given.model))
    return _export_catalogue(given, _for_triton(given, target, settings))


def _check_what(given: Options) -> None:
    """Refuse options that do not say clearly what to export."""
    if (given.model is None) == (given.module is None):
        raise UsageError("give --model NAME (--list shows them) or --module FILE.py:FACTORY")
    if "" in given.checkpoints:
        raise UsageError("--checkpoint: found the empty text, expected a file or a URL")
    if (given.module is None) != (given.spec is None):
        raise UsageError("--module FILE.py:FACTORY and --spec FILE.json go together")
    if given.vocabulary is not None and not given.text:
        raise UsageError("--vocabulary goes with --text")
    as_plan = given.format_ == "plan" or given.output.suffix == ".plan"
    if given.text and (given.of_frames or as_plan):
        raise UsageError("--text takes --checkpoint, --precision and --output only, and writes ONNX")
    weights = given.checkpoints or given.random_weights
    if given.module is not None and (weights or given.of_frames or given.text):
        raise UsageError("--module takes --spec, --precision and --output; it brings its own weights")


def _settings(given: Options) -> BuildSettings:
    """The settings for a plan; also needed without a plan, because Triton makes batches for ONNX too."""
    if given.workspace is not None and not 0 < given.workspace < 2**20:
        raise UsageError(f"--workspace {given.workspace:g}: expected GiB, more than 0")
    return BuildSettings(
        tuple(batch(text) for text in given.batches) or ((1, 8, 8),),
        given.level,
        None if given.workspace is None else int(given.workspace * 2**30),
        given.version_compatible,
        given.hardware,
    )


def _check_repository(given: Options) -> None:
    """Refuse options that do not go with a Triton repository, or only go with one."""
    if given.repository is None:
        if given.instances is not None:
            raise UsageError(f"--instances {given.instances}: goes with --triton REPO")
        return
    if given.output != Path():
        raise UsageError(
            f"--output {shown(given.output)}: --triton {shown(given.repository)} says where to write"
        )
    if given.precision == "bf16":
        raise UsageError("--precision bf16 is for OpenVINO on CPUs: Triton takes fp16 or fp32")
    if given.text:
        raise UsageError("--text and --triton: texts are encoded beside the runtime, not on a server")


def _target(given: Options, settings: BuildSettings) -> Target:
    """A plan if one was asked for, or if no format was and one can be built; else an ONNX file."""
    missing = "" if given.text else missing_for_plan(given.format_, given.output)
    if missing == "":
        _refuse_plan_options(served=given.repository is not None)
    target = Target(given.output, settings if missing is None else None, _gpu(given.device), missing or "")
    if target.settings and given.precision == "bf16":
        raise UsageError("--precision bf16 is for CPUs: a plan takes fp16 or fp32")
    return target


def _gpu(device: str) -> int:
    index = cuda_index(device)
    if index is None:
        raise UsageError(f"--device {device}: plans are built and inspected on a GPU: expected cuda:N")
    return index


_OF_PLANS = {"level", "workspace", "version_compatible", "hardware", "device"}


def _refuse_plan_options(*, served: bool) -> None:
    """Refuse options about plans where an .onnx file was asked for, which would ignore them."""
    # Triton makes batches for ONNX too.
    names = _OF_PLANS if served else _OF_PLANS | {"batches"}
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in names:
            raise UsageError(f"{option.opts[0]} applies to plans only, and this writes ONNX: leave it out")


def _for_triton(given: Options, target: Target, settings: BuildSettings) -> Target:
    if given.repository is None:
        return target
    for least, _, most in settings.batches:
        if least > 1:
            raise UsageError(f"--batch: Triton may send one window alone: expected 1 to {most}, not {least}")
    kind, count = parse_instances(given.instances, target.settings is not None)
    serving = Serving(given.repository, settings.batches, kind, count)
    return dataclasses.replace(target, serving=serving)


def _export_catalogue(given: Options, target: Target) -> Path:
    from vfx_export.catalogue import find
    from vfx_export.exporting import export_model

    assert given.model is not None
    name, random = given.model, given.random_weights
    model = find(name)
    if given.resize is not None:
        model = model.resized(given.resize)
    _check_model(given, model)
    target.path(name)
    usual: Precision = "fp16" if target.settings else "fp32"
    with _progress() as progress:
        downloads = [part.download for part in model.parts] or [model.download]
        files: tuple[str | None, ...] = given.checkpoints or (None,) * len(downloads)
        if len(files) != len(downloads):
            raise UsageError(
                f"{name}: {len(files)} --checkpoint given, expected {len(downloads)}"
                + "".join(f", {part.prefix}" for part in model.parts)
            )
        weights = (
            None if random else [_weights(*pair, progress) for pair in zip(files, downloads, strict=True)]
        )
        return target.write(
            name,
            lambda path, stage: export_model(
                model,
                path,
                checkpoint=weights,
                precision=given.precision or usual,
                frames=given.frames,
                head=given.head,
                pca=given.pca,
                pool=given.pool,
                inflate=given.inflate,
                exact_zeros=given.exact_zeros,
                stage=stage,
            ),
            progress,
        )


def _check_model(given: Options, model: Model) -> None:
    """Refuse what the model cannot do, before anything is downloaded."""
    if given.checkpoints and given.random_weights:
        raise UsageError("--checkpoint and --random-weights cannot be used together")
    model.windows(given.frames)
    if given.head:
        model.logits()
    if given.exact_zeros:
        model.check_exact_zeros()
    model.check_pool(given.pool)
    if given.inflate:
        model.check_inflation()
        if not given.checkpoints:
            raise UsageError("--inflate: give the 2D weights with --checkpoint")
    if given.pca is not None and model.postprocess is None:
        raise UsageError(f"--pca: {model.name} has no published post-processing")


def _export_text(given: Options, target: Target) -> Path:
    from vfx_export.catalogue import find
    from vfx_export.text_exporting import SUFFIX, export_text_encoder, text_encoder_of

    assert given.model is not None
    model = find(given.model)
    encoder = text_encoder_of(model)
    if len(given.checkpoints) + given.random_weights > 1:
        raise UsageError("--text takes one --checkpoint, or --random-weights")
    name = f"{model.name}{SUFFIX}"
    target.path(name)
    with _progress() as progress:
        file = given.checkpoints[0] if given.checkpoints else None
        weights = None if given.random_weights else _weights(file, model.download, progress)
        merges = given.vocabulary or _weights(None, encoder.vocabulary, progress)
        return target.write(
            name,
            lambda path, stage: export_text_encoder(
                model,
                path,
                checkpoint=weights,
                vocabulary=merges,
                precision=given.precision or "fp32",
                stage=stage,
            ),
            progress,
        )


def _export_own(given: Options, target: Target) -> Path:
    from vfx_export.exporting import export_module
    from vfx_export.own_module import build

    assert given.module is not None
    assert given.spec is not None
    try:
        spec = EngineSpec.from_json(given.spec.read_bytes())
    except OSError as error:
        raise UsageError(f"--spec {shown(given.spec)}: {error.strerror}") from None
    except SpecError as error:
        raise SpecError(f"{shown(given.spec)}: {error}") from None
    if given.precision is not None:
        spec = dataclasses.replace(spec, precision=given.precision)
    if target.serving is not None and spec.precision == "bf16":
        raise UsageError("--precision bf16 is for OpenVINO on CPUs: Triton takes fp16 or fp32")
    built = build(given.module)
    with _progress() as progress:
        return target.write(
            spec.model,
            lambda path, stage: export_module(built, spec, path, stage=stage),
            progress,
        )


def _weights(checkpoint: str | None, download: Any, progress: Progress) -> Path:
    """A local file as it is; a URL, or a row's published file, through the download cache."""
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
