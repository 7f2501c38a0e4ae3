"""Resize and crop decoded frames, bit for bit like Pillow or OpenCV, by tables of filter taps.

The tables cover only the cropped part. Columns are filtered first and rounded to uint8, then rows. (For
frames much taller than wide that shrink, Pillow 13 filters rows first, which changes pixels by one level.
Earlier versions, with which the published features were made, never do.)
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vfx_engines.errors import VideoError
from vfx_engines.spec import Crop, EngineSpec, Resize, Transform
from vfx_runtime.taps import Taps, opencv_taps, taps


class FrameError(VideoError):
    """A frame cannot be turned into the engine's input. The message does not name the video."""


@dataclass(frozen=True, slots=True, eq=False)
class FramePlan:
    """How frames of one size are turned into an engine's input. Made by `plan`."""

    height: int
    """Source height in pixels; ``width`` likewise."""
    width: int
    resized_height: int
    """Height of the whole resized frame, before the crop; ``resized_width`` likewise."""
    resized_width: int
    top: int
    """First row of the crop within the resized frame; ``left`` is its first column."""
    left: int
    out_height: int
    out_width: int
    rows: Taps
    columns: Taps
    tables: tuple[int, ...]
    """``columns`` and ``rows`` as a compiled kernel takes them, kept because asking for them takes 7 us."""
    opencv: bool = False
    """Whether the tables were made by `vfx_runtime.taps.opencv_taps`."""

    @property
    def unscaled(self) -> bool:
        """Whether the frame keeps its size, so that it only has to be cropped."""
        return (self.resized_height, self.resized_width) == (self.height, self.width)

    def apply(self, rgb: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        """Resize and crop one frame. Any number of threads may do so at once; the GIL is released.

        Args:
            rgb: uint8 ``[height, width, 3]``. Rows may be more than ``width * 3`` bytes apart.
            out: uint8 ``[out_height, out_width, 3]``, C-contiguous; overwritten.

        Raises:
            ValueError: an array does not have that shape, type or layout.
        """
        wanted = (self.out_height, self.out_width, 3)
        if rgb.shape != (self.height, self.width, 3) or rgb.dtype != np.uint8:
            raise ValueError(
                f"plan is for uint8 {(self.height, self.width, 3)}, frame is {rgb.dtype} {rgb.shape}"
            )
        if out.shape != wanted or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be contiguous uint8 {wanted}, is {out.dtype} {out.shape}")
        if self.unscaled:
            bottom, right = self.top + self.out_height, self.left + self.out_width
            np.copyto(out, rgb[self.top : bottom, self.left : right])
            return
        flat, line = _flat(rgb)
        filter_frame, scratch_size = _kernel(self.opencv)
        first, end = self.rows.span
        scratch = _scratch.of(scratch_size(self.width, self.out_width, end - first))
        size = line, self.width, self.height
        filter_frame(flat.ctypes.data, *size, *self.tables, scratch.ctypes.data, out.ctypes.data)


@functools.cache
def _kernel(opencv: bool) -> tuple[Callable[..., None], Callable[[int, int, int], int]]:
    """The compiled filter, and how much scratch memory it needs."""
    # Imported here because compiling takes time, which a command that only prints its help should not spend.
    if opencv:
        from vfx_runtime import resize_opencv

        return resize_opencv.filter_frame, resize_opencv.scratch_size
    from vfx_runtime import resize_kernel

    return resize_kernel.filter_frame, resize_kernel.scratch_size


class _Scratch(threading.local):
    """A buffer per thread, as large as the largest frame needs, so that none is allocated per frame."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def of(self, size: int) -> npt.NDArray[np.uint8]:
        if self._buffer.size < size:
            self._buffer = np.empty(size, np.uint8)
        return self._buffer


_scratch = _Scratch()


def _flat(rgb: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], int]:
    """A frame's bytes as a flat array, and the bytes from row to row. Copied only if necessary."""
    height, width, _ = rgb.shape
    if rgb.flags.c_contiguous:
        return rgb.reshape(-1), width * 3
    line = rgb.strides[0]
    if rgb.strides[1:] != (3, 1) or line < width * 3:
        return np.ascontiguousarray(rgb).reshape(-1), width * 3
    size = (height - 1) * line + width * 3
    return np.lib.stride_tricks.as_strided(rgb, (size,), (1,), writeable=False), line


def plan(transform: Transform, height: int, width: int) -> FramePlan:
    """The plan for frames of ``height`` x ``width`` pixels. Plans of the latest 64 sizes are kept.

    Raises:
        FrameError: a side would shrink to nothing, or the crop is larger than the resized frame.
    """
    return _plan(transform, height, width)


def plan_for(spec: EngineSpec, height: int, width: int) -> FramePlan:
    """The plan that turns frames of this size into an engine's input.

    Raises:
        FrameError: the frames are too small; or the engine takes frames of the video's own size, and was
            opened at another one.
    """
    made = plan(spec.transform, height, width)
    wanted = spec.input.shape[2:4]
    if (made.out_height, made.out_width) != wanted:
        raise FrameError(
            f"a frame of {width}x{height} gives {made.out_width}x{made.out_height}, the first one gave "
            f"{wanted[1]}x{wanted[0]}: {spec.model} takes one size all the way; cut or re-encode the "
            "video where its size changes"
        )
    return made


@functools.lru_cache(maxsize=64)
def _plan(transform: Transform, height: int, width: int) -> FramePlan:
    resize, crop = transform.resize, transform.crop
    full = resized_size(resize, height, width) if resize else (height, width)
    if min(full) < 1:
        raise FrameError(
            f"frame of {width}x{height} would shrink to {full[1]}x{full[0]}: too narrow for this engine"
        )
    size = (crop.height, crop.width) if crop else full
    if size[0] > full[0] or size[1] > full[1]:
        raise FrameError(
            f"frame of {width}x{height} is {full[1]}x{full[0]} once resized, smaller than the "
            f"engine's crop of {size[1]}x{size[0]}: use a larger video"
        )
    top, left = (_offset(crop, *pair) for pair in zip(full, size, strict=True))
    opencv = resize is not None and resize.filter == "opencv_linear"
    if opencv:
        rows = opencv_taps(height, full[0], top, size[0], rows=True)
        columns = opencv_taps(width, full[1], left, size[1], rows=False)
    else:
        method = (resize.filter, resize.antialias) if resize else ("bilinear", True)
        scale = None
        if resize and resize.grid == "scale":
            scale = 1 / _scale(resize, height, width)
        rows = taps(height, full[0], top, size[0], *method, scale)
        columns = taps(width, full[1], left, size[1], *method, scale)
    return FramePlan(
        height=height,
        width=width,
        resized_height=full[0],
        resized_width=full[1],
        top=top,
        left=left,
        out_height=size[0],
        out_width=size[1],
        rows=rows,
        columns=columns,
        tables=(*columns.passed(), *rows.passed()),
        opencv=opencv,
    )


def resized_size(resize: Resize, height: int, width: int) -> tuple[int, int]:
    """Height and width of a whole resized frame, before the crop. A side may be 0."""
    if resize.rule == "exact":
        return resize.height, resize.width
    long, short = max(height, width), min(height, width)
    kept, other = (short, long) if resize.rule == "short_side" else (long, short)
    if kept == resize.height:
        return height, width
    scaled = resize.height * other / kept
    if resize.grid == "scale":
        # Rounded like PyTorch, which multiplies the side by the scale in floating point.
        scaled = other * _scale(resize, height, width)
    other = math.floor(scaled) if resize.other_side == "truncate" else round(scaled)
    upright = (height > width) == (resize.rule == "short_side")
    return (other, resize.width) if upright else (resize.height, other)


def _scale(resize: Resize, height: int, width: int) -> float:
    """The factor by which a frame is scaled, according to the side that the rule gives a size."""
    side = min if resize.rule == "short_side" else max
    return resize.height / side(height, width)


def _offset(crop: Crop | None, length: int, size: int) -> int:
    if crop is None:
        return 0
    if crop.rule == "centre_floor":
        return (length - size) // 2
    if crop.rule == "centre_ceil":
        return (length - size + 1) // 2
    return round((length - size) / 2)
