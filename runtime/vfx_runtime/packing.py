"""Pack the videos that a run has finished into shards.

As in `vfx_runtime.hdf5`, each video is first an ``.npz`` file in a hidden folder, under its own claim. A
process that has finished enough videos packs them. So a process that is killed loses nothing, and no more
files wait than make a shard or two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfx_engines.spec import Output
from vfx_runtime.atomic import input_error, new_parts, output_error, remove
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
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
from vfx_runtime.shards import Layout, Shards, file_state, shard_name
from vfx_runtime.staging import Staging

SHARD_BYTES = 256 << 20
"""A shard is complete when its features have this many bytes; it may exceed that by one video."""

SHARD_VIDEOS = 4096
"""A shard is also complete when it holds this many videos."""


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
        staging = Staging(output / layout.staging)
        self._staged = NpzWriter(staging.folder, outputs, fingerprint, claims, inside=output)
        self._shards = Shards(output, layout)
        # Read now: a shard that cannot be read should end the run rather than fail every video.
        self._shards.refresh()
        # Those of an earlier writer count too: there is one for each size of video.
        waiting = [state for name in staging.names() if (state := file_state(staging.path(name)))]
        self._waiting_bytes, self._waiting_videos = sum(state[1] for state in waiting), len(waiting)

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
        state = file_state(path)
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
    before = {path: file_state(path) for path in staged.values()}
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
                final = output / f"{shard_name(file)}{layout.suffix}"
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
    remove([path for path, state in before.items() if file_state(path) == state])
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
