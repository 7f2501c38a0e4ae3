"""The compiled filter of ``opencv_linear``: OpenCV's ``INTER_LINEAR`` for uint8, see `taps.opencv_taps`.

Two filtered rows are kept, since consecutive output rows mostly share them. Importing this module compiles or
loads the filter, like `vfx_runtime.resize_kernel`, so import it late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from vfx_runtime.resize_kernel import compiled


def _across(source: Any, begin: int, starts: Any, first: Any, second: Any, further: int, target: Any) -> None:
    for x in range(starts.size):
        at = begin + starts[x]
        one, two = first[x], second[x]
        for channel in range(3):
            total = np.int32(source[at + channel]) * one + np.int32(source[at + further + channel]) * two
            target[3 * x + channel] = np.int32(total) >> 4


_row = numba.njit(nogil=True, error_model="numpy")(_across)


def _filter(
    source: Any,
    line: int,
    height: int,
    column_starts: Any,
    column_weights: Any,
    row_starts: Any,
    row_weights: Any,
    out: Any,
) -> None:
    columns = column_starts.size
    size = columns * 3
    starts = column_starts * np.int32(3)
    first = np.ascontiguousarray(column_weights[:, 0])
    # A frame of one column has a table with one tap; the second gets the weight 0.
    wide = column_weights.shape[1] == 2
    second = np.ascontiguousarray(column_weights[:, 1]) if wide else np.zeros(columns, np.int32)
    further = 3 if wide else 0
    kept = np.empty((2, size), np.int32)
    held = np.full(2, -1, np.int64)
    for y in range(row_starts.size):
        upper = min(max(row_starts[y], 0), height - 1)
        lower = min(max(row_starts[y] + 1, 0), height - 1)
        for wanted in (upper, lower):
            # Neighbouring rows have different parity, so they never overwrite each other.
            if held[wanted & 1] != wanted:
                _row(source, wanted * line, starts, first, second, further, kept[wanted & 1])
                held[wanted & 1] = wanted
        above, below = kept[upper & 1], kept[lower & 1]
        one, two = row_weights[y, 0], row_weights[y, 1]
        target = out[y * size : (y + 1) * size]
        for x in range(size):
            total = (np.int32(above[x] * one) >> 16) + (np.int32(below[x] * two) >> 16)
            target[x] = np.uint8((np.int32(total) + 2) >> 2)


_pixels, _starts, _weights = types.uint8[::1], types.int32[::1], types.int32[:, ::1]
_source = types.Array(types.uint8, 1, "C", readonly=True)

filter_frame_opencv: Callable[..., None] = compiled(
    _filter,
    types.void(_source, types.int64, types.int64, _starts, _weights, _starts, _weights, _pixels),
)
"""filter_frame_opencv(source, line, height, column starts, column weights, row starts, row weights, out):
compute ``out``, flat uint8 ``[h * w * 3]``, from ``source``, flat uint8 whose rows begin ``line`` bytes
apart. Nothing is checked. Releases the GIL."""
