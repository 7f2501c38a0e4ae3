"""Tar shards of ``<key>.npz`` and ``<key>.json``, as WebDataset reads them; see `vfx_runtime.shards`."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

from vfx_runtime.features import Features
from vfx_runtime.npz import features_of, read_meta
from vfx_runtime.shards import Contents

_DAMAGE = (tarfile.TarError, OSError, ValueError, LookupError, TypeError, RuntimeError)


class TarLayout:
    """The very ``.npz`` file of each video, and its name and ``meta`` as JSON."""

    suffix = ".tar"
    staging = ".shards.parts"

    def kind(self, archive: zipfile.ZipFile) -> Hashable:
        """Any videos may share a shard."""
        return ()

    def contents(self, shard: Path) -> Contents:
        """What a shard holds; of a damaged one what can be read."""
        found = Contents()
        try:
            with shard.open("rb") as file, _tar(file, "r") as archive:
                for member in archive:
                    data = archive.extractfile(member) if member.name.endswith(".json") else None
                    if data is not None:
                        said = json.load(data)
                        found.add(said["name"], said["meta"])
            found.whole = True
        except _DAMAGE:
            # What could be read stays: those videos are found damaged, and the shard is set aside with them.
            pass
        return found

    def read(self, shard: Path, name: str) -> Features:
        """The features of one video of a shard, whole, in memory."""
        with shard.open("rb") as file, _tar(file, "r") as archive:
            for found, data, size in _videos(archive):
                if found == name:
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
                    for name, data, _ in _videos(old):
                        if name in chosen:
                            _add(archive, name, data)
            for name, path in staged.items():
                with path.open("rb") as npz:
                    _add(archive, name, npz)


def _videos(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes], int]]:
    """Name, ``.npz`` file and its length, of each video of a shard that is intact."""
    features: tarfile.TarInfo | None = None
    for member in archive:
        if member.name.endswith(".npz"):
            features = member
            continue
        assert features is not None, "in a shard that is intact features come before their JSON"
        said, data = archive.extractfile(member), archive.extractfile(features)
        assert said is not None, "both are files"
        assert data is not None, "both are files"
        yield json.load(said)["name"], data, features.size


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
