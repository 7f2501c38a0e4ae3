"""Find the videos of a run, and name the output of each.

A video's name is its path below its root, without suffix and with forward slashes. The root is the list's
folder for a listed path, the folder itself for a folder, and the file's own folder for a file; ``root`` sets
one root for all. So a name never depends on what else is in a list: adding a line does not rename another
output. A folder of frame images is named by the folder's path, or by its own name if it was given directly.

A listed path outside the list's folder is named without any folder, like a file given directly, so its output
stays inside the output folder. If two such files have the same name, the run is refused with a hint at
``--root``.

A video, a folder, a list, and a line of a list may each be a URL that fsspec can read, such as
``s3://bucket/clips``. The same naming rules apply.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from vfx_engines.errors import UsageError, shown
from vfx_runtime import remote
from vfx_runtime.image_names import Images, leads_to_folder
from vfx_runtime.job import Job

MEDIA_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "m2ts", "m2v", "m4v", "mkv"),
        *("mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "rm", "rmvb", "ts", "vob", "webm"),
        *("wmv", "y4m"),
    )
)
"""Suffixes, in lower case, that a folder is searched for."""

SOUND_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("aac", "ac3", "aif", "aiff", "amr", "ape", "au", "caf", "dts", "eac3", "flac", "m4a", "mka"),
        *("mp2", "mp3", "oga", "ogg", "opus", "tta", "w64", "wav", "wma", "wv"),
    )
)
"""Suffixes of audio files, in lower case, which a folder is also searched for if the engine takes audio."""

LIST_SUFFIXES = frozenset({".txt", ".csv"})
_LONGEST_PATH = 4096
"""Linux's PATH_MAX, in characters. Resolving the links of an endless line would take endlessly long."""

CSV_COLUMNS = ("video", "path", "video_path")
"""Header cells that mark the column of paths; the first that is found counts."""


def find_videos(
    arguments: Sequence[str | Path],
    root: Path | None = None,
    *,
    sound: bool = False,
    images: Images | None = None,
) -> list[Job]:
    """The videos that files, folders and lists stand for, in the order given, each once.

    * A folder is searched recursively for ``MEDIA_SUFFIXES``; its videos are sorted by path. Hidden files and
      folders are skipped. Links are followed, except a link back to a parent folder.
    * A ``.txt`` list has one path per line, relative to the list. Empty lines are ignored, and so is a line
      that starts with ``#`` unless a file of that name exists. White space around a path belongs to it only
      if such a file exists.
    * A path in a list may omit its suffix, as in slowfast_feature_extractor's ``video_list.csv``. It then
      stands for the one video of that name in its folder.
    * A ``.csv`` list has paths in its first column, or in the column that the header calls ``video``,
      ``path`` or ``video_path``.
    * Anything else is taken for a video, whatever its suffix; the decoder decides whether it is one. A listed
      file, or a file with a media suffix, may be missing: it becomes a job that fails later.
    * A URL is a list or a video if its suffix says so, otherwise a folder, which is searched in the same way.
      A path in a list at a URL is relative to that list, unless it is a URL itself.

    Args:
        arguments: what the user gave.
        root: the folder below which all names start; None for the rule of this module.
        sound: also search folders for ``SOUND_SUFFIXES``.
        images: search folders for folders of such images instead of files. A listed folder is then a video
            too.

    Raises:
        UsageError: there is nothing to do, a list or folder cannot be read, a path is not below ``root``,
            two videos would write the same file, or a path without suffix fits several files.
    """
    suffixes = MEDIA_SUFFIXES | SOUND_SUFFIXES if sound else MEDIA_SUFFIXES
    jobs: list[Job] = []
    by_name: dict[str, str] = {}
    seen: set[str] = set()
    _real.cache_clear()
    _by_stem.cache_clear()
    for argument in arguments:
        own_root, paths = _expand(os.fspath(argument), suffixes, images)
        prefixes = _prefixes(own_root if root is None else _root(root))
        for path, is_folder in paths:
            if path in seen:
                continue
            seen.add(path)
            name = _name(path, prefixes, strict=root is not None, whole=is_folder)
            other = by_name.setdefault(name, path)
            if other is not path:
                raise UsageError(_collision(other, path, name))
            url = path if remote.is_url(path) else None
            jobs.append(Job(Path(path), name, images if is_folder else None, url))
    if not jobs:
        raise UsageError("no videos given: name video files, folders, .txt or .csv lists")
    return jobs


def _expand(
    argument: str, suffixes: frozenset[str], images: Images | None
) -> tuple[str, Iterable[tuple[str, bool]]]:
    """The root of one argument, and the absolute paths of its videos, each with whether it is a folder."""
    if not argument:
        raise UsageError("an input is the empty text; expected a video, a folder or a list")
    if remote.is_url(argument):
        if images is not None:
            raise UsageError(f"{shown(argument)}: folders of images are read from local disks only")
        return _expand_url(argument, suffixes)
    path = _absolute(argument, os.getcwd())
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        if images is not None:
            return path, [(folder, True) for folder in _search_images(path, images)]
        return path, [(file, False) for file in _search(path, suffixes)]
    if suffix in LIST_SUFFIXES:
        return os.path.dirname(path), _listed(argument, path, suffix, suffixes, images)
    if suffix in suffixes or os.path.lexists(path):
        return os.path.dirname(path), [(path, False)]
    raise UsageError(f"{shown(argument)}: no such file or folder")


def _expand_url(url: str, suffixes: frozenset[str]) -> tuple[str, Iterable[tuple[str, bool]]]:
    suffix = _url_suffix(url)
    if suffix in LIST_SUFFIXES:
        return posixpath.dirname(_checked_url(url)), _listed(url, url, suffix, suffixes, None)
    if suffix in suffixes:
        return posixpath.dirname(_checked_url(url)), [(url, False)]
    files = remote.search(_checked_url(url))
    if files is None:
        raise UsageError(f"{shown(url)}: no such folder; a video or a list is known by its suffix here")
    found = [(file, False) for file in files if _url_suffix(file) in suffixes]
    if not found:
        raise UsageError(
            f"{shown(url)}: no video in this folder; files are known by their suffix (.mp4, ...)"
        )
    return url.rstrip("/"), found


def _checked_url(url: str) -> str:
    """A URL, without the query or fragment that a web address may have.

    Raises:
        UsageError: it goes through ``..``, or chains fsspec's file systems with ``::``.
    """
    bare = re.split(r"[?#]", url, maxsplit=1)[0] if url.startswith(("http://", "https://")) else url
    if ".." in bare.split("/") or "::" in bare:
        raise UsageError(f"{shown(url)}: expected a plain URL, without '..' and '::'")
    return bare


def _url_suffix(url: str) -> str:
    return posixpath.splitext(_checked_url(url))[1].lower()


def _absolute(path: str, folder: str) -> str:
    if remote.is_url(path) or remote.is_url(folder):
        return remote.joined(folder, path)
    joined = os.path.join(folder, path)
    if ".." in path:
        # As text, link/../x is x. For the kernel, it is next to what the link points to.
        parent, last = os.path.split(joined.rstrip("/"))
        joined = _real(joined) if last == ".." else os.path.join(_real(parent), last)
    # normpath keeps a leading "//", whose meaning POSIX leaves open; for Linux it is "/".
    normal = os.path.normpath(joined)
    return normal[1:] if normal.startswith("//") else normal


# The lines of a list share a few folders, and resolving a path takes a system call per component.
_real = lru_cache(maxsize=4096)(os.path.realpath)


def _root(root: Path) -> str:
    text = os.fspath(root)
    # Path turns the two slashes of a URL into one.
    url = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])", r"\1://", text)
    return url if remote.is_url(url) else os.path.abspath(root)


def _prefixes(root: str) -> tuple[str, ...]:
    """The prefixes of paths below ``root``: as given, and with links resolved."""
    if remote.is_url(root):
        return (root.rstrip("/") + "/",)
    return tuple(os.path.join(folder, "") for folder in dict.fromkeys((root, _real(root))))


def _name(path: str, prefixes: tuple[str, ...], *, strict: bool, whole: bool) -> str:
    """The path below the root, without its suffix unless ``whole``.

    For a path outside the root, only the last part; or an error if ``strict``.
    """
    if remote.is_url(path):
        path = _checked_url(path)
    for prefix in prefixes:
        if path.startswith(prefix):
            below = path[len(prefix) :]
            break
    else:
        if strict:
            raise UsageError(
                f"{shown(path)} is not below --root {shown(prefixes[0])}: give a folder that holds all videos"
            )
        below = os.path.basename(path)
    if not below:
        raise UsageError(f"{shown(path)}: a folder without a name cannot name its output: move the images")
    if remote.is_url(path):
        below = posixpath.normpath(below).lstrip("/")
    return (below if whole else os.path.splitext(below)[0]).replace(os.sep, "/")


def _collision(first: str, second: str, name: str) -> str:
    text = f"{shown(first)} and {shown(second)} would both write {shown(name)}: "
    if remote.is_url(first) or remote.is_url(second):
        return text + "rename one, set --root, or run them with different --output folders"
    common = os.path.commonpath([first, second])
    if common in (first, second):
        common = os.path.dirname(common)
    if os.path.dirname(first) != os.path.dirname(second):
        return text + f"--root {shown(common)} keeps their folders apart"
    return text + "rename one, or run them with different --output folders"


def _search(top: str, suffixes: frozenset[str]) -> list[str]:
    found = [
        entry.path
        for _, entry in _walk(top)
        if os.path.splitext(entry.name)[1].lower() in suffixes
        # A dangling link counts as a missing video, so that it is reported rather than skipped.
        and (entry.is_symlink() or entry.is_file())
    ]
    if not found:
        raise UsageError(
            f"{shown(top)}: no video in this folder; files are known by their suffix "
            "(.mp4, .mkv, .webm, ...), give others one by one or in a list, and folders of frames with "
            "--images PATTERN"
        )
    return sorted(found)


def _search_images(top: str, images: Images) -> list[str]:
    found: set[str] = set()
    other = None
    for folder, entry in _walk(top):
        if images.fits(entry.name):
            found.add(folder)
        else:
            other = entry.name
    if not found:
        example = "it holds no files" if other is None else f"it holds files such as {shown(other)}"
        raise UsageError(
            f"{shown(top)}: no folder in it has files that fit --images {shown(images.pattern)}: {example}; "
            "correct the pattern, or leave --images out for video files"
        )
    return sorted(found)


def _walk(top: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All entries below a folder but folders and hidden entries, each with the folder that it is in."""
    # Each folder carries the identities of the folders above it, so that a loop of links ends.
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
    while folders:
        folder, above = folders.pop()
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            above = above | {here}
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if leads_to_folder(entry):
                        folders.append((entry.path, above))
                    else:
                        yield folder, entry
        except OSError as error:
            raise UsageError(f"{shown(folder)}: cannot search this folder: {error.strerror}") from None


def _listed(
    argument: str, path: str, suffix: str, suffixes: frozenset[str], images: Images | None
) -> Iterator[tuple[str, bool]]:
    """The absolute path of each video in a list, and whether it is a folder of images."""
    text, folder = _read_text(argument), os.path.dirname(path)
    number = 0

    def is_video(cell: str) -> bool:
        if remote.is_url(cell) or remote.is_url(folder):
            return _url_suffix(_absolute(cell, folder)) in suffixes
        path = _absolute(cell, folder)
        return os.path.isfile(path) or os.path.basename(path) in _by_stem(os.path.dirname(path), suffixes)

    paths = _csv_paths(argument, text, is_video) if suffix == ".csv" else _txt_paths(text, folder)
    for number, line in paths:
        where = f"{shown(argument)}, line {number}"
        if "\0" in line:
            raise UsageError(f"{where}: not text; expected one path per line")
        if len(line) > _LONGEST_PATH:
            raise UsageError(
                f"{where}: {len(line)} characters, more than a path can have; expected one per line"
            )
        video = _absolute(line, folder)
        if images is not None and os.path.isdir(video):
            yield video, True
            continue
        if line.endswith("/") or os.path.basename(line) in (".", ".."):
            raise UsageError(
                f"{where}: {shown(line)} is a folder; expected a video "
                "file, give folders on the command line, and folders of frames with --images PATTERN"
            )
        # If folders of images are expected, a missing path is a missing folder: no video file of that name
        # may stand in for it.
        whole = images is not None or remote.is_url(video)
        yield (video if whole else _with_suffix(video, suffixes, where)), False
    if not number:
        raise UsageError(f"{shown(argument)}: the list is empty; expected one path per line")


def _with_suffix(path: str, suffixes: frozenset[str], where: str) -> str:
    """Complete a path that lacks its file's suffix; unchanged if there is no such file."""
    if os.path.splitext(path)[1].lower() in suffixes or os.path.isfile(path):
        return path
    parent, stem = os.path.split(path)
    files = _by_stem(parent, suffixes).get(stem, [])
    if len(files) > 1:
        raise UsageError(
            f"{where}: {shown(stem)} may be {' or '.join(map(shown, sorted(files)))}: write the suffix"
        )
    return os.path.join(parent, files[0]) if files else path


# Consecutive lines of a list are mostly in the same folder.
@lru_cache(maxsize=16)
def _by_stem(folder: str, suffixes: frozenset[str]) -> dict[str, list[str]]:
    """Names of the files in a folder that have one of these suffixes, by their name without suffix."""
    found: dict[str, list[str]] = {}
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in suffixes and not leads_to_folder(entry):
                found.setdefault(stem, []).append(entry.name)
    return found


def _read_text(argument: str) -> str:
    try:
        if remote.is_url(argument):
            data = remote.read_bytes(argument)
        elif stat.S_ISREG(os.stat(argument).st_mode):
            data = Path(argument).read_bytes()
        else:
            # Reading a pipe or a device might never end.
            raise UsageError(f"{shown(argument)}: no regular file, expected a list: save it to a file first")
    except FileNotFoundError:
        raise UsageError(f"{shown(argument)}: no such list") from None
    except OSError as error:
        raise UsageError(f"{shown(argument)}: cannot read this list: {error.strerror}") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        # PowerShell's ">" writes UTF-16.
        return data.decode("utf-16", "replace")
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _txt_paths(text: str, folder: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(), because a file name may contain U+2028 or a form feed.
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.removesuffix("\r")
        bare = line.strip()
        if not bare:
            continue
        if "\0" not in line:
            if bare != line and not os.path.lexists(os.path.join(folder, line)):
                line = bare
            if line.startswith("#") and not os.path.lexists(os.path.join(folder, line)):
                continue
        yield number, line


def _csv_paths(argument: str, text: str, is_video: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    column = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if column is None:
                cells = [cell.strip().lower() for cell in row]
                header = [cells.index(name) for name in CSV_COLUMNS if name in cells]
                column = header[0] if header else 0
                # A list without a header may start with a video called "video".
                if header and not (len(row) == 1 and is_video(row[0].strip())):
                    continue
            if column >= len(row) or not row[column].strip():
                raise UsageError(f"{shown(argument)}, line {reader.line_num}: no path in column {column + 1}")
            yield reader.line_num, row[column].strip()
    except csv.Error as error:
        raise UsageError(f"{shown(argument)}, line {reader.line_num}: not CSV: {error}") from None
