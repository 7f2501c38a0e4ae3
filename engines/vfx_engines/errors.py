"""The errors that vfx raises for problems that a user can fix.

    VfxError
    ├── UsageError            the request itself is impossible: a wrong option, a missing package
    ├── CheckpointError       a weights file is missing, damaged, of another model or unsafe
    ├── DownloadError         a weights file could not be fetched or is not what was published
    ├── ExportError           a graph could not be made, or does not compute what its module computes
    ├── EngineError           an engine file is damaged, has no spec, or cannot run here
    │   └── SpecError         a spec is malformed, or newer than this vfx
    ├── InputError            an array does not fit an engine's input
    ├── VideoError            a video cannot be decoded, or is too short for one window
    └── OutputError           an output file cannot be written

Every message is one line: what was found, what was expected, and what to do. Commands print it and exit with
code 1, or 2 for a `UsageError`.
"""

from __future__ import annotations

import os


class VfxError(Exception):
    """Base of every error that vfx raises on purpose."""


class UsageError(VfxError):
    """The request cannot be carried out as given: a wrong option, or a missing package."""


class CheckpointError(VfxError):
    """A weights file is missing, damaged, unsafe, or holds another model."""


class DownloadError(VfxError):
    """A weights file could not be fetched, or differs from what was published."""


class ExportError(VfxError):
    """A graph could not be made, or does not compute what its torch module computes."""


class EngineError(VfxError):
    """An engine file is damaged, has no spec, or cannot run on this machine."""


class SpecError(EngineError):
    """A spec is malformed, or of a newer version than this vfx can read."""


class InputError(VfxError):
    """An array or a slot does not fit what the engine takes."""


class VideoError(VfxError):
    """A video cannot be decoded, or has too few frames for one window."""


class OutputError(VfxError):
    """An output file cannot be written."""


def shown(path: str | os.PathLike[str]) -> str:
    """``path`` as one line of printable text, quoted and escaped if necessary."""
    text = os.fspath(path)
    return text if text.isprintable() and text.strip() == text != "" else ascii(text)


def reason(said: object, line: int = 0) -> str:
    """One line of another library's error or text, at most 200 characters and printable.

    Args:
        said: the error or text.
        line: which of its lines that are not empty; the first by default.
    """
    lines = [text.strip() for text in str(said).splitlines() if text.strip()]
    text = lines[line] if lines else type(said).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])
