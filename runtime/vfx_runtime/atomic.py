"""Files that appear whole or not at all, and the output folder they go to.

A file is written under a hidden name beside its final one, ``.vfx-<hash>.part``, and renamed. The
name follows from the final name, so whoever holds a video's claim finds what a killed process left.

Links lead nowhere: one that bears the name of an output or of its part is replaced and never followed, and
a folder that is a link out of the output folder is refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from vfx_engines.errors import OutputError, UsageError, shown

_ELSEWHERE = "choose another --output folder"
_REASONS = {
    errno.ENOSPC: "the disk is full: make room and run again, finished videos are kept",
    errno.EDQUOT: "the disk quota is used up: make room and run again, finished videos are kept",
    errno.EFBIG: f"the file would be larger than this file system or limit allows: {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE}",
    errno.EACCES: f"no permission to write here: {_ELSEWHERE}",
    errno.EPERM: f"no permission to write here: {_ELSEWHERE}",
    errno.ENOENT: f"no such folder, and none can be made: {_ELSEWHERE}",
    errno.ENAMETOOLONG: "the name is too long for this file system: rename the video",
    errno.ENOTDIR: f"a part of this path is a file, expected a folder: move it, or {_ELSEWHERE}",
    errno.EEXIST: f"a part of this path is a file, expected a folder: move it, or {_ELSEWHERE}",
    errno.EISDIR: f"this is a folder, expected a file: move it, or {_ELSEWHERE}",
}


def output_error(error: OSError, path: Path) -> OutputError:
    """The one line that says why ``path`` cannot be written, and what to do."""
    reason = _REASONS.get(error.errno or 0) or " ".join((error.strerror or str(error)).split())
    return OutputError(f"cannot write {shown(path)}: {reason}")


def input_error(error: OSError, path: Path) -> OutputError:
    """The one line that says that the system cannot read ``path``, which is no damage, and what to do."""
    said = " ".join((error.strerror or str(error)).split())
    return OutputError(
        f"cannot read {shown(path)}: {said}: run again when it can be read, or move it away to have what it "
        "holds made again"
    )


def prepare_output(output: Path) -> None:
    """Make the output folder and try that files can be written there.

    Raises:
        OutputError: it is a file, or cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".vfx-", dir=output) as file:
            file.write(b"\0")
    except OSError as error:
        raise output_error(error, output) from None


def check_folder(output: Path) -> None:
    """Notice that the output folder vanished: it is not made again, for a disk may have been taken away.

    Raises:
        OutputError: it is gone.
    """
    if not output.is_dir():
        raise OutputError(f"the output folder {shown(output)} is gone: bring it back and run again")


def check_page(option: str, path: Path) -> None:
    """Find out before any work whether a page can be written, so that no video or list is taken for one.

    Args:
        option: that named it.
        path: of the page.

    Raises:
        UsageError: it has another suffix than a page, is a folder, or lies in one that does not exist.
    """
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UsageError(f"{option} {shown(path)}: expected a file to write whose name ends in .html")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {shown(path)}: its folder does not exist: make it first")


def is_file(path: Path) -> bool:
    """Whether there is a file at ``path``.

    Raises:
        OutputError: there can be none: a name is too long, a folder is a file, a file a folder, or a pipe
            or a device, whose reading might never end.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):
            raise output_error(error, path) from None
        return False
    if stat.S_ISDIR(mode):
        raise output_error(IsADirectoryError(errno.EISDIR, ""), path)
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {shown(path)}: there is something that is no regular file: move it")
    return True


def part_path(final: Path) -> Path:
    """Where a file is written before it gets its name: of fixed length, so never too long."""
    digest = hashlib.blake2b(os.fsencode(final.name), digest_size=8).hexdigest()
    return final.with_name(f".vfx-{digest}.part")


@contextlib.contextmanager
def new_files(finals: Sequence[Path], *, exclusive: bool, inside: Path) -> Iterator[list[Path]]:
    """Empty part files to write; on a clean exit they get their final names in the given order.

    Of several files the final ones are removed first: a set is never a mix of old and new. On any
    failure the part files are removed.

    Args:
        finals: final paths; folders are made, but for the output folder.
        exclusive: nobody else writes these files now. If it may be so, the parts get names of their own.
        inside: the output folder.

    Raises:
        OutputError: for every OSError within, and where the output folder is gone or links lead out of it.
    """
    with new_parts(finals, exclusive=exclusive, inside=inside) as parts:
        yield parts
        if len(finals) > 1:
            for final in finals:
                final.unlink(missing_ok=True)
        for final, part in zip(finals, parts, strict=True):
            try:
                part.replace(final)
            except OSError as error:
                raise output_error(error, final) from None


@contextlib.contextmanager
def new_parts(finals: Sequence[Path], *, exclusive: bool, inside: Path) -> Iterator[list[Path]]:
    """As `new_files`, but whoever writes the parts renames them: to names that follow from their bytes."""
    parts = [part_path(final) for final in finals]
    if not exclusive:
        parts = [part.with_name(f"{part.stem}-{uuid.uuid4().hex}.part") for part in parts]
    try:
        for part in parts:
            _check_inside(part, inside)
            _create(part, inside)
        yield parts
    except BaseException as error:
        remove(parts)
        if isinstance(error, OSError):
            raise output_error(error, finals[-1]) from None
        raise


def remove(paths: Sequence[Path]) -> None:
    """Remove those files that exist and can be removed."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _check_inside(part: Path, folder: Path) -> None:
    check_folder(folder)
    real, root = os.path.realpath(part.parent), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise OutputError(
            f"cannot write to {shown(part.parent)}: a link leads from there to {shown(real)}, out of the "
            "output folder: remove it, or give that folder as --output of a run of its own"
        )


def _make_folders(folder: Path, inside: Path) -> None:
    """Those below the output folder, which may vanish at any moment and is then not made again."""
    if folder != inside:
        _make_folders(folder.parent, inside)
        folder.mkdir(exist_ok=True)


def _create(part: Path, inside: Path) -> None:
    # Another process may remove a folder that it finds empty, between the two calls.
    for attempt in range(5):
        _make_folders(part.parent, inside)
        # Whatever lies there is taken away, not opened: a link would have its target overwritten.
        part.unlink(missing_ok=True)
        try:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            return
        except FileNotFoundError:
            if attempt == 4:
                raise
