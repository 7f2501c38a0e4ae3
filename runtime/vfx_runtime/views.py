"""Test-time views: clips spread over a whole video, each cropped once or three times.

This is how PySlowFast tests its models. Which frames a clip has depends on the video's number of frames, so
these are counted first, from packets and without decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from vfx_engines.errors import UsageError
from vfx_engines.spec import EngineSpec, Sampling, Transform
from vfx_runtime.sampling import Window, truncated_linspace

Crops = Literal[1, 3]

TARGET_FPS = 30.0
"""Frames per second at which PySlowFast measures a clip's length, for engines that do not say."""


@dataclass(frozen=True, slots=True)
class Views:
    """Test-time views of each video, instead of consecutive windows.

    Raises:
        UsageError: a number is out of range.
    """

    count: int
    """Number of clips spread over the video, 1 or more (TEST.NUM_ENSEMBLE_VIEWS)."""
    crops: Crops = 1
    """1: the engine's own resize and centre crop. 3: the short side is resized to the size of the crop, and
    crops are taken left, centre and right, or top, centre and bottom (TEST.NUM_SPATIAL_CROPS)."""
    keep: bool = False
    """Whether to give a row for each crop of each clip, clip by clip, instead of their mean as one row."""
    offset: bool = False
    """Whether the last clip ends where the video does, and a single clip is in the video's middle
    (DATA.USE_OFFSET_SAMPLING). Otherwise clip k of n begins at k/n of the room for clips, so the last one
    ends before the video does."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"views {self.count}: expected 1 or more clips of a video")
        if self.crops not in get_args(Crops):
            raise UsageError(f"crops {self.crops}: expected 1, the centre, or 3, along the longer side")

    def meta(self) -> dict[str, Any]:
        """Metadata saved with every video. If rows are kept, ``rows`` lists the view and crop of each."""
        said = {"count": self.count, "crops": self.crops, "offset": self.offset, "averaged": not self.keep}
        rows = [[view, crop] for view in range(self.count) for crop in range(self.crops)]
        return {**said, "rows": rows} if self.keep else said


def check_views(specs: Sequence[EngineSpec], samplings: Sequence[Sampling], views: Views) -> None:
    """Check that all engines can have views, that is, give one row per window of frames.

    Raises:
        UsageError: an engine takes sound or pairs of frames, its frames cannot be cropped three times, or the
            sampling has a frame rate.
    """
    for spec, sampling in zip(specs, samplings, strict=True):
        if spec.input.modality != "frames" or spec.outputs[0].per == "pair":
            what = "sound" if spec.input.modality != "frames" else "pairs of frames"
            raise UsageError(f"--views: {spec.model} takes {what}, and views are clips of a video")
        if sampling.fps is not None:
            raise UsageError(
                f"--fps {sampling.fps:g}: views are made of a video's own frames; --target-fps is the rate "
                "that the length of a clip counts at"
            )
        view_transform(spec, views.crops)


def view_transform(spec: EngineSpec, crops: Crops) -> Transform:
    """The transform that is applied to a frame once, whatever the number of crops.

    Raises:
        UsageError: three crops are asked for, but the engine's input is not a square of a fixed size, or the
            spec does not resize the short side.
    """
    if crops == 1:
        return spec.transform
    resize, (height, width) = spec.transform.resize, spec.input.shape[2:4]
    if resize is None or resize.rule != "short_side" or not isinstance(height, int) or height != width:
        raise UsageError(
            f"--crops 3: {spec.model} takes frames of {height}x{width}, resized by "
            f"{resize.rule if resize else 'nothing'}: three crops need a square, and a resize of the short "
            "side"
        )
    return Transform(replace(resize, height=height, width=height))


def crop_offset(height: int, width: int, crop: int) -> tuple[int, int]:
    """First row and column of a crop: the largest square, placed along the longer side.

    Args:
        height: height of the whole frame in pixels.
        width: width of the whole frame in pixels.
        crop: 0 for the start of the longer side, 1 for its middle (half a pixel is rounded up), 2 for its
            end.
    """
    room = abs(height - width)
    offset = (0, (room + 1) // 2, room)[crop]
    return (offset, 0) if height > width else (0, offset)


def cropped(pixels: npt.NDArray[np.uint8], crop: int) -> npt.NDArray[np.uint8]:
    """The square at `crop_offset` of a frame, uint8 ``[height, width, 3]``, as a view."""
    top, left = crop_offset(pixels.shape[0], pixels.shape[1], crop)
    size = min(pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


class ViewWindows:
    """The windows of one video's views, planned before its first frame.

    A clip lasts ``stride * frames / target_fps`` seconds. It begins where it does in PySlowFast when that
    decodes a whole video (``slowfast/datasets/decoder.py``). Its frames are the video's own, at float32
    positions rounded down; positions beyond the end of a short video stand for its last frame.

    Args:
        sampling: the sampling of the run.
        views: the views of the run.
        total: number of frames of the video, at least 1.
        fps: frame rate of the video, above 0.
    """

    def __init__(self, sampling: Sampling, views: Views, total: int, fps: float) -> None:
        self.total = total
        length = clip_length(sampling, fps)
        room = max(total - length, 0)
        self._windows: list[Window] = []
        for view in range(views.count):
            start = room * view / views.count
            if views.offset:
                last = views.count - 1
                start = view * math.floor(room / last) if last else math.floor(room / 2)
            samples = truncated_linspace(start, start + length - 1, sampling.frames, total - 1)
            self._windows.append(Window(view, samples, samples[0], samples[-1]))
        self._needed = {sample for window in self._windows for sample in window.samples}
        self._next = 0

    @property
    def done(self) -> bool:
        """Whether all windows have been given."""
        return self._next == len(self._windows)

    @property
    def floor(self) -> int:
        """The number below which no later window uses a frame. Only valid until `done`."""
        return self._windows[self._next].first

    def needs(self, sample: int) -> bool:
        """Whether a window uses the frame."""
        return sample in self._needed

    def add(self, sample: int) -> Iterator[Window]:
        """Announce a frame; yields the windows that it completes."""
        while not self.done and self._windows[self._next].last <= sample:
            self._next += 1
            yield self._windows[self._next - 1]


def clip_length(sampling: Sampling, fps: float) -> float:
    """The length of a clip in frames of a video with this frame rate, at least 1."""
    return max(1.0, sampling.stride * sampling.frames / (sampling.target_fps or TARGET_FPS) * fps)
