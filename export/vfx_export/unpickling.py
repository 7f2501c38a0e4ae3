"""Protection against small malicious pickles that would exhaust memory or time, or crash the process.

Python's C code lacks two limits. A memo is allocated with any length that an opcode names. And a key of
nested tuples is hashed to any depth, beyond the end of the stack, and each part as often as the pickle refers
to it.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Sequence
from typing import IO, Any, ClassVar

_DEEPEST = 100
_LARGEST = 100_000
"""Limits of a tuple, in levels and in parts; tuples in real files have a handful of each."""

_PurePython: Any = pickle._Unpickler  # the unpickler written in Python, used where the C version is missing


class PlainUnpickler(_PurePython):  # type: ignore[misc]  # typed as Any, see above
    """Python's unpickler written in Python, which only accepts texts and numbers as keys, and no sets.

    It is slower for each opcode, of which checkpoints have a few per array, but not for the arrays' bytes.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PurePython.dispatch)

    def load_setitem(self) -> None:
        """As in Python, for plain keys only."""
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """As in Python, for plain keys only."""
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        """As in Python, for plain keys only."""
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        """Refuse sets and frozensets with a ``ValueError``."""
        raise ValueError("a set")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = dispatch[pickle.FROZENSET[0]] = load_additems


def _check_keys(keys: Sequence[object]) -> None:
    for key in keys:
        if not isinstance(key, str | bytes | int | float | None):
            raise ValueError(f"a key of type {type(key).__name__}")


_MARK = (-1, -1)
_PLAIN = (0, 1)


def refuse_deep_tuples(file: IO[bytes]) -> None:
    """Scan a pickle for nested tuples that an unpickler in C could not hash. Nothing is unpickled.

    A damaged pickle ends the scan without an error: unpickling it raises one anyway.

    Args:
        file: the pickle, from its current position; seekable, since pickletools asks for the position.

    Raises:
        ValueError: a tuple has more levels or parts than in any real file.
    """
    stack: list[tuple[int, int]] = []
    memo: dict[object, tuple[int, int]] = {}
    try:
        opcodes = pickletools.genops(file)
        while (item := next(opcodes, None)) is not None:
            code, argument, _ = item
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if code.name == "MEMOIZE" else argument] = stack[-1]
                continue
            if code.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
                continue
            if code.name == "DUP":
                stack.append(stack[-1])
                continue
            taken = _taken(stack, code)
            made = _PLAIN
            if code.name.startswith("TUPLE"):
                made = (
                    1 + max((depth for depth, _ in taken), default=0),
                    1 + sum(size for _, size in taken),
                )
                if made[0] > _DEEPEST or made[1] > _LARGEST:
                    raise _DeepError
            stack += [_MARK if after is pickletools.markobject else made for after in code.stack_after]
    except _DeepError:
        raise ValueError(f"tuples of more than {_DEEPEST} levels or {_LARGEST} parts") from None
    except (ValueError, IndexError, KeyError, EOFError):
        return


class _DeepError(Exception):
    pass


def _taken(stack: list[tuple[int, int]], code: pickletools.OpcodeInfo) -> list[tuple[int, int]]:
    """Pop what an opcode takes from the stack; if it takes a mark, everything above that too."""
    before = code.stack_before
    if pickletools.markobject in before:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        taken = stack[at + 1 :]
        del stack[at:]
        for _ in range(before.index(pickletools.markobject)):
            stack.pop()
        return taken
    taken = stack[len(stack) - len(before) :] if before else []
    del stack[len(stack) - len(taken) :]
    return taken
