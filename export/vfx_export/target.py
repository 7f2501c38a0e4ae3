"""What an export writes, an ONNX file or a TensorRT plan built from one, and the report about it."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from vfx_engines.build_settings import BuildSettings
from vfx_engines.devices import missing_driver
from vfx_engines.errors import OutputError, UsageError, reason, shown
from vfx_engines.spec import EngineSpec
from vfx_engines.tensorrt_api import INSTALL, is_installed
from vfx_export.triton_config import Serving
from vfx_export.triton_repository import new_version

if TYPE_CHECKING:
    from vfx_export.exporting import Stage
    from vfx_export.model import Model

CONSOLE = Console(stderr=True, highlight=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is to be written, and where."""

    output: Path
    """File or folder to write."""
    settings: BuildSettings | None
    """How to build a plan; None to write ONNX."""
    index: int
    """Number of the GPU to build a plan on."""
    missing: str
    """Why ONNX is written although no format was asked for; otherwise empty."""
    serving: Serving | None = None
    """Set to write into a Triton repository instead of ``output``."""

    def for_network(self, model: Model) -> Target:
        """This target, changed to ONNX if the network takes frames of any size, which a plan cannot do."""
        if self.settings is None or model.transform.crop is not None or model.modality == "audio":
            return self
        missing = f"{model.name} takes frames of any size, and a plan has one"
        return dataclasses.replace(self, settings=None, missing=missing)

    def path(self, name: str) -> Path:
        """The file to write for a model of this name.

        Raises:
            UsageError: the output is a file name of the other kind.
        """
        return _output_file(self.output, name, "onnx" if self.settings is None else "plan")

    def write(self, name: str, export: Callable[[Path, Stage], EngineSpec], progress: Progress) -> Path:
        """Export to ONNX, build a plan from it if one is wanted, and print a report to stderr.

        Args:
            name: name of the model.
            export: writes the ONNX file to a path, and returns its spec; it calls its second argument with
                the name of each stage that it begins.
            progress: where the stages, and the build of a plan, are shown.

        Returns:
            The file that was written, in ``output`` or in the Triton repository.

        Raises:
            VfxError: whatever ``export`` raises.
            UsageError: the output is a file name of the other kind, or building plans needs something that
                is missing.
            EngineError: the plan cannot be built.
            OutputError: the file cannot be written.
        """
        if self.serving is None:
            path = self.path(name)
            spec = self._build(path, export, progress)
        else:
            with new_version(self.serving.repository, name) as version:
                path = version.file("onnx" if self.settings is None else "plan")
                spec = self._build(path, export, progress)
                path = version.publish(spec, self.serving) / path.name
        progress.stop()
        _report(path, spec)
        if self.missing:
            CONSOLE.print(f"no TensorRT plan: {self.missing}", soft_wrap=True, markup=False)
        return path

    def _build(
        self, path: Path, export: Callable[[Path, Stage], EngineSpec], progress: Progress
    ) -> EngineSpec:
        task = progress.add_task("", total=None)

        def stage(name: str) -> None:
            progress.update(task, description=name)

        if self.settings is None:
            spec = export(path, stage)
        else:
            from vfx_engines.plan_builder import build_plan

            def seen(phase: str, step: int, steps: int) -> bool:
                progress.update(task, description=f"TensorRT: {phase}", completed=step, total=steps)
                return True

            with tempfile.TemporaryDirectory(prefix="vfx-export-") as folder:
                onnx = Path(folder) / f"{path.stem}.onnx"
                export(onnx, stage)
                try:
                    spec = build_plan(onnx, path, self.settings, index=self.index, progress=seen)
                except OSError as error:
                    raise OutputError(
                        f"{shown(path)}: cannot be written: {error.strerror or reason(error)}"
                    ) from None
        return spec


def missing_for_plan(format_: str | None, output: Path) -> str | None:
    """What is missing to build a plan.

    Args:
        format_: value of ``--format``; None if it was not given.
        output: value of ``--output``, whose suffix also tells the format.

    Returns:
        None if a plan should be built; the empty text if ONNX was asked for; else why no plan can be built
        here, so that ONNX is written.

    Raises:
        UsageError: a plan was asked for, but cannot be built here.
    """
    named = "" if output.is_dir() else output.suffix
    if (format_ or named.removeprefix(".")) == "onnx":
        return ""
    missing = missing_driver() if is_installed() else INSTALL
    if missing is not None and "plan" in (format_, named.removeprefix(".")):
        raise UsageError(f"no TensorRT plan can be built here: {missing}; or use --format onnx")
    return missing


def batch(text: str) -> tuple[int, int, int]:
    """Fewest, tuned and most windows per call, from a value of ``--batch``: ``8`` (1, 8, 8) or ``1,4,8``.

    Raises:
        UsageError: the text is neither one nor three numbers.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return 1, numbers[0], numbers[0]
    if len(numbers) != 3:
        raise UsageError(f"--batch {text!r}: expected N, or MIN,OPT,MAX")
    return numbers[0], numbers[1], numbers[2]


def _output_file(output: Path, name: str, kind: str) -> Path:
    if output.is_dir() or output.suffix not in (".onnx", ".plan"):
        return output / f"{name}.{kind}"
    if output.suffix != f".{kind}":
        raise UsageError(f"--output {shown(output)}: expected a .{kind} file or a folder")
    return output


def _report(path: Path, spec: EngineSpec) -> None:
    assert spec.proof is not None
    if spec.weights.file == "random":
        CONSOLE.print("[bold red]RANDOM WEIGHTS[/]: the features of this engine mean nothing")
    outputs = ", ".join(f"{output.name} {list(output.shape)}" for output in spec.outputs)
    CONSOLE.print(
        f"{shown(path.name)}: {spec.model}, {spec.precision}, {_counted(spec)} -> {outputs}, "
        f"{os.path.getsize(path) / 2**20:.1f} MiB",
        markup=False,
        soft_wrap=True,
    )
    CONSOLE.print(
        f"compared on {spec.proof.inputs} inputs with {spec.proof.reference}: relative error "
        f"{spec.proof.error:.1e} (at most {spec.proof.tolerance:.0e} allowed)",
        markup=False,
        soft_wrap=True,
    )


def _counted(spec: EngineSpec) -> str:
    what = {"audio": "samples", "text": "tokens"}.get(spec.input.modality, "frames")
    count = spec.input.shape[1] if spec.input.modality == "text" else spec.sampling.frames
    return f"{count} {what if count != 1 else what.removesuffix('s')}"
