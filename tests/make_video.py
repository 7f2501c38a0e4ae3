"""Encode real test videos with PyAV, in which every frame shows its own number.

A picture has four quadrants of different colours (so that a wrong rotation or mirroring is seen), a bright
bar that moves from frame to frame (so that codecs have motion to predict), and in its middle a 4x4 board of
black and white cells with the frame number in binary. `frame_number` reads the board from decoded pixels,
even lossy ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Codec = Literal["h264", "h264_rgb", "hevc", "vp9", "av1", "mpeg4", "mpeg2", "gif", "ffv1", "mjpeg"]

_ENCODERS: Mapping[str, tuple[str, str, dict[str, str]]] = {
    # name: encoder, pixel format, options. Fixed seeds and one thread give the same bytes each time.
    "h264": ("libx264", "yuv420p", {"preset": "veryfast", "threads": "1"}),
    "h264_rgb": ("libx264rgb", "rgb24", {"qp": "0", "preset": "veryfast", "threads": "1"}),
    "hevc": ("libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8", "crf": "30"}),
    "av1": ("libsvtav1", "yuv420p", {"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", "yuv420p", {"qscale": "3"}),
    "mpeg2": ("mpeg2video", "yuv420p", {}),
    "gif": ("gif", "rgb8", {}),
    "ffv1": ("ffv1", "yuv420p", {"level": "3", "slicecrc": "1"}),
    "mjpeg": ("mjpeg", "yuvj420p", {}),
}
_QUADRANTS = ((180, 60, 60), (60, 180, 60), (60, 60, 180), (150, 150, 90))


def picture(number: int, width: int = 64, height: int = 48) -> Pixels:
    """The picture of frame ``number`` (0 to 65535): uint8 ``[height, width, 3]``, RGB."""
    image = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    image[:top, :left], image[:top, left:] = _QUADRANTS[0], _QUADRANTS[1]
    image[top:, :left], image[top:, left:] = _QUADRANTS[2], _QUADRANTS[3]
    bar = number * 3 % width
    image[:, bar : bar + max(2, width // 16)] = 220
    bits = np.array([number >> bit & 1 for bit in range(16)], bool).reshape(4, 4)
    rows, columns = _board(height), _board(width)
    board = np.where(bits[:, :, None], np.uint8(235), np.uint8(20))
    for row in range(4):
        for column in range(4):
            image[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = board[row, column]
    return image


def frame_number(image: Pixels) -> int:
    """Read the number that `picture` drew into ``image``, uint8 ``[height, width, 3]``."""
    rows, columns = _board(image.shape[0]), _board(image.shape[1])
    number = 0
    for bit in range(16):
        row, column = divmod(bit, 4)
        y = (rows[row] + rows[row + 1]) // 2
        x = (columns[column] + columns[column + 1]) // 2
        number |= int(image[y, x].mean() > 128) << bit
    return number


def cut_video(path: Path) -> Path:
    """An H.264 video of 256x144 that asks to be cropped at its left and top, to 192x140."""
    # FFmpeg crops at the left only by multiples of its row alignment.
    return make_video(path, width=256, height=144, options={"x264-params": "crop-rect=64,4,0,0:threads=1"})


def make_video(
    path: Path,
    *,
    codec: Codec = "h264",
    width: int = 64,
    height: int = 48,
    frames: int = 10,
    fps: int | Fraction = 25,
    times: Sequence[Fraction] | None = None,
    pix_fmt: str | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    audio: bool = False,
    gop: int = 12,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    colour: tuple[int, int] | None = None,
) -> Path:
    """Encode ``frames`` pictures into ``path``, whose suffix chooses the container.

    Args:
        path: the file to write; its folder must exist.
        codec: the codec; ``h264_rgb`` is lossless RGB.
        width: width of the picture as displayed, after rotation.
        height: height of the picture as displayed.
        frames: number of frames; 0 writes a file without a video stream (then set ``audio``).
        fps: frame rate of the stream.
        times: presentation times in seconds, one per frame, for a variable frame rate.
        pix_fmt: a pixel format other than the codec's usual one, such as ``yuv420p10le``.
        rotation: 0, 90, 180 or 270 degrees. Pixels are stored rotated, and a display matrix rotates them back
            (counter-clockwise, as in `av.VideoFrame.rotation`).
        mirrored: whether the display matrix also swaps left and right, which the stored pixels undo.
        audio: whether to add a tone as long as the video (one second if there is no video).
        gop: frames from one keyframe to the next.
        options: further options of the encoder.
        container_options: options of the container, such as ``movflags``.
        colour: colour matrix and range to encode in and to write into the stream, numbered as in `av`.

    Returns:
        ``path``.
    """
    encoder, usual_format, encoder_options = _ENCODERS[codec]
    with av.open(
        f"file:{path}", "w", format=_FORMATS.get(path.suffix), options=dict(container_options or {})
    ) as out:
        video: av.VideoStream | None = None
        sound: av.AudioStream | None = None
        if frames:
            stored = (height, width) if rotation in (90, 270) else (width, height)
            stream = out.add_stream(encoder, rate=fps, options={**encoder_options, **(options or {})})
            assert isinstance(stream, av.VideoStream)
            video = stream
            video.width, video.height = stored
            video.pix_fmt = pix_fmt or usual_format
            video.codec_context.gop_size = gop
            if times is not None:
                video.codec_context.time_base = Fraction(1, 90000)
            if colour is not None:
                video.codec_context.colorspace, video.codec_context.color_range = colour
            if rotation or mirrored:
                video.set_display_rotation(rotation, hflip=mirrored)
        if audio:
            stream = out.add_stream(_AUDIO.get(path.suffix, "aac"), rate=16000)
            assert isinstance(stream, av.AudioStream)
            sound = stream
            sound.layout = "mono"
        if video is not None:
            for number in range(frames):
                seen = picture(number, width, height)
                turned = np.rot90(seen[:, ::-1] if mirrored else seen, -rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
                if colour is not None:
                    frame = frame.reformat(
                        format=video.pix_fmt, dst_colorspace=colour[0], dst_color_range=colour[1]
                    )
                if times is not None:
                    frame.pts, frame.time_base = int(times[number] * 90000), Fraction(1, 90000)
                else:
                    frame.pts, frame.time_base = number, 1 / Fraction(fps)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        if sound is not None:
            out.mux(_tone(sound, float(frames / Fraction(fps)) if frames else 1.0))
            out.mux(sound.encode())
    return path


_FORMATS = {".264": "h264", ".m2ts": "mpegts"}
_AUDIO = {".webm": "libopus", ".mp3": "libmp3lame", ".flac": "flac"}


def _board(size: int) -> list[int]:
    """Edges of the four cells along an axis of ``size`` pixels, in its middle half."""
    return [size // 4 + size * cell // 8 for cell in range(5)]


def _tone(stream: Any, seconds: float) -> list[av.Packet[Any]]:
    rate = 16000
    count = int(seconds * rate)
    wave = (np.sin(np.arange(count) * (2 * np.pi * 440 / rate)) * 8000).astype(np.int16)
    packets = []
    for start in range(0, count, 1024):
        part = wave[None, start : start + 1024]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        packets += stream.encode(frame)
    return packets
