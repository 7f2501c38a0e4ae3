"""A folder of images as a video: a `Decoder` whose frames are files.

An image is decoded only if a window needs it, so sparse windows cost no more than the images they use. Each
image gets its own decoder, so that no table or palette of one image can affect another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Self

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from vfx_engines.errors import VideoError, shown
from vfx_runtime.decode import Pixels, VideoInfo
from vfx_runtime.image_file import read_image
from vfx_runtime.image_names import Images
from vfx_runtime.orientation import displayed
from vfx_runtime.picture import Orientation, Picture
from vfx_runtime.pyav_decoder import surface, to_rgb
from vfx_runtime.sampling import rate
from vfx_runtime.video_file import MAX_PIXELS

_SIXTEEN_BITS = {"gray16be": 1, "ya16be": 2, "rgb48be": 3, "rgba64be": 4}
"""FFmpeg's formats for 16-bit PNGs, and their number of channels."""


class ImageFrame:
    """A `Frame` whose file is read when its pixels are first asked for."""

    __slots__ = ("_decoded", "_folder", "end", "index", "start")

    def __init__(
        self,
        folder: ImageFolder,
        index: int,
        start: Fraction,
        end: Fraction,
        decoded: tuple[VideoFrame, Orientation] | None,
    ) -> None:
        self.index = index
        self.start = start
        self.end = end
        self._folder = folder
        self._decoded = decoded

    def rgb(self) -> Pixels:
        """Convert the frame to RGB: uint8 ``[height, width, 3]``, see `Frame.rgb`.

        Raises:
            VideoError: the image is missing, damaged, or differs in size from the first one.
        """
        picture, turn = self._read()
        return self._folder.to_rgb(picture, turn, self.index)

    def picture(self) -> Picture:
        """The frame as decoded, see `Frame.picture`.

        Raises:
            VideoError: see `rgb`.
        """
        picture, turn = self._read()
        return surface(picture, turn, self.rgb)

    def _read(self) -> tuple[VideoFrame, Orientation]:
        if self._decoded is None:
            self._decoded = self._folder.read(self.index)
        return self._decoded


class ImageFolder:
    """A `Decoder` for the images in a folder, in the order of their names.

    A frame's ``index`` counts from 0, whatever the number in its name. Images may be JPEG, PNG, WebP or BMP.
    Transparency is ignored (the colour counts), of 16 bits the upper 8 are used, and EXIF's orientation is
    applied.

    Args:
        path: the folder.
        images: which files are frames, and at which rate.

    Raises:
        VideoError: there is no such folder, it holds no frames, a number has no file, or the first image
            cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike[str], images: Images) -> None:
        self._path = os.fspath(path)
        self._images = images
        self._names = images.frames(self._path)
        self._rate = rate(images.fps)
        self._reformatter = VideoReformatter()
        self._next = 0
        self._size: tuple[int, int] | None = None
        picture, turn = self.read(0)
        self._first: tuple[VideoFrame, Orientation] | None = (picture, turn)
        height, width = self._size = turn.size(picture.height, picture.width)
        count = len(self._names)
        codec = self._codec
        self.info = VideoInfo(
            width, height, images.fps, count, float(count / self._rate), codec, turn.rotation, False
        )

    def __iter__(self) -> Iterator[ImageFrame]:
        """The decoder itself."""
        return self

    def __next__(self) -> ImageFrame:
        """The next frame, whose file is not read yet.

        Raises:
            VideoError: at the end, if the folder no longer holds the images that it held at the start.
        """
        index = self._next
        if index == len(self._names):
            self._check_unchanged()
            raise StopIteration
        self._next += 1
        first, self._first = self._first, None
        decoded = first if index == 0 else None
        return ImageFrame(self, index, index / self._rate, (index + 1) / self._rate, decoded)

    def skip_to(self, index: int) -> None:
        """Skip to frame ``index``, since any image can be decoded without those before it."""
        self._next = max(self._next, min(index, len(self._names) - 1))

    def close(self) -> None:
        """Do nothing: no file is open between frames."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, index: int) -> tuple[VideoFrame, Orientation]:
        """The decoded image of a frame, and its orientation.

        Raises:
            VideoError: see `ImageFrame.rgb`.
        """
        name = self._name(index)
        image = read_image(os.path.join(self._path, self._names[index]), name)
        picture = _decoded(image.codec, image.data, name)
        found = image.turn.size(picture.height, picture.width)
        if self._size is None:
            self._codec = image.codec
        elif found != self._size:
            raise VideoError(
                f"{name}: {found[1]}x{found[0]} pixels, and the first image of its folder has "
                f"{self._size[1]}x{self._size[0]}: a folder holds the frames of one video, of one size"
            )
        return picture, image.turn

    def to_rgb(self, picture: VideoFrame, turn: Orientation, index: int) -> Pixels:
        """Convert a decoded image to RGB, see `ImageFrame.rgb`."""
        if (channels := _SIXTEEN_BITS.get(picture.format.name)) is not None:
            return displayed(_upper_bytes(picture, channels), turn)
        return to_rgb(self._reformatter, picture, turn, self._name(index))

    def _name(self, index: int) -> str:
        return shown(os.path.join(self._path, self._names[index]))

    def _check_unchanged(self) -> None:
        now = self._images.frames(self._path)
        if now != self._names:
            raise VideoError(
                f"{shown(self._path)}: held {len(self._names)} images, now {len(now)}, or others: run it "
                "again when nothing writes there any more"
            )


def _upper_bytes(picture: VideoFrame, channels: int) -> Pixels:
    """Take the upper 8 of 16 bits, as OpenCV and Pillow do; FFmpeg rounds, and takes a detour for grey."""
    plane = picture.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(picture.height, plane.line_size)
    pixels = rows[:, : picture.width * channels * 2].reshape(picture.height, picture.width, channels, 2)
    colours = pixels[:, :, :3, 0] if channels >= 3 else pixels[:, :, :1, 0].repeat(3, axis=2)
    return np.ascontiguousarray(colours)


def _decoded(codec: str, data: bytes, name: str) -> VideoFrame:
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    context.thread_type = "NONE"
    context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
    try:
        pictures = [*context.decode(av.Packet(data)), *context.decode(None)]
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{name}: damaged, or larger than {MAX_PIXELS} pixels: {reason}; copy or extract it again"
        ) from None
    if len(pictures) != 1 or pictures[0].is_corrupt:
        raise VideoError(f"{name}: damaged: no picture could be decoded; copy or extract it again")
    return pictures[0]
