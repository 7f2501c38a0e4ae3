"""From a decoded frame to its place in a window: one protocol, implemented on the CPU and on CUDA."""

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
    """Resizes and crops frames, and puts windows into an engine's slots. Each decoding thread has its own."""

    @property
    def maker(self) -> Preprocess[P]:
        """The preprocess that makes the frames: itself, or that of another engine with equal frames."""

    def prepare(self, frame: Frame) -> P:
        """Resize and crop a frame. The result can be used in any number of windows.

        Raises:
            VideoError: the frame cannot be converted, is too small, or has another size than the engine
                takes.
            EngineError: the device failed.
        """

    def place(self, slot: int, row: int, frames: Sequence[P | None], crop: int = 0) -> None:
        """Put a window into a row of a slot.

        Args:
            slot: number of a slot that is being filled.
            row: row of the slot.
            frames: the prepared frames of the window; None stands for a blank frame.
            crop: which crop to take, of those that the frames were prepared for.

        Raises:
            EngineError: the device failed.
        """

    def close(self) -> None:
        """Release all resources. May be called again."""


class CpuPreprocess:
    """`Preprocess` in host memory, see `vfx_runtime.resize`.

    With three crops, the whole frame is resized once, and the crops are views of it.

    Args:
        engine: the engine whose slots are filled.
        crops: number of crops of each frame.
        maker: the preprocess of another engine with equal frames, if there is one.
    """

    def __init__(self, engine: Engine, crops: Crops = 1, maker: CpuPreprocess | None = None) -> None:
        self._engine, self._crops = engine, crops
        self._transform = view_transform(engine.spec, crops)
        self.maker = maker or self

    def prepare(self, frame: Frame) -> Pixels:
        """Resize and crop a frame: uint8 ``[out_height, out_width, 3]``, RGB."""
        rgb = frame.rgb()
        if self._crops == 1:
            frame_plan = plan_for(self._engine.spec, *rgb.shape[:2])
        else:
            frame_plan = plan(self._transform, *rgb.shape[:2])
        out = np.empty((frame_plan.out_height, frame_plan.out_width, 3), np.uint8)
        frame_plan.apply(rgb, out)
        return out

    def place(self, slot: int, row: int, frames: Sequence[Pixels | None], crop: int = 0) -> None:
        """Copy the frames directly into the memory that the device reads."""
        target = self._engine.buffer(slot)[row]
        for i, pixels in enumerate(frames):
            if pixels is not None and self._crops > 1:
                pixels = cropped(pixels, crop)
            target[i] = self._engine.spec.input.blank if pixels is None else pixels

    def like(self, engine: Engine) -> bool:
        """Whether the frames made here are those that the given engine takes."""
        return view_transform(engine.spec, self._crops) == self._transform

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def prepares_on_device(engine: Engine) -> bool:
    """Whether frames are prepared in device memory rather than copied there. Never the case for sound."""
    return engine.cuda is not None and engine.spec.input.modality == "frames"


def preprocess_for(
    engine: Engine, crops: Crops = 1, others: Sequence[Preprocess[Any]] = ()
) -> Preprocess[Any]:
    """Make a preprocess for one thread, in host or device memory, wherever the engine's input is.

    Args:
        engine: an open engine.
        crops: number of crops of each frame.
        others: the preprocesses of the run's previous engines on this thread, which are closed after this
            one. Frames that are equal are made only once.

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
