"""The version of vfx, even in a checkout that is not installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def vfx_version() -> str:
    """Version of the installed distribution; ``0+checkout`` if only the sources are on the path."""
    try:
        return version("vfx")
    except PackageNotFoundError:
        return "0+checkout"
