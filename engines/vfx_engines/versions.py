"""The version of vfx, also from a bare checkout that is not installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def vfx_version() -> str:
    """As installed; ``0+checkout`` where only the sources are on the path."""
    try:
        return version("vfx")
    except PackageNotFoundError:
        return "0+checkout"
