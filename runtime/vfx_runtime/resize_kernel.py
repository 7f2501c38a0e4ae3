"""The compiled filter behind `vfx_runtime.resize`: two passes over uint8 RGB, horizontal first.

Both passes are the same operation: adjacent bytes times a weight, summed over several places. In the
horizontal pass, these are the bytes of one pixel in two rows; in the vertical pass, 32 bytes of one row. LLVM
does not vectorise loops over single channels, so the operation is written on vectors, which LLVM translates
to whatever the machine has (AVX-512, AVX2, NEON).

Importing this module takes 0.3 s, and 4 s the first time on a machine, when numba compiles. So import it
late.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vfx_runtime.taps import BITS

_BLOCK = 32  # bytes that the vertical pass processes at once
_SLACK = 4  # bytes after a copied row, because its last pixel is read with one byte more
_BYTE, _WORD, _INDEX = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _weighted(lanes: int, rows: int) -> Any:
    """Make an intrinsic: weighted sums of ``lanes`` bytes in each of ``rows`` rows, with the same weights.

    ``target[at + r * target_row + i]`` becomes the sum over k of
    ``source[start + r * source_row + k * stride + i] * weight[first + k]``, rounded and clamped.
    """
    bytes_, part, words = (
        ir.VectorType(_BYTE, lanes * rows),
        ir.VectorType(_BYTE, lanes),
        ir.VectorType(_WORD, lanes * rows),
    )

    def every(value: int) -> ir.Constant:
        return ir.Constant(words, [value] * (lanes * rows))

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, source_row, stride, first, count, at, target_row = (arguments[i] for i in _SCALARS)
        source, weight, target = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in _ARRAYS
        )

        def place(base: Any, offset: Any, row: int, row_size: Any) -> Any:
            offset = builder.add(offset, builder.mul(row_size, ir.Constant(_INDEX, row)))
            return builder.bitcast(builder.gep(base, [offset]), part.as_pointer())

        def joined(parts: list[Any]) -> Any:
            if len(parts) == 1:
                return parts[0]
            order = ir.Constant(ir.VectorType(_WORD, 2 * lanes), list(range(2 * lanes)))
            return builder.shuffle_vector(*parts, order)

        helpers: Any = cgutils  # has no annotations
        total = helpers.alloca_once_value(builder, every(1 << (BITS - 1)))
        with helpers.for_range(builder, count, intp=_INDEX) as loop:
            offset = builder.add(start, builder.mul(stride, loop.index))
            pixels = joined(
                [builder.load(place(source, offset, row, source_row), align=1) for row in range(rows)]
            )
            factor = builder.load(builder.gep(weight, [builder.add(first, loop.index)]))
            lane = builder.insert_element(ir.Constant(words, ir.Undefined), factor, _WORD(0))
            factors = builder.shuffle_vector(lane, lane, every(0))
            product = builder.mul(builder.zext(pixels, words), factors)
            builder.store(builder.add(builder.load(total), product), total)
        value = builder.ashr(builder.load(total), every(BITS))
        value = builder.select(builder.icmp_signed("<", value, every(0)), every(0), value)
        value = builder.select(builder.icmp_signed(">", value, every(255)), every(255), value)
        result = builder.trunc(value, bytes_)
        for row in range(rows):
            own = [row * lanes + lane for lane in range(lanes)]
            order = ir.Constant(ir.VectorType(_WORD, lanes), own)
            piece = builder.shuffle_vector(result, result, order)
            builder.store(piece, place(target, at, row, target_row), align=1)
        return context.get_dummy_value()

    def weighted(
        typing_context: Any,
        source: Any,
        start: Any,
        source_row: Any,
        stride: Any,
        weight: Any,
        first: Any,
        count: Any,
        target: Any,
        at: Any,
        target_row: Any,
    ) -> Any:
        index = types.int64
        signature = types.void(source, index, index, index, weight, index, index, target, index, index)
        return signature, code

    return intrinsic(weighted)


_ARRAYS = (0, 4, 7)
_SCALARS = (1, 2, 3, 5, 6, 8, 9)
_pixels = _weighted(4, 2)
_bytes = _weighted(_BLOCK, 1)


def _two_rows(
    source: Any,
    start: int,
    line: int,
    starts: Any,
    weights: Any,
    count: int,
    target: Any,
    at: int,
    pitch: int,
) -> None:
    for x in range(starts.size):
        begin, to = start + starts[x] * 3, at + x * 3
        _pixels(source, begin, line, 3, weights, x * count, count, target, to, pitch)


_pair = numba.njit(nogil=True, error_model="numpy")(_two_rows)


def _horizontal(
    source: Any, line: int, top: int, bottom: int, starts: Any, weights: Any, target: Any, at: int
) -> None:
    """Filter rows ``top`` to ``bottom`` into ``target``. Reads and writes one byte past each pixel."""
    count = weights.shape[1]
    flat = weights.reshape(-1)
    pitch = starts.size * 3 + _BLOCK
    for y in range(top, bottom, 2):
        # If only one row is left, it is processed as both.
        down, below = (line, pitch) if y + 1 < bottom else (0, 0)
        begin, to = y * line, at + (y - top) * pitch
        # A constant count lets the compiler unroll the loop, which saves a tenth of the time for common
        # sizes.
        if count == 2:
            _pair(source, begin, down, starts, flat, 2, target, to, below)
        elif count == 3:
            _pair(source, begin, down, starts, flat, 3, target, to, below)
        else:
            _pair(source, begin, down, starts, flat, count, target, to, below)


_rows = numba.njit(nogil=True, error_model="numpy")(_horizontal)


def _filter(
    source: Any,
    line: int,
    width: int,
    height: int,
    column_starts: Any,
    column_weights: Any,
    row_starts: Any,
    row_weights: Any,
    scratch: Any,
    out: Any,
) -> None:
    size = column_starts.size * 3
    pitch = size + _BLOCK
    count = row_weights.shape[1]
    flat = row_weights.reshape(-1)
    top = row_starts[0]
    bottom = row_starts[-1] + count
    body = width * 3 + _SLACK
    # There is no byte to read after the very last pixel of a frame, so the last row is filtered from a copy.
    last = min(bottom, height - 1)
    _rows(source, line, top, last, column_starts, column_weights, scratch, body)
    if last < bottom:
        scratch[: width * 3] = source[last * line : last * line + width * 3]
        end = body + (last - top) * pitch
        _rows(scratch, 0, 0, 1, column_starts, column_weights, scratch, end)
    narrow = body + (bottom - top) * pitch
    for y in range(row_starts.size):
        begin = body + (row_starts[y] - top) * pitch
        if size < _BLOCK:
            _bytes(scratch, begin, 0, pitch, flat, y * count, count, scratch, narrow, 0)
            out[y * size : (y + 1) * size] = scratch[narrow : narrow + size]
        else:
            for x in range(0, size, _BLOCK):
                # The last block is moved back so that it ends with the row; some bytes are written twice.
                x = min(x, size - _BLOCK)
                _bytes(scratch, begin + x, 0, pitch, flat, y * count, count, out, y * size + x, 0)


def compiled(function: Callable[..., None], signature: Any) -> Callable[..., None]:
    """Compile a function for one signature, or load it from numba's cache."""

    def compile_(cache: bool) -> Callable[..., None]:
        build = numba.njit(signature, nogil=True, cache=cache, error_model="numpy")
        kernel: Callable[..., None] = build(function)
        return kernel

    try:
        return compile_(cache=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        # There is no folder for the cache, the disk is full, or the cached copy is damaged. Then every run
        # takes 4 s to compile.
        return compile_(cache=False)


_taps = (types.int32[::1], types.int32[:, ::1])
_source = types.Array(types.uint8, 1, "C", readonly=True)
_index = types.int64

filter_frame = compiled(
    _filter,
    types.void(_source, _index, _index, _index, *_taps, *_taps, types.uint8[::1], types.uint8[::1]),
)
"""filter_frame(source, line, width, height, column starts, column weights, row starts, row weights, scratch,
out): compute ``out``, flat uint8 ``[h * w * 3]``, from ``source``, flat uint8 whose rows begin ``line`` bytes
apart. The tap tables must be as `vfx_runtime.taps.Taps` says, and ``scratch`` must have `scratch_size` bytes;
nothing is checked. Releases the GIL."""


def scratch_size(width: int, columns: int, rows: int) -> int:
    """Bytes of scratch memory for `filter_frame`: one source row, the filtered rows, and one block.

    Args:
        width: width of the source in pixels.
        columns: columns of the output.
        rows: source rows that the output needs.
    """
    return width * 3 + _SLACK + rows * (columns * 3 + _BLOCK) + _BLOCK
