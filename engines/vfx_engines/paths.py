"""Paths on the command line: anything that is not a local path is refused before any work begins."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click


class LocalPath(click.Path):
    """A click type: a local file or folder, as a ``Path``.

    Args:
        url: let URLs through as well; the code that reads the option decides which ones it accepts.
    """

    def __init__(self, *, url: bool = False) -> None:
        super().__init__(path_type=Path)
        self._url = url

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            click.ClickException: ``value`` is the empty text, or a URL where none is allowed. The command
                ends with one line and exit code 2.
        """
        text = os.fspath(value)
        if not text:
            # Path("") is the current folder, which nobody expects from an unset shell variable.
            raise _RefusedError(param, ctx, "the empty text", "a path")
        if not self._url and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
            # Path("s3://...") would be a folder named "s3:" in the current one.
            raise _RefusedError(
                param, ctx, "a URL", "a path of this machine: mount the place, or copy files from or to it"
            )
        return super().convert(value, param, ctx)


class _RefusedError(click.ClickException):
    """Ends the command like `vfx_engines.ending.ends`, which is not active yet while options are parsed."""

    exit_code = 2

    def __init__(
        self, param: click.Parameter | None, ctx: click.Context | None, found: str, expected: str
    ) -> None:
        command = ctx.command.name if ctx is not None else None
        option = "" if param is None else f"{param.opts[0] if param.opts[0][:1] == '-' else param.metavar}: "
        super().__init__(f"{command or 'vfx'}: {option}found {found}, expected {expected}")

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=True)
