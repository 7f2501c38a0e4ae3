"""Resize and crop of decoded frames, to the bit as Pillow does it, through tables of filter taps.

A table says, for each output row or column, where its source pixels start and what they weigh. It
is computed once per source size, holds the cropped part only, and is all that a kernel, on a CPU
or on CUDA, needs: columns are filtered first and rounded to uint8, then rows.

Source of the arithmetic: Pillow's Resample.c (antialiased: the filter widens as the frame
shrinks), PyTorch's ``F.interpolate(align_corners=False)`` (not antialiased: 2 or 4 taps at any
scale). Pillow 13 filters rows first where a frame is much taller than wide and shrinks, which
moves pixels there by one level; earlier ones, which made the published features, never do.
"""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vfx_engines.errors import VideoError
from vfx_engines.spec import Crop, Filter, Resize, Transform

BITS = 22
"""Fraction bits of a weight, as Pillow has it: 32 less 8 for the pixel, 2 for bicubic's overshoot."""

_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """One axis of a resize: output i is the sum over j of ``weight[i, j] * source[start[i] + j]``.

    The sum has `BITS` fraction bits; it is rounded (half up) and clamped to 0..255.
    """

    start: npt.NDArray[np.int32]
    """int32 [n_out], never falling; ``start[i] + k`` is at most the length of the source."""
    weight: npt.NDArray[np.int32]
    """int32 [n_out, k], C order; zeros stand behind or before the taps of outputs that have fewer."""

    @property
    def span(self) -> tuple[int, int]:
        """The first source pixel that any output reads, and one past the last."""
        return int(self.start[0]), int(self.start[-1]) + self.weight.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class FramePlan:
    """How frames of one size come to the pixels of an engine's input. Made by `plan`."""

    height: int
    """Of the source, like ``width``."""
    width: int
    resized_height: int
    """Of the whole resized frame, before the crop; like ``resized_width``."""
    resized_width: int
    top: int
    """First row of the crop in the resized frame; ``left`` is its first column."""
    left: int
    out_height: int
    out_width: int
    rows: Taps
    columns: Taps

    @property
    def unscaled(self) -> bool:
        """Whether the frame keeps its size, so that only the crop is left to do."""
        return (self.resized_height, self.resized_width) == (self.height, self.width)

    def apply(self, rgb: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        """Resize and crop one frame. Any number of threads may do so at once; the GIL is free.

        Args:
            rgb: uint8 [height, width, 3]. Rows may lie further apart than ``width * 3`` bytes.
            out: uint8 [out_height, out_width, 3], C contiguous; overwritten.

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
        # Here, not above: numba's import is time that a command which only prints help need not take.
        from vfx_runtime.resize_kernel import filter_frame, scratch_size

        first, end = self.rows.span
        flat, line = _flat(rgb)
        filter_frame(
            flat,
            line,
            self.width,
            self.height,
            self.columns.start,
            self.columns.weight,
            self.rows.start,
            self.rows.weight,
            _scratch.of(scratch_size(self.width, self.out_width, end - first)),
            out.reshape(-1),
        )


class _Scratch(threading.local):
    """A buffer per thread, grown to the largest frame seen: none is allocated per frame."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def of(self, size: int) -> npt.NDArray[np.uint8]:
        if self._buffer.size < size:
            self._buffer = np.empty(size, np.uint8)
        return self._buffer


_scratch = _Scratch()


def _flat(rgb: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], int]:
    """The frame's bytes in one dimension, and the bytes from row to row; copied only if they must be."""
    height, width, _ = rgb.shape
    if rgb.flags.c_contiguous:
        return rgb.reshape(-1), width * 3
    line = rgb.strides[0]
    if rgb.strides[1:] != (3, 1) or line < width * 3:
        return np.ascontiguousarray(rgb).reshape(-1), width * 3
    size = (height - 1) * line + width * 3
    return np.lib.stride_tricks.as_strided(rgb, (size,), (1,), writeable=False), line


def plan(transform: Transform, height: int, width: int) -> FramePlan:
    """The plan for frames of ``height`` x ``width``; the latest sizes are remembered.

    Raises:
        VideoError: a side shrinks to nothing, or the crop is larger than the resized frame.
    """
    return _plan(transform, height, width)


@functools.lru_cache(maxsize=64)
def _plan(transform: Transform, height: int, width: int) -> FramePlan:
    resize, crop = transform.resize, transform.crop
    full = resized_size(resize, height, width) if resize else (height, width)
    if min(full) < 1:
        raise VideoError(
            f"frame of {width}x{height} would shrink to {full[1]}x{full[0]}: too narrow for this engine"
        )
    size = (crop.height, crop.width) if crop else full
    if size[0] > full[0] or size[1] > full[1]:
        raise VideoError(
            f"frame of {width}x{height} is {full[1]}x{full[0]} once resized, smaller than the "
            f"engine's crop of {size[1]}x{size[0]}: use a larger video"
        )
    top, left = (_offset(crop, *pair) for pair in zip(full, size, strict=True))
    method = (resize.filter, resize.antialias) if resize else ("bilinear", True)
    return FramePlan(
        height=height,
        width=width,
        resized_height=full[0],
        resized_width=full[1],
        top=top,
        left=left,
        out_height=size[0],
        out_width=size[1],
        rows=taps(height, full[0], top, size[0], *method),
        columns=taps(width, full[1], left, size[1], *method),
    )


def resized_size(resize: Resize, height: int, width: int) -> tuple[int, int]:
    """Height and width of a whole resized frame; a side may come out as 0."""
    if resize.rule == "exact":
        return resize.height, resize.width
    long, short = max(height, width), min(height, width)
    kept, other = (short, long) if resize.rule == "short_side" else (long, short)
    if kept == resize.height:
        return height, width
    scaled = resize.height * other / kept
    other = math.floor(scaled) if resize.other_side == "truncate" else round(scaled)
    upright = (height > width) == (resize.rule == "short_side")
    return (other, resize.width) if upright else (resize.height, other)


def _offset(crop: Crop | None, length: int, size: int) -> int:
    if crop is None:
        return 0
    if crop.rule == "centre_floor":
        return (length - size) // 2
    return round((length - size) / 2)


def taps(source: int, resized: int, first: int, count: int, filter: Filter, antialias: bool) -> Taps:
    """The table of one axis, for outputs ``first`` to ``first + count`` of ``resized`` ones.

    Args:
        source: Length of the axis before, at least 1.
        resized: Length of the whole axis after.
        first: First output of the crop.
        count: Outputs of the crop.
        filter: Bilinear, or bicubic with a = -0.5 antialiased (Pillow) and -0.75 not (PyTorch).
        antialias: Whether the filter widens when shrinking.
    """
    output = np.arange(first, first + count, dtype=np.float64)
    if source == resized:
        start, weight = output.astype(np.int64), np.ones((count, 1))
    elif antialias:
        start, weight = _pillow(source, resized, output, filter)
    else:
        start, weight = _torch(source, resized, output, filter)
    fixed = np.trunc(weight * (1 << BITS) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return _packed(source, start, fixed)


def _pillow(
    source: int, resized: int, output: _FloatArray, filter: Filter
) -> tuple[npt.NDArray[np.int64], _FloatArray]:
    scale = source / resized
    widening = max(scale, 1.0)
    support = (1.0 if filter == "bilinear" else 2.0) * widening
    centre = (output + 0.5) * scale
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), source)
    reach = np.arange(int((end - start).max()))
    distance = np.abs((reach + start[:, None] - centre[:, None] + 0.5) * (1.0 / widening))
    weight = np.where(reach < (end - start)[:, None], _curve(distance, filter, -0.5), 0.0)
    # Added one after the other, as Pillow does: NumPy's own sum rounds otherwise.
    total = np.zeros(output.size)
    for column in weight.T:
        total += column
    return start, weight / total[:, None]


def _torch(
    source: int, resized: int, output: _FloatArray, filter: Filter
) -> tuple[npt.NDArray[np.int64], _FloatArray]:
    centre = (output + 0.5) * (source / resized) - 0.5
    if filter == "bilinear":
        centre = np.maximum(centre, 0.0)
    below = np.floor(centre)
    reach = np.arange(2) if filter == "bilinear" else np.arange(-1, 3)
    place = below[:, None] + reach
    share = _curve(np.abs(place - centre[:, None]), filter, -0.75)
    inside = np.clip(place, 0, source - 1).astype(np.int64)
    start = inside[:, 0].copy()
    weight = np.zeros((output.size, reach.size))
    for column in range(reach.size):
        weight[np.arange(output.size), inside[:, column] - start] += share[:, column]
    return start, weight


def _curve(distance: _FloatArray, filter: Filter, a: float) -> _FloatArray:
    """The filter at a distance of 0 or more; terms in the order in which Pillow rounds them."""
    x = distance
    if filter == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _packed(source: int, start: npt.NDArray[np.int64], weight: npt.NDArray[np.int32]) -> Taps:
    """Drop the zeros at either end, and move starts so that no output reads past the source."""
    used = weight != 0
    begin = start + used.argmax(axis=1)
    end = start + weight.shape[1] - used[:, ::-1].argmax(axis=1)
    # A bicubic tap that happens to be 0 must not let a start run ahead of the next one.
    begin = np.minimum.accumulate(begin[::-1])[::-1]
    k = int((end - begin).max())
    begin = np.minimum(begin, source - k)
    packed = np.zeros((len(start), k), np.int32)
    output, tap = np.nonzero(used)
    packed[output, start[output] + tap - begin[output]] = weight[output, tap]
    return Taps(begin.astype(np.int32), packed)
