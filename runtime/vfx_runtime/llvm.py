"""From LLVM instructions to a function that Python calls, for the kernels of `vfx_runtime.resize`.

Python has no vectors of bytes, and the machines that vfx runs on often have no C compiler, so kernels are
written as instructions. One is compiled in a tenth of a second when a process first needs it, so nothing is
kept on disk.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import binding, ir

BYTE, WORD, INDEX = ir.IntType(8), ir.IntType(32), ir.IntType(64)
BYTES, WORDS = BYTE.as_pointer(), WORD.as_pointer()

TABLE = (WORDS, INDEX, WORDS, INDEX)
"""Types of the arguments that a `Table` takes."""

FILTER = (BYTES, INDEX, INDEX, INDEX, *TABLE, *TABLE, BYTES, BYTES)
"""Types of the arguments of a kernel that resizes a frame, and checks nothing: the source, bytes from its one
row to the next, its width and height in pixels, tables of columns and rows, scratch memory, the output."""

_C_TYPES = {str(INDEX): ctypes.c_int64, str(BYTES): ctypes.c_void_p, str(WORDS): ctypes.c_void_p}

_engines: list[Any] = []
"""What owns the compiled code, for as long as the process lives."""


def function(module: Any, name: str, arguments: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Begin a function without a result.

    Args:
        module: the LLVM module.
        name: its name in the module.
        arguments: types of the arguments. No two of its pointers may lead to the same memory.

    Returns:
        The function, a builder that appends to its body, and its arguments.
    """
    made = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    for argument in made.args:
        if isinstance(argument.type, ir.PointerType):
            argument.add_attribute("noalias")
    return made, ir.IRBuilder(made.append_basic_block()), made.args


def index(value: int) -> Any:
    """A constant of 64 bits."""
    return ir.Constant(INDEX, value)


def offset(code: Any, pointer: Any, *steps: Any) -> Any:
    """The pointer moved on by the sum of several numbers of elements."""
    for step in steps:
        pointer = code.gep(pointer, [step])
    return pointer


def smaller(code: Any, one: Any, other: Any) -> Any:
    """The smaller of two signed numbers."""
    return code.select(code.icmp_signed("<", one, other), one, other)


def larger(code: Any, one: Any, other: Any) -> Any:
    """The larger of two signed numbers."""
    return code.select(code.icmp_signed(">", one, other), one, other)


class Table(NamedTuple):
    """A table of filter taps in the arguments of a function, see `vfx_runtime.taps.Taps.passed`."""

    starts: Any
    length: Any
    all_weights: Any
    count: Any

    def start(self, code: Any, at: Any) -> Any:
        """The first source pixel of an output."""
        return code.sext(code.load(offset(code, self.starts, at)), INDEX)

    def weights(self, code: Any, at: Any) -> Any:
        """Where the ``count`` weights of an output begin."""
        return offset(code, self.all_weights, code.mul(at, self.count))


@contextmanager
def loop(code: Any, end: Any, step: int = 1) -> Iterator[Any]:
    """A loop from 0 up to ``end``; the instructions of the ``with`` block are its body. Gives the index."""
    before = code.block
    head, body, after = (code.append_basic_block() for _ in range(3))
    code.branch(head)
    code.position_at_end(head)
    at = code.phi(INDEX)
    at.add_incoming(index(0), before)
    code.cbranch(code.icmp_signed("<", at, end), body, after)
    code.position_at_end(body)
    yield at
    at.add_incoming(code.add(at, index(step)), code.block)
    code.branch(head)
    code.position_at_end(after)


def copy(code: Any, target: Any, source: Any, size: Any) -> None:
    """Copy bytes."""
    with loop(code, size) as at:
        code.store(code.load(offset(code, source, at)), offset(code, target, at))


def compiled(module: Any, name: str) -> Callable[..., None]:
    """Compile a module for this machine.

    Args:
        module: the LLVM module; its other functions should be internal.
        name: a function of it.

    Returns:
        That function; calling it releases the GIL. Pointers are passed as integers.
    """
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    try:
        processor = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot tell on some systems
        processor = "generic", ""
    target = binding.Target.from_default_triple().create_target_machine(*processor, opt=3, jit=True)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(target, tuning)
    passes.getModulePassManager().run(parsed, passes)
    engine = binding.create_mcjit_compiler(parsed, target)
    engine.finalize_object()
    _engines.append(engine)
    types = [_C_TYPES[str(argument.type)] for argument in module.get_global(name).args]
    return ctypes.CFUNCTYPE(None, *types)(engine.get_function_address(name))
