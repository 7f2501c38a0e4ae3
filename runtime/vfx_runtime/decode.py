"""Frames of a video file, in presentation order, with their true times.

PyAV decodes: one thread and one conversion context per video take the least CPU time of all that
was measured (benchmarks/decoders.py). A GPU decoder meets the same `Decoder` protocol.

No rows rather than wrong rows: a frame that the decoder had to guess, a frame that went missing and
a file that is shorter than it says end the video with one `VideoError`. Damage that leaves a valid
bitstream cannot be seen by any decoder: H.264, MPEG-2, MPEG-4 and AV1 notice nearly all random
damage, HEVC and Motion JPEG about half, VP9, GIF and FFV1 hardly any.

Only the named local file is ever read: never a URL, and never a second file that a playlist or a
session description inside the first one names.
"""

from __future__ import annotations

import heapq
import os
import stat
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vfx_engines.errors import VideoError

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 2**26
"""Largest picture that is decoded (8192 x 8192): a header can ask for any amount of memory."""

# Demuxers that read one file and no other. HLS, DASH, concat, SDP, image sequences and their like
# would follow names inside the file; tty would decode any text as a film.
_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,gif,apng,mxf,nut,rm,wtv,dv,ivf,obu,av1,gxf,"
    "h264,hevc,vvc,m4v,mpegvideo,mjpeg,vc1,yuv4mpegpipe"
)

# These decoders drop a broken slice and say nothing, unless they are told to give up. For the others
# the flags on the frame say more, and giving up would refuse harmless oddities.
_EXPLODE = frozenset({"hevc", "mjpeg"})

# One packet, one frame: a packet whose time no frame bears was lost in the decoder.
_FRAME_PER_PACKET = frozenset({"av1", "h264", "hevc", "vp9"})

# After a seek to a keyframe these decode to the same pixels. (GIF marks frames as keys that are not.)
_SEEKABLE = frozenset({"av1", "h264", "hevc", "mpeg2video", "mpeg4", "vp8", "vp9"})


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known of a video before it is decoded."""

    width: int
    """Pixels, as displayed: after `rotation`."""
    height: int
    fps: float
    """Average rate; 0 where the file does not tell."""
    frames: int | None
    """What the file announces, or its duration times its rate; an estimate."""
    duration_seconds: float | None
    codec: str
    """FFmpeg's name of the codec, such as ``h264``."""
    rotation: int
    """Degrees (0, 90, 180, 270) that stored pictures are turned counter-clockwise for display."""


class Frame(Protocol):
    """One frame of a video."""

    @property
    def index(self) -> int:
        """Number in presentation order, from 0."""
        ...

    @property
    def start(self) -> Fraction:
        """When it appears, in seconds from the start of the file, as the ffmpeg tool counts."""
        ...

    @property
    def end(self) -> Fraction:
        """When the next frame appears; for the last frame, when it ends."""
        ...

    def rgb(self) -> Pixels:
        """Convert the frame: uint8 [height, width, 3], RGB, 0 to 255.

        Nothing is converted until this is called, and each call converts again. Rows may lie further
        apart than their length. Call it on the thread that reads the decoder.

        Raises:
            VideoError: the pixel format cannot be converted.
        """
        ...


class Decoder(Protocol):
    """The frames of one video, each given once, in presentation order. One thread may read it."""

    @property
    def info(self) -> VideoInfo:
        """What is known of the video."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """The decoder itself."""
        ...

    def __next__(self) -> Frame:
        """The next frame.

        Raises:
            VideoError: the video is damaged here; no more frames follow.
        """
        ...

    def skip_to(self, index: int) -> None:
        """Go on at the last frame, not after `index`, that can be reached without decoding to it.

        Where nothing is gained nothing happens: frames before `index` may still follow. Numbers,
        times and pixels of the frames that follow are the same as without a skip.
        """
        ...

    def close(self) -> None:
        """Release the file. Frames already given remain valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_video(path: str | os.PathLike[str], threads: int = 1) -> Decoder:
    """Open a local video file and decode its first frame.

    Args:
        path: The file; never taken for a URL.
        threads: Threads that decode this video. One costs the least CPU time; more are for a single
            long video on idle cores.

    Raises:
        VideoError: the file is missing, empty, truncated, no regular file, or holds no video that
            can be decoded.
    """
    return PyAvDecoder(path, threads)


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


class PyAvDecoder:
    """A `Decoder` on the CPU through PyAV. It reads one frame ahead, so that `end` is known."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self._path = os.fspath(path)
        self._name = self._path if self._path.isprintable() else ascii(self._path)
        self._threads = threads
        self._size = _regular_file_size(self._path, self._name)
        self._reformatter = VideoReformatter()
        self._timeline: _Timeline | None = None
        self._may_seek = True
        self._start_reading()
        if self._ahead is None:
            self.close()
            raise VideoError(f"{self._name}: no frame could be decoded; re-encode it")
        self.info = self._describe(self._ahead)

    def _start_reading(self) -> None:
        """Open the file and decode its first frame into `_ahead`."""
        self._container = _open_container(self._path, self._name)
        try:
            self._stream = _video_stream(self._container, self._name)
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
            self._first_pts: int | None = None
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def skip_to(self, index: int) -> None:
        """Seek to the last keyframe not after frame `index`, if that lies ahead; see `Decoder`."""
        if self._ahead is None or not self._may_seek or index <= self._index:
            return
        if self._timeline is None:
            self._timeline = _timeline(self._path, self._name, self._codec)
        key = self._timeline.keyframe_before(index)
        if key is None or key <= self._index:
            return
        if self._ahead.pts != self._timeline.pts[self._index]:
            self._may_seek = False
            return
        if not self._seek(key):
            self._decode_again(self._index)

    def _seek(self, key: int) -> bool:
        """Continue at frame number `key`; False where the file does not get there."""
        assert self._timeline is not None
        wanted = self._timeline.pts[key]
        try:
            self._container.seek(wanted, stream=self._stream)
            self._packets = self._container.demux(self._stream)
            self._decoded.clear()
            self._pending.clear()
            self._first_pts = wanted
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
                if self._pending and self._first_pts is not None:
                    raise self._damaged("the last frames are missing")
                return None
            if packet.is_corrupt:
                raise self._damaged("a packet is broken")
            if (
                self._codec in _FRAME_PER_PACKET
                and packet.pts is not None
                and packet.pts >= (self._first_pts or packet.pts)
                and packet.size
                and not packet.is_discard
            ):
                heapq.heappush(self._pending, packet.pts)
            for picture in packet.decode():
                # Pictures before the first whole one lean on frames that are not there.
                if self._first_pts is None or picture.pts is None or picture.pts >= self._first_pts:
                    self._decoded.append(picture)
        picture = self._decoded.popleft()
        self._match(picture)
        return picture

    def _match(self, picture: VideoFrame) -> None:
        """Take a picture's packet off the pending ones: frames come in order, so earlier ones are lost."""
        if picture.pts is None:
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
        try:
            # As OpenCV does it; the filter matters to chroma where the height is odd. threads=0, the
            # default, would start threads for each frame.
            converted = self._reformatter.reformat(
                picture, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
            )
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self._name}: cannot convert {picture.format.name} to RGB ({error}); re-encode it"
            ) from None
        plane = converted.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(converted.height, plane.line_size)
        image = rows[:, : converted.width * 3].reshape(converted.height, converted.width, 3)
        return _displayed(image, _orientation(picture))

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
        orientation = _orientation(picture)
        width, height = picture.width, picture.height
        if orientation.transpose:
            width, height = height, width
        return VideoInfo(width, height, fps, frames, seconds, self._codec, orientation.rotation)

    def _check_length(self) -> None:
        """The file holds all the bytes that its own index and header announce."""
        announced = _announced_size(self._path)
        if len(self._stream.index_entries):
            last = self._stream.index_entries[-1]
            announced = max(announced, last.pos + last.size)
        if announced > self._size:
            raise VideoError(
                f"{self._name}: truncated: it announces {announced} bytes and has {self._size}; "
                "copy or download it again"
            )

    def _damaged(self, what: str) -> VideoError:
        if self._index < 0:
            where = "damaged at its first frame"
        else:
            where = f"damaged at or after frame {self._index} ({float(self._ahead_start):.2f} s)"
        return VideoError(
            f"{self._name}: {where}: {what}; get a whole copy, or re-encode it to accept the damage"
        )


def _regular_file_size(path: str, name: str) -> int:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoError(f"{name}: {reason}; check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{name}: is a folder, expected a video file")
    if not stat.S_ISREG(status.st_mode):
        # Opening a named pipe waits for a writer, for ever.
        raise VideoError(f"{name}: is not a regular file; save the video to a file first")
    if status.st_size == 0:
        raise VideoError(f"{name}: is empty (0 bytes); copy or download it again")
    return status.st_size


def _open_container(path: str, name: str) -> InputContainer:
    try:
        return av.open(
            f"file:{path}",
            options={"max_pixels": str(MAX_PIXELS)},
            container_options={"protocol_whitelist": "file", "format_whitelist": _FORMATS},
            metadata_errors="replace",
        )
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, OSError):
            raise VideoError(f"{name}: cannot be read: {error.strerror}") from None
        if _head(path)[4:8] == b"ftyp":
            raise VideoError(
                f"{name}: an MP4 file without a readable index (moov): truncated or damaged; "
                "copy or download it again"
            ) from None
        raise VideoError(
            f"{name}: not a video file of a kind that vfx reads, or damaged at its start; "
            "expected MP4, Matroska, WebM, AVI, MPEG, GIF or their like"
        ) from None


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    videos = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not videos:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{name}: no video stream, found {found}; expected a video")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    assert isinstance(stream, VideoStream)
    if stream.codec_context is None:
        raise VideoError(f"{name}: no decoder for its video codec; re-encode it, to H.264 say")
    return stream


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(64)


def _announced_size(path: str) -> int:
    """Bytes that a RIFF or EBML (Matroska) header says the file has; 0 where it does not say.

    FFmpeg reads such a file to its early end as if nothing were missing.
    """
    head = _head(path)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return size if size < 0xFFFFFFFF else 0
    if head[:4] == b"\x1a\x45\xdf\xa3":
        header, at = _ebml_size(head, 4)
        segment = at + (header or 0)
        if head[segment : segment + 4] == b"\x18\x53\x80\x67":
            size_of_segment, at = _ebml_size(head, segment + 4)
            return at + size_of_segment if size_of_segment is not None else 0
    return 0


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """The variable-length size at `at` (RFC 8794, 4), None for unknown, and where it ends."""
    if at >= len(data) or data[at] == 0:
        return None, at
    length = 9 - data[at].bit_length()
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & mask
    return (None if value == mask else value), at + length


@dataclass(frozen=True, slots=True)
class _Orientation:
    """How a stored picture is turned for display: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise, leaving a mirroring aside."""
        if self.transpose:
            return 90 if self.flip_y else 270
        return 180 if self.flip_y else 0


_UPRIGHT = _Orientation()


def _orientation(picture: VideoFrame) -> _Orientation:
    """What the display matrix (ISO/IEC 14496-12, 8.3.2) asks for; slanted ones are left as stored."""
    try:
        side_data: list[Any] = list(picture.side_data)  # PyAV's annotation says str
        data = [item for item in side_data if item.type is SideDataType.DISPLAYMATRIX]
    except ValueError:
        # PyAV refuses kinds of side data that it does not know; it then tells the angle alone.
        quarter = round(picture.rotation / 90) % 4
        return _Orientation(quarter % 2 == 1, quarter in (2, 3), quarter in (1, 2))
    if not data:
        return _UPRIGHT
    matrix = np.frombuffer(bytes(data[0]), np.int32)
    a, b, c, d = (int(matrix[at]) for at in (0, 1, 3, 4))
    if abs(a) + abs(d) > 50 * (abs(b) + abs(c)):
        return _Orientation(False, a < 0, d < 0)
    if abs(b) + abs(c) > 50 * (abs(a) + abs(d)):
        return _Orientation(True, c < 0, b < 0)
    return _UPRIGHT


def _displayed(image: Pixels, orientation: _Orientation) -> Pixels:
    if orientation == _UPRIGHT:
        return image
    if orientation.transpose:
        image = image.transpose(1, 0, 2)
    if orientation.flip_x:
        image = image[:, ::-1]
    if orientation.flip_y:
        image = image[::-1]
    return np.ascontiguousarray(image)


@dataclass(frozen=True, slots=True)
class _Timeline:
    """Presentation times (in ticks) of all frames, and the numbers of the keyframes, both sorted."""

    pts: list[int]
    keys: list[int]

    def keyframe_before(self, index: int) -> int | None:
        """Number of the last keyframe not after frame `index`."""
        if index >= len(self.pts):
            return None
        at = bisect_right(self.keys, index)
        return self.keys[at - 1] if at else None


def _timeline(path: str, name: str, codec: str) -> _Timeline:
    """Read all packets, decode none; empty where frames cannot be numbered so."""
    if codec not in _SEEKABLE:
        return _Timeline([], [])
    times, keys = [], set()
    try:
        with _open_container(path, name) as container:
            for packet in container.demux(_video_stream(container, name)):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None:
                    return _Timeline([], [])
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.add(packet.pts)
    except av.FFmpegError:
        return _Timeline([], [])
    times.sort()
    if len(set(times)) < len(times):
        return _Timeline([], [])
    return _Timeline(times, [number for number, pts in enumerate(times) if pts in keys])
