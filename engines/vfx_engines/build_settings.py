"""How a TensorRT plan is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vfx_engines.errors import UsageError


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How a plan is built."""

    batches: tuple[tuple[int, int, int], ...] = ((1, 8, 8),)
    """Optimisation profiles: the fewest windows per call, what is tuned for, the most. Equal ones make a
    static plan."""
    level: int = 3
    """TensorRT's builder optimisation level, 0 (quickest build) to 5 (quickest engine)."""
    workspace: int | None = None
    """Bytes that a layer may use for scratch; None leaves it to TensorRT."""
    version_compatible: bool = False
    """Let later versions and the lean runtime run the plan; it may be slower."""
    hardware: Literal["same", "same_compute_capability", "ampere_plus"] = "same"
    """Which GPUs the plan is for, beside those of this model; others may be slower."""

    def __post_init__(self) -> None:
        for batch in self.batches:
            if not 1 <= batch[0] <= batch[1] <= batch[2]:
                raise UsageError(f"batch {batch}: expected the fewest, the usual and the most, from 1 up")
        if not 0 <= self.level <= 5:
            raise UsageError(f"builder level {self.level}: expected 0 to 5")
