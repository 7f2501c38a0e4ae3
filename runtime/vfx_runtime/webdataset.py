"""Tar shards of ``<key>.npz`` and ``<key>.json``, as WebDataset reads them; see `vfx_runtime.shards`."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from vfx_runtime.features import Features
from vfx_runtime.npz import DAMAGE, features_of, read_meta, system_failure
from vfx_runtime.shards import Contents


class TarLayout:
    """For each video, its unchanged ``.npz`` file, and its name and ``meta`` as JSON."""

    suffix = ".tar"
    staging = ".shards.parts"
    damage: tuple[type[Exception], ...] = (*DAMAGE, tarfile.TarError, LookupError, TypeError, AttributeError)

    def kind(self, archive: zipfile.ZipFile) -> Hashable:
        """The same for all: any videos may share a shard."""
        return ()

    def contents(self, shard: Path) -> Contents:
        """What a shard holds; empty if it is damaged and cannot be read to its end.

        Raises:
            OSError: the system cannot read the file.
        """
        found = Contents()
        try:
            with shard.open("rb") as file, _tar(file, "r") as archive:
                for said, _, _ in _videos(archive):
                    found.add(said["name"], said["meta"])
            found.whole = True
        except self.damage as error:
            failure = system_failure(error)
            if failure is not None:
                raise failure from None
            return Contents()
        return found

    def read(self, shard: Path, name: str) -> Features:
        """Read all features of one video of a shard into memory.

        Raises:
            KeyError: the shard does not hold the video.
        """
        with shard.open("rb") as file, _tar(file, "r") as archive:
            for said, data, size in _videos(archive):
                if said["name"] == name:
                    return features_of(data, size)
        raise KeyError(name)

    def write(
        self,
        file: IO[bytes],
        kind: Hashable,
        kept: Mapping[Path, Sequence[str]],
        staged: Mapping[str, Path],
    ) -> None:
        """Write a shard; see `vfx_runtime.shards.Layout.write`."""
        with _tar(file, "w") as archive:
            for shard, names in kept.items():
                chosen = {*names}
                with shard.open("rb") as old_file, _tar(old_file, "r") as old:
                    for said, data, _ in _videos(old):
                        if said["name"] in chosen:
                            _add(archive, said["name"], data)
            for name, path in staged.items():
                with path.open("rb") as npz:
                    _add(archive, name, npz)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files in a shard. Raises ValueError for links, and for sparse files, which may be of any length."""
    for member in archive:
        data = archive.extractfile(member) if member.isreg() and not member.issparse() else None
        if data is None:
            raise ValueError("a member is no plain file")
        yield member, data


def _videos(archive: tarfile.TarFile) -> Iterator[tuple[Any, IO[bytes], int]]:
    """For each video of a shard, its JSON, ``.npz`` file and that file's length.

    Raises one of `TarLayout.damage` if the shard is not what vfx writes.
    """
    features: tuple[IO[bytes], int] | None = None
    for member, data in _members(archive):
        if member.name.endswith(".npz"):
            features = data, member.size
        elif features is None:
            raise ValueError("JSON stands before its features")
        else:
            yield json.load(data), *features
            features = None


def _add(archive: tarfile.TarFile, name: str, data: IO[bytes]) -> None:
    """Add a video to a shard, given its open ``.npz`` file."""
    with zipfile.ZipFile(data) as npz:
        said = json.dumps({"name": name, "meta": read_meta(npz)}).encode()
    size = data.seek(0, os.SEEK_END)
    data.seek(0)
    for suffix, length, content in ((".npz", size, data), (".json", len(said), io.BytesIO(said))):
        member = tarfile.TarInfo(_key(name) + suffix)
        member.size = length
        archive.addfile(member, content)


def _key(name: str) -> str:
    """A video's name with the dots in its last part escaped, since WebDataset's key ends at the first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.replace("%", "%25").replace(".", "%2E")


def _tar(file: IO[bytes], mode: Literal["r", "w"]) -> tarfile.TarFile:
    return tarfile.TarFile(
        mode=mode, fileobj=file, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    )
