"""Read the parity kit (../shared/parity, or shared/parity inside the checkout), model by model.

Without the kit, tests are skipped and say why. With ``parity`` in ``VFX_REQUIRE`` they fail instead, so that
a run that must prove parity cannot pass by skipping.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Kit:
    """One model of the kit."""

    name: str
    folder: Path
    spec: dict[str, Any]

    def checkpoint(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The generated state dict, with keys in the order of the public checkpoint."""
        state: dict[str, np.ndarray] = _weights().checkpoint(self.spec, seed)
        return state

    @cached_property
    def golden(self) -> dict[str, np.ndarray]:
        """``<case>.<output>``: what the public code gives for ``inputs(case)`` with weight seed 0."""
        return _npz(self.folder / "golden.npz")

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """``<case>.<output>``: what the public code gives for ``images(case)``, normalised, weight seed 0."""
        return _npz(self.folder / "pixels.npz")

    def inputs(self, case: str = "main", seed: int = 0) -> list[np.ndarray]:
        """The network's inputs, after all preprocessing and in its own layout."""
        made: list[np.ndarray] = _weights().inputs(self.spec, case, seed)
        return made

    def images(self, case: str = "main", seed: int = 0) -> np.ndarray:
        """The engine input that ``pixels`` was made from: uint8 ``[N, T, H, W, 3]``, of the case's last
        input.

        Networks of single frames (NCHW in the kit) get one frame per window.
        """
        item = self.spec["cases"][case]["inputs"][-1]
        made = _weights().images(tuple(item["shape"]), seed)
        if item["layout"] == "NCHW":
            made = made[:, :, None]
        elif item["layout"] != "NCTHW":
            raise ValueError(f"{self.name}: no uint8 windows for layout {item['layout']!r}")
        return np.ascontiguousarray(made.transpose(0, 2, 3, 4, 1).astype(np.uint8))

    def frames(self, case: str = "main", seed: int = 0) -> np.ndarray:
        """All frames of a flow network's case, whose inputs are parts of them: uint8 ``[T, 3, H, W]``."""
        shape = self.spec["cases"][case]["inputs"][0]["shape"]
        made: np.ndarray = _weights().images(tuple(shape), seed).astype(np.uint8)
        return made


@cache
def kit(name: str) -> Kit:
    """The kit's model ``name``, which is a folder of parity/, for example ``i3d_rgb``."""
    folder = shared("parity") / name
    return Kit(name, folder, json.loads((folder / "spec.json").read_text()))


def chirp(rate: int, seed: int = 0) -> np.ndarray:
    """The kit's sound: 3.2 s, mono, float64 in [-1, 1], with values that 16 bits can hold exactly."""
    made: np.ndarray = _weights().chirp(rate, 3.2, seed)
    return made


def e2e(job: str) -> dict[str, np.ndarray]:
    """What the public code wrote for a whole run on a video; ``e2e/index.json`` describes the jobs."""
    return _npz(shared("parity") / "e2e" / f"{job}.npz")


def video(name: str) -> Path:
    """A real video, for example ``v_GGSY1Qvo990.mp4``."""
    return shared("videos") / name


def shared(part: str) -> Path:
    """The folder ``part`` of the shared material. Without it, the test is skipped, or fails if required."""
    for base in (_ROOT.parent / "shared", _ROOT / "shared"):
        if (base / part).is_dir():
            return base / part
    reason = f"no ../shared/{part} beside the checkout"
    if "parity" in os.environ.get("VFX_REQUIRE", ""):
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def _weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_weights", shared("parity") / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
