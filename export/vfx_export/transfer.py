"""One connection of a download, from the end of a partial file to the end of the published file."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from vfx_engines.errors import DownloadError

Progress = Callable[[int, int | None], None]
"""Called with the bytes present and the bytes of the whole file (None if the server does not tell)."""

ELSEWHERE = "a copy from elsewhere can be given with --checkpoint FILE"

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0


class BrokenConnectionError(Exception):
    """The connection failed in a way in which a new attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Hash:
    """What a file's hash must begin with."""

    kind: str
    """``sha256`` or ``git blob``."""
    digits: str
    """The first hexadecimal digits, or all of them."""


def _hasher(kind: str, size: int) -> hashlib._Hash:
    if kind == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def file_size(file: BinaryIO) -> int:
    """Size of an open file in bytes, with what is still in its buffer. Moves the position to the end."""
    return file.seek(0, os.SEEK_END)


def hash_file(file: BinaryIO, kind: str, size: int) -> hashlib._Hash:
    """Hash the content of an open file. Moves the position to the end.

    Args:
        file: opened for reading.
        kind: see `Hash`.
        size: bytes of the whole file, of which ``file`` may be the beginning; git hashes the size too.

    Returns:
        The hash object, to which the rest of the file can be added.
    """
    digest = _hasher(kind, size)
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest


def attempt(url: str, part: Path, file: BinaryIO, expected: Hash | None, progress: Progress) -> str:
    """Download over one connection, from the end of the partial file to the end of the published file.

    Args:
        url: where the published file is.
        part: path of the partial file.
        file: the partial file, open for reading and writing.
        expected: hash of the whole file; None if it is not known.
        progress: called as data arrives.

    Returns:
        The hash of the whole file in hexadecimal; empty if none is expected.

    Raises:
        BrokenConnectionError: the connection ended early; ``file`` keeps what arrived.
        DownloadError: another attempt would end in the same way.
    """
    have = file_size(file)
    headers = {"User-Agent": "vfx"}
    validator = validator_path(part)
    known = validator.read_text("ascii") if have and validator.is_file() else ""
    # Without a hash, only the server can tell whether the partial file belongs to its present file.
    if have and (known or expected is not None):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    with _open(url, headers, lambda: restart_part(part, file)) as response:
        total, start = _extent(response)
        if start != have:
            restart_part(part, file)
            if start:
                raise BrokenConnectionError("the server's file is not the one that was begun")
        if start == 0:
            _note_validator(response, validator)
        kind = expected.kind if expected else ""
        # git hashes the length first. If it is not known, the file is hashed once it is complete.
        streaming = expected is not None and (kind == "sha256" or total is not None)
        digest = hash_file(file, kind, total or 0) if streaming else None
        done = file_size(file)
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
        raise BrokenConnectionError(f"the connection ended after {done} of {total} bytes")
    if expected is not None and digest is None:
        digest = hash_file(file, kind, done)
    return digest.hexdigest() if digest is not None else ""


def _open(url: str, headers: dict[str, str], restart: Callable[[], None]) -> http.client.HTTPResponse:
    where, scheme, host = shown_url(url), *urlsplit(url)[:2]
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and "Range" in headers:
            restart()
            raise BrokenConnectionError("the server's file ends before the part does") from None
        # Not error.reason, which may quote a redirect's URL with its secrets.
        what = f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip()
        if error.code in (408, 425, 429, 500, 502, 503, 504):
            raise BrokenConnectionError(what) from None
        raise DownloadError(f"{where}: {what}; {ELSEWHERE}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise DownloadError(f"{where}: not a usable URL: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if scheme == "file" or isinstance(reason, socket.gaierror | ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{where}: cannot reach {host or 'it'}: {_reason(reason)}; {ELSEWHERE}"
            ) from None
        raise BrokenConnectionError(f"{host} does not answer: {_reason(reason)}") from None
    final = urlsplit(response.url).scheme
    if final != scheme and final != "https":
        response.close()
        raise DownloadError(f"{where}: redirected from {scheme} to {final}, which is refused")
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise DownloadError(f"{where}: the server sent an HTML page, expected a file of weights; {ELSEWHERE}")
    return response


def _extent(response: http.client.HTTPResponse) -> tuple[int | None, int]:
    """Size of the whole file (None: not told), and the position where this response starts (-1: not told)."""
    if response.status == 206:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if told is None:
            return None, -1
        return (None if told[2] == "*" else int(told[2])), int(told[1])
    length = response.headers.get("Content-Length", "")
    return (int(length) if length.isdecimal() else None), 0


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        # read1 returns what has arrived; read would lose it if the connection breaks within a chunk.
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenConnectionError(f"the connection broke: {_reason(error)}") from None


def validator_path(part: Path) -> Path:
    """Path of a file beside a partial file, with the server's name (ETag or date) for the file's version."""
    return part.with_name(f"{part.name}.etag")


def _note_validator(response: http.client.HTTPResponse, path: Path) -> None:
    etag = response.headers.get("ETag", "")
    # A weak ETag says that two files are equivalent, not that their bytes are the same.
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    if validator and validator.isascii() and validator.isprintable():
        path.write_text(validator, "ascii")
    else:
        path.unlink(missing_ok=True)


def restart_part(part: Path, file: BinaryIO) -> None:
    """Empty a partial file, and forget which version of the published file it belonged to."""
    validator_path(part).unlink(missing_ok=True)
    if file_size(file):
        file.seek(0)
        file.truncate()


def _reason(error: object) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text or type(error).__name__


def shown_url(url: str) -> str:
    """The URL on one line, without user name, password, query and fragment, which may hold secrets."""
    split = urlsplit(url)
    text = split._replace(netloc=split.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return text if text.isprintable() else repr(text)
