"""The compiled filter behind `vfx_runtime.resize`: two passes over uint8 RGB, horizontal first.

Both passes are the same operation: adjacent bytes times a weight, summed over several places. In the
horizontal pass, these are the bytes of one pixel in two rows; in the vertical pass, 32 bytes of one row.
LLVM does not vectorise loops over single channels, so the operation is written on vectors, which LLVM
translates to whatever the machine has (AVX-512, AVX2, NEON).

Importing this module compiles the filter, which takes 0.1 s, so import it late.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from vfx_runtime.llvm import (
    BYTE,
    BYTES,
    FILTER,
    INDEX,
    TABLE,
    WORD,
    Table,
    compiled,
    copy,
    function,
    index,
    loop,
    offset,
    smaller,
)
from vfx_runtime.taps import BITS

_BLOCK = 32  # bytes that the vertical pass processes at once
_SLACK = 4  # bytes after a copied row, because its last pixel is read with one byte more


class _Places(NamedTuple):
    """What a weighted sum reads or writes: a pointer to bytes, and how far it is from row to row."""

    at: Any
    row: Any = index(0)


def _weighted(
    code: Any, lanes: int, rows: int, source: _Places, stride: Any, weight: Any, count: Any, target: _Places
) -> None:
    """Weighted sums of ``lanes`` bytes in each of ``rows`` rows, with the same weights.

    Byte i of the target's row r becomes the sum over k below ``count`` of ``weight[k]`` times byte
    ``k * stride + i`` of the source's row r, rounded and clamped.
    """
    part, bytes_ = ir.VectorType(BYTE, lanes), ir.VectorType(BYTE, lanes * rows)
    words = ir.VectorType(WORD, lanes * rows)

    def every(value: int) -> Any:
        return ir.Constant(words, [value] * (lanes * rows))

    def place(places: _Places, row: int) -> Any:
        at = offset(code, places.at, code.mul(places.row, index(row)))
        return code.bitcast(at, part.as_pointer())

    def joined(parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        order = ir.Constant(ir.VectorType(WORD, 2 * lanes), list(range(2 * lanes)))
        return code.shuffle_vector(*parts, order)

    with code.goto_entry_block():
        total = code.alloca(words)
    code.store(every(1 << (BITS - 1)), total)
    with loop(code, count) as k:
        moved = _Places(offset(code, source.at, code.mul(stride, k)), source.row)
        pixels = joined([code.load(place(moved, row), align=1) for row in range(rows)])
        factor = code.load(offset(code, weight, k))
        lane = code.insert_element(ir.Constant(words, ir.Undefined), factor, WORD(0))
        factors = code.shuffle_vector(lane, lane, every(0))
        code.store(code.add(code.load(total), code.mul(code.zext(pixels, words), factors)), total)
    value = code.ashr(code.load(total), every(BITS))
    value = code.select(code.icmp_signed("<", value, every(0)), every(0), value)
    value = code.select(code.icmp_signed(">", value, every(255)), every(255), value)
    result = code.trunc(value, bytes_)
    for row in range(rows):
        order = ir.Constant(ir.VectorType(WORD, lanes), [row * lanes + lane for lane in range(lanes)])
        code.store(code.shuffle_vector(result, result, order), place(target, row), align=1)


def _across(module: Any) -> Any:
    """The horizontal pass over some rows, as a function of the module.

    It reads and writes one byte past each pixel.
    """
    made, code, arguments = function(module, "across", [BYTES, INDEX, INDEX, *TABLE, BYTES])
    made.linkage = "internal"
    source, line, rows, target = (arguments[i] for i in (0, 1, 2, -1))
    columns = Table(*arguments[3:7])
    pitch = code.add(code.mul(columns.length, index(3)), index(_BLOCK))
    with loop(code, rows, 2) as y:
        # If only one row is left, it is processed as both.
        both = code.icmp_signed("<", code.add(y, index(1)), rows)
        down, below = (code.select(both, step, index(0)) for step in (line, pitch))
        row, to = offset(code, source, code.mul(y, line)), offset(code, target, code.mul(y, pitch))

        def pair(table: Table) -> None:
            with loop(code, table.length) as x:
                start = code.mul(table.start(code, x), index(3))
                read = _Places(offset(code, row, start), down)
                write = _Places(offset(code, to, code.mul(x, index(3))), below)
                _weighted(code, 4, 2, read, index(3), table.weights(code, x), table.count, write)

        other, done = code.append_basic_block(), code.append_basic_block()
        choice = code.switch(columns.count, other)
        # A constant count lets the compiler unroll the loop, which saves a tenth of the time for common
        # sizes.
        for count in map(index, (2, 3)):
            case = code.append_basic_block()
            choice.add_case(count, case)
            code.position_at_end(case)
            pair(columns._replace(count=count))
            code.branch(done)
        code.position_at_end(other)
        pair(columns)
        code.branch(done)
        code.position_at_end(done)
    code.ret_void()
    return made


def _module() -> Any:
    module = ir.Module()
    across = _across(module)
    _, code, arguments = function(module, "filter_frame", FILTER)
    source, line, width, height, scratch, out = (arguments[i] for i in (0, 1, 2, 3, -2, -1))
    columns, rows = Table(*arguments[4:8]), Table(*arguments[8:12])
    size = code.mul(columns.length, index(3))
    pitch = code.add(size, index(_BLOCK))
    body = offset(code, scratch, code.mul(width, index(3)), index(_SLACK))
    top = rows.start(code, index(0))
    bottom = code.add(rows.start(code, code.sub(rows.length, index(1))), rows.count)
    # There is no byte to read after the very last pixel of a frame, so the last row is filtered from a copy.
    last = smaller(code, bottom, code.sub(height, index(1)))
    before = code.sub(last, top)
    code.call(across, [offset(code, source, code.mul(top, line)), line, before, *columns, body])
    with code.if_then(code.icmp_signed("<", last, bottom)):
        copy(code, scratch, offset(code, source, code.mul(last, line)), code.mul(width, index(3)))
        to = offset(code, body, code.mul(before, pitch))
        code.call(across, [scratch, index(0), index(1), *columns, to])
    narrow = offset(code, body, code.mul(code.sub(bottom, top), pitch))
    with loop(code, rows.length) as y:
        read = offset(code, body, code.mul(code.sub(rows.start(code, y), top), pitch))
        to = offset(code, out, code.mul(y, size))
        with code.if_else(code.icmp_signed("<", size, index(_BLOCK))) as (short, long):
            with short:
                _block(code, read, pitch, rows, y, narrow)
                copy(code, to, narrow, size)
            with long, loop(code, size, _BLOCK) as x:
                # The last block is moved back so that it ends with the row; some bytes are written twice.
                x = smaller(code, x, code.sub(size, index(_BLOCK)))
                _block(code, offset(code, read, x), pitch, rows, y, offset(code, to, x))
    code.ret_void()
    return module


def _block(code: Any, source: Any, pitch: Any, rows: Table, y: Any, target: Any) -> None:
    """A block of output row ``y``: the vertical pass."""
    places = _Places(source), _Places(target)
    _weighted(code, _BLOCK, 1, places[0], pitch, rows.weights(code, y), rows.count, places[1])


filter_frame = compiled(_module(), "filter_frame")
"""Resize a frame: see `vfx_runtime.llvm.FILTER`, with `scratch_size` bytes. Releases the GIL."""


def scratch_size(width: int, columns: int, rows: int) -> int:
    """Bytes of scratch memory for `filter_frame`: one source row, the filtered rows, and one block.

    Args:
        width: width of the source in pixels.
        columns: columns of the output.
        rows: source rows that the output needs.
    """
    return width * 3 + _SLACK + rows * (columns * 3 + _BLOCK) + _BLOCK
