"""Read features back, from ``.npz`` files and from shards of many videos."""

from __future__ import annotations

from pathlib import Path

from vfx_engines.errors import OutputError, UsageError, shown
from vfx_runtime import npz
from vfx_runtime.features import Features
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.shards import SHARD_NAMES, Layout, bears_its_hash
from vfx_runtime.webdataset import TarLayout

_LAYOUTS: dict[str, type[Layout]] = {layout.suffix: layout for layout in (TarLayout, ParquetLayout)}
_NAMED = 5


def read_features(path: str | Path, video: str | None = None) -> Features:
    """Read all features of a video into memory.

    If a shard still has the name that vfx gave it, all its bytes are first compared with the hash in the
    name.

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
    layout = _LAYOUTS[path.suffix]()
    names = [*layout.contents(path).videos] if path.is_file() else []
    if not names:
        raise npz.unreadable(path, ValueError("no videos in it"))
    some = ", ".join(map(shown, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
    if video is None and len(names) > 1:
        raise UsageError(f"{shown(path)}: holds {len(names)} videos: say which one ({some})")
    if video is not None and video not in names:
        raise OutputError(f"{shown(path)}: holds no video {shown(video)}, but {some}")
    try:
        if path.match(f"{SHARD_NAMES}{layout.suffix}") and not bears_its_hash(path):
            raise ValueError("other bytes than its name says")
        return layout.read(path, video or names[0])
    except layout.damage as error:
        raise npz.unreadable(path, error) from None
