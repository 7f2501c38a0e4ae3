"""Fetching published weights into a cache folder: resumed, hashed on the way, and renamed when right."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import platformdirs

from vfx_engines.errors import DownloadError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes of the whole file, None where the server hides it."""

_SCHEMES = ("https", "http", "file")
_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_PAUSES_S = (0.5, 1.0, 2.0)
"""Before each new attempt; as many attempts in a row may fail to bring a byte more."""
_ELSEWHERE = "a copy from elsewhere can be given with --checkpoint FILE"


def cache_folder() -> Path:
    """Where downloads are kept: ``VFX_CACHE``, or the platform's cache folder for vfx."""
    chosen = os.environ.get("VFX_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("vfx")


def is_url(text: str) -> bool:
    """Whether ``text`` is a URL that `fetch` takes, and no path."""
    return re.match(rf"(?:{'|'.join(_SCHEMES)})://", text, re.IGNORECASE) is not None


def fetch(
    url: str,
    folder: Path,
    *,
    filename: str | None = None,
    sha256: str | None = None,
    git_blob: str | None = None,
    sha256_prefix: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The file behind ``url``, from ``folder`` if it is there already and right.

    Data goes to ``<name>.part``, which a later call resumes, in this process or another; it gets its
    name only when it is whole and its hash is right. Callers of the same file, in any process, wait
    for each other. Where no hash is known the file goes to a subfolder that belongs to the URL, so
    that two files of one name are never taken for each other, and is used unseen the next time.

    Args:
        url: http, https or file.
        folder: Created where needed.
        filename: Name in the folder; the URL's last part if not given.
        sha256: Of the file, in hexadecimal.
        git_blob: The SHA-1 that git gives the file's content.
        sha256_prefix: The first digits of the sha256, as torchvision puts them into file names.
        progress: Called as data comes in, with what was there before counted.

    Raises:
        DownloadError: the server cannot be reached or has no such file, what came is not what was
            published, or the folder cannot be written.
    """
    expected = _expected(sha256, git_blob, sha256_prefix)
    if not is_url(url):
        raise DownloadError(f"{_shown(url)}: not a URL of {', '.join(_SCHEMES)}")
    name = filename or unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise DownloadError(f"{_shown(url)}: names no file; {_ELSEWHERE}")
    if expected is None:
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:12]
    final, part = folder / name, folder / f"{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_right(final, expected):
            return final
        with _locked(part) as file:
            # Whoever held the lock before may have finished the job.
            if not _is_right(final, expected):
                _complete(url, part, file, expected, progress or (lambda done, total: None))
                os.fsync(file.fileno())
                os.replace(part, final)
                _validator_path(part).unlink(missing_ok=True)
            else:
                part.unlink()
    except OSError as error:
        raise DownloadError(
            f"{final}: cannot be written: {error.strerror or error}; "
            "what came stays in .part and is resumed, VFX_CACHE names another folder"
        ) from None
    return final


@dataclass(frozen=True, slots=True)
class _Hash:
    """What a file's hash must begin with."""

    kind: str
    digits: str


def _expected(sha256: str | None, git_blob: str | None, prefix: str | None) -> _Hash | None:
    given = [
        _Hash(kind, digits.lower())
        for kind, digits in (("sha256", sha256), ("git blob", git_blob), ("sha256", prefix))
        if digits
    ]
    if len(given) > 1:
        raise ValueError("one of sha256, git_blob and sha256_prefix is enough")
    if (sha256 and len(sha256) != 64) or (git_blob and len(git_blob) != 40):
        raise ValueError("sha256 has 64 hexadecimal digits, git_blob 40")
    return given[0] if given else None


def _hasher(kind: str, size: int) -> hashlib._Hash:
    if kind == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _hash_file(file: BinaryIO, kind: str, size: int) -> hashlib._Hash:
    """The hash of what ``file`` holds, for a whole of ``size`` bytes; the position is then its end."""
    digest = _hasher(kind, size)
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest


def _is_right(path: Path, expected: _Hash | None) -> bool:
    if not path.is_file() or expected is None:
        return path.is_file()
    with path.open("rb") as file:
        digest = _hash_file(file, expected.kind, path.stat().st_size)
    return digest.hexdigest().startswith(expected.digits)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The part file, open and locked: the kernel frees it even when its holder is killed.

    The lock is on the part itself, so nothing else is left behind. Its holder renames or removes it,
    so that a waiter may wake up with a file that is no longer the part, and then opens the new one.
    """
    while True:
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(os.fstat(file.fileno()), part.stat())
            except FileNotFoundError:
                current = False
            if current:
                yield file
                return


class _BrokenError(Exception):
    """The connection failed in a way that a new attempt may mend."""


def _complete(
    url: str, part: Path, file: BinaryIO, expected: _Hash | None, progress: Progress
) -> None:
    """Bring ``file`` to the whole of the published file."""
    failures, most = 0, 0
    resumed = os.fstat(file.fileno()).st_size > 0
    while True:
        try:
            digest = _attempt(url, part, file, expected, progress)
        except _BrokenError as error:
            size = os.fstat(file.fileno()).st_size
            failures = 0 if size > most else failures + 1
            most = max(most, size)
            if failures >= len(_PAUSES_S):
                raise DownloadError(
                    f"{_shown(url)}: cannot be fetched: {error}, after {failures} more attempts; "
                    f"run again to go on from {size} bytes, or {_ELSEWHERE}"
                ) from None
            time.sleep(_PAUSES_S[failures])
            continue
        if expected is None or digest.startswith(expected.digits):
            return
        _restart(part, file)
        if not resumed:
            part.unlink()
            raise DownloadError(
                f"{_shown(url)}: {expected.kind} is {digest}, expected {expected.digits}: it is not "
                f"the published file, and was deleted; {_ELSEWHERE}"
            )
        # The part was of another file, or damaged: what a fresh download gives is decisive.
        resumed = False


def _attempt(
    url: str, part: Path, file: BinaryIO, expected: _Hash | None, progress: Progress
) -> str:
    """One connection, from where the part ends to the end of the file.

    Returns:
        The hash of the whole file, or nothing where none is expected.

    Raises:
        _BrokenError: the connection ended early; the part keeps what came.
        DownloadError: another attempt would end the same way.
    """
    have = os.fstat(file.fileno()).st_size
    headers = {"User-Agent": "vfx"}
    validator = _validator_path(part)
    known = validator.read_text("ascii") if have and validator.is_file() else ""
    # Without a hash only the server can say that a part is still of its file.
    if have and (known or expected is not None):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    with _open(url, headers) as response:
        total, start = _extent(response, have)
        if start != have or (total is not None and total < have):
            _restart(part, file)
            if start:
                raise _BrokenError("the server's file is not the one that was begun")
        if start == 0:
            _note_validator(response, validator)
        kind = expected.kind if expected else ""
        # git hashes the length first: where it is not known, the file is hashed when it is whole.
        streaming = expected is not None and (kind == "sha256" or total is not None)
        digest = _hash_file(file, kind, total or 0) if streaming else None
        done = file.seek(0, os.SEEK_END)
        progress(done, total)
        while total is None or done < total:
            chunk = _read(response)
            if not chunk:
                break
            file.write(chunk)
            if digest is not None:
                digest.update(chunk)
            done += len(chunk)
            progress(done, total)
        file.flush()
    if total is not None and done != total:
        raise _BrokenError(f"the connection ended after {done} of {total} bytes")
    if expected is not None and digest is None:
        digest = _hash_file(file, kind, done)
    return digest.hexdigest() if digest is not None else ""
