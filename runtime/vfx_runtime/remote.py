"""Videos, folders and lists behind a URL such as ``s3://bucket/a.mp4``, through fsspec.

A video is fetched whole before it is decoded: its index may lie at its end, and what is damaged on the way
must show as it does in a local file. The copy is a file without a name, so nothing is left of it however the
process ends.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vfx_engines.errors import UsageError, VideoError, reason, shown
from vfx_runtime.job import Job

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\0]")


def is_url(text: str) -> bool:
    """Whether a path is one for fsspec."""
    return _URL.match(text) is not None


def joined(folder: str, path: str) -> str:
    """A listed path as a URL: one of its own, or relative to the list's folder."""
    if is_url(path):
        return path
    scheme, _, place = folder.partition("://")
    # A leading slash names the top of the same host or bucket, as in a page.
    host, _, below = place.partition("/")
    return f"{scheme}://{host}/" + posixpath.normpath(posixpath.join("/", below, path)).lstrip("/")


def search(url: str) -> list[str] | None:
    """URLs of all files below a folder, sorted, hidden ones left out; None if it is no folder.

    Raises:
        UsageError: fsspec or what it needs for this kind of URL is missing, or the place cannot be reached.
    """
    try:
        files, path = _open(url)
        if not files.isdir(path):
            return None
        top = path.rstrip("/") + "/"
        below = [str(name).removeprefix(top) for name in files.find(path)]
        return sorted(
            f"{url.rstrip('/')}/{name}"
            for name in below
            if not any(part.startswith(".") for part in name.split("/"))
        )
    except Exception as error:
        raise UsageError(f"{shown(url)}: cannot search this folder: {_said(error)}") from None


def read_bytes(url: str) -> bytes:
    """A whole file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        files, path = _open(url)
        return bytes(files.cat_file(path))
    except Exception as error:
        raise UsageError(f"{shown(url)}: cannot read this list: {_said(error)}") from None


def size_of(url: str) -> int | None:
    """Bytes of a file, None where they are not known."""
    try:
        files, path = _open(url)
        return int(files.size(path))
    except Exception:
        return None


@contextmanager
def at_hand(job: Job) -> Iterator[Path]:
    """The path of a job's video on this machine; it is fetched first if it is elsewhere.

    Raises:
        VideoError: see `fetched`.
    """
    if job.url is None:
        yield job.path
    else:
        with fetched(job.url) as path:
            yield path


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """A local copy of a file, for as long as the context lasts.

    A `VideoError` that is raised within names the URL instead of the copy.

    Raises:
        VideoError: it cannot be fetched, or ended early.
    """
    with tempfile.TemporaryFile(prefix="vfx-") as copy:
        local = f"/proc/self/fd/{copy.fileno()}"
        try:
            files, path = _open(url)
            expected = files.size(path)
            files.get_file(path, local)
        except Exception as error:
            raise VideoError(f"{shown(url)}: cannot be fetched: {_said(error)}") from None
        found = os.fstat(copy.fileno()).st_size
        if expected is not None and found != expected:
            raise VideoError(f"{shown(url)}: {found} bytes came, expected {expected}: run it again")
        try:
            yield Path(local)
        except VideoError as error:
            raise VideoError(str(error).replace(local, shown(url))) from None


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise UsageError("a URL needs fsspec, which is not installed: pip install fsspec") from None
    files, path = fsspec.core.url_to_fs(url)
    return files, path


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return reason(error)  # of a missing package, fsspec's own words name it, such as s3fs
