"""Paths on the command line: what is no path of this machine is refused before anything is done."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click


class LocalPath(click.Path):
    """A click type: a file or folder of this machine, as a ``Path``.

    Args:
        url: let addresses through too; what takes the option knows which.
    """

    def __init__(self, *, url: bool = False) -> None:
        super().__init__(path_type=Path)
        self._url = url

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; ends the command with one line for the empty text, and for a URL that is none here."""
        text = os.fspath(value)
        if not text:
            # A Path of it is the current folder: of a shell's variable without a value that is a surprise.
            raise _RefusedError(param, ctx, "the empty text", "a path")
        if not self._url and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
            # A Path of it is a folder called s3: in the current one.
            raise _RefusedError(
                param, ctx, "a URL", "a path of this machine: mount the place, or copy files from or to it"
            )
        return super().convert(value, param, ctx)


class _RefusedError(click.ClickException):
    """Ends the command as `vfx_engines.ending.ends` does, which has not begun when options are read."""

    exit_code = 2

    def __init__(
        self, param: click.Parameter | None, ctx: click.Context | None, found: str, expected: str
    ) -> None:
        command = ctx.command.name if ctx is not None else None
        option = "" if param is None else f"{param.opts[0] if param.opts[0][:1] == '-' else param.metavar}: "
        super().__init__(f"{command or 'vfx'}: {option}found {found}, expected {expected}")

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=True)
