"""Frames of a video file, in presentation order, with their true times.

PyAV decodes: one thread and one conversion context per video take the least CPU time of all that
was measured (benchmarks/decoders.py). The same FFmpeg decodes on a GPU's NVDEC units where it is asked to:
container, times and checks are then the same, and only the pictures lie elsewhere.

No rows rather than wrong rows: a frame that the decoder had to guess, a frame that went missing and
a file that is shorter than it says end the video with one `VideoError`. Damage that leaves a valid
bitstream cannot be seen by any decoder: H.264, MPEG-2, MPEG-4 and AV1 notice nearly all random
damage, HEVC and Motion JPEG about half, VP9, GIF and FFV1 hardly any.
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

# These decoders drop a broken slice and say nothing, unless they are told to give up. For the others
# the flags on the frame say more, and giving up would refuse harmless oddities.
_EXPLODE = frozenset({"hevc", "mjpeg"})

# These notice a broken packet themselves. For the others the container's word counts, though it may
# only mean that recordings were joined.
_VIGILANT = frozenset({"av1", "h264", "mpeg1video", "mpeg2video", "mpeg4"})

# One packet, one frame: a packet whose time no frame bears was lost in the decoder.
_FRAME_PER_PACKET = frozenset({"av1", "h264", "hevc", "vp9"})

_SURFACES: dict[str, SurfaceFormat] = {
    "yuv420p": "i420",
    "yuvj420p": "i420",
    "nv12": "nv12",
    "p010le": "p016",
    "p016le": "p016",
}
"""Pixel formats that the kernels read as they are."""

_MATRICES = frozenset({1, 2, 5, 6})
"""AVColorSpace of which the kernels' conversion of 8 bits is FFmpeg's to the bit."""

_FULL_RANGE = 2
"""AVColorRange."""


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
        """Convert the frame: uint8 [height, width, 3], see `Frame.rgb`."""
        return self._to_rgb(self._picture)

    def picture(self) -> Picture:
        """The frame as it was decoded, see `Frame.picture`."""
        return surface(self._picture, orientation(self._picture), self.rgb)


def surface(stored: VideoFrame, turn: Orientation, rgb: Callable[[], Pixels]) -> Picture:
    """A decoded frame for a GPU, see `Frame.picture`.

    Args:
        stored: as it was decoded.
        turn: what display asks for.
        rgb: converts it, where the kernels would not do so to the bit.
    """
    on_device = stored.sw_format is not None
    kind = _SURFACES.get((stored.sw_format or stored.format).name)
    # FFmpeg scales the chroma of an odd height with a filter of its own.
    as_it_is = kind is not None and (kind == "p016" or stored.height % 2 == 0)
    # Rows may lie from the last to the first.
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
    """Convert a decoded frame, see `Frame.rgb`.

    Args:
        reformatter: keeps what it needs for frames alike; one thread uses it.
        picture: as it was decoded.
        turn: what display asks for.
        name: what messages call it.

    Raises:
        VideoError: the pixel format cannot be converted.
    """
    try:
        # As OpenCV does it; the filter matters to chroma where the height is odd. threads=0, the
        # default, would start threads for each frame.
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
    """A `Decoder` through PyAV. It reads one frame ahead, so that `end` is known.

    Args:
        path: see `vfx_runtime.opening.open_video`, like ``threads`` and ``gpu``.
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
            # The ffmpeg tool subtracts the container's start, rounded to the stream's ticks.
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
        """Release the file. Frames already given remain valid."""
        self._ahead = None
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def skip_to(self, index: int) -> None:
        """Seek to the last keyframe not after frame `index`, if that lies ahead; see `Decoder`."""
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
        """Frames of the video, of which none was read yet; reads them where packets do not tell.

        Raises:
            VideoError: the video is damaged.
        """
        timeline = read_timeline(self._path, self._name, self._codec)
        first = None if self._ahead is None else self._ahead.pts
        if self._frame_per_packet and timeline.pts[:1] == [first]:
            return len(timeline.pts)
        return sum(1 for _ in self)

    def _seek(self, key: int) -> bool:
        """Continue at frame number `key`; False where the file does not get there."""
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
        """Come back to frame `index` by decoding from the start, and do not try to seek again."""
        self._may_seek = False
        self._container.close()
        self._start_reading()
        while self._index < index and self._ahead is not None:
            self._read_ahead()

    def _read_ahead(self) -> None:
        """Put the next frame into `_ahead`, with its number and start; None at the end."""
        last, last_start = self._ahead, self._ahead_start
        try:
            picture = self._next_picture()
        except av.FFmpegError as error:
            raise self._damaged(f"FFmpeg says: {error.strerror}") from None
        self._ahead = picture
        if picture is None:
            # First: of a file that is gone no length can be read.
            self._unchanged.check()
            self._check_length()
            return
        self._index += 1
        if picture.is_corrupt:
            raise self._damaged("a frame is broken")
        if picture.pts is not None:
            self._ahead_start = (picture.pts - self._origin) * self._time_base
        # Times that are missing or run backwards (joined recordings) go on from frame to frame.
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
                # Pictures before the keyframe that was sought lean on frames that are not there.
                if self._sought is None or picture.pts is None or picture.pts >= self._sought:
                    self._decoded.append(picture)
        picture = self._decoded.popleft()
        self._match(picture)
        return picture

    def _expect(self, packet: av.Packet[VideoStream]) -> None:
        """Put the packet's time among the pending ones, if a frame must come of it."""
        if packet.dts is not None:
            if self._last_dts is not None and packet.dts < self._last_dts:
                # Times start anew here (joined recordings), so they do not tell frames apart.
                self._frame_per_packet = False
            self._last_dts = packet.dts
        if not self._frame_per_packet or packet.pts is None or not packet.size or packet.is_discard:
            return
        if self._first_pts is None or packet.pts >= self._first_pts:
            heapq.heappush(self._pending, packet.pts)

    def _match(self, picture: VideoFrame) -> None:
        """Take a picture's packet off the pending ones: frames come in order, so earlier ones are lost."""
        if picture.interlaced_frame:
            # Each field may have been a packet.
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
        """End of the last frame: FFmpeg gives it a full period where the stream ends before."""
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
        """A GPU's pictures are cut at their right and bottom alone, where a stream may ask for all sides."""
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
