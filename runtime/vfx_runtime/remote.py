"""Videos, folders and lists at a URL such as ``s3://bucket/a.mp4``, through fsspec.

A whole video is fetched before it is decoded, because its index may be at its end, and so that damage on the
way is noticed as it is in a local file. The copy is a file without a name, so nothing is left of it however
the process ends.
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
    """Whether a path is a URL, to be read by fsspec."""
    return _URL.match(text) is not None


def joined(folder: str, path: str) -> str:
    """A path in a list as a URL: as it is if it is one, otherwise relative to the list's folder."""
    if is_url(path):
        return path
    scheme, _, place = folder.partition("://")
    # A leading slash stands for the top of the same host or bucket, as on a web page.
    host, _, below = place.partition("/")
    return f"{scheme}://{host}/" + posixpath.normpath(posixpath.join("/", below, path)).lstrip("/")


def search(url: str) -> list[str] | None:
    """URLs of all files below a folder, sorted, without hidden ones; None if it is not a folder.

    Raises:
        UsageError: fsspec, or the package it needs for this kind of URL, is missing, or the place cannot be
            reached.
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
    """Read a whole file, which is a list.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        files, path = _open(url)
        return bytes(files.cat_file(path))
    except Exception as error:
        raise UsageError(f"{shown(url)}: cannot read this list: {_said(error)}") from None


def size_of(url: str) -> int | None:
    """Size of a file in bytes; None if it cannot be found out."""
    try:
        files, path = _open(url)
        return int(files.size(path))
    except Exception:
        return None


@contextmanager
def at_hand(job: Job) -> Iterator[Path]:
    """The path of a job's video on this machine, after fetching it if it is elsewhere.

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

    In a `VideoError` raised inside the context, the path of the copy is replaced by the URL.

    Raises:
        VideoError: the file cannot be fetched, or ended early.
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
    cause = error.__cause__
    # fsspec raises this for whatever goes wrong over HTTP. What did is the cause.
    over_http = type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError)
    if isinstance(error, FileNotFoundError) and over_http and getattr(cause, "status", None) != 404:
        return reason(cause)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return reason(error)  # if a package such as s3fs is missing, fsspec's message names it
