"""The compiled filter of ``opencv_linear``: OpenCV's ``INTER_LINEAR`` for uint8, see `taps.opencv_taps`.

Two filtered rows are kept, since consecutive output rows mostly share them. Importing this module compiles
the filter, like `vfx_runtime.resize_kernel`, so import it late.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from vfx_runtime.llvm import (
    BYTE,
    BYTES,
    FILTER,
    INDEX,
    TABLE,
    WORD,
    WORDS,
    Table,
    compiled,
    function,
    index,
    larger,
    loop,
    offset,
    smaller,
)

_NONE = index(-1)


def _across(module: Any) -> Any:
    """The horizontal pass over one row, as a function of the module: its sums without their last 4 bits."""
    made, code, arguments = function(module, "across", [BYTES, *TABLE, WORDS])
    made.linkage = "internal"
    source, target = arguments[0], arguments[-1]
    table = Table(*arguments[1:-1])
    # A frame of one column has a table with one tap; it then counts twice, the second time with weight 0.
    wide = code.icmp_signed("==", table.count, index(2))
    further = code.select(wide, index(3), index(0))
    with loop(code, table.length) as x:
        start = code.mul(table.start(code, x), index(3))
        weights = table.weights(code, x)
        one = code.load(weights)
        two = code.load(offset(code, weights, code.sub(table.count, index(1))))
        two = code.select(wide, two, WORD(0))
        for channel in map(index, range(3)):
            near, far = (
                code.zext(code.load(offset(code, source, start, *more, channel)), WORD)
                for more in ((), (further,))
            )
            total = code.add(code.mul(near, one), code.mul(far, two))
            at = code.add(code.mul(x, index(3)), channel)
            code.store(code.ashr(total, WORD(4)), offset(code, target, at))
    code.ret_void()
    return made


def _module() -> Any:
    module = ir.Module()
    across = _across(module)
    _, code, arguments = function(module, "filter_frame", FILTER)
    source, line, height, scratch, out = (arguments[i] for i in (0, 1, 3, -2, -1))
    columns, rows = Table(*arguments[4:8]), Table(*arguments[8:12])
    kept = code.bitcast(scratch, WORDS)
    size = code.mul(columns.length, index(3))
    # Which row each half of ``kept`` holds. Neighbouring rows have different parity, so they never overwrite
    # each other.
    held = code.alloca(INDEX, 2)
    for half in (0, 1):
        code.store(_NONE, offset(code, held, index(half)))
    with loop(code, rows.length) as y:
        filtered = []
        for further in (0, 1):
            wanted = larger(code, code.add(rows.start(code, y), index(further)), index(0))
            wanted = smaller(code, wanted, code.sub(height, index(1)))
            half = code.and_(wanted, index(1))
            target = offset(code, kept, code.mul(half, size))
            holder = offset(code, held, half)
            with code.if_then(code.icmp_signed("!=", code.load(holder), wanted)):
                row = offset(code, source, code.mul(wanted, line))
                code.call(across, [row, *columns, target])
                code.store(wanted, holder)
            filtered.append(target)
        weights = rows.weights(code, y)
        factors = [code.load(offset(code, weights, index(further))) for further in (0, 1)]
        to = offset(code, out, code.mul(y, size))
        with loop(code, size) as x:
            above, below = (
                code.ashr(code.mul(code.load(offset(code, row, x)), factor), WORD(16))
                for row, factor in zip(filtered, factors, strict=True)
            )
            total = code.add(code.add(above, below), WORD(2))
            code.store(code.trunc(code.ashr(total, WORD(2)), BYTE), offset(code, to, x))
    code.ret_void()
    return module


filter_frame = compiled(_module(), "filter_frame")
"""Resize a frame: see `vfx_runtime.llvm.FILTER`, with `scratch_size` bytes. Releases the GIL."""


def scratch_size(width: int, columns: int, rows: int) -> int:
    """Bytes of scratch memory for `filter_frame`: two filtered rows of int32.

    Args:
        width: width of the source in pixels; not needed here, nor is ``rows``.
        columns: columns of the output.
        rows: source rows that the output needs.
    """
    return 2 * columns * 3 * 4
