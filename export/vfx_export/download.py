"""Fetching published weights into a cache folder: resumed, hashed on arrival, and renamed once verified."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import platformdirs

from vfx_engines.errors import DownloadError, shown
from vfx_export.transfer import (
    ELSEWHERE,
    BrokenConnectionError,
    Hash,
    Progress,
    attempt,
    file_size,
    hash_file,
    restart_part,
    shown_url,
    validator_path,
)

_SCHEMES = ("https", "http", "file")
_PAUSES_S = (0.5, 1.0, 2.0)
"""Pauses before new attempts. The download fails after as many attempts in a row that bring no new bytes."""


def cache_folder() -> Path:
    """Folder of downloads: that of the variable ``VFX_CACHE``, or the platform's cache folder for vfx."""
    chosen = os.environ.get("VFX_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("vfx")


def is_url(text: str) -> bool:
    """Whether ``text`` is a URL that `fetch` accepts, rather than a path."""
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
    """Download a file, unless ``folder`` already has it with the right hash.

    Data goes to ``<name>.part``, which a later call can resume, in this process or another. The file only
    gets its name when it is complete and its hash is right. Callers that want the same file, in any process,
    wait for each other. If no hash is known, the file goes to a subfolder named after the URL, so that two
    files with one name are never confused, and it is used again without a check.

    Args:
        url: an http, https or file URL.
        folder: where to put the file; created if necessary.
        filename: name in the folder; None takes the last part of the URL.
        sha256: SHA-256 of the file, in hexadecimal. Only one of the hashes may be given.
        git_blob: git's SHA-1 of the file.
        sha256_prefix: first digits of the SHA-256, as torchvision puts them into file names.
        progress: called as data arrives; counts include what was there before.

    Returns:
        Path of the file.

    Raises:
        DownloadError: the server cannot be reached or has no such file, what arrived is not what was
            published, or the folder cannot be written.
    """
    expected = _expected(sha256, git_blob, sha256_prefix)
    if not is_url(url):
        raise DownloadError(f"{shown_url(url)}: not a URL of {', '.join(_SCHEMES)}")
    name = filename or unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise DownloadError(f"{shown_url(url)}: names no file; {ELSEWHERE}")
    if expected is None:
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:12]
    final, part = folder / name, folder / f"{name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_right(final, expected):
            return final
        with _locked(part) as file:
            # Whoever held the lock before may have completed the file.
            if not _is_right(final, expected):
                _complete(url, part, file, expected, progress or (lambda done, total: None))
                os.fsync(file.fileno())
                os.replace(part, final)
                validator_path(part).unlink(missing_ok=True)
            else:
                part.unlink()
    except OSError as error:
        raise DownloadError(
            f"{shown(final)}: cannot be written: {error.strerror or error}; "
            "what came stays in .part and is resumed, VFX_CACHE names another folder"
        ) from None
    return final


def _expected(sha256: str | None, git_blob: str | None, prefix: str | None) -> Hash | None:
    given = [
        Hash(kind, digits.lower())
        for kind, digits in (("sha256", sha256), ("git blob", git_blob), ("sha256", prefix))
        if digits
    ]
    if len(given) > 1:
        raise ValueError("one of sha256, git_blob and sha256_prefix is enough")
    if (sha256 and len(sha256) != 64) or (git_blob and len(git_blob) != 40):
        raise ValueError("sha256 has 64 hexadecimal digits, git_blob 40")
    return given[0] if given else None


def _is_right(path: Path, expected: Hash | None) -> bool:
    if not path.is_file() or expected is None:
        return path.is_file()
    with path.open("rb") as file:
        digest = hash_file(file, expected.kind, path.stat().st_size)
    return digest.hexdigest().startswith(expected.digits)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The partial file, open and locked. The kernel releases the lock even if its holder is killed.

    The lock is on the partial file itself, so no other file is left behind. Its holder renames or removes it,
    so a waiter may get the lock on a file that is no longer the partial file, and then opens the new one.
    """
    while True:
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(os.fstat(file.fileno()), part.stat())
            except FileNotFoundError:
                current = False
            if not current:
                continue
            try:
                yield file
            finally:
                if not file_size(file):
                    part.unlink(missing_ok=True)
            return


def _complete(url: str, part: Path, file: BinaryIO, expected: Hash | None, progress: Progress) -> None:
    """Download until the partial file is the complete published file, with several attempts if necessary."""
    # Less than any size, so that the first attempt, too, is followed by all pauses.
    failures, most = 0, -1
    resumed = file_size(file) > 0
    if resumed and expected is not None and _is_right(part, expected):
        return  # killed between the last byte and the rename
    while True:
        try:
            digest = attempt(url, part, file, expected, progress)
        except BrokenConnectionError as error:
            size = file_size(file)
            failures = 0 if size > most else failures + 1
            most = max(most, size)
            if failures >= len(_PAUSES_S):
                raise DownloadError(
                    f"{shown_url(url)}: cannot be fetched: {error}, after {failures} more attempts; "
                    f"run again to go on from {size} bytes, or {ELSEWHERE}"
                ) from None
            time.sleep(_PAUSES_S[failures])
            continue
        if expected is None or digest.startswith(expected.digits):
            return
        restart_part(part, file)
        if not resumed:
            raise DownloadError(
                f"{shown_url(url)}: {expected.kind} is {digest}, expected {expected.digits}: it is not "
                f"the published file, and was deleted; {ELSEWHERE}"
            )
        # The part was damaged or belonged to another file. A fresh download decides whether the hash is
        # wrong.
        resumed = False
