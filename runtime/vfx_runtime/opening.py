"""Opening a video, by whatever decodes it."""

from __future__ import annotations

import os
from contextlib import suppress

from vfx_engines.errors import VideoError
from vfx_runtime.decode import Decoder
from vfx_runtime.image_names import Images


def open_video(
    path: str | os.PathLike[str], threads: int = 1, gpu: int | None = None, images: Images | None = None
) -> Decoder:
    """Open a local video file, or a folder of images, and decode its first frame.

    Args:
        path: The file; never taken for a URL.
        threads: Threads that decode this video. One costs the least CPU time; more are for a single
            long video on idle cores.
        gpu: Number of the GPU to decode on; what its NVDEC units cannot take is decoded on the CPU, see
            `VideoInfo.on_gpu`. None decodes on the CPU.
        images: How a folder is read; it is decoded on the CPU. None for a file.

    Raises:
        VideoError: the file is missing, empty, truncated, no regular file, or holds no video that
            can be decoded; or see `vfx_runtime.image_folder.ImageFolder`.
    """
    if images is not None:
        from vfx_runtime.image_folder import ImageFolder

        return ImageFolder(path, images)
    # Here, not above: FFmpeg's libraries are time that a command which only prints help need not take.
    from vfx_runtime.pyav_decoder import PyAvDecoder

    if gpu is not None:
        # Too many decoders at once, a profile that the units lack, damage at the start: the CPU tells.
        with suppress(VideoError):
            return PyAvDecoder(path, threads, gpu)
    return PyAvDecoder(path, threads)


def count_frames(path: str | os.PathLike[str], images: Images | None = None) -> int:
    """Frames of a video, before it is decoded: as its packets tell, or decoded for this where they do not.

    Args:
        path: see `open_video`.
        images: likewise.

    Raises:
        VideoError: see `open_video`; or it is damaged, where it had to be decoded.
    """
    if images is not None:
        return len(images.frames(os.fspath(path)))
    from vfx_runtime.pyav_decoder import PyAvDecoder

    with PyAvDecoder(path) as decoder:
        return decoder.count()
