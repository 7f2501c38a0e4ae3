"""What happens between a decoded frame and its place in a window: one protocol, on a CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vfx_engines.engine import Engine
from vfx_runtime.decode import Frame
from vfx_runtime.resize import FrameError, FramePlan, plan

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

    def place(self, slot: int, row: int, frames: Sequence[P | None]) -> None:
        """Put a window into a row of a free slot; None is a blank frame.

        Raises:
            EngineError: the device failed.
        """

    def close(self) -> None:
        """Give back what it holds; once is enough."""


def checked_plan(engine: Engine, height: int, width: int) -> FramePlan:
    """How frames of this size become the engine's.

    Raises:
        FrameError: they are too small, or an engine of the video's own size was opened at another one.
    """
    made = plan(engine.spec.transform, height, width)
    wanted = engine.spec.input.shape[2:4]
    if (made.out_height, made.out_width) != wanted:
        raise FrameError(
            f"a frame of {width}x{height} gives {made.out_width}x{made.out_height}, the first one gave "
            f"{wanted[1]}x{wanted[0]}: {engine.spec.model} takes one size all the way; cut or re-encode the "
            "video where its size changes"
        )
    return made


class CpuPreprocess:
    """`Preprocess` in host memory: Pillow's arithmetic, see `vfx_runtime.resize`."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._transform = engine, engine.spec.transform

    def prepare(self, frame: Frame) -> Pixels:
        """uint8 [out_height, out_width, 3]."""
        rgb = frame.rgb()
        frame_plan = checked_plan(self._engine, *rgb.shape[:2])
        out = np.empty((frame_plan.out_height, frame_plan.out_width, 3), np.uint8)
        frame_plan.apply(rgb, out)
        return out

    def place(self, slot: int, row: int, frames: Sequence[Pixels | None]) -> None:
        """Copy them straight into the memory that the device reads."""
        target = self._engine.buffer(slot)[row]
        for i, pixels in enumerate(frames):
            target[i] = self._engine.spec.input.blank if pixels is None else pixels

    def like(self, other: CpuPreprocess) -> bool:
        """Whether the other one's frames are the same."""
        return self._transform == other._transform

    def close(self) -> None:
        """Nothing to give back."""


def prepares_on_device(engine: Engine) -> bool:
    """Whether frames are prepared where the engine reads them, and not copied there; sound never is."""
    return engine.cuda is not None and engine.spec.input.modality == "frames"


def preprocess_for(engine: Engine) -> Preprocess[Any]:
    """A preprocess for one thread, where the engine's input is: in host or in device memory."""
    if engine.cuda is None or not prepares_on_device(engine):
        return CpuPreprocess(engine)
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
