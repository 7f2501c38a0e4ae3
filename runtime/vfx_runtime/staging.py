"""Videos that wait to be packed: ``.npz`` files in a hidden folder of the output folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vfx_engines.errors import OutputError, shown


class Staging:
    """A hidden folder of ``.npz`` files, one for each video, under its name.

    Raises:
        OutputError: it is a link.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_symlink():
            # What it held would be packed and removed, wherever that lies.
            raise OutputError(f"cannot write to {shown(folder)}: it is a link: remove it")
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where the video of this name waits."""
        return self.folder / f"{name}.npz"

    def names(self) -> list[str]:
        """Of the videos that wait, sorted."""
        top = os.fspath(self.folder)
        return sorted(
            os.path.relpath(os.path.join(folder, file), top).removesuffix(".npz")
            for folder, _, files in os.walk(top)
            for file in files
            if file.endswith(".npz")
        )

    def tidy(self) -> None:
        """Remove the folder and those in it that are empty."""
        for folder, _, _ in os.walk(self.folder, topdown=False):
            # Not empty: another process is still at work.
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def text_of(name: str) -> str:
    """A video's name where only text may stand: names are any bytes, and what is not UTF-8 is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
