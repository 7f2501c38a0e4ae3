"""How every command ends: one line for an error, and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vfx_engines.errors import UsageError, VfxError


@contextmanager
def ends(command: str, debug: bool, interrupted: str = "interrupted") -> Iterator[None]:
    """Turn what the body raises into one line on stderr and the command's exit code.

    Exit codes: 2 for a `UsageError`, 1 for any other `VfxError`, 130 for Ctrl-C. Other exceptions pass.

    Args:
        command: name of the command, with which the line begins.
        debug: also print the traceback of a `VfxError`.
        interrupted: what the line says after Ctrl-C.
    """
    try:
        yield
    except VfxError as error:
        if debug:
            traceback.print_exc()
        print(f"{command}: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except (KeyboardInterrupt, ImportError) as error:
        if not _is_interruption(error):
            raise
        print(f"{command}: {interrupted}", file=sys.stderr, flush=True)
        sys.exit(130)


def _is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: while a C library is imported, it comes out as an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
