"""Check what is installed: all dependencies, commands, types, the wheel's files, the pinned versions."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ROOMS = ("engines", "export", "runtime")
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def closure(requirements: list[str]) -> set[str]:
    """Names of all packages that requirements pull in, according to the installed packages' metadata."""
    found: set[str] = set()
    # onnxruntime-gpu cannot be installed next to onnxruntime, and has the same dependencies.
    queue = [Requirement(text.replace("onnxruntime-gpu", "onnxruntime")) for text in requirements]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            needed = requires(name)
        except PackageNotFoundError:
            pytest.fail(f"{name} is asked for by pyproject.toml or its dependencies and not installed")
        found.add(name)
        for text in needed or ():
            below = Requirement(text)
            extras = requirement.extras or {""}
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(below)
    return found


def test_the_lean_install_brings_no_torch() -> None:
    lean = closure(PROJECT["dependencies"])
    assert "numpy" in lean
    assert lean.isdisjoint({"torch", "torchvision", "onnxscript", "safetensors", "onnxruntime", "h5py"})
    assert not [name for name in lean if name.startswith(("nvidia", "cuda", "tensorrt"))]


def test_only_export_brings_torch() -> None:
    # The extra timm pulls in torchvision, of which no build fits the CPU-only torch of scripts/env.
    with_torch = {
        name
        for name, needed in EXTRAS.items()
        if name != "timm" and "torch" in closure([*PROJECT["dependencies"], *needed])
    }
    assert with_torch == {"export"}


def test_extras_that_are_named_exist() -> None:
    """Extras are named as ``vfx[NAME]`` in messages and documents, and as ``.[NAME]`` in scripts."""
    patterns = (
        "*.md",
        "docs/*.md",
        "scripts/*",
        *(f"{room}/**/*.{end}" for room in ROOMS for end in ("md", "py")),
    )
    named = {
        name
        for pattern in patterns
        for path in ROOT.glob(pattern)
        for found in re.findall(r"(?:vfx|\.)\[([a-z0-9,]+)\]'", path.read_text("utf-8"))
        for name in found.split(",")
    }
    assert "export" in named
    assert named <= set(EXTRAS)


def test_the_readme_lists_the_extras() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.partition("| extra | adds |\n|---|---|\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(EXTRAS)


def test_commands_are_installed_and_run() -> None:
    installed = {
        item.name: item for item in entry_points(group="console_scripts") if item.name.startswith("vfx-")
    }
    assert {name: item.value for name, item in installed.items()} == PROJECT["scripts"], "run scripts/env"
    for name, item in installed.items():
        assert isinstance(item.load(), click.Command)
        script = Path(sys.executable).with_name(name)
        said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
        assert said == f"{name}, version {PROJECT['version']}\n"


def test_versions_are_pinned_within_their_bounds() -> None:
    lines = (ROOT / "scripts" / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line.partition("==") for line in lines if "==" in line]
    pinned = {canonicalize_name(name): pin for name, _, pin in pins}
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    asked = [*PROJECT["dependencies"], *(item for items in EXTRAS.values() for item in items), *groups["dev"]]
    for text in asked:
        requirement = Requirement(text)
        pin = pinned.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name}: not in scripts/constraints.txt"
        assert requirement.specifier.contains(pin), f"{text}: scripts/constraints.txt has {pin}"


def test_no_release_is_allowed_that_was_not_there_to_be_tested() -> None:
    """Upper bounds exclude the next major version after the pinned one, with which the tests run."""
    lines = (ROOT / "scripts" / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    for text in [*PROJECT["dependencies"], *(item for items in EXTRAS.values() for item in items)]:
        requirement = Requirement(text)
        bounds = [Version(item.version) for item in requirement.specifier if item.operator == "<"]
        assert len(bounds) == 1, f"{text}: has no upper bound"
        pin = Version(pinned[canonicalize_name(requirement.name)])
        assert bounds[0] <= Version(str(pin.major + 1)), f"{text}: {pin} is what was tested"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_all_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT / room).as_posix()
        for room in ROOMS
        for path in (ROOT / room / f"vfx_{room}").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == sources
    assert {f"vfx_{room}/py.typed" for room in ROOMS} <= held
    assert {"vfx_export/labels/kinetics400.txt", "vfx_runtime/kernels/preprocess.cu"} <= held


def test_the_wheel_says_who_it_is(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("vfx", version("vfx"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
