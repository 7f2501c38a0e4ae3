"""Two ways to break a file."""

from __future__ import annotations

from pathlib import Path


def cut(path: Path, keep: float) -> Path:
    """Truncate a file to a share (0 to 1) of its length."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def spoil(path: Path, at: float, count: int = 64) -> Path:
    """Overwrite ``count`` bytes with FF, starting at a share (0 to 1) of the file's length."""
    data = bytearray(path.read_bytes())
    first = int(len(data) * at)
    data[first : first + count] = b"\xff" * count
    path.write_bytes(data)
    return path
