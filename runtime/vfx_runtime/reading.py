"""Read features back, from ``.npz`` files and from shards of many videos."""

from __future__ import annotations

import time
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path

from vfx_engines.errors import OutputError, UsageError, shown
from vfx_runtime import npz
from vfx_runtime.features import Features
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.shards import SHARD_NAMES, TICK_SECONDS, Layout, bears_its_hash
from vfx_runtime.webdataset import TarLayout

_LAYOUTS: dict[str, type[Layout]] = {layout.suffix: layout for layout in (TarLayout, ParquetLayout)}
_NAMED = 5
_REMEMBERED = 16
"""Number of shards that `read_features` need not check again."""


def read_features(path: str | Path, video: str | None = None) -> Features:
    """Read all features of a video into memory.

    If a shard still has the name that vfx gave it, all its bytes are compared with the hash in the name, on
    the first call, once more two seconds later, and whenever the file has changed. The video itself is
    checked on every call, by the checksums of its format.

    Args:
        path: a file that vfx wrote: an ``.npz`` file, or a shard of ``--format webdataset`` or ``parquet``.
        video: name of the video; needed only if a shard holds several.

    Raises:
        OutputError: there is no such file, it is damaged, vfx did not write it, or it does not hold this
            video.
        UsageError: a shard holds several videos and none is named, a name is given for an ``.npz`` file, or
            PyArrow is not installed.
    """
    path = Path(path)
    if path.suffix not in _LAYOUTS:
        if video is not None:
            raise UsageError(f"{shown(path)}: holds one video: leave the name {shown(video)} out")
        return npz.read_features(path)
    if not path.exists():
        raise OutputError(f"{shown(path)}: no such file")
    if not path.is_file():
        raise _empty(path)
    layout = _LAYOUTS[path.suffix]()
    stamp = _stamp(path)
    names = _names(path, stamp)
    some = ", ".join(map(shown, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
    if video is None and len(names) > 1:
        raise UsageError(f"{shown(path)}: holds {len(names)} videos: say which one ({some})")
    if video is not None and video not in names:
        raise OutputError(f"{shown(path)}: holds no video {shown(video)}, but {some}")
    try:
        if path.match(f"{SHARD_NAMES}{layout.suffix}"):
            _check_hash(path, stamp)
        return layout.read(path, video or names[0])
    except layout.damage as error:
        raise npz.unreadable(path, error) from None


def _stamp(path: Path) -> Hashable:
    """What a file has as long as it is not changed, and whether it was first seen a tick ago.

    A file that changes twice within a tick of its file system's clock has the same times after both. So what
    was found in its first tick here is found once more after it, then never again. The time of the last
    change of any kind is in it, since programs that copy files set the other one back.
    """
    status = path.stat()
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return stamp, time.monotonic() - _first_seen(stamp) >= TICK_SECONDS


@lru_cache(maxsize=_REMEMBERED)
def _first_seen(stamp: Hashable) -> float:
    return time.monotonic()


@lru_cache(maxsize=_REMEMBERED)
def _names(path: Path, stamp: Hashable) -> tuple[str, ...]:
    names = tuple(_LAYOUTS[path.suffix]().contents(path).videos)
    if not names:
        # Raised here, because only what is returned is remembered.
        raise _empty(path)
    return names


@lru_cache(maxsize=_REMEMBERED)
def _check_hash(path: Path, stamp: Hashable) -> None:
    if not bears_its_hash(path):
        raise ValueError("other bytes than its name says")


def _empty(path: Path) -> OutputError:
    return npz.unreadable(path, ValueError("no videos in it"))
