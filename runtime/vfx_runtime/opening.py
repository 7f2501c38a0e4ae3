"""Open a video with the decoder that fits it."""

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
        path: a local file or folder, even if it looks like a URL.
        threads: threads that decode this video. One costs the least CPU time; more are for a single long
            video on idle cores.
        gpu: index of the GPU to decode on. What its NVDEC units cannot decode is decoded on the CPU, see
            `VideoInfo.on_gpu`. None decodes on the CPU.
        images: how to read a folder of images, which is always decoded on the CPU. None for a file.

    Raises:
        VideoError: the file is missing, empty, truncated or not a regular file, or it holds no video that
            can be decoded. For folders, see `vfx_runtime.image_folder.ImageFolder`.
    """
    if images is not None:
        from vfx_runtime.image_folder import ImageFolder

        return ImageFolder(path, images)
    # Imported here because loading FFmpeg's libraries takes time, which a command that only prints its help
    # should not spend.
    from vfx_runtime.pyav_decoder import PyAvDecoder

    if gpu is not None:
        # This fails for too many decoders at once, a profile that NVDEC lacks, or damage at the start. In
        # each case the CPU is tried next, and a damaged file fails there with the proper message.
        with suppress(VideoError):
            return PyAvDecoder(path, threads, gpu)
    return PyAvDecoder(path, threads)


def count_frames(path: str | os.PathLike[str], images: Images | None = None) -> int:
    """Count a video's frames from its packets, or by decoding it if the packets do not tell.

    Args:
        path: see `open_video`.
        images: see `open_video`.

    Raises:
        VideoError: see `open_video`; or the video had to be decoded and is damaged.
    """
    if images is not None:
        return len(images.frames(os.fspath(path)))
    from vfx_runtime.pyav_decoder import PyAvDecoder

    with PyAvDecoder(path) as decoder:
        return decoder.count()
