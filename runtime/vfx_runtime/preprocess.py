"""What happens between a decoded frame and its place in a window: one protocol, on a CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vfx_engines.engine import Engine
from vfx_engines.errors import UsageError
from vfx_runtime.decode import Frame
from vfx_runtime.resize import plan, plan_for
from vfx_runtime.views import Crops, cropped, view_transform

Pixels = NDArray[np.uint8]
P = TypeVar("P")


class Preprocess(Protocol[P]):
    """Brings frames to the engine's input and windows into its slots. Each decoding thread has its own."""

    def prepare(self, frame: Frame) -> P:
        """Resize and crop a frame. The result serves any number of windows, until it is let go.

        Raises:
            VideoError: the frame cannot be converted, is too small, or is of another size than the engine.
            EngineError: the device failed.
        """

    def place(self, slot: int, row: int, frames: Sequence[P | None], crop: int = 0) -> None:
        """Put a window into a row of a free slot; None is a blank frame.

        Args:
            slot: of the engine.
            row: of the slot.
            frames: the window.
            crop: which of the crops that the frames were prepared for.

        Raises:
            EngineError: the device failed.
        """

    def close(self) -> None:
        """Give back what it holds; once is enough."""


class CpuPreprocess:
    """`Preprocess` in host memory: Pillow's arithmetic, see `vfx_runtime.resize`.

    With three crops a frame is resized whole, once, and its crops are views of it.
    """

    def __init__(self, engine: Engine, crops: Crops = 1) -> None:
        self._engine, self._crops = engine, crops
        self._transform = view_transform(engine.spec, crops)

    def prepare(self, frame: Frame) -> Pixels:
        """uint8 [out_height, out_width, 3]."""
        rgb = frame.rgb()
        if self._crops == 1:
            frame_plan = plan_for(self._engine.spec, *rgb.shape[:2])
        else:
            frame_plan = plan(self._transform, *rgb.shape[:2])
        out = np.empty((frame_plan.out_height, frame_plan.out_width, 3), np.uint8)
        frame_plan.apply(rgb, out)
        return out

    def place(self, slot: int, row: int, frames: Sequence[Pixels | None], crop: int = 0) -> None:
        """Copy them straight into the memory that the device reads."""
        target = self._engine.buffer(slot)[row]
        for i, pixels in enumerate(frames):
            if pixels is not None and self._crops > 1:
                pixels = cropped(pixels, crop)
            target[i] = self._engine.spec.input.blank if pixels is None else pixels

    def like(self, other: CpuPreprocess) -> bool:
        """Whether the other one's frames are the same."""
        return self._transform == other._transform

    def close(self) -> None:
        """Nothing to give back."""


def prepares_on_device(engine: Engine) -> bool:
    """Whether frames are prepared where the engine reads them, and not copied there; sound never is."""
    return engine.cuda is not None and engine.spec.input.modality == "frames"


def check_crops(engine: Engine, crops: Crops) -> None:
    """The kernels crop while they resize, so on a device a frame has one crop.

    Raises:
        UsageError: three crops where frames are prepared on a device.
    """
    if crops > 1 and prepares_on_device(engine):
        raise UsageError(
            f"--crops {crops}: {engine.spec.model} runs on {engine.device}, where frames are cropped once: "
            "run it with --device cpu, or --crops 1"
        )


def preprocess_for(engine: Engine, crops: Crops = 1) -> Preprocess[Any]:
    """A preprocess for one thread, where the engine's input is: in host or in device memory.

    Raises:
        UsageError: see `check_crops`.
    """
    check_crops(engine, crops)
    if engine.cuda is None or not prepares_on_device(engine):
        return CpuPreprocess(engine, crops)
    from vfx_runtime.preprocess_cuda import CudaPreprocess

    return CudaPreprocess(engine, engine.cuda)


def shared(items: Sequence[Preprocess[Any]]) -> list[Preprocess[Any]]:
    """For each the first that prepares frames alike: what that one prepares serves all of them."""
    found: list[Preprocess[Any]] = []
    for item in items:
        same = (
            other
            for other in found
            if isinstance(other, CpuPreprocess) and isinstance(item, CpuPreprocess) and other.like(item)
        )
        found.append(next(same, item))
    return found
