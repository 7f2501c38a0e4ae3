"""Settings for building a TensorRT plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vfx_engines.errors import UsageError


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How a plan is built.

    Raises:
        UsageError: a batch is not in ascending order or below 1, or the level is not 0 to 5.
    """

    batches: tuple[tuple[int, int, int], ...] = ((1, 8, 8),)
    """One optimisation profile each, in windows per call: the fewest, the number to tune for, the most. If
    all three are equal, the plan is static."""
    level: int = 3
    """TensorRT's builder optimisation level, from 0 (fastest build) to 5 (fastest engine)."""
    workspace: int | None = None
    """Scratch memory that a layer may use, in bytes; None leaves the choice to TensorRT."""
    version_compatible: bool = False
    """Let later versions and the lean runtime run the plan, which may make it slower."""
    hardware: Literal["same", "same_compute_capability", "ampere_plus"] = "same"
    """Which GPUs can run the plan: the same model, the same compute capability, or Ampere and later. A plan
    for more GPUs may be slower."""

    def __post_init__(self) -> None:
        for batch in self.batches:
            if not 1 <= batch[0] <= batch[1] <= batch[2]:
                raise UsageError(f"batch {batch}: expected the fewest, the usual and the most, from 1 up")
        if not 0 <= self.level <= 5:
            raise UsageError(f"builder level {self.level}: expected 0 to 5")
