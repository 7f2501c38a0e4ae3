"""Catalogue models, exported from the kit's checkpoints when a test first asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_kit import kit

PYSLOWFAST = {
    "c2d_nopool_8x8_r50": "C2D_NOPOOL_8x8_R50",
    "c2d_8x8_r50": "C2D_8x8_R50",
    "i3d_8x8_r50": "I3D_8x8_R50",
    "i3d_nln_8x8_r50": "I3D_NLN_8x8_R50",
    "slow_4x16_r50": "SLOW_4x16_R50",
    "slow_8x8_r50": "SLOW_8x8_R50",
    "slowfast_4x16_r50": "SLOWFAST_4x16_R50",
    "slowfast_8x8_r50": "SLOWFAST_8x8_R50",
    "slowfast_8x8_r50_stepwise_multigrid": "SLOWFAST_8x8_R50",
    "slowfast_16x8_r50_charades": "SLOWFAST_16x8_R50_Charades",
    "slowfast_16x8_r50_charades_multigrid": "SLOWFAST_16x8_R50_Charades",
    "slowfast_16x8_r50_ssv2": "SLOWFAST_16x8_R50_SSv2",
    "slowfast_16x8_r50_ssv2_multigrid": "SLOWFAST_16x8_R50_SSv2",
    "slowfast_16x8_r101_ava": "SLOWFAST_32x2_R101_50_50_AVA",
}
"""PySlowFast's ResNets and SlowFasts, with the kit's folder of each."""


def heavy(*values: Any) -> Any:
    """A parameter set that takes long; only ``scripts/test -m slow`` runs it."""
    return pytest.param(*values, marks=pytest.mark.slow)


def heavy_in_ci(*values: Any) -> Any:
    """Like `heavy`, but CI runs it too, although it does not run all slow sets of the file."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.ci])


class Exports:
    """``exports(name, precision)`` gives the path of that engine, with its head and weight seed 0.

    The kit's folder has the name of the catalogue's row, unless ``kits`` gives another one for the row.
    """

    def __init__(self, folder: Path, kits: Mapping[str, str] | None = None) -> None:
        self.folder, self.kits = folder, kits or {}

    def __call__(self, name: str, precision: str) -> Path:
        path = self.folder / f"{name}_{precision}.onnx"
        if not path.exists():
            self.export(path, name, precision, seed=0)
        return path

    def export(
        self,
        path: Path,
        name: str,
        precision: str,
        *,
        seed: int,
        frames: int | None = None,
        head: bool = True,
        exact_zeros: bool = False,
        **changes: Any,
    ) -> Any:
        """Export weights of any seed, or a row with ``changes``; returns the spec."""
        from vfx_export.catalogue import find
        from vfx_export.exporting import export_model

        return export_model(
            dataclasses.replace(find(name), **changes),
            path,
            checkpoint=self.checkpoint(name, seed),
            precision=precision,  # type: ignore[arg-type]
            frames=frames,
            head=head,
            exact_zeros=exact_zeros,
        )

    def checkpoint(self, name: str, seed: int = 0) -> Path:
        """A file with the kit's weights, in the format of the public checkpoint."""
        import torch

        path = self.folder / f"{name}_{seed}.pt"
        if not path.exists():
            torch.save(self.state(name, seed), path)
        return path

    def state(self, name: str, seed: int = 0) -> dict[str, Any]:
        """The kit's weights in memory."""
        import torch

        arrays = kit(self.kits.get(name, name)).checkpoint(seed)
        return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


def relative(got: Any, want: Any) -> float:
    """L2 norm of the difference, relative to the L2 norm of ``want``."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def rows_apart(got: Any, want: Any) -> float:
    """The largest relative L2 error of any row."""
    assert got.shape == want.shape
    return max(relative(row, target) for row, target in zip(got, want, strict=True))
