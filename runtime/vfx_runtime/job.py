"""One video of a run, and the name of its output."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vfx_runtime.image_names import Images


@dataclass(frozen=True, slots=True)
class Job:
    """One video and the name of its output."""

    path: Path
    """Where the video is; it need not exist."""
    name: str
    """The output's path below the output folder, without suffix and with forward slashes."""
    images: Images | None = None
    """How to read the folder of images at `path`; None for a file."""
    url: str | None = None
    """URL of a video that is not on this machine; `path` is then not a usable path."""

    @property
    def where(self) -> str:
        """The video's path or URL, for messages."""
        return self.url or os.fspath(self.path)
