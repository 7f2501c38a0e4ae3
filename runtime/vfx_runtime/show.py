"""``vfx-show``: an HTML page that shows a feature file."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

import click

from vfx_engines.ending import ends
from vfx_engines.errors import UsageError, shown
from vfx_engines.paths import LocalPath
from vfx_runtime.image_names import DEFAULT_FPS, Images


@click.command("vfx-show", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("features", type=LocalPath(), metavar="FEATURES")
@click.option("--name", metavar="NAME", help="Which video to show, if the file holds several.")
@click.option(
    "--video",
    type=LocalPath(),
    metavar="FILE|FOLDER",
    help="The video that the features come from, or its folder of frame images: adds thumbnails to the page.",
)
@click.option(
    "--output",
    type=LocalPath(),
    metavar="FILE.html",
    help="Where to write.  [default: beside the features: the same name with .html; for a shard, NAME.html]",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="vfx", prog_name="vfx-show")
def main(debug: bool, **options: Any) -> None:
    """Write an HTML page that shows what is in a feature file.

    FEATURES is an .npz file, or a shard written with --format webdataset or parquet.

    The page shows frames of the video along the time axis, the length of each row, how similar all rows
    are to each other, the five most likely classes where there are logits, and the engines with their
    specs. It needs no network and no other file. Its path is printed to stdout.

    \b
    vfx-show features/a.npz
    vfx-show features/a.npz --video a.mp4 --output a.html
    vfx-show features/features-3f2a1b4c5d6e7f80.parquet --name a
    """  # noqa: D301  # click reads the backspace
    with ends("vfx-show", debug):
        click.echo(shown(_show(**options)))


def _show(features: Path, name: str | None, video: Path | None, output: Path | None) -> Path:
    """Write the page; returns its path."""
    if features.suffix in (".npy", ".pkl", ".h5"):
        raise UsageError(f"{shown(features)}: vfx-show reads .npz files and shards, which say what made them")
    if features.is_dir():
        raise UsageError(f"{shown(features)}: a folder: give one of the .npz files or shards in it")
    path = output or (features.with_suffix(".html") if name is None else _page_of(features, name))
    if path.absolute() == features.absolute():
        raise UsageError(f"--output {shown(path)}: this would replace the features")
    # Imported here because loading NumPy and FFmpeg takes time, which --help should not spend.
    from vfx_runtime.atomic import check_page, new_files
    from vfx_runtime.feature_page import feature_page

    if output is not None:
        check_page("--output", output)
    page = feature_page(_collected(features, name, video))
    # Folders in a name are created, but not the shard's own, and links that lead out of it are refused.
    inside = features.parent if output is None else path.parent
    with new_files([path], exclusive=False, inside=inside) as (part,):
        part.write_text(page, "utf-8")
    return path


def _page_of(shard: Path, name: str) -> Path:
    """Where the page of a shard's video goes: next to the shard, where its ``.npz`` file would be.

    Raises:
        UsageError: vfx never gives such a name, and it might lead out of the folder.
    """
    if name != posixpath.normpath(name) or name.startswith(("/", "../")) or name in (".", ".."):
        raise UsageError(f"--name {shown(name)}: this names no page below the shard's folder: give --output")
    return shard.parent / f"{name}.html"


def _collected(path: Path, name: str | None, video: Path | None) -> Any:
    import numpy as np

    from vfx_runtime.feature_page import STRIP, Shown, random_models, specs_of
    from vfx_runtime.reading import read_features
    from vfx_runtime.thumbnails import thumbnails
    from vfx_runtime.timeline import Timeline

    features = read_features(path, name)
    specs = specs_of(features.meta)
    for model in random_models(specs):
        click.echo(f"vfx-show: RANDOM WEIGHTS: the features of {model} mean nothing", err=True)
    meta = features.meta if isinstance(features.meta, dict) else {}
    source: dict[str, Any] = meta["source"] if isinstance(meta.get("source"), dict) else {}
    about: list[tuple[str, object]] = [
        ("File", shown(path)),
        ("Video's name", None if name is None else shown(name)),
        ("Size", f"{path.stat().st_size:,} bytes"),
        ("Rows", f"{len(features.frame_range):,}" if features.frame_range.ndim else None),
        ("Made by", f"vfx {meta['vfx_version']}" if "vfx_version" in meta else None),
        ("Fingerprint", meta.get("fingerprint")),
        ("Of a source of", f"{source['size']:,} bytes" if isinstance(source.get("size"), int) else None),
    ]
    if video is None:
        return Shown(name or path.name, features, about)
    notes = []
    images = None
    if video.is_dir():
        pattern = source.get("pattern")
        if not isinstance(pattern, str):
            raise UsageError(f"--video {shown(video)}: a folder, but {shown(path)} was not made of one")
        rate = source.get("fps")
        images = Images(pattern, rate if isinstance(rate, float | int) else DEFAULT_FPS)
    elif video.is_file() and source.get("size") not in (None, os.stat(video).st_size):
        notes.append(
            f"{shown(video)} has {os.stat(video).st_size:,} bytes, the features were made of a video of "
            f"{source['size']:,}: the thumbnails may not belong to them"
        )
        click.echo(f"vfx-show: {notes[0]}", err=True)
    # One picture from the middle of each equal part, so that pictures line up with the time axis.
    sound = bool(specs) and specs[0].input.modality == "audio"
    ranges = features.frame_range
    if ranges.ndim != 2 or not np.issubdtype(ranges.dtype, np.integer):
        ranges = np.empty((0, 2), np.int64)
    times = Timeline(features.timestamps_ms, len(ranges))
    first, last = (times.begin, times.end) if sound else (ranges.min(initial=1 << 62), ranges.max(initial=0))
    count = STRIP if sound else min(STRIP, int(last - first))
    places = [first + (k + 0.5) * (last - first) / count for k in range(count)]
    info, found = thumbnails(video, places, images, seconds=sound)
    length = "" if info.duration_seconds is None else f", {info.duration_seconds:.2f} s"
    about += [
        ("Video", shown(video)),
        ("Pictures", f"{info.width} × {info.height}, {info.codec}, {info.fps:g} fps{length}"),
    ]
    return Shown(name or path.name, features, about, found, notes)
