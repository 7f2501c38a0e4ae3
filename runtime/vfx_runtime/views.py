"""Test-time views: clips spread over a whole video, each cut once or three times from its frames.

As PySlowFast tests its models. Which frames a clip has depends on the length of the video, so that is
counted first; its packets tell it, without decoding.
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
"""What PySlowFast counts a clip's length at, where an engine does not say."""


@dataclass(frozen=True, slots=True)
class Views:
    """Test-time views of each video, in place of windows one after the other.

    Raises:
        UsageError: a number that cannot be.
    """

    count: int
    """Clips, spread over the video (TEST.NUM_ENSEMBLE_VIEWS)."""
    crops: Crops = 1
    """1: the engine's own resize and centre crop. 3: the short side is brought to the size of the crop,
    and a clip is seen left, centre and right, or top, centre and bottom (TEST.NUM_SPATIAL_CROPS)."""
    keep: bool = False
    """A row for each crop of each clip, clip by clip, and not their mean as one row."""
    offset: bool = False
    """The last clip ends where the video does, and a single one lies in its middle
    (DATA.USE_OFFSET_SAMPLING). Otherwise the last one begins a clip's share before."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"views {self.count}: expected 1 or more clips of a video")
        if self.crops not in get_args(Crops):
            raise UsageError(f"crops {self.crops}: expected 1, the centre, or 3, along the longer side")

    def meta(self) -> dict[str, Any]:
        """What is saved of them with every video; ``rows`` are view and crop of each row that is kept."""
        said = {"count": self.count, "crops": self.crops, "offset": self.offset, "averaged": not self.keep}
        rows = [[view, crop] for view in range(self.count) for crop in range(self.crops)]
        return {**said, "rows": rows} if self.keep else said


def check_views(specs: Sequence[EngineSpec], samplings: Sequence[Sampling], views: Views) -> None:
    """Views are of engines that make one row of a window of frames.

    Raises:
        UsageError: an engine of sound, of pairs, or whose frames cannot be cropped three times.
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
    """What is done to a frame once, whatever the number of crops.

    Raises:
        UsageError: three crops of an engine whose input is no square of a known size, or which has no
            resize to bring the short side there.
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
    """First row and column of a crop: the largest square, somewhere along the longer side.

    Args:
        height: of the whole frame, like ``width``.
        width: see above.
        crop: 0 at the start of that side, 1 in its middle, half a pixel rounded up, 2 at its end.
    """
    room = abs(height - width)
    offset = (0, (room + 1) // 2, room)[crop]
    return (offset, 0) if height > width else (0, offset)


def cropped(pixels: npt.NDArray[np.uint8], crop: int) -> npt.NDArray[np.uint8]:
    """The square at `crop_offset` of a frame, uint8 [height, width, 3]: a view."""
    top, left = crop_offset(pixels.shape[0], pixels.shape[1], crop)
    size = min(pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


class ViewWindows:
    """The windows of one video's views, planned before its first frame.

    A clip lasts ``stride * frames / target_fps`` seconds, and begins where PySlowFast's does that decodes a
    whole video (``slowfast/datasets/decoder.py``); the video's own frames are taken at float32 positions
    rounded down, and those outside a short video are its last one.

    Args:
        sampling: of the run.
        views: likewise.
        total: frames of the video, at least 1.
        fps: of the video, above 0.
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
        """Whether all windows were given."""
        return self._next == len(self._windows)

    @property
    def floor(self) -> int:
        """No window that is still to come uses a frame below this one; only while some are."""
        return self._windows[self._next].first

    def needs(self, sample: int) -> bool:
        """Whether a window uses the frame."""
        return sample in self._needed

    def add(self, sample: int) -> Iterator[Window]:
        """Announce a frame; the windows that it completes."""
        while not self.done and self._windows[self._next].last <= sample:
            self._next += 1
            yield self._windows[self._next - 1]


def clip_length(sampling: Sampling, fps: float) -> float:
    """Frames of a video of ``fps`` that a clip lasts, at least 1."""
    return max(1.0, sampling.stride * sampling.frames / (sampling.target_fps or TARGET_FPS) * fps)
