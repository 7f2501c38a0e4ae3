"""``opencv_linear`` against OpenCV's own pixels of the kit's video, and its arithmetic at any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_kit import e2e, video
from vfx_engines.errors import SpecError
from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime.opening import open_video
from vfx_runtime.resize import plan

Pixels = NDArray[np.uint8]


def transform(height: int, width: int, crop: Crop | None = None) -> Transform:
    return Transform(Resize("exact", height, width, "opencv_linear", antialias=False), crop)


def resized(rgb: Pixels, height: int, width: int, crop: Crop | None = None) -> Pixels:
    item = plan(transform(height, width, crop), *rgb.shape[:2])
    out = np.full((item.out_height, item.out_width, 3), 77, np.uint8)
    item.apply(rgb, out)
    return out


def by_opencv(rgb: Pixels, height: int, width: int) -> Pixels:
    """``cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)`` as OpenCV 5.0.0 computes it.

    When this was written, it was equal to OpenCV bit for bit, on noise at 171 pairs of sizes.
    """
    if rgb.shape[:2] == (height, width):
        return rgb

    def places(source: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        at = ((np.arange(count) + 0.5) * (1 / (count / source)) - 0.5).astype(np.float32)
        below = np.floor(at)
        return below.astype(np.int64), at - below

    def fixed(share: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.rint(share * np.float32(2048)).astype(np.int64)

    x, share = places(rgb.shape[1], width)
    share[(x < 0) | (x >= rgb.shape[1] - 1)] = 0
    x = np.clip(x, 0, rgb.shape[1] - 1)
    left, right = rgb[:, x].astype(np.int64), rgb[:, np.minimum(x + 1, rgb.shape[1] - 1)].astype(np.int64)
    across = (left * fixed(1 - share)[:, None] + right * fixed(share)[:, None]) >> 4
    y, share = places(rgb.shape[0], height)
    above, below = (across[np.clip(y + i, 0, rgb.shape[0] - 1)] for i in (0, 1))
    weights = fixed(1 - share)[:, None, None], fixed(share)[:, None, None]
    total = ((above * weights[0]) >> 16) + ((below * weights[1]) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    values = np.random.default_rng(seed).integers(-128, 384, (height, width, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def test_frames_of_a_video_are_those_of_slowfast_feature_extractor() -> None:
    """The golden file has OpenCV's own numbers: every 8th pixel, normalised."""
    golden = e2e("frames")
    wanted = {number: golden[f"slowfast_windows.{number}"] for number in (0, 100, 350)}
    with open_video(video("v_GGSY1Qvo990.mp4")) as decoder:
        for number, frame in enumerate(decoder):
            if number in wanted:
                levels = (wanted.pop(number) * 0.225 + 0.45) * 255
                found = resized(frame.rgb(), 256, 256)[::8, ::8].transpose(2, 0, 1)
                np.testing.assert_allclose(found, levels, atol=1e-4)
    assert not wanted


side = st.integers(1, 90)


@settings(max_examples=200, deadline=None)
@given(source=st.tuples(side, side), target=st.tuples(side, side), seed=st.integers(0, 9))
def test_any_size_is_that_of_opencv(source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    rgb = noise(*source, seed)
    np.testing.assert_array_equal(resized(rgb, *target), by_opencv(rgb, *target))


@pytest.mark.parametrize("size", [(240, 320), (360, 480), (1080, 1920), (512, 512), (320, 256), (256, 256)])
def test_frames_of_real_sizes_and_their_crops(size: tuple[int, int]) -> None:
    rgb = noise(*size)
    whole = by_opencv(rgb, 256, 256)
    np.testing.assert_array_equal(resized(rgb, 256, 256), whole)
    np.testing.assert_array_equal(resized(rgb, 256, 256, Crop(120, 131)), whole[68:188, 62:193])
    # Rows may be padded, as decoders leave them.
    padded = np.zeros((size[0], size[1] + 5, 3), np.uint8)
    padded[:, : size[1]] = rgb
    np.testing.assert_array_equal(resized(padded[:, : size[1]], 256, 256), whole)


def test_what_opencv_cannot_do_is_refused() -> None:
    with pytest.raises(SpecError, match="OpenCV's filter goes with antialias false"):
        Resize("exact", 256, 256, "opencv_linear")
