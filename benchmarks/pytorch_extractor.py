"""The same job in PyTorch, as a careful user would write it, for comparison with vfx.

decord reads, Pillow resizes and crops, and torch runs the network under ``inference_mode``. The next video is
read on another thread while this one is computed (decord, Pillow and torch release the GIL). Windows,
preprocessing and network are the same as in vfx, so the features are too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import decord
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vfx_engines.spec import Precision
from vfx_export.backbones.i3d import I3D
from vfx_export.exporting import random_weights

SHORT_SIDE, CROP = 256, 224


class PyTorchExtractor:
    """I3D on windows of ``frames`` frames, with the weights of vfx's random export.

    Args:
        precision: ``fp32``, or ``bf16`` by autocast.
        compiled: whether to use ``torch.compile``.
        frames: frames in a window; the next window follows where it ends.
        channels_last: whether to keep tensors in ``channels_last_3d``.
    """

    def __init__(
        self, precision: Precision, *, compiled: bool, frames: int = 64, channels_last: bool = False
    ) -> None:
        module = I3D(head=False)
        random_weights(module)
        module.eval()
        if channels_last:
            module = module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._network: Any = torch.compile(module, dynamic=False) if compiled else module
        self._autocast = precision == "bf16"
        self._frames = frames

    def features(self, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute features, one window per call.

        Args:
            windows: uint8 ``[n, frames, 224, 224, 3]``.

        Returns:
            float32 ``[n, 1024]``.
        """
        rows = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, self._autocast):
            for window in windows:
                output = self._network(torch.from_numpy(window[None]))
                rows.append((output[0] if isinstance(output, tuple) else output).float().numpy())
        return np.concatenate(rows)

    def windows(self, video: Path) -> NDArray[np.uint8]:
        """All windows of a video, uint8 ``[n, frames, 224, 224, 3]``; one more frame must follow the last."""
        reader = decord.VideoReader(str(video), num_threads=1)
        count = (len(reader) - 1) // self._frames
        frames = [_preprocessed(reader.next().asnumpy()) for _ in range(count * self._frames)]
        return np.stack(frames).reshape(count, self._frames, CROP, CROP, 3)

    def extract(self, videos: Sequence[Path]) -> Iterator[tuple[Path, NDArray[np.float32]]]:
        """Yield each video with its features, float32 ``[n, 1024]``."""
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(self.windows, video) for video in videos[:1]]
            for number, video in enumerate(videos):
                windows = ahead.pop().result()
                if number + 1 < len(videos):
                    ahead.append(reader.submit(self.windows, videos[number + 1]))
                yield video, self.features(windows)


def _preprocessed(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    short = min(height, width)
    image = Image.fromarray(frame).resize(
        (SHORT_SIDE * width // short, SHORT_SIDE * height // short), Image.Resampling.BILINEAR
    )
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))
