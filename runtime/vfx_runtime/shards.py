"""Shards: files of many videos each, in one of several layouts.

As in `vfx_runtime.hdf5`, each video is first an ``.npz`` file in a hidden folder, under its own claim. A
process that has finished enough videos packs them. So a process that is killed loses nothing, and no more
files wait than make a shard or two. A shard never changes. Its name contains a hash of its bytes, so
processes need not agree on numbers, and a damaged shard is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
import threading
import time
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from vfx_engines.errors import VfxError
from vfx_engines.spec import Output
from vfx_runtime.atomic import input_error, new_parts, output_error, remove
from vfx_runtime.claims import Claims
from vfx_runtime.features import BLOCK_BYTES, Features, RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import (
    DAMAGE,
    NpzWriter,
    check_members,
    read_meta,
    same_run,
    source_of,
    system_failure,
)
from vfx_runtime.staging import Staging

SHARD_BYTES = 256 << 20
"""A shard is complete when its features have this many bytes; it may exceed that by one video."""

SHARD_VIDEOS = 4096
"""A shard is also complete when it holds this many videos."""

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


class ShardWriter:
    """Packs videos into ``<output>/features-<hash><suffix>``; see `vfx_runtime.writers.Writer`.

    Raises:
        OutputError: the hidden folder for waiting videos is a link, or a shard exists but cannot be read.
    """

    def __init__(
        self, layout: Layout, output: Path, outputs: Sequence[Output], fingerprint: str, claims: Claims
    ) -> None:
        self._layout, self._output, self._claims = layout, output, claims
        self._fingerprint = fingerprint
        staging = Staging(output / layout.staging).folder
        self._staged = NpzWriter(staging, outputs, fingerprint, claims, inside=output)
        self._shards = Shards(output, layout)
        # Read now: a shard that cannot be read should end the run rather than fail every video.
        self._shards.refresh()
        self._waiting_bytes = self._waiting_videos = 0

    def paths(self, job: Job) -> list[Path]:
        """The shard that holds the video; empty before it is packed."""
        return self._shards.holding(job.name)[:1]

    def is_done(self, job: Job) -> bool:
        """Whether the video is staged or in a shard, undamaged, from this source, by this run's settings."""
        # The order matters: another process that packs removes a staged file only once its shard is in place.
        if self._staged.is_done(job):
            return True
        source = source_of(job)
        self._shards.refresh()
        while True:
            holding = self._shards.holding(job.name)
            sound = [
                same_run(self._shards.said(shard, job.name), self._fingerprint, source)
                and self._shards.is_intact(shard)
                for shard in holding
            ]
            if all(sound) or all(shard.exists() for shard in holding):
                return bool(sound) and all(sound)
            # Another process has just moved the rest of that shard into a new one.
            self._shards.refresh(anew=True)

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job. The caller holds the job's claim."""
        self._staged.prepare(job)

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Stage the video, and pack the staged videos if they are enough for a shard.

        Raises:
            OutputError: the file cannot be written; nothing of it is left.
        """
        (path,) = self._staged.write(job, rows, fps, meta)
        # Another process may have packed the file meanwhile.
        with contextlib.suppress(OSError):
            self._waiting_bytes += path.stat().st_size
        self._waiting_videos += 1
        if self._waiting_bytes < SHARD_BYTES and self._waiting_videos < SHARD_VIDEOS:
            return []
        self._waiting_bytes = self._waiting_videos = 0
        return pack(self._layout, self._output, self._claims, whole=True, shards=self._shards)

    def finish(self) -> list[Path]:
        """Pack all staged videos; see `pack`.

        Raises:
            OutputError: a shard cannot be written; its videos stay staged.
        """
        return pack(self._layout, self._output, self._claims, shards=self._shards)


def pack(
    layout: Layout, output: Path, claims: Claims, *, whole: bool = False, shards: Shards | None = None
) -> list[Path]:
    """Pack staged videos into shards. Only one process does so at a time.

    If a video was extracted again with other settings, its old shard is removed, and the other videos of that
    shard go into a new one.

    Args:
        layout: the layout of the shards.
        output: the output folder.
        claims: this process's claims on the output folder.
        whole: whether to make full shards only, and leave the remaining videos staged.
        shards: what is known about the shards in that folder, if anything.

    Returns:
        The paths of the new shards.

    Raises:
        OutputError: a shard cannot be written, or a staged video cannot be read; what is not packed stays
            staged.
    """
    shards = shards or Shards(output, layout)
    claim = f"\0shards{layout.suffix}"  # no video's name contains a NUL
    while not claims.take(claim):
        time.sleep(0.1)
    made: list[Path] = []
    try:
        staging = Staging(output / layout.staging)
        for kind, staged in _shares(layout, staging, whole):
            made += _pack(layout, output, claims, shards, kind, staged)
        staging.tidy()
    except OSError as error:
        raise output_error(error, output) from None
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        failure = system_failure(error) or OSError(f"what waits to be packed changed: {error}: run again")
        raise output_error(failure, output) from None
    finally:
        claims.release(claim)
    return made


def _shares(layout: Layout, staging: Staging, whole: bool) -> Iterator[tuple[Hashable, dict[str, Path]]]:
    """Divide the staged videos into those of one shard each. Damaged ones are removed.

    Raises:
        OutputError: a video cannot be read. It stays, since it is unknown whether it is damaged.
    """
    shares: dict[Hashable, dict[str, Path]] = {}
    sizes: dict[Hashable, int] = {}
    for name in staging.names():
        path = staging.path(name)
        state = _state(path)
        if state is None:
            # Without claims, another process may be packing too, and has removed it.
            continue
        try:
            kind = _sound_kind(layout, path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise input_error(error, path) from None
        if kind is None:
            remove([path])
            continue
        share = shares.setdefault(kind, {})
        share[name] = path
        sizes[kind] = sizes.get(kind, 0) + state[1]
        if sizes[kind] >= SHARD_BYTES or len(share) >= SHARD_VIDEOS:
            yield kind, shares.pop(kind)
            del sizes[kind]
    if not whole:
        yield from shares.items()


def _sound_kind(layout: Layout, path: Path) -> Hashable | None:
    """The kind of a staged video, or None if it is damaged. Reads the whole file.

    Raises:
        OSError: the system cannot read the file, or there is too little memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path.stat().st_size)
            meta = read_meta(archive)
            if not isinstance(meta, dict) or not meta.keys() >= {"fingerprint", "source"}:
                return None
            kind = layout.kind(archive)
            return kind if archive.testzip() is None else None
    except MemoryError:
        # This is not damage: the members are known to fit in the file, and a run may have reported it as
        # done.
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
    except DAMAGE as error:
        failure = system_failure(error)
        if failure is not None:
            raise failure from None
        return None


def _pack(
    layout: Layout,
    output: Path,
    claims: Claims,
    shards: Shards,
    kind: Hashable,
    staged: Mapping[str, Path],
) -> list[Path]:
    shards.refresh(anew=True)
    replaced = sorted({shard for name in staged for shard in shards.holding(name)})
    damaged = [shard for shard in shards.suspect(replaced) if not shards.is_intact(shard)]
    before = {path: _state(path) for path in staged.values()}
    plans = [_Plan(kind, staged, sum(state[1] for state in before.values() if state is not None))]
    taken = {*staged}
    for shard in (shard for shard in replaced if shard not in damaged):
        names = shards.names(shard)
        kept = [name for name in names if name not in taken]
        taken.update(kept)
        if not kept:
            continue
        size = shard.stat().st_size * len(kept) // len(names)
        plan = next((plan for plan in plans if plan.has_room(shards.kind(shard), size, len(kept))), None)
        if plan is None:
            plans.append(plan := _Plan(shards.kind(shard)))
        plan.kept[shard] = kept
        plan.size += size
    made: list[Path] = []
    for plan in plans:
        target = output / f"features{layout.suffix}"
        with new_parts([target], exclusive=claims.active, inside=output) as (part,):
            with part.open("r+b") as file:
                layout.write(file, plan.kind, plan.kept, plan.staged)
                file.flush()
                # The staged files are removed next, so this one must be on disk in case of a power cut.
                os.fsync(file.fileno())
                final = output / f"features-{_digest(file)}{layout.suffix}"
            # Damaged shards are renamed before the new one gets its name: if its videos came out as before,
            # that is the name of a damaged one.
            while damaged:
                shard = damaged.pop()
                # Without claims, another process may have done so already.
                with contextlib.suppress(FileNotFoundError):
                    shard.replace(shard.with_name(f"{shard.name}.old"))
            part.replace(final)
        made.append(final)
    remove([shard for shard in replaced if shard not in made])
    # A file that has changed meanwhile, by a run with other settings, is in no shard yet and stays.
    remove([path for path, state in before.items() if _state(path) == state])
    return made


@dataclass(slots=True)
class _Plan:
    """The contents of a new shard."""

    kind: Hashable
    staged: Mapping[str, Path] = field(default_factory=dict)
    size: int = 0
    kept: dict[Path, list[str]] = field(default_factory=dict)

    def has_room(self, kind: Hashable, size: int, videos: int) -> bool:
        """Whether a shard's videos fit in too. A shard may be half as large again as the limit."""
        held = len(self.staged) + sum(map(len, self.kept.values()))
        return (
            kind == self.kind
            and self.size + size <= 3 * SHARD_BYTES // 2
            and held + videos <= 3 * SHARD_VIDEOS // 2
        )


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
            elif (state := _state(shard)) is not None and self._note(shard, state):
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
        return shard.stem == f"features-{_digest(file)}"


def _state(shard: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if there is none, or a pipe, which might be read without end."""
    try:
        status = shard.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.blake2b(digest_size=8)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
