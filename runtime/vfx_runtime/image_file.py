"""Check an image file before it is decoded: its kind, whether it is whole, and its orientation.

FFmpeg silently decodes what is left of a truncated JPEG, hence these checks. PNG has a checksum for each
chunk (rows that its writer left out are not noticed). In JPEG, WebP and BMP, damage that leaves a valid
bitstream cannot be detected.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vfx_engines.errors import VideoError
from vfx_runtime.picture import UPRIGHT, Orientation
from vfx_runtime.video_file import regular_file_size

_MAX_BYTES = 2**30
"""Far more than the largest picture takes. A larger file is not a frame, and is not read into memory."""

_TURNS = {
    1: UPRIGHT,
    2: Orientation(flip_x=True),
    3: Orientation(flip_x=True, flip_y=True),
    4: Orientation(flip_y=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, flip_x=True),
    7: Orientation(transpose=True, flip_x=True, flip_y=True),
    8: Orientation(transpose=True, flip_y=True),
}
"""Orientation for each value of EXIF's Orientation tag (CIPA DC-008, 4.6.5)."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file that passed the checks."""

    codec: str
    """FFmpeg's name of the codec: mjpeg, png, webp or bmp."""
    data: bytes
    """The bytes to decode. A PNG's ancillary chunks are left out, since FFmpeg refuses a picture for a fault
    in some of them."""
    turn: Orientation
    """The orientation that EXIF asks for."""


def read_image(path: str, name: str) -> ImageFile:
    """Read a JPEG, PNG, WebP or BMP file. The kind is told by the first bytes, not by the suffix.

    Args:
        path: a local file.
        name: the file's name in messages.

    Raises:
        VideoError: the file is missing, empty, truncated, damaged, animated, or of another kind.
    """
    size = regular_file_size(path, name)
    if size > _MAX_BYTES:
        raise VideoError(f"{name}: {size} bytes; expected an image of at most {_MAX_BYTES}")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise VideoError(f"{name}: cannot be read: {error.strerror}") from None
    try:
        if data[:3] == b"\xff\xd8\xff":
            return ImageFile("mjpeg", data, _check_jpeg(data))
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return ImageFile("png", *_check_png(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return ImageFile("webp", data, _check_webp(data))
        if data[:2] == b"BM":
            _check_bmp(data)
            return ImageFile("bmp", data, UPRIGHT)
    except _Flaw as flaw:
        raise VideoError(f"{name}: {flaw}") from None
    raise VideoError(
        f"{name}: not a JPEG, PNG, WebP or BMP image, or damaged at its start; extract it again, or take "
        "it out of the pattern"
    )


class _Flaw(Exception):
    """What is wrong with a file, and what to do about it."""


def _truncated(found: str) -> _Flaw:
    return _Flaw(f"truncated: {found}; copy or extract it again")


def _damaged(found: str) -> _Flaw:
    return _Flaw(f"damaged: {found}; copy or extract it again")


_ANIMATED = "an animation, expected one picture; give it as a video of its own"


def _check_jpeg(data: bytes) -> Orientation:
    """Walk the segments up to the first scan, and look for the end marker after it (ITU-T T.81, B.1)."""
    turn, at = UPRIGHT, 2
    while True:
        if data[at : at + 1] != b"\xff":
            raise (
                _truncated("it ends before its picture")
                if at >= len(data)
                else _damaged(f"no marker at byte {at}")
            )
        marker = data[at + 1 : at + 2]
        if marker == b"\xff":
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            raise _truncated("it ends before its picture")
        start = at + 4
        at += 2 + length
        if marker == b"\xe1" and data[start : start + 6] == b"Exif\0\0":
            turn = _orientation(data[start + 6 : at])
        if marker == b"\xda":
            break
    # Inside a scan, FF is only ever followed by 00 or by a restart marker, so FF D9 can only be the end.
    if data.find(b"\xff\xd9", at) < 0:
        raise _truncated("it has no end mark")
    return turn


def _check_png(data: bytes) -> tuple[bytes, Orientation]:
    """Check all chunks, and keep the critical ones: FFmpeg refuses a picture for a faulty colour profile."""
    turn, at, critical = UPRIGHT, 8, [data[:8]]
    while True:
        kind, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if len(kind) < 4 or end > len(data):
            raise _truncated("it has no end mark")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _damaged(f"a wrong sum at byte {at}")
        if kind == b"acTL":
            raise _Flaw(_ANIMATED)
        if kind == b"eXIf":
            turn = _orientation(data[at + 8 : end - 4])
        if kind[:1].isupper():
            critical.append(data[at:end])
        if kind == b"IEND":
            return b"".join(critical), turn
        at = end


def _check_webp(data: bytes) -> Orientation:
    announced = int.from_bytes(data[4:8], "little") + 8
    if announced > len(data):
        raise _truncated(f"it announces {announced} bytes and has {len(data)}")
    turn = UPRIGHT
    for kind, content in _riff_chunks(data, announced):
        if kind == b"ANIM":
            raise _Flaw(_ANIMATED)
        if kind == b"EXIF":
            turn = _orientation(content.removeprefix(b"Exif\0\0"))
    return turn


def _riff_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > end:
            raise _damaged(f"a chunk at byte {at} reaches over the end")
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _check_bmp(data: bytes) -> None:
    announced = int.from_bytes(data[2:6], "little")
    if announced > len(data):
        raise _truncated(f"it announces {announced} bytes and has {len(data)}")


def _orientation(exif: bytes) -> Orientation:
    """The Orientation tag in the first directory of a TIFF structure; upright if there is none."""
    order: dict[bytes, str] = {b"II*\0": "little", b"MM\0*": "big"}
    if exif[:4] not in order:
        return UPRIGHT

    def number(at: int, size: int) -> int:
        part = exif[at : at + size]
        return int.from_bytes(part, "little") if order[exif[:4]] == "little" else int.from_bytes(part, "big")

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == 0x0112:
            return _TURNS.get(number(entry + 8, 2), UPRIGHT)
    return UPRIGHT
