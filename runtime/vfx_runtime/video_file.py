"""Open a video file safely, find its video stream, and read the times of its packets.

Only the given local file is ever read: never a URL, and never another file that a playlist or a session
description inside it names.
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
"""Largest picture that is decoded (8192 x 8192), since a header can ask for any amount of memory."""

# Demuxers that read only the file itself. HLS, DASH, concat, SDP, image sequences and the like would follow
# names inside the file; tty would decode any text as a film.
_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,gif,apng,mxf,nut,rm,wtv,dv,ivf,obu,av1,gxf,"
    "h264,hevc,vvc,m4v,mpegvideo,mjpeg,vc1,yuv4mpegpipe"
)

AUDIO_FORMATS = (
    f"{_FORMATS},aac,ac3,aiff,amr,ape,au,caf,dts,dtshd,eac3,flac,mp3,mpc,mpc8,tak,truehd,tta,w64,wav,wv"
)
"""Demuxers for sound: those for videos, and those of audio files."""

# After a seek to a keyframe, these codecs decode to the same pixels. (GIF wrongly marks frames as keyframes.)
_SEEKABLE = frozenset({"av1", "h264", "hevc", "mpeg2video", "mpeg4", "vp8", "vp9"})


def regular_file_size(path: str, name: str) -> int:
    """Size in bytes of the file at ``path``, which messages call ``name``.

    Raises:
        VideoError: the file is missing, empty, a folder, or not a regular file.
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
        # Opening a named pipe would wait for a writer, possibly for ever.
        raise VideoError(f"{name}: is not a regular file; save the video to a file first")
    if status.st_size == 0:
        raise VideoError(f"{name}: is empty (0 bytes); copy or download it again")
    return status.st_size


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The state of a file when it was opened, to check after reading that it has not changed."""

    path: str
    name: str
    """The file's name in messages."""
    state: tuple[int, int]
    """Size in bytes, and time of the last change in nanoseconds."""

    @classmethod
    def of(cls, path: str, name: str) -> Unchanged:
        """Record the file's present state."""
        return cls(path, name, _state(path))

    def check(self) -> None:
        """Compare the file with its recorded state.

        Raises:
            VideoError: the file was written to, cut, replaced or removed meanwhile, so what was read may be a
                mixture of two files.
        """
        if _state(self.path) != self.state:
            raise VideoError(
                f"{self.name}: changed while it was read (another program may be writing it): run again when "
                "it is whole"
            )


def _state(path: str) -> tuple[int, int]:
    """Size and time of the last change. They are only compared for equality, so no clock matters."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def open_container(path: str, name: str, formats: str = _FORMATS, gpu: int | None = None) -> InputContainer:
    """Open a container without following any names inside it.

    Args:
        path: a local file.
        name: the file's name in messages.
        formats: FFmpeg's names of the demuxers that may read it.
        gpu: index of the GPU whose NVDEC units decode what they can; pictures then stay in its memory.

    Raises:
        VideoError: the file cannot be read, or none of these demuxers recognises it.
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
    # In the device's primary context, which all of vfx uses.
    return HWAccel("cuda", gpu, allow_software_fallback=True, is_hw_owned=True)


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The video stream that players would show. The cover of an audio file does not count.

    Raises:
        VideoError: there is no video stream, or no decoder for it.
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
    """64 bytes of a file; none if it is gone by now, which `Unchanged` notices."""
    with suppress(OSError), Path(path).open("rb") as file:
        file.seek(start)
        return file.read(64)
    return b""


def announced_size(path: str) -> int:
    """The file size in bytes that a RIFF or EBML (Matroska) header claims; 0 if it claims none.

    FFmpeg itself reads a truncated file of these kinds as if nothing were missing.
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
    """Refuse a file that is shorter than it claims.

    Args:
        name: the file's name in messages.
        size: size of the file in bytes.
        announced: size that its header claims, see `announced_size`.
        stream: the stream, whose entries in the container's index may reach further.

    Raises:
        VideoError: the file is truncated.
    """
    if len(stream.index_entries):
        last = stream.index_entries[-1]
        announced = max(announced, last.pos + last.size)
    if announced > size:
        raise VideoError(
            f"{name}: truncated: it announces {announced} bytes and has {size}; copy or download it again"
        )


def announced_mp3_size(path: str) -> int:
    """The least file size in bytes that the Xing header of an MP3 file claims; 0 if there is none."""
    head, start = _head(path), 0
    if head[:3] == b"ID3" and len(head) >= 10:
        size = 0
        for byte in head[6:10]:  # 7 bits in each byte
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
    # Encoders differ by a frame in what they count, so 1 % may be missing.
    return start + int.from_bytes(frame[at : at + 4], "big") * 99 // 100


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """The variable-length size at ``at`` (RFC 8794, section 4; None if unknown), and where it ends."""
    if at >= len(data) or data[at] == 0:
        return None, at
    length = 9 - data[at].bit_length()
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & mask
    return (None if value == mask else value), at + length


@dataclass(frozen=True, slots=True)
class Timeline:
    """The presentation times of all frames, and which frames are keyframes."""

    pts: list[int]
    """Presentation times in ticks of the stream, sorted."""
    keys: list[int]
    """Numbers of the keyframes, sorted."""

    def keyframe_before(self, index: int) -> int | None:
        """Number of the last keyframe at or before frame ``index``; None if there is none."""
        if index >= len(self.pts):
            return None
        at = bisect_right(self.keys, index)
        return self.keys[at - 1] if at else None


def read_timeline(path: str, name: str, codec: str) -> Timeline:
    """Read all packets without decoding. Empty if packets do not identify frames in this file."""
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
