"""Which files of a folder are the frames of a video, and in which order."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

from vfx_engines.errors import UsageError, VideoError, shown
from vfx_runtime.sampling import rate

DEFAULT_FPS = 25.0

_PRINTF = re.compile(r"%%|%(?:0(?P<width>[0-9]{1,2}))?[di]")
_BRACES = re.compile(r"\{\{|\}\}|\{\w*(?::(?:0(?P<width>[0-9]{1,2}))?d?)?\}")
_DIGITS = re.compile("([0-9]+)")


@dataclass(frozen=True, slots=True)
class Images:
    """How a folder of images is read as a video.

    ``pattern`` describes the file names. It has either one number in it, written as for printf
    (``frame_%06d.jpg``) or for Python (``frame_{:010d}.jpg``), or it is a glob (``*.jpg``). With a number,
    files are ordered by it and none may be missing. A glob takes the files that are there, in natural order:
    ``a2.jpg`` before ``a10.jpg``. Matching is case-sensitive, and hidden files never match.

    Raises:
        UsageError: the pattern is invalid, or the rate is out of range.
    """

    pattern: str
    """Pattern of the file names, without folders."""
    fps: float = DEFAULT_FPS
    """Frames per second (above 0, below 10000), which images themselves do not tell."""

    def __post_init__(self) -> None:
        _rule(self.pattern)
        if not 0 < self.fps < 10_000:
            raise UsageError(f"--images-fps {self.fps:g}: expected a rate between 0 and 10000")
        rate(self.fps)

    def fits(self, name: str) -> bool:
        """Whether a file with this name is a frame."""
        return not name.startswith(".") and _rule(self.pattern).number(name) is not None

    def frames(self, folder: str) -> Sequence[str]:
        """The names of the frames in a folder, in order.

        Two such sequences are equal if they have the same names. Numbered ones take no memory per frame.

        Raises:
            VideoError: there is no such folder, no file in it matches, or a number has no file.
        """
        return _rule(self.pattern).ordered(folder, self)


def folder_bytes(folder: str, images: Images) -> int | None:
    """Size in bytes of all frames in a folder together; None if there is no such folder."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if images.fits(entry.name):
                    # A file without a readable status counts 0: no output was finished with it.
                    with suppress(OSError):
                        total += 0 if leads_to_folder(entry) else entry.stat().st_size
    except (OSError, ValueError):
        return None
    return total


@dataclass(frozen=True, slots=True)
class _Numbered(Sequence[str]):
    """File names with consecutive numbers."""

    rule: _NumberRule
    first: int
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        numbers = range(self.first, self.first + self.length)
        if isinstance(index, slice):
            return [self.rule.name(number) for number in numbers[index]]
        return self.rule.name(numbers[index])


@dataclass(frozen=True, slots=True)
class _NumberRule:
    before: str
    width: int
    after: str

    def name(self, number: int) -> str:
        return f"{self.before}{number:0{self.width}d}{self.after}"

    def number(self, name: str) -> int | None:
        digits = name.removeprefix(self.before).removesuffix(self.after)
        if not digits.isascii() or not digits.isdigit():
            return None
        # The name must be what the pattern gives, or two files could have the same number (1.jpg and 01.jpg).
        number = int(digits)
        return number if self.name(number) == name else None

    def ordered(self, folder: str, images: Images) -> Sequence[str]:
        first = last = count = 0
        for name in _files(folder):
            number = self.number(name)
            if number is not None:
                first = min(first, number) if count else number
                last = max(last, number)
                count += 1
        if not count:
            raise _none_fits(folder, images)
        if last - first + 1 > count:
            raise self._gap(folder, first, last, count)
        return _Numbered(self, first, count)

    def _gap(self, folder: str, first: int, last: int, count: int) -> VideoError:
        there = {self.number(name) for name in _files(folder)}
        gap = next((number for number in range(first, last) if number not in there), first)
        pattern = f"{glob.escape(self.before)}*{glob.escape(self.after)}"
        return VideoError(
            f"{shown(folder)}: {shown(self.name(gap))} is missing: {count} images bear numbers from {first} "
            f"to {last}; extract them again, or let --images {shown(shlex.quote(pattern))} take what is "
            "there, as consecutive frames"
        )


@dataclass(frozen=True, slots=True)
class _GlobRule:
    names: re.Pattern[str]

    def number(self, name: str) -> int | None:
        return 0 if self.names.match(name) else None

    def ordered(self, folder: str, images: Images) -> Sequence[str]:
        found = sorted((name for name in _files(folder) if images.fits(name)), key=_natural)
        if not found:
            raise _none_fits(folder, images)
        return found


@lru_cache(maxsize=16)
def _rule(pattern: str) -> _NumberRule | _GlobRule:
    if "/" in pattern or "\0" in pattern:
        raise UsageError(
            f"--images {shown(pattern)}: expected a pattern of file names, without folders; "
            "give the folders as inputs"
        )
    if pattern.startswith("."):
        raise UsageError(f"--images {shown(pattern)}: hidden files are never taken; rename them")
    for syntax, escapes in ((_BRACES, {"{{": "{", "}}": "}"}), (_PRINTF, {"%%": "%"})):
        fields = [found for found in syntax.finditer(pattern) if found[0] not in escapes]
        if not fields:
            continue
        if len(fields) > 1 or (syntax is _BRACES and _is_printf(pattern)):
            raise UsageError(
                f"--images {shown(pattern)}: expected one number in a name; use a glob, such as '*.jpg'"
            )
        (field,) = fields

        def literal(text: str, escapes: dict[str, str] = escapes) -> str:
            for escape, meant in escapes.items():
                text = text.replace(escape, meant)
            return text

        before, after = literal(pattern[: field.start()]), literal(pattern[field.end() :])
        return _NumberRule(before, int(field["width"] or 0), after)
    if not any(character in pattern for character in "*?["):
        raise UsageError(
            f"--images {shown(pattern)}: expected a number, as in 'frame_%06d.jpg' or 'frame_{{:06d}}.jpg', "
            "or a glob, such as '*.jpg'"
        )
    return _GlobRule(re.compile(fnmatch.translate(pattern)))


def _is_printf(pattern: str) -> bool:
    return any(found[0] != "%%" for found in _PRINTF.finditer(pattern))


def _natural(name: str) -> tuple[list[Any], str]:
    """Sort key that compares numbers in names as numbers, and names that are then equal as text."""
    parts: list[Any] = _DIGITS.split(name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one. A link in a loop of links is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _files(folder: str) -> Iterator[str]:
    """Names of all entries but folders. A pipe, or a link to nothing, is noticed when it is read."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not leads_to_folder(entry):
                    yield entry.name
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoError(f"{shown(folder)}: {reason}; check the path") from None


def _none_fits(folder: str, images: Images) -> VideoError:
    names = sorted(name for name in _files(folder) if not name.startswith("."))
    holds = f"it holds {len(names)} files, such as {shown(names[0])}" if names else "it holds no file"
    return VideoError(
        f"{shown(folder)}: no file fits --images {shown(images.pattern)}: {holds}; correct the pattern "
        "or the path"
    )
