"""Small pictures of a video's frames, as JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vfx_runtime.decode import Decoder, Frame, Pixels, VideoInfo
from vfx_runtime.image_names import Images
from vfx_runtime.opening import open_video

WIDTH = 176
"""Length of the longer side in pixels."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture of one frame."""

    frame: int
    """Index of the frame in the video."""
    seconds: float
    """When the frame appears."""
    width: int
    height: int
    jpeg: bytes


def thumbnails(
    video: Path, places: Sequence[float], images: Images | None = None, *, seconds: bool = False
) -> tuple[VideoInfo, list[Thumbnail]]:
    """Facts about a video, and thumbnails of some of its frames, as far as they exist.

    Args:
        video: a file, or a folder of images.
        places: frame numbers in the source, ascending.
        images: how to read a folder of images.
        seconds: whether ``places`` are times in seconds instead, converted by the average frame rate.

    Raises:
        VideoError: the video cannot be opened, or is damaged before the last of these frames.
    """
    found: list[Thumbnail] = []
    with closing(open_video(video, threads=2, images=images)) as decoder:
        rate = decoder.info.fps if seconds else 1
        for wanted in dict.fromkeys(int(place * rate) for place in places):
            frame = _at(decoder, wanted)
            if frame is None:
                break
            size, jpeg = encode(frame.rgb())
            found.append(Thumbnail(frame.index, float(frame.start), *size, jpeg))
        return decoder.info, found


def _at(decoder: Decoder, wanted: int) -> Frame | None:
    decoder.skip_to(wanted)
    return next((frame for frame in decoder if frame.index >= wanted), None)


def encode(pixels: Pixels) -> tuple[tuple[int, int], bytes]:
    """Encode a picture as a small JPEG, whose longer side has at most `WIDTH` pixels.

    Args:
        pixels: uint8 ``[height, width, 3]``, RGB.

    Returns:
        Width and height of the JPEG, and its bytes.
    """
    import av
    from av.video.codeccontext import VideoCodecContext

    height, width = pixels.shape[:2]
    share = min(1.0, WIDTH / max(height, width))
    small = max(2, round(width * share)), max(2, round(height * share))
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height = small
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    encoder.options = {"qmin": "4", "qmax": "4"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    packets = encoder.encode(frame.reformat(*small, format="yuvj420p", interpolation="AREA"))
    packets += encoder.encode(None)
    return small, b"".join(bytes(packet) for packet in packets)
