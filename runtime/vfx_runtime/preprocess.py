"""What happens between a decoded frame and its place in a window: one protocol, on a CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vfx_engines.engine import Engine
from vfx_runtime.decode import Frame
from vfx_runtime.resize import plan, plan_for
from vfx_runtime.views import Crops, cropped, view_transform

Pixels = NDArray[np.uint8]
P = TypeVar("P")


class Preprocess(Protocol[P]):
    """Brings frames to the engine's input and windows into its slots. Each decoding thread has its own."""

    @property
    def maker(self) -> Preprocess[P]:
        """Whose `prepare` serves this one: its own, or that of an engine beside it that takes the same."""

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

    Args:
        engine: whose slots are filled.
        crops: of each frame.
        maker: one of another engine, whose frames are the same.
    """

    def __init__(self, engine: Engine, crops: Crops = 1, maker: CpuPreprocess | None = None) -> None:
        self._engine, self._crops = engine, crops
        self._transform = view_transform(engine.spec, crops)
        self.maker = maker or self

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

    def like(self, engine: Engine) -> bool:
        """Whether frames that this one makes are those that an engine takes."""
        return view_transform(engine.spec, self._crops) == self._transform

    def close(self) -> None:
        """Nothing to give back."""


def prepares_on_device(engine: Engine) -> bool:
    """Whether frames are prepared where the engine reads them, and not copied there; sound never is."""
    return engine.cuda is not None and engine.spec.input.modality == "frames"


def preprocess_for(
    engine: Engine, crops: Crops = 1, others: Sequence[Preprocess[Any]] = ()
) -> Preprocess[Any]:
    """A preprocess for one thread, where the engine's input is: in host or in device memory.

    Args:
        engine: open.
        crops: of each frame.
        others: those of the engines before it, on the same thread and closed after it: what is the same is
            made once.

    Raises:
        UsageError: the engine's frames cannot be cropped three times, or NVRTC is missing.
        EngineError: the device failed.
    """
    if engine.cuda is None or not prepares_on_device(engine):
        return CpuPreprocess(
            engine,
            crops,
            next((item for item in others if isinstance(item, CpuPreprocess) and item.like(engine)), None),
        )
    from vfx_runtime.preprocess_cuda import CudaPreprocess, CudaSharing

    for item in others:
        if isinstance(item, CudaPreprocess) and item.like(engine):
            return CudaSharing(engine, item)
    return CudaPreprocess(engine, engine.cuda, crops)
