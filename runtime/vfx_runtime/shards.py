"""Shards: files of many videos each, in one of several layouts, and the index of a folder of them.

A shard never changes. Its name contains a hash of its bytes, so processes need not agree on numbers, and a
damaged shard is noticed. `vfx_runtime.packing` makes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
import threading
import time
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from vfx_engines.errors import VfxError
from vfx_runtime.atomic import input_error
from vfx_runtime.features import BLOCK_BYTES, Features

SHARD_NAMES = f"features-{'[0-9a-f]' * 16}"
"""Pattern of shard names without suffix, both as a glob and as a regular expression. A file such as
``features-all.parquet`` is the user's own."""

TICK_SECONDS = 2.0
"""The coarsest resolution of file times, which is FAT's."""


@dataclass(slots=True)
class Contents:
    """What a shard holds; empty if it could not be read to its end."""

    kind: Hashable = ()
    """What all videos of the shard have in common, see `Layout.kind`."""
    videos: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Fingerprint and source (as JSON) of each video, by name."""
    whole: bool = False
    """Whether the shard could be read to its end."""

    def add(self, name: object, meta: Mapping[str, Any]) -> None:
        """Add a video; raises one of `Layout.damage` if ``meta`` is not what vfx writes."""
        self.videos[str(name)] = (sys.intern(str(meta["fingerprint"])), json.dumps(meta["source"]))


class Layout(Protocol):
    """How a kind of shard holds its videos."""

    suffix: str
    """Suffix of shards, such as ``.tar``."""
    staging: str
    """Name of the hidden folder where videos wait to be packed."""
    damage: tuple[type[Exception], ...]
    """Exceptions that reading a damaged shard may raise."""

    def kind(self, archive: zipfile.ZipFile) -> Hashable:
        """What all videos of a shard must have in common, for a staged video.

        Raises one of `vfx_runtime.npz.DAMAGE` if the archive is not what vfx writes.
        """
        ...

    def contents(self, shard: Path) -> Contents:
        """What a shard holds; empty if it is too damaged to be read.

        Raises:
            OSError: the system cannot read the file, see `vfx_runtime.npz.system_failure`.
        """
        ...

    def read(self, shard: Path, name: str) -> Features:
        """Read all features of one video of a shard into memory; raises one of ``damage``."""
        ...

    def write(
        self,
        file: IO[bytes],
        kind: Hashable,
        kept: Mapping[Path, Sequence[str]],
        staged: Mapping[str, Path],
    ) -> None:
        """Write a shard in bounded memory; the same videos give the same bytes.

        Args:
            file: an empty file.
            kind: the kind of all its videos.
            kept: intact shards, and the names of the videos to copy from each.
            staged: names and ``.npz`` files of the other videos.
        """
        ...


class Shards:
    """The shards of a folder, and the videos that they hold. Threads may share it.

    The contents of a shard are read once, and all its bytes once more when it is first relied on, however
    often it is asked for and however many shards are added.

    Args:
        output: the output folder.
        layout: the layout of the shards.
    """

    def __init__(self, output: Path, layout: Layout) -> None:
        self._output, self._layout = output, layout
        self._pattern = re.compile(SHARD_NAMES + re.escape(layout.suffix))
        self._lock = threading.RLock()
        self._contents: dict[Path, Contents] = {}
        self._holding: dict[str, tuple[Path, ...]] = {}
        """The shards that hold each video, by name."""
        self._states: dict[Path, tuple[int, int, int]] = {}
        self._intact: dict[Path, bool] = {}
        self._looked: tuple[int, int] | None = None
        """Inode and time of the folder when its files were last listed."""
        self._settled = False
        """Whether that listing came long enough after the folder's last change to include all files."""
        self._when = 0.0

    def refresh(self, *, anew: bool = False) -> None:
        """Notice shards that were added, removed or replaced.

        Args:
            anew: whether to list the folder even if it seems unchanged.

        Raises:
            OutputError: a shard cannot be read, which does not mean that it is damaged.
        """
        with self._lock:
            if not anew and not self._may_have_changed():
                return
            try:
                self._relist()
            except VfxError:
                self._looked = None
                raise

    def _relist(self) -> None:
        found: set[Path] = set()
        for name, number in self._listed():
            shard = self._output / name
            known = self._contents.get(shard)
            same = known is not None and known.whole and self._states[shard][0] == number
            if same and self._intact.get(shard, True):
                # The hash in its name is compared with its bytes later, when the shard is relied on.
                found.add(shard)
            elif (state := file_state(shard)) is not None and self._note(shard, state):
                found.add(shard)
        for shard in self._contents.keys() - found:
            self._forget(shard)

    def _may_have_changed(self) -> bool:
        """Whether the folder's time differs from when it was last listed.

        Files added within one tick of the file system's clock, at worst two seconds, do not change that time.
        So the folder is listed once more when that long has passed.
        """
        try:
            status = os.stat(self._output)
            looked = (status.st_ino, status.st_mtime_ns)
        except OSError:
            return True
        now = time.monotonic()
        if looked == self._looked and (self._settled or now - self._when < TICK_SECONDS):
            return False
        self._settled, self._looked, self._when = looked == self._looked, looked, now
        return True

    def _listed(self) -> list[tuple[str, int]]:
        """Names and inodes of all files named like shards, sorted; empty if there is no folder."""
        try:
            with os.scandir(self._output) as entries:
                return sorted(
                    (entry.name, entry.inode()) for entry in entries if self._pattern.fullmatch(entry.name)
                )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise input_error(error, self._output) from None

    def _note(self, shard: Path, state: tuple[int, int, int]) -> bool:
        """Read what a shard holds, unless that is known. Returns whether the shard exists."""
        if shard in self._contents and state == self._states[shard]:
            return True
        try:
            contents = self._layout.contents(shard)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise input_error(error, shard) from None
        self._forget(shard)
        self._states[shard], self._contents[shard] = state, contents
        for name in contents.videos:
            self._holding[name] = (*self._holding.get(name, ()), shard)
        return True

    def _forget(self, shard: Path) -> None:
        self._intact.pop(shard, None)
        self._states.pop(shard, None)
        for name in self._contents.pop(shard, Contents()).videos:
            left = tuple(other for other in self._holding[name] if other != shard)
            if left:
                self._holding[name] = left
            else:
                del self._holding[name]

    def holding(self, name: str) -> list[Path]:
        """The shards that hold this video: one, or more after a crash while shards were being rewritten."""
        with self._lock:
            return [*self._holding.get(name, ())]

    def names(self, shard: Path) -> list[str]:
        """The names of a shard's videos, in its order."""
        with self._lock:
            return [*self._contents[shard].videos]

    def kind(self, shard: Path) -> Hashable:
        """What a shard's videos have in common, see `Layout.kind`."""
        with self._lock:
            return self._contents[shard].kind

    def said(self, shard: Path, name: str) -> dict[str, Any]:
        """The parts of a video's ``meta`` that `vfx_runtime.npz.same_run` compares; empty if it is gone."""
        with self._lock:
            known = self._contents.get(shard, Contents()).videos.get(name)
        return {} if known is None else {"fingerprint": known[0], "source": json.loads(known[1])}

    def suspect(self, shards: Sequence[Path]) -> list[Path]:
        """These shards, and those that could not be read, whose videos nobody would look for there."""
        with self._lock:
            return sorted({*shards, *(shard for shard, found in self._contents.items() if not found.whole)})

    def is_intact(self, shard: Path) -> bool:
        """Whether a shard is byte for byte what vfx wrote; False if it is gone.

        Raises:
            OutputError: the shard cannot be read, which does not mean that it is damaged.
        """
        with self._lock:
            if shard not in self._intact:
                try:
                    self._intact[shard] = bears_its_hash(shard)
                except FileNotFoundError:
                    return False
                except OSError as error:
                    raise input_error(error, shard) from None
            return self._intact[shard]


def bears_its_hash(shard: Path) -> bool:
    """Whether a file's name is the one that vfx gives a shard with these bytes. Reads the whole file."""
    with shard.open("rb") as file:
        return shard.stem == shard_name(file)


def file_state(shard: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if there is none, or a pipe, which might be read without end."""
    try:
        status = shard.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def shard_name(file: IO[bytes]) -> str:
    """The name, without suffix, of the shard with these bytes. Reads the whole file."""
    file.seek(0)
    digest = hashlib.blake2b(digest_size=8)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return f"features-{digest.hexdigest()}"
