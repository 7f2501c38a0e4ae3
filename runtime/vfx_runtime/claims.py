"""Claims let several processes share one list and one output folder without doing a video twice.

A claim is a kernel lock (``fcntl``, a POSIX record lock) on one byte of a hidden file in the output folder. A
hash of the video's name says which byte. The kernel drops the locks of a process that dies, so no claim
outlives a ``kill -9``. No clock is involved, and the locks also work over NFS.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Self

from vfx_engines.errors import UsageError, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CLAIMS_FILE = ".vfx-claims"

_HELD = (errno.EACCES, errno.EAGAIN)

# POSIX locks belong to the process, and closing any descriptor of the file drops them all. So a second
# `Claims` on the same folder in this process would silently undo the first.
_open_here: set[tuple[int, str]] = set()
_open_guard = threading.Lock()


class Claims:
    """This process's claims on the videos of one output folder; a context manager.

    Threads may share it. There are 2**62 bytes, so two names may fall on the same one: one process can hold
    both claims; for two processes, the second gets its claim after the first releases its own.

    Args:
        output: the output folder, which must exist.

    Raises:
        UsageError: this process already has a `Claims` open on that folder.
    """

    def __init__(self, output: Path) -> None:
        self._path = output / CLAIMS_FILE
        self._key = (os.getpid(), os.path.realpath(output))
        self._names: set[str] = set()
        self._bytes: Counter[int] = Counter()
        self._guard = threading.Lock()
        self._file = -1
        self.reason: str | None = None
        """Why claims do not work between processes here, in one line; None if they do."""
        self.began: int | None = None
        """When this object was opened, in nanoseconds, by the clock that stamps the files of that folder;
        None if unknown. It only decides who is counted as having made a file."""
        with _open_guard:
            if self._key in _open_here:
                raise UsageError(
                    f"{shown(output)}: this process already writes there; "
                    "wait for that run, or choose another output folder"
                )
            _open_here.add(self._key)
        if fcntl is None:
            self.reason = "this system has no fcntl locks"
            return
        found = self._path.exists()
        try:
            self._open()
            with contextlib.suppress(OSError):
                # The file server's own clock stamps it, so that the times of other files can be compared with
                # it.
                os.utime(self._file)
                self.began = os.fstat(self._file).st_mtime_ns
        except OSError as error:
            self._give_up(error)
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            if not found:
                # We made this file for nothing. One that existed before may serve other machines.
                with contextlib.suppress(OSError):
                    self._path.unlink()

    @property
    def active(self) -> bool:
        """Whether other processes respect these claims; if not, ``reason`` says why."""
        return self.reason is None

    def take(self, name: str) -> bool:
        """Claim a name. Returns False if this or another process already has it; never waits."""
        with self._guard:
            if name in self._names:
                return False
            byte = _byte(name)
            if self.active and not self._bytes[byte]:
                try:
                    if not self._lock(byte):
                        return False
                except OSError as error:
                    self._give_up(error)
            self._names.add(name)
            self._bytes[byte] += 1
            return True

    def release(self, name: str) -> None:
        """Release a name, so that another process may claim it."""
        with self._guard:
            self._names.remove(name)
            byte = _byte(name)
            self._bytes[byte] -= 1
            if not self._bytes[byte]:
                del self._bytes[byte]
                if self._file >= 0:
                    # This fails only if the file system went away, and the locks with it.
                    with contextlib.suppress(OSError):
                        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def close(self) -> None:
        """Release all names. The last process to close removes the file."""
        with self._guard:
            if self._file >= 0:
                with contextlib.suppress(OSError):
                    # We get a lock on the whole file only if no other process holds any claim. A process that
                    # holds none at this moment notices the removal at its next `take`.
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._current():
                        self._path.unlink()
                os.close(self._file)
                self._file = -1
            self._names.clear()
            self._bytes.clear()
        with _open_guard:
            _open_here.discard(self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        # Some file systems open the file but refuse locks, so try one.
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _PROBE)
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _PROBE)

    def _lock(self, byte: int) -> bool:
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError as error:
                if error.errno in _HELD:
                    return False
                if error.errno != errno.ESTALE:
                    raise
            else:
                if self._current():
                    return True
            # Another process closed its claims and removed the file, so claims are now in a new one.
            os.close(self._file)
            self._file = -1
            self._open()
            for held in self._bytes:
                # We hold claims at this point only if somebody removed the file by hand.
                with contextlib.suppress(BlockingIOError, PermissionError):
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, held)

    def _current(self) -> bool:
        """Whether our open file is still the one that another process would open by name."""
        try:
            mine, named = os.fstat(self._file), self._path.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        # On NFS, the name may come from a cache that does not know yet that the file was removed.
        return mine.st_nlink > 0 and (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)

    def _give_up(self, error: OSError) -> None:
        # The file stays open, since closing it would drop the locks that we hold.
        self.reason = f"{shown(self._path)}: no locks here ({error.strerror})"


_PROBE = 2**62


def _byte(name: str) -> int:
    """Offset of a name's byte; below 2**62, so that offset plus length fits into a 64-bit off_t."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
