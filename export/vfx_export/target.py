"""What an export writes: an ONNX file, or a TensorRT plan made of one, with a report."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID

from vfx_engines.build_settings import BuildSettings
from vfx_engines.devices import missing_driver
from vfx_engines.errors import OutputError, UsageError, reason, shown
from vfx_engines.spec import EngineSpec
from vfx_engines.tensorrt_api import INSTALL, is_installed
from vfx_export.triton_config import Serving
from vfx_export.triton_repository import new_version

if TYPE_CHECKING:
    from vfx_export.model import Model

CONSOLE = Console(stderr=True, highlight=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is to be written, and where."""

    output: Path
    settings: BuildSettings | None
    """Of a plan; None for ONNX."""
    index: int
    """Of the GPU that a plan is built on."""
    missing: str
    """Why ONNX is written where nothing was asked for; empty where it was."""
    serving: Serving | None = None
    """By Triton, from a repository that is written to instead of ``output``."""

    def for_network(self, model: Model) -> Target:
        """This target, or ONNX where the network takes frames of any size, which no plan can."""
        if self.settings is None or model.transform.crop is not None or model.modality == "audio":
            return self
        missing = f"{model.name} takes frames of any size, and a plan has one"
        return dataclasses.replace(self, settings=None, missing=missing)

    def path(self, name: str) -> Path:
        """The file.

        Raises:
            UsageError: the output is a file of another kind.
        """
        return _output_file(self.output, name, "onnx" if self.settings is None else "plan")

    def write(
        self, name: str, export: Callable[[Path], EngineSpec], progress: Progress, task: TaskID
    ) -> Path:
        """Export to ONNX, and build a plan of it if one is wanted; into the repository if there is one."""
        if self.serving is None:
            path = self.path(name)
            spec = self._build(path, export, progress, task)
        else:
            with new_version(self.serving.repository, name) as version:
                path = version.file("onnx" if self.settings is None else "plan")
                spec = self._build(path, export, progress, task)
                path = version.publish(spec, self.serving) / path.name
        progress.stop()
        _report(path, spec)
        if self.missing:
            CONSOLE.print(f"no TensorRT plan: {self.missing}", soft_wrap=True, markup=False)
        return path

    def _build(
        self, path: Path, export: Callable[[Path], EngineSpec], progress: Progress, task: TaskID
    ) -> EngineSpec:
        if self.settings is None:
            spec = export(path)
        else:
            from vfx_engines.plan_builder import build_plan

            def seen(phase: str, step: int, steps: int) -> bool:
                progress.update(task, description=f"TensorRT: {phase}", completed=step, total=steps)
                return True

            with tempfile.TemporaryDirectory(prefix="vfx-export-") as folder:
                onnx = Path(folder) / f"{path.stem}.onnx"
                export(onnx)
                try:
                    spec = build_plan(onnx, path, self.settings, index=self.index, progress=seen)
                except OSError as error:
                    raise OutputError(
                        f"{shown(path)}: cannot be written: {error.strerror or reason(error)}"
                    ) from None
        return spec


def missing_for_plan(format_: str | None, output: Path) -> str | None:
    """None where a plan is to be built; else what is missing for one, or nothing where ONNX is wanted.

    Raises:
        UsageError: a plan is asked for, and cannot be built here.
    """
    named = "" if output.is_dir() else output.suffix
    if (format_ or named.removeprefix(".")) == "onnx":
        return ""
    missing = missing_driver() if is_installed() else INSTALL
    if missing is not None and "plan" in (format_, named.removeprefix(".")):
        raise UsageError(f"no TensorRT plan can be built here: {missing}; or use --format onnx")
    return missing


def batch(text: str) -> tuple[int, int, int]:
    """``8`` or ``1,4,8``."""
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
