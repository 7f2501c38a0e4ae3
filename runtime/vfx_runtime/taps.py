"""Tables of filter taps: for each output row or column, the first source pixel and the weights from there.

A table is computed once per source size, and is all that a kernel needs, on a CPU or on CUDA.

The arithmetic follows Pillow's Resample.c (antialiased: the filter widens as the frame shrinks), PyTorch's
``F.interpolate(align_corners=False)`` (not antialiased: 2 or 4 taps at any scale), and OpenCV's
``cv::resize`` for 8-bit pixels (``opencv_linear``: 2 taps at any scale).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vfx_engines.spec import Filter

BITS = 22
"""Fraction bits of a weight, as in Pillow: 32 minus 8 for the pixel and 2 for bicubic overshoot."""

OPENCV_BITS = 11
"""Fraction bits of a weight for ``opencv_linear``."""

_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """One axis of a resize: output i is the sum over j of ``weight[i, j] * source[start[i] + j]``.

    The sum has `BITS` fraction bits; it is rounded (half up) and clamped to 0..255. Tables made by
    `opencv_taps` are used differently, as explained there.
    """

    start: npt.NDArray[np.int32]
    """int32 ``[n_out]``, never decreasing; ``start[i] + k`` is at most the length of the source."""
    weight: npt.NDArray[np.int32]
    """int32 ``[n_out, k]``, C order; outputs with fewer than k taps are padded with zeros before or after."""

    @property
    def span(self) -> tuple[int, int]:
        """The first source pixel that any output reads, and the last one plus 1."""
        return int(self.start[0]), int(self.start[-1]) + self.weight.shape[1]

    def passed(self) -> tuple[int, int, int, int]:
        """The table as a compiled kernel takes it: address and length of ``start``, then of a ``weight``.

        Raises:
            ValueError: an array is not in C order, as a kernel needs it.
        """
        if not self.start.flags.c_contiguous or not self.weight.flags.c_contiguous:
            raise ValueError("tables of taps must be in C order")
        return self.start.ctypes.data, len(self.start), self.weight.ctypes.data, self.weight.shape[1]


def taps(
    source: int,
    resized: int,
    first: int,
    count: int,
    filter: Filter,
    antialias: bool,
    scale: float | None = None,
) -> Taps:
    """The table of one axis, for the outputs from ``first`` up to ``first + count`` of ``resized``.

    Args:
        source: length of the axis before resizing, at least 1.
        resized: length of the whole axis after resizing.
        first: first output of the crop.
        count: number of outputs in the crop.
        filter: bilinear, or bicubic with a = -0.5 if antialiased (Pillow) and -0.75 if not (PyTorch).
        antialias: whether the filter widens when shrinking.
        scale: source pixels per output pixel, if not ``source / resized``.
    """
    scale = source / resized if scale is None else scale
    output = np.arange(first, first + count, dtype=np.float64)
    if source == resized:
        start, weight = output.astype(np.int64), np.ones((count, 1))
    elif antialias:
        start, weight = _pillow(source, scale, output, filter)
    else:
        start, weight = _torch(source, scale, output, filter)
    fixed = np.trunc(weight * (1 << BITS) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    return _packed(source, start, fixed)


def opencv_taps(source: int, resized: int, first: int, count: int, *, rows: bool) -> Taps:
    """The table of one axis for ``opencv_linear``; arguments as for `taps`.

    Weights have `OPENCV_BITS` fraction bits. The sums of the horizontal pass are kept as integers without
    their last 4 bits. In the vertical pass, each product of such a sum and a row's weight loses its lower 16
    bits, two are added, and the result is divided by 4 and rounded (half up). Because each product is
    truncated, two taps on the same edge row are not the same as one tap with the sum of both weights. So
    tables of rows always have 2 taps, and may start at -1 and end one row beyond the frame, where the first
    and last row are repeated.
    """
    # These steps, in float32, give OpenCV's rounding.
    scale = 1.0 / (resized / source)
    centre = ((np.arange(first, first + count) + 0.5) * scale - 0.5).astype(np.float32)
    below = np.floor(centre)
    share = centre - below
    start = below.astype(np.int64)
    if not rows:
        outside = (start < 0) | (start >= source - 1)
        share = np.where(outside, np.float32(0), share)
        start = np.clip(start, 0, source - 1)
    one = np.float32(1 << OPENCV_BITS)
    weight = np.stack([np.rint((1 - share) * one), np.rint(share * one)], axis=1).astype(np.int32)
    return Taps(start.astype(np.int32), weight) if rows else _packed(source, start, weight)


def _pillow(
    source: int, scale: float, output: _FloatArray, filter: Filter
) -> tuple[npt.NDArray[np.int64], _FloatArray]:
    widening = max(scale, 1.0)
    support = (1.0 if filter == "bilinear" else 2.0) * widening
    centre = (output + 0.5) * scale
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), source)
    reach = np.arange(int((end - start).max()))
    distance = np.abs((reach + start[:, None] - centre[:, None] + 0.5) * (1.0 / widening))
    weight = np.where(reach < (end - start)[:, None], _curve(distance, filter, -0.5), 0.0)
    # Added one by one, like Pillow: NumPy's sum rounds differently.
    total = np.zeros(output.size)
    for column in weight.T:
        total += column
    return start, weight / total[:, None]


def _torch(
    source: int, scale: float, output: _FloatArray, filter: Filter
) -> tuple[npt.NDArray[np.int64], _FloatArray]:
    centre = (output + 0.5) * scale - 0.5
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
    """The filter at a distance of 0 or more. The order of terms is Pillow's, for the same rounding."""
    x = distance
    if filter == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _packed(source: int, start: npt.NDArray[np.int64], weight: npt.NDArray[np.int32]) -> Taps:
    """Drop the zeros at both ends, and move starts so that no output reads past the source."""
    used = weight != 0
    begin = start + used.argmax(axis=1)
    end = start + weight.shape[1] - used[:, ::-1].argmax(axis=1)
    # A bicubic tap that happens to be 0 must not push a start beyond that of the next output.
    begin = np.minimum.accumulate(begin[::-1])[::-1]
    k = int((end - begin).max())
    begin = np.minimum(begin, source - k)
    packed = np.zeros((len(start), k), np.int32)
    output, tap = np.nonzero(used)
    packed[output, start[output] + tap - begin[output]] = weight[output, tap]
    return Taps(begin.astype(np.int32), packed)
