"""Fixtures that all tests share, and what happens if a machine lacks something that a test needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from exports import PYSLOWFAST, Exports
from vfx_runtime.claims import Claims

REQUIRED = set(os.environ.get("VFX_REQUIRE", "").split(",")) - {""}
"""What this machine is supposed to have (VFX_REQUIRE, comma-separated). A test that misses it fails."""


def lacking(what: str, why: str) -> NoReturn:
    """Skip a test because ``what`` is missing here; or fail it if VFX_REQUIRE names it."""
    if what in REQUIRED:
        pytest.fail(f"VFX_REQUIRE asks for {what}: {why}")
    pytest.skip(why)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def claims(output: Path) -> Iterator[Claims]:
    """This process's claims on the output folder."""
    with Claims(output) as claims:
        yield claims


@pytest.fixture(scope="session")
def pyslowfast(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports of PySlowFast's ResNets and SlowFasts, shared by several test modules."""
    pytest.importorskip("torch")
    return Exports(tmp_path_factory.mktemp("pyslowfast"), PYSLOWFAST)


@pytest.fixture(scope="session")
def i3d_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit's I3D checkpoint with weight seed 0, in the format of the public one."""
    torch = pytest.importorskip("torch")
    from parity_kit import kit

    path = tmp_path_factory.mktemp("checkpoint") / "i3d_rgb.pt"
    state = kit("i3d_rgb").checkpoint()
    torch.save({key: torch.from_numpy(value.copy()) for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def i3d_engines(tmp_path_factory: pytest.TempPathFactory, i3d_checkpoint: Path) -> I3DEngines:
    """Exports of I3D, each made when a test first asks for it."""
    return I3DEngines(tmp_path_factory.mktemp("engines"), i3d_checkpoint)


class I3DEngines:
    """``engines(precision, frames)`` gives the path of that export, with its head."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self._folder, self._checkpoint = folder, checkpoint

    def __call__(self, precision: str, frames: int) -> Path:
        from vfx_export.catalogue import find
        from vfx_export.exporting import export_model

        path = self._folder / f"i3d_{precision}_{frames}.onnx"
        if not path.exists():
            export_model(
                find("i3d"),
                path,
                checkpoint=self._checkpoint,
                precision=precision,  # type: ignore[arg-type]
                frames=frames,
                head=True,
            )
        return path
