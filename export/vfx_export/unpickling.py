"""What pickles from strangers have in common: small ones that would take all memory, all time or the process.

C code has no bounds on two things. A memo is made as long as an opcode says; and a key of tuples in tuples is
hashed to its depth, past the end of the stack, and as often as its parts are named.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Sequence
from typing import IO, Any, ClassVar

_DEEPEST = 100
_LARGEST = 100_000
"""Of a tuple, in levels and in parts: those of real files have a handful."""

_PurePython: Any = pickle._Unpickler  # what Python runs where it has no C


class PlainUnpickler(_PurePython):  # type: ignore[misc]  # of no type, see above
    """Python's own unpickler in Python, with keys that are texts and numbers, and without sets.

    Slower for an opcode, of which checkpoints have some for each array, and as fast for what an array holds.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PurePython.dispatch)

    def load_setitem(self) -> None:
        """As Python's, for keys that are plain."""
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """As Python's, for keys that are plain."""
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        """As Python's, for keys that are plain."""
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        """Nothing is in a set."""
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
    """Look through a pickle for tuples that another unpickler could not hash; nothing is made of it.

    Ends in silence where it is damaged: so does whoever unpickles it, with an error.

    Args:
        file: one that can be asked where it is, which pickletools does.

    Raises:
        ValueError: tuples lie deeper in tuples, or are more, than in any real file.
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
    """What an opcode takes from the stack, the mark and what lies above it included."""
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
