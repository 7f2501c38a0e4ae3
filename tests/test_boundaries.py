"""Check which package may import what, by importing it while the forbidden packages are hidden."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from make_video import make_video
from tiny import tiny_engine

EXPORT = ("torch", "onnxscript", "safetensors")
OPTIONAL = (
    "onnxruntime",
    "fsspec",
    "h5py",
    "matplotlib",
    "cuda",
    "pyarrow",
    "pycuda",
    "ray",
    "tensorrt",
    "tensorrt_lean",
    "tensorrt_lean_bindings",
)
DEV = ("decord", "PIL", "hypothesis", "pytest")

ADAPTERS = {"vfx_engines.cuda_python": "cuda", "vfx_engines.cuda_pycuda": "pycuda"}
"""Modules that wrap one optional package each, which only code that has found the package imports."""


def without(*packages: str) -> str:
    """The beginning of a program that cannot import these packages."""
    return f"import sys\nfor name in {packages!r}: sys.modules[name] = None\n"


def run(code: str, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


IMPORT_ALL = """
import importlib, json, pkgutil
failed = {}
names = [sys.argv[1]]
for name in names:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error.name).partition(".")[0]
        continue
    names += [item.name for item in pkgutil.iter_modules(getattr(module, "__path__", ()), name + ".")]
print(json.dumps([names, failed]))
"""


@pytest.mark.parametrize(("room", "others"), [("engines", ("runtime", "export")), ("runtime", ("export",))])
def test_a_lean_room_needs_no_other_package(room: str, others: tuple[str, ...]) -> None:
    forbidden = (*EXPORT, *OPTIONAL, *DEV, *(f"vfx_{other}" for other in others))
    result = run(without(*forbidden) + IMPORT_ALL, f"vfx_{room}")
    assert result.returncode == 0, result.stderr
    names, failed = json.loads(result.stdout)
    folder = Path(__file__).resolve().parents[1] / room / f"vfx_{room}"
    files = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    assert len(names) >= len(files), "not every module was tried"
    assert failed == {name: package for name, package in ADAPTERS.items() if name in names}


def test_export_needs_no_runtime() -> None:
    pytest.importorskip("torch")
    result = run(without("vfx_runtime", *OPTIONAL) + IMPORT_ALL, "vfx_export")
    assert result.returncode == 0, result.stderr
    _, failed = json.loads(result.stdout)
    assert failed == {}


def test_a_run_reaches_for_nothing_else(tmp_path: Path) -> None:
    """This also covers imports inside functions."""
    tiny_engine(tmp_path / "tiny.onnx")
    make_video(tmp_path / "a.mp4", frames=9)
    code = without(*EXPORT, *OPTIONAL, *DEV, "vfx_export") + "from vfx_runtime.cli import main\nmain()"
    result = run(code, "--engine", "tiny.onnx", "a.mp4", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["features/a.npz"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--backend", "onnxruntime"), "pip install onnxruntime"),
        (("--format", "hdf5"), "pip install h5py"),
        (("--format", "parquet"), "pip install pyarrow"),
        (("--ray",), "pip install 'ray[data]'"),
        (("s3://bucket/clips",), "pip install fsspec"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    tmp_path: Path, option: tuple[str, str], message: str
) -> None:
    tiny_engine(tmp_path / "tiny.onnx")
    make_video(tmp_path / "a.mp4", frames=9)
    code = without(*OPTIONAL) + "from vfx_runtime.cli import main\nmain()"
    result = run(code, "--engine", "tiny.onnx", "a.mp4", *option, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(message)
    assert "Traceback" not in result.stderr


def test_vfx_export_without_torch_says_how_to_get_it(tmp_path: Path) -> None:
    code = without("torch") + "from vfx_export.cli import main\nmain()"
    result = run(code, "--model", "i3d", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "vfx-export: vfx-export needs torch: pip install torch onnxscript safetensors\n"


@pytest.mark.parametrize(
    "module", ["vfx_runtime.cli", "vfx_runtime.bench", "vfx_runtime.show", "vfx_export.cli"]
)
def test_help_waits_for_no_heavy_import(module: str) -> None:
    heavy = ("torch", "openvino", "llvmlite", "onnx", "onnxruntime", "matplotlib")
    code = without(*heavy) + f"from {module} import main\nmain(['--help'])"
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: ")
