"""Files that appear whole or not at all, and the output folder they go to.

A file is written under a hidden name in the folder of its final one, ``.vfx-<hash>.part``, and then renamed.
The hidden name is derived from the final name, so the next process that claims the video finds, and replaces,
what a killed process left behind.

Symbolic links cannot divert a write: a link with the name of an output or of its part file is replaced, never
followed, and a folder that is a link out of the output folder is refused.
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
    """An error that says in one line why ``path`` cannot be written, and what to do."""
    reason = _REASONS.get(error.errno or 0) or " ".join((error.strerror or str(error)).split())
    return OutputError(f"cannot write {shown(path)}: {reason}")


def input_error(error: OSError, path: Path) -> OutputError:
    """An error that says in one line why an existing ``path`` cannot be read, and what to do.

    For failures of the system; a file that can be read but is damaged is another matter.
    """
    said = " ".join((error.strerror or str(error)).split())
    return OutputError(
        f"cannot read {shown(path)}: {said}: run again when it can be read, or move it away to have what it "
        "holds made again"
    )


def prepare_output(output: Path) -> None:
    """Create the output folder, and write a temporary file to prove that files can be written there.

    Raises:
        OutputError: ``output`` is a file, or the folder cannot be created or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".vfx-", dir=output) as file:
            file.write(b"\0")
    except OSError as error:
        raise output_error(error, output) from None


def check_folder(output: Path, final: Path | None = None) -> None:
    """Fail if the output folder has vanished. It is not created again, since its disk may have been removed.

    Args:
        output: the output folder.
        final: the file that was to be written there, for the message.

    Raises:
        OutputError: the folder is gone.
    """
    if not output.is_dir():
        what = "" if final is None else f"cannot write {shown(final)}: "
        raise OutputError(f"{what}the output folder {shown(output)} is gone: bring it back and run again")


def check_page(option: str, path: Path) -> None:
    """Check the path of an HTML page before any work begins.

    The suffix is required so that a video or a list given by mistake is never overwritten.

    Args:
        option: the option that named the path, for messages.
        path: where the page is to be written.

    Raises:
        UsageError: the suffix is not ``.html`` or ``.htm``, the path is a folder, or its folder does not
            exist.
    """
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UsageError(f"{option} {shown(path)}: expected a file to write whose name ends in .html")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {shown(path)}: its folder does not exist: make it first")


def is_file(path: Path) -> bool:
    """Whether there is a regular file at ``path``.

    Raises:
        OutputError: no file could be written there: a name is too long, a folder in the path is a file,
            links form a loop, or ``path`` itself is a folder, a pipe or a device (reading those might
            never end).
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
    """Where a file is written before it gets its final name. The length is fixed, so it is never too long."""
    digest = hashlib.blake2b(os.fsencode(final.name), digest_size=8).hexdigest()
    return final.with_name(f".vfx-{digest}.part")


@contextlib.contextmanager
def new_files(finals: Sequence[Path], *, exclusive: bool, inside: Path) -> Iterator[list[Path]]:
    """Create empty part files to write to; on a clean exit, rename them to their final names, in order.

    If there are several, existing final files are removed first, so that a set never mixes old and new
    files. On any failure the part files are removed.

    Args:
        finals: final paths. Missing folders below ``inside`` are created.
        exclusive: whether it is certain that nobody else writes these files now. If not, the part files get
            unique names.
        inside: the output folder, which must exist.

    Yields:
        The paths of the part files, in the order of ``finals``.

    Raises:
        OutputError: any OSError inside the block, the output folder is gone, or a link leads out of it.
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
    """Like `new_files`, but the caller renames the parts, because their names depend on their contents."""
    parts = [part_path(final) for final in finals]
    if not exclusive:
        parts = [part.with_name(f"{part.stem}-{uuid.uuid4().hex}.part") for part in parts]
    try:
        for final, part in zip(finals, parts, strict=True):
            check_folder(inside, final)
            _check_inside(part, inside)
            _create(part, inside)
        yield parts
    except BaseException as error:
        remove(parts)
        if isinstance(error, OSError):
            raise output_error(error, finals[-1]) from None
        raise


def remove(paths: Sequence[Path]) -> None:
    """Remove files, ignoring those that do not exist or cannot be removed."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _check_inside(part: Path, folder: Path) -> None:
    real, root = os.path.realpath(part.parent), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise OutputError(
            f"cannot write to {shown(part.parent)}: a link leads from there to {shown(real)}, out of the "
            "output folder: remove it, or give that folder as --output of a run of its own"
        )


def _make_folders(folder: Path, inside: Path) -> None:
    """Create the folders below ``inside``, but never ``inside`` itself, which may vanish at any moment."""
    if folder != inside:
        _make_folders(folder.parent, inside)
        folder.mkdir(exist_ok=True)


def _create(part: Path, inside: Path) -> None:
    # Another process may remove a folder that it finds empty after we made it and before we use it.
    for attempt in range(5):
        _make_folders(part.parent, inside)
        # Whatever is there is removed rather than opened: through a link we would overwrite its target.
        part.unlink(missing_ok=True)
        try:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            return
        except FileNotFoundError:
            if attempt == 4:
                raise
