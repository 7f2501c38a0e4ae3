"""A video file on disk: opened safely, its video stream, and the times of its packets.

Only the named local file is ever read: never a URL, and never a second file that a playlist or a
session description inside the first one names.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vfx_engines.errors import VideoError

MAX_PIXELS = 2**26
"""Largest picture that is decoded (8192 x 8192): a header can ask for any amount of memory."""

# Demuxers that read one file and no other. HLS, DASH, concat, SDP, image sequences and their like
# would follow names inside the file; tty would decode any text as a film.
_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,gif,apng,mxf,nut,rm,wtv,dv,ivf,obu,av1,gxf,"
    "h264,hevc,vvc,m4v,mpegvideo,mjpeg,vc1,yuv4mpegpipe"
)

AUDIO_FORMATS = (
    f"{_FORMATS},aac,ac3,aiff,amr,ape,au,caf,dts,dtshd,eac3,flac,mp3,mpc,mpc8,tak,truehd,tta,w64,wav,wv"
)
"""Where sound is looked for: files of sound alone too."""

# After a seek to a keyframe these decode to the same pixels. (GIF marks frames as keys that are not.)
_SEEKABLE = frozenset({"av1", "h264", "hevc", "mpeg2video", "mpeg4", "vp8", "vp9"})


def regular_file_size(path: str, name: str) -> int:
    """Bytes of the file at `path`, which messages call `name`.

    Raises:
        VideoError: it is missing, empty, a folder, or no regular file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoError(f"{name}: {reason}; check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(
            f"{name}: is a folder, expected a video file; --images PATTERN reads folders of frames"
        )
    if not stat.S_ISREG(status.st_mode):
        # Opening a named pipe waits for a writer, for ever.
        raise VideoError(f"{name}: is not a regular file; save the video to a file first")
    if status.st_size == 0:
        raise VideoError(f"{name}: is empty (0 bytes); copy or download it again")
    return status.st_size


@dataclass(frozen=True, slots=True)
class Unchanged:
    """What tells, after a file was read, whether it is still the one that was opened."""

    path: str
    name: str
    """What messages call it."""
    state: tuple[int, int]

    @classmethod
    def of(cls, path: str, name: str) -> Unchanged:
        """The file as it is now."""
        return cls(path, name, _state(path))

    def check(self) -> None:
        """Compare.

        Raises:
            VideoError: it was written to, cut, replaced or removed since: what was read may be of two files.
        """
        if _state(self.path) != self.state:
            raise VideoError(
                f"{self.name}: changed while it was read (another program may be writing it): run again when "
                "it is whole"
            )


def _state(path: str) -> tuple[int, int]:
    """Size and time of the last change; only their being equal counts, so that no clock matters."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def open_container(path: str, name: str, formats: str = _FORMATS, gpu: int | None = None) -> InputContainer:
    """Open the container without regard to what else it names.

    Args:
        path: of a local file.
        name: what messages call it.
        formats: FFmpeg's names of the demuxers that may read it.
        gpu: number of the GPU whose NVDEC units decode what they can; pictures then stay in its memory.

    Raises:
        VideoError: it cannot be read, or is of no kind that holds a video in one file.
    """
    try:
        return av.open(
            f"file:{path}",
            options={"max_pixels": str(MAX_PIXELS)},
            container_options={"protocol_whitelist": "file", "format_whitelist": formats},
            metadata_errors="replace",
            hwaccel=None if gpu is None else _nvdec(gpu),
        )
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, OSError):
            raise VideoError(f"{name}: cannot be read: {error.strerror}") from None
        if _head(path)[4:8] == b"ftyp":
            raise VideoError(
                f"{name}: an MP4 file without a readable index (moov): truncated or damaged; "
                "copy or download it again"
            ) from None
        if formats == AUDIO_FORMATS:
            raise VideoError(
                f"{name}: not a sound or video file of a kind that vfx reads, or damaged at its start; "
                "expected MP4, Matroska, WAV, MP3, FLAC, Ogg or their like"
            ) from None
        raise VideoError(
            f"{name}: not a video file of a kind that vfx reads, or damaged at its start; "
            "expected MP4, Matroska, WebM, AVI, MPEG, GIF or their like"
        ) from None


def _nvdec(gpu: int) -> HWAccel:
    # In the device's primary context, where all else of vfx works.
    return HWAccel("cuda", gpu, allow_software_fallback=True, is_hw_owned=True)


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The stream that players show; the cover of an audio file is none.

    Raises:
        VideoError: there is none, or no decoder for it.
    """
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    videos = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not videos:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{name}: no video stream, found {found}; expected a video")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    assert isinstance(stream, VideoStream)
    if stream.codec_context is None:
        raise VideoError(f"{name}: no decoder for its video codec; re-encode it, for example to H.264")
    return stream


def _head(path: str, start: int = 0) -> bytes:
    """64 bytes of a file; none where it is gone by now, which `Unchanged` notices."""
    with suppress(OSError), Path(path).open("rb") as file:
        file.seek(start)
        return file.read(64)
    return b""


def announced_size(path: str) -> int:
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


def check_length(name: str, size: int, announced: int, stream: VideoStream | AudioStream) -> None:
    """Refuse a file that is shorter than what it says of itself.

    Args:
        name: what messages call it.
        size: of the file, in bytes.
        announced: by its header, see `announced_size`.
        stream: whose entries in the container's index may reach further.

    Raises:
        VideoError: it is truncated.
    """
    if len(stream.index_entries):
        last = stream.index_entries[-1]
        announced = max(announced, last.pos + last.size)
    if announced > size:
        raise VideoError(
            f"{name}: truncated: it announces {announced} bytes and has {size}; copy or download it again"
        )


def announced_mp3_size(path: str) -> int:
    """Bytes that the file has at least by the Xing header of an MP3 file; 0 where there is none."""
    head, start = _head(path), 0
    if head[:3] == b"ID3" and len(head) >= 10:
        size = 0
        for byte in head[6:10]:  # 7 bits in each
            size = size << 7 | byte & 0x7F
        start = 10 + size
    frame = _head(path, start)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or len(frame) < at + 16:
        return 0
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    if not flags & 2:
        return 0
    at += 12 if flags & 1 else 8
    # Encoders differ by a frame in what they count.
    return start + int.from_bytes(frame[at : at + 4], "big") * 99 // 100


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """The variable-length size at `at` (RFC 8794, 4), None for unknown, and where it ends."""
    if at >= len(data) or data[at] == 0:
        return None, at
    length = 9 - data[at].bit_length()
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & mask
    return (None if value == mask else value), at + length


@dataclass(frozen=True, slots=True)
class Timeline:
    """Presentation times (in ticks) of all frames, and the numbers of the keyframes, both sorted."""

    pts: list[int]
    keys: list[int]

    def keyframe_before(self, index: int) -> int | None:
        """Number of the last keyframe not after frame `index`."""
        if index >= len(self.pts):
            return None
        at = bisect_right(self.keys, index)
        return self.keys[at - 1] if at else None


def read_timeline(path: str, name: str, codec: str) -> Timeline:
    """Read all packets, decode none; empty where frames cannot be numbered so."""
    if codec not in _SEEKABLE:
        return Timeline([], [])
    times, keys = [], set()
    try:
        with open_container(path, name) as container:
            for packet in container.demux(video_stream(container, name)):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None:
                    return Timeline([], [])
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.add(packet.pts)
    except av.FFmpegError:
        return Timeline([], [])
    times.sort()
    if len(set(times)) < len(times):
        return Timeline([], [])
    return Timeline(times, [number for number, pts in enumerate(times) if pts in keys])
