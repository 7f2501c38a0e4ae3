"""Corpora in few files: tar shards of ``<key>.npz`` and ``<key>.json``, as WebDataset reads them.

As in `vfx_runtime.hdf5`, each video is an ``.npz`` file in a hidden folder first, under its own claim, and
whoever has finished enough of them packs them: a process that is killed loses nothing, and no more files wait
at a time than make a shard or two. A shard never changes. Its name holds the hash of its bytes, so processes
need not agree on numbers, and a damaged one shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import time
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from vfx_engines.spec import Output
from vfx_runtime.atomic import output_error, part_path, remove
from vfx_runtime.claims import Claims
from vfx_runtime.features import BLOCK_BYTES, RowSpool
from vfx_runtime.job import Job
from vfx_runtime.npz import DAMAGE, NpzWriter, read_meta, same_run, source_of

SHARD_BYTES = 256 << 20
"""A shard is closed when its features are this long; one video more may be in it."""

SHARD_VIDEOS = 4096
"""Or when it holds so many videos."""

_STAGING = ".shards.parts"
_PACKING = "\0shards"  # no video's name holds a NUL
_DAMAGE = (tarfile.TarError, OSError, ValueError, KeyError)


class WebDatasetWriter:
    """Packs videos into ``<output>/features-<hash>.tar``; see `vfx_runtime.writers.Writer`."""

    def __init__(self, output: Path, outputs: Sequence[Output], fingerprint: str, claims: Claims) -> None:
        self._output, self._claims = output, claims
        self._fingerprint = fingerprint
        self._staging = output / _STAGING
        self._staged = NpzWriter(self._staging, outputs, fingerprint, claims, inside=output)
        self._shards = Shards(output)
        self._waiting_bytes = self._waiting_videos = 0

    def paths(self, job: Job) -> list[Path]:
        """The shard that holds the video; none before it is packed."""
        return self._shards.holding(job.name)[:1]

    def is_done(self, job: Job) -> bool:
        """Whether the video is staged or in a shard, undamaged, of this run's settings and this source."""
        # In this order: packing removes a staged file only once its shard is in place.
        if self._staged.is_done(job):
            return True
        source, holding = source_of(job), self._holding(job)
        sound = [
            same_run(self._shards.meta(shard, job.name), self._fingerprint, source)
            and self._shards.is_intact(shard)
            for shard in holding
        ]
        if not all(sound) and not all(shard.exists() for shard in holding):
            # Another process has just put what is left of that shard into a new one.
            return self.is_done(job)
        return bool(sound) and all(sound)

    def _holding(self, job: Job) -> list[Path]:
        self._shards.refresh()
        return self._shards.holding(job.name)

    def prepare(self, job: Job) -> None:
        """Remove what a killed process left of this job, whose claim the caller holds."""
        self._staged.prepare(job)

    def write(self, job: Job, rows: RowSpool, fps: float, meta: Mapping[str, Any]) -> list[Path]:
        """Stage the video, and pack what is staged when it is enough for a shard.

        Raises:
            OutputError: it cannot be written; nothing is left of it.
        """
        (path,) = self._staged.write(job, rows, fps, meta)
        # Another process may have packed it since.
        with contextlib.suppress(OSError):
            self._waiting_bytes += path.stat().st_size
        self._waiting_videos += 1
        if self._waiting_bytes < SHARD_BYTES and self._waiting_videos < SHARD_VIDEOS:
            return []
        self._waiting_bytes = self._waiting_videos = 0
        return pack(self._output, self._claims, whole=True)

    def finish(self) -> list[Path]:
        """Pack what is staged; see `pack`.

        Raises:
            OutputError: a shard cannot be written; all stays staged.
        """
        return pack(self._output, self._claims)


def pack(output: Path, claims: Claims, *, whole: bool = False) -> list[Path]:
    """Put staged videos into shards, one process at a time; the new shards.

    A video that was done again, with other settings, leaves its old shard: what else that held goes into
    a new one.

    Args:
        output: the output folder.
        claims: of this process on it.
        whole: make no shard that is not full; what is left stays staged.

    Raises:
        OutputError: a shard cannot be written; all stays staged.
    """
    while not claims.take(_PACKING):
        time.sleep(0.1)
    made: list[Path] = []
    try:
        for names in _shares(output / _STAGING, whole):
            made += _pack(output, claims, names)
        for folder, _, _ in os.walk(output / _STAGING, topdown=False):
            # Not empty: another process is still at work.
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    finally:
        claims.release(_PACKING)
    return made


def _shares(staging: Path, whole: bool) -> Iterable[list[str]]:
    names: list[str] = []
    size = 0
    for name in _staged_names(staging):
        names.append(name)
        size += (staging / f"{name}.npz").stat().st_size
        if size >= SHARD_BYTES or len(names) >= SHARD_VIDEOS:
            yield names
            names, size = [], 0
    if names and not whole:
        yield names


def _pack(output: Path, claims: Claims, names: list[str]) -> list[Path]:
    staging, shards = output / _STAGING, Shards(output)
    shards.refresh()
    sound = [name for name in names if _is_sound(staging / f"{name}.npz")]
    remove([staging / f"{name}.npz" for name in sorted({*names} - {*sound})])
    if not sound:
        return []
    replaced = sorted({shard for name in sound for shard in shards.holding(name)})
    part = part_path(output / "features.tar")
    if not claims.active:
        part = part.with_name(f"{part.stem}-{uuid.uuid4().hex}.part")
    try:
        with part.open("w+b") as file:
            with _tar(file, "w") as archive:
                taken = {*sound}
                for shard in replaced:
                    if shards.is_intact(shard):
                        _copy(shard, archive, taken)
                for name in sound:
                    with (staging / f"{name}.npz").open("rb") as data:
                        _add(archive, name, data)
            file.flush()
            # The staged files go next: a power cut must not find this one in memory only.
            os.fsync(file.fileno())
            final = output / f"features-{_digest(file)}.tar"
        damaged = [shard for shard in replaced if not shards.is_intact(shard)]
        # Before the new one takes its name, which is that of a damaged one whose videos came out as before.
        for shard in damaged:
            shard.replace(shard.with_name(f"{shard.name}.old"))
        part.replace(final)
        remove([shard for shard in replaced if shard not in damaged and shard != final])
    except BaseException as error:
        remove([part])
        if isinstance(error, OSError):
            raise output_error(error, part) from None
        raise
    remove([staging / f"{name}.npz" for name in sound])
    return [final]


class Shards:
    """The shards of a folder: which videos they hold. Each is read whole once, when it is first relied on."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._places: dict[Path, dict[str, tuple[int, int]]] = {}
        """Of each shard: offset and length of the JSON of each video."""
        self._states: dict[Path, tuple[int, int, int] | None] = {}
        self._intact: dict[Path, bool] = {}

    def refresh(self) -> None:
        """Note shards that have come, gone, or are another file than before."""
        found = {shard: _state(shard) for shard in sorted(self._output.glob("features-*.tar"))}
        for shard in self._places.keys() - found.keys():
            del self._places[shard]
        for shard, state in found.items():
            if shard not in self._places or state != self._states[shard]:
                self._states[shard] = state
                self._intact.pop(shard, None)
                self._places[shard] = _index(shard)

    def holding(self, name: str) -> list[Path]:
        """The shards that hold a video of this name: one, but after a crash while shards were made anew."""
        return [shard for shard, places in self._places.items() if name in places]

    def meta(self, shard: Path, name: str) -> object:
        """What the shard says of a video; None if that cannot be read."""
        offset, size = self._places[shard][name]
        try:
            with shard.open("rb") as file:
                file.seek(offset)
                return json.loads(file.read(size))["meta"]
        except _DAMAGE:
            return None

    def is_intact(self, shard: Path) -> bool:
        """Whether a shard is byte for byte what vfx wrote."""
        if shard not in self._intact:
            try:
                with shard.open("rb") as file:
                    self._intact[shard] = shard.name == f"features-{_digest(file)}.tar"
            except OSError:
                return False
        return self._intact[shard]


def _state(shard: Path) -> tuple[int, int, int] | None:
    try:
        status = shard.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _index(shard: Path) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    try:
        with shard.open("rb") as file, _tar(file, "r") as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    said = archive.extractfile(member)
                    assert said is not None, "a member with this suffix is a file"
                    places[str(json.load(said)["name"])] = (member.offset_data, member.size)
    except (*_DAMAGE, AssertionError, TypeError):
        # What could be read stays: those videos are found damaged, and the shard is set aside with them.
        pass
    return places


def _copy(shard: Path, archive: tarfile.TarFile, taken: set[str]) -> None:
    """Add the videos of a shard that are not ``taken``, and note them there."""
    with shard.open("rb") as file, _tar(file, "r") as old:
        features: tarfile.TarInfo | None = None
        for member in old:
            if member.name.endswith(".npz"):
                features = member
                continue
            assert features is not None, "in a shard that is intact features come before their JSON"
            said, data = old.extractfile(member), old.extractfile(features)
            assert said is not None, "both are files"
            assert data is not None, "both are files"
            name = json.load(said)["name"]
            if name not in taken:
                taken.add(name)
                _add(archive, name, data)


def _add(archive: tarfile.TarFile, name: str, data: IO[bytes]) -> None:
    """Add a video whose ``.npz`` file is open."""
    with zipfile.ZipFile(data) as npz:
        said = json.dumps({"name": name, "meta": read_meta(npz)}).encode()
    size = data.seek(0, os.SEEK_END)
    data.seek(0)
    for suffix, length, content in ((".npz", size, data), (".json", len(said), io.BytesIO(said))):
        member = tarfile.TarInfo(_key(name) + suffix)
        member.size = length
        archive.addfile(member, content)


def _key(name: str) -> str:
    """A name without dots in its last part: WebDataset's key ends at the first."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.replace("%", "%25").replace(".", "%2E")


def _tar(file: IO[bytes], mode: Literal["r", "w"]) -> tarfile.TarFile:
    return tarfile.TarFile(
        mode=mode, fileobj=file, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    )


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.blake2b(digest_size=8)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _is_sound(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            read_meta(archive)
            return archive.testzip() is None
    except DAMAGE:
        return False


def _staged_names(staging: Path) -> list[str]:
    top = os.fspath(staging)
    return sorted(
        os.path.relpath(os.path.join(folder, file), top).removesuffix(".npz")
        for folder, _, files in os.walk(top)
        for file in files
        if file.endswith(".npz")
    )
