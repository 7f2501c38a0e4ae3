"""Videos waiting to be packed: ``.npz`` files in a hidden folder of the output folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vfx_engines.errors import OutputError, shown


class Staging:
    """A hidden folder of ``.npz`` files, one per video, named after it.

    Args:
        folder: the hidden folder, which need not exist.

    Raises:
        OutputError: the folder is a link.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_symlink():
            # Files in the link's target would be packed and removed.
            raise OutputError(f"cannot write to {shown(folder)}: it is a link: remove it")
        self.folder = folder

    def path(self, name: str) -> Path:
        """The path of a video's file."""
        return self.folder / f"{name}.npz"

    def names(self) -> list[str]:
        """The names of the waiting videos, sorted."""
        top = os.fspath(self.folder)
        return sorted(
            os.path.relpath(os.path.join(folder, file), top).removesuffix(".npz")
            for folder, _, files in os.walk(top)
            for file in files
            if file.endswith(".npz")
        )

    def tidy(self) -> None:
        """Remove the folder and the folders in it, as far as they are empty."""
        for folder, _, _ in os.walk(self.folder, topdown=False):
            # A folder that is not empty is still used by another process.
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def text_of(name: str) -> str:
    """A video's name as valid text. Names may have any bytes; those that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
