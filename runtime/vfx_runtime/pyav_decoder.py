"""Decode a video file with PyAV: frames in presentation order, with their true times.

One thread and one conversion context per video take the least CPU time of all that was measured
(benchmarks/decoders.py). The same FFmpeg decodes on a GPU's NVDEC units if asked to. The container, times and
checks are then the same; only the pictures are in device memory.

No rows rather than wrong rows: a frame that the decoder had to guess, a missing frame, and a file shorter
than it claims end the video with a `VideoError`. No decoder can detect damage that leaves a valid bitstream.
Of random damage, H.264, MPEG-2, MPEG-4 and AV1 notice nearly all, HEVC and Motion JPEG about half, and VP9,
GIF and FFV1 hardly any.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Self

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vfx_engines.errors import VideoError, shown
from vfx_runtime.decode import Pixels, VideoInfo
from vfx_runtime.orientation import displayed, orientation
from vfx_runtime.picture import UPRIGHT, Convention, Orientation, Picture, Plane, SurfaceFormat
from vfx_runtime.video_file import (
    MAX_PIXELS,
    Timeline,
    Unchanged,
    announced_size,
    check_length,
    open_container,
    read_timeline,
    regular_file_size,
    video_stream,
)

# These decoders silently drop a broken slice unless told to fail. For the others the flags on the frame tell
# more, and failing would refuse harmless oddities.
_EXPLODE = frozenset({"hevc", "mjpeg"})

# These decoders notice a broken packet themselves. For the others, the container's flag counts, although it
# may only mean that recordings were joined.
_VIGILANT = frozenset({"av1", "h264", "mpeg1video", "mpeg2video", "mpeg4"})

# In these codecs, each packet gives one frame. So if no frame has a packet's time, the decoder lost that
# frame.
_FRAME_PER_PACKET = frozenset({"av1", "h264", "hevc", "vp9"})

_SURFACES: dict[str, SurfaceFormat] = {
    "yuv420p": "i420",
    "yuvj420p": "i420",
    "nv12": "nv12",
    "p010le": "p016",
    "p016le": "p016",
}
"""Pixel formats that the CUDA kernels read directly."""

_MATRICES = frozenset({1, 2, 5, 6})
"""Values of AVColorSpace for which the kernels convert 8-bit pictures exactly as FFmpeg does."""

_FULL_RANGE = 2
"""AVCOL_RANGE_JPEG of AVColorRange."""


class PyAvFrame:
    """A `Frame` in the decoder's own pixel format."""

    __slots__ = ("_picture", "_to_rgb", "end", "index", "start")

    def __init__(
        self,
        index: int,
        start: Fraction,
        end: Fraction,
        picture: VideoFrame,
        to_rgb: Callable[[VideoFrame], Pixels],
    ) -> None:
        self.index = index
        self.start = start
        self.end = end
        self._picture = picture
        self._to_rgb = to_rgb

    def rgb(self) -> Pixels:
        """Convert the frame to RGB: uint8 ``[height, width, 3]``, see `Frame.rgb`."""
        return self._to_rgb(self._picture)

    def picture(self) -> Picture:
        """The frame as decoded, see `Frame.picture`."""
        return surface(self._picture, orientation(self._picture), self.rgb)


def surface(stored: VideoFrame, turn: Orientation, rgb: Callable[[], Pixels]) -> Picture:
    """A decoded frame for a GPU to process, see `Frame.picture`.

    Args:
        stored: the frame as decoded.
        turn: its orientation.
        rgb: converts the frame, for formats that the kernels would not convert exactly as FFmpeg does.
    """
    on_device = stored.sw_format is not None
    kind = _SURFACES.get((stored.sw_format or stored.format).name)
    # At an odd height, FFmpeg scales chroma with a filter that the kernels do not have.
    as_it_is = kind is not None and (kind == "p016" or stored.height % 2 == 0)
    # Rows may be stored bottom up (negative line size).
    as_it_is = as_it_is and all(item.line_size > 0 for item in stored.planes)
    if kind is None or not as_it_is or int(stored.colorspace) not in _MATRICES:
        image = rgb()
        plane = Plane(image.ctypes.data, image.strides[0], len(image))
        height, width = image.shape[:2]
        return Picture("rgb", (plane,), height, width, Convention(), UPRIGHT, False, image)
    planes = tuple(Plane(item.buffer_ptr, item.line_size, item.height) for item in stored.planes)
    full = int(stored.color_range) == _FULL_RANGE or stored.format.name == "yuvj420p"
    height, width = turn.size(stored.height, stored.width)
    convention = Convention(int(stored.colorspace), full)
    return Picture(kind, planes, height, width, convention, turn, on_device, stored)


def to_rgb(reformatter: VideoReformatter, picture: VideoFrame, turn: Orientation, name: str) -> Pixels:
    """Convert a decoded frame to RGB, see `Frame.rgb`.

    Args:
        reformatter: keeps its context from frame to frame; not for several threads.
        picture: the frame as decoded.
        turn: its orientation.
        name: the video's name in messages.

    Raises:
        VideoError: the pixel format cannot be converted.
    """
    try:
        # Bicubic, like OpenCV; the filter affects chroma at odd heights. threads=0, the default, would start
        # threads for each frame.
        converted = reformatter.reformat(
            picture, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{name}: cannot convert {picture.format.name} to RGB ({error}); re-encode it"
        ) from None
    plane = converted.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(converted.height, plane.line_size)
    image = rows[:, : converted.width * 3].reshape(converted.height, converted.width, 3)
    return displayed(image, turn)


class PyAvDecoder:
    """A `Decoder` that uses PyAV. It reads one frame ahead, so that a frame's ``end`` is known.

    Args:
        path: see `vfx_runtime.opening.open_video`, like the rest.
        threads: threads that decode this video.
        gpu: index of the GPU to decode on; None decodes on the CPU.

    Raises:
        VideoError: the file is missing, empty, truncated or not a regular file, or it holds no video that can
            be decoded (on that GPU).
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1, gpu: int | None = None) -> None:
        self._path = os.fspath(path)
        self._name = shown(self._path)
        self._threads, self._gpu = threads, gpu
        self._size = regular_file_size(self._path, self._name)
        self._unchanged = Unchanged.of(self._path, self._name)
        self._reformatter = VideoReformatter()
        self._timeline: Timeline | None = None
        self._may_seek = True
        self._start_reading()
        if self._ahead is None:
            self.close()
            raise VideoError(f"{self._name}: no frame could be decoded; re-encode it")
        if self._ahead.sw_format is not None:
            self._check_surface(self._ahead)
        self.info = self._describe(self._ahead)

    def _start_reading(self) -> None:
        """Open the file and decode its first frame into `_ahead`."""
        self._container = open_container(self._path, self._name, gpu=self._gpu)
        try:
            self._stream = video_stream(self._container, self._name)
            self._codec = self._stream.codec_context.codec.canonical_name
            context = self._stream.codec_context
            context.thread_count = self._threads
            context.thread_type = "AUTO" if self._threads > 1 else "NONE"
            context.options = {"max_pixels": str(MAX_PIXELS)}
            if self._codec in _EXPLODE:
                context.options = {**context.options, "err_detect": "explode"}
            self._check_length()
            self._time_base = self._stream.time_base or Fraction(1, 1_000_000)
            # Like the ffmpeg tool, subtract the container's start time, rounded to the stream's ticks.
            origin = Fraction(self._container.start_time or 0, 1_000_000) / self._time_base
            self._origin = (origin + Fraction(1, 2)) // 1
            self._packets = self._container.demux(self._stream)
            self._decoded: deque[VideoFrame] = deque()
            self._pending: list[int] = []
            self._frame_per_packet = self._codec in _FRAME_PER_PACKET
            self._first_pts: int | None = None
            self._last_dts: int | None = None
            self._sought: int | None = None
            self._index = -1
            self._ahead: VideoFrame | None = None
            self._ahead_start = Fraction(0)
            self._read_ahead()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[PyAvFrame]:
        """The decoder itself."""
        return self

    def __next__(self) -> PyAvFrame:
        """The next frame, see `Decoder`."""
        picture, start, index = self._ahead, self._ahead_start, self._index
        if picture is None:
            raise StopIteration
        try:
            self._read_ahead()
        except VideoError:
            self.close()
            raise
        end = self._ahead_start if self._ahead is not None else self._last_end(picture, start)
        return PyAvFrame(index, start, end, picture, self._to_rgb)

    def close(self) -> None:
        """Close the file. Frames that were already given remain valid."""
        self._ahead = None
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def skip_to(self, index: int) -> None:
        """Seek to the last keyframe at or before frame ``index``, if it is ahead; see `Decoder`."""
        if self._ahead is None or not self._may_seek or index <= self._index:
            return
        if self._timeline is None:
            self._timeline = read_timeline(self._path, self._name, self._codec)
        key = self._timeline.keyframe_before(index)
        if key is None or key <= self._index:
            return
        if self._ahead.pts != self._timeline.pts[self._index]:
            self._may_seek = False
            return
        here = self._index
        if not self._seek(key):
            self._decode_again(here)

    def count(self) -> int:
        """Count the video's frames from its packets, or by decoding if those do not tell.

        Only for a decoder of which no frame was read yet; it may be used up afterwards.

        Raises:
            VideoError: the video is damaged.
        """
        timeline = read_timeline(self._path, self._name, self._codec)
        first = None if self._ahead is None else self._ahead.pts
        if self._frame_per_packet and timeline.pts[:1] == [first]:
            return len(timeline.pts)
        return sum(1 for _ in self)

    def _seek(self, key: int) -> bool:
        """Continue at frame ``key``; False if seeking did not lead there."""
        assert self._timeline is not None
        wanted = self._timeline.pts[key]
        try:
            self._container.seek(wanted, stream=self._stream)
            self._packets = self._container.demux(self._stream)
            self._decoded.clear()
            self._pending.clear()
            self._first_pts = self._sought = wanted
            self._last_dts = None
            self._index, self._ahead = key - 1, None
            self._read_ahead()
        except (av.FFmpegError, VideoError):
            return False
        return self._ahead is not None and self._ahead.pts == wanted

    def _decode_again(self, index: int) -> None:
        """Return to frame ``index`` by decoding from the start, and never seek again."""
        self._may_seek = False
        self._container.close()
        self._start_reading()
        while self._index < index and self._ahead is not None:
            self._read_ahead()

    def _read_ahead(self) -> None:
        """Read the next frame into `_ahead`, with its number and start time; None at the end."""
        last, last_start = self._ahead, self._ahead_start
        try:
            picture = self._next_picture()
        except av.FFmpegError as error:
            raise self._damaged(f"FFmpeg says: {error.strerror}") from None
        self._ahead = picture
        if picture is None:
            # This check comes first, because the length of a file that is gone cannot be read.
            self._unchanged.check()
            self._check_length()
            return
        self._index += 1
        if picture.is_corrupt:
            raise self._damaged("a frame is broken")
        if picture.pts is not None:
            self._ahead_start = (picture.pts - self._origin) * self._time_base
        # If a time is missing or runs backwards (joined recordings), continue from the previous frame.
        if last is not None and (picture.pts is None or self._ahead_start <= last_start):
            self._ahead_start = last_start + self._duration(last)

    def _next_picture(self) -> VideoFrame | None:
        while not self._decoded:
            packet = next(self._packets, None)
            if packet is None:
                if self._pending and self._frame_per_packet and self._first_pts is not None:
                    raise self._damaged("the last frames are missing")
                return None
            if packet.is_corrupt and self._codec not in _VIGILANT:
                raise self._damaged("a packet is broken")
            self._expect(packet)
            for picture in packet.decode():
                # After a seek, pictures before the keyframe depend on frames that were not decoded.
                if self._sought is None or picture.pts is None or picture.pts >= self._sought:
                    self._decoded.append(picture)
        picture = self._decoded.popleft()
        self._match(picture)
        return picture

    def _expect(self, packet: av.Packet[VideoStream]) -> None:
        """Add the packet's time to the pending ones, if a frame must come of it."""
        if packet.dts is not None:
            if self._last_dts is not None and packet.dts < self._last_dts:
                # Times start again here (joined recordings), so they no longer identify frames.
                self._frame_per_packet = False
            self._last_dts = packet.dts
        if not self._frame_per_packet or packet.pts is None or not packet.size or packet.is_discard:
            return
        if self._first_pts is None or packet.pts >= self._first_pts:
            heapq.heappush(self._pending, packet.pts)

    def _match(self, picture: VideoFrame) -> None:
        """Remove a picture's time from the pending ones. Frames come in order, so earlier ones are lost."""
        if picture.interlaced_frame:
            # Each field may have been a packet of its own.
            self._frame_per_packet = False
        if picture.pts is None or not self._frame_per_packet:
            self._pending.clear()
            return
        first = self._first_pts is None
        if first:
            self._first_pts = picture.pts
        while self._pending and self._pending[0] <= picture.pts:
            if heapq.heappop(self._pending) < picture.pts and not first:
                raise self._damaged("a frame is missing")

    def _last_end(self, picture: VideoFrame, start: Fraction) -> Fraction:
        """When the last frame ends. FFmpeg gives it a full period even if the stream ends before that."""
        end = start + self._duration(picture)
        first, length = self._stream.start_time, self._stream.duration
        if first is None or not length:
            return end
        stream_end = (first + length - self._origin) * self._time_base
        return min(end, stream_end) if stream_end > start else end

    def _duration(self, picture: VideoFrame) -> Fraction:
        if picture.duration > 0:
            return picture.duration * self._time_base
        rate = self._stream.average_rate or self._stream.guessed_rate
        return 1 / rate if rate else self._time_base

    def _to_rgb(self, picture: VideoFrame) -> Pixels:
        return to_rgb(self._reformatter, picture, orientation(picture), self._name)

    def _describe(self, picture: VideoFrame) -> VideoInfo:
        stream, container = self._stream, self._container
        seconds = None
        if stream.duration is not None:
            seconds = float(stream.duration * self._time_base)
        elif container.duration is not None:
            seconds = container.duration / 1_000_000
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 0.0
        frames = stream.frames or (round(seconds * fps) if seconds and fps else None)
        turn = orientation(picture)
        height, width = turn.size(picture.height, picture.width)
        on_gpu = picture.sw_format is not None
        return VideoInfo(width, height, fps, frames, seconds, self._codec, turn.rotation, on_gpu)

    def _check_length(self) -> None:
        check_length(self._name, self._size, announced_size(self._path), self._stream)

    def _check_surface(self, picture: VideoFrame) -> None:
        """Refuse a crop that the GPU cannot do: it cuts only right and bottom, a file any side."""
        wanted = self._stream.codec_context
        if (picture.width, picture.height) != (wanted.width, wanted.height):
            self.close()
            raise VideoError(
                f"{self._name}: the GPU gives pictures of {picture.width}x{picture.height}, not "
                f"{wanted.width}x{wanted.height}: decode it on the CPU"
            )

    def _damaged(self, what: str) -> VideoError:
        if self._index < 0:
            where = "damaged at its first frame"
        else:
            where = f"damaged at or after frame {self._index} ({float(self._ahead_start):.2f} s)"
        return VideoError(
            f"{self._name}: {where}: {what}; get a whole copy, or re-encode it to accept the damage"
        )
