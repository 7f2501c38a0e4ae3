"""The CUDA kernels, compiled as C++, against the CPU path and against float64."""

from __future__ import annotations

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from cuda_on_cpu import CpuKernels
from vfx_engines.spec import Crop, Filter, Resize, Transform
from vfx_runtime.orientation import displayed
from vfx_runtime.picture import UPRIGHT, Convention, Orientation, SurfaceFormat
from vfx_runtime.resize import FramePlan, plan
from vfx_runtime.surfaces import Surface, Surfaces, colour
from vfx_runtime.taps import Taps
from vfx_runtime.views import cropped

Pixels = NDArray[np.uint8]


def short_side(size: int, crop: int, filter: Filter = "bilinear", antialias: bool = True) -> Transform:
    return Transform(Resize("short_side", size, size, filter, antialias), Crop(crop, crop, "centre_floor"))


OPENCV = Resize("exact", 120, 132, "opencv_linear", antialias=False)
GEOMETRIES: dict[str, tuple[int, int, Transform, Orientation]] = {
    "320x240": (240, 320, short_side(256, 224), UPRIGHT),
    "480x360": (360, 480, short_side(256, 224), UPRIGHT),
    "1280x720": (720, 1280, short_side(256, 224), UPRIGHT),
    "portrait": (640, 360, short_side(128, 112), UPRIGHT),
    "odd": (241, 323, short_side(128, 113), UPRIGHT),
    "bicubic": (240, 426, short_side(224, 224, "bicubic"), UPRIGHT),
    "no antialias": (480, 640, short_side(182, 182, antialias=False), UPRIGHT),
    "exact": (270, 480, Transform(Resize("exact", 171, 128), Crop(112, 112, "centre_floor")), UPRIGHT),
    "OpenCV, larger": (100, 75, Transform(OPENCV), UPRIGHT),
    "OpenCV, smaller": (242, 323, Transform(OPENCV, Crop(113, 112)), UPRIGHT),
    "unscaled": (256, 340, short_side(256, 224), UPRIGHT),
    "turned": (320, 240, short_side(256, 224), Orientation(transpose=True, flip_x=True)),
    "upside down": (240, 320, short_side(64, 64), Orientation(flip_x=True, flip_y=True)),
    "turned and mirrored": (426, 240, short_side(96, 80), Orientation(True, True, True)),
}
"""Displayed height and width, transform, and the orientation in which the picture is stored."""

CONVENTIONS = {
    "BT.601": Convention(5),
    "BT.709": Convention(1),
    "BT.601, full range": Convention(5, full_range=True),
    "BT.2020": Convention(9),
    "between samples, left": Convention(1, interpolate=True),
    "between samples, centre": Convention(5, interpolate=True, left=False),
    "between samples, top left": Convention(9, interpolate=True, top=True),
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    return CpuKernels(tmp_path_factory.mktemp("kernels"))


def stored_size(name: str) -> tuple[int, int]:
    height, width, _, turn = GEOMETRIES[name]
    return (width, height) if turn.transpose else (height, width)


def plan_of(name: str) -> FramePlan:
    height, width, transform, _ = GEOMETRIES[name]
    return plan(transform, height, width)


def on_the_cpu(stored: Pixels, name: str) -> Pixels:
    item = plan_of(name)
    out = np.empty((item.out_height, item.out_width, 3), np.uint8)
    item.apply(displayed(stored, GEOMETRIES[name][3]), out)
    return out


def semi_planar(name: str, seed: int, dtype: type = np.uint8) -> tuple[NDArray[np.generic], ...]:
    """Noise in the two planes of NV12 or P016, with padding after each row."""
    height, width = stored_size(name)
    random = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    luma = random.integers(0, top, (height, width + 37), dtype, endpoint=True)
    chroma = random.integers(0, top, ((height + 1) // 2, (width + 1) // 2 * 2 + 11), dtype, endpoint=True)
    return luma, chroma


def to_rgb(planes: tuple[NDArray[np.generic], ...], name: str, convention: Convention) -> NDArray[np.float64]:
    """H.273 in float64: RGB ``[height, width, 3]`` on the scale of 8 bits, neither rounded nor clamped."""
    height, width = stored_size(name)
    unit = 256.0 if planes[0].dtype == np.uint16 else 1.0
    luma = planes[0][:, :width].astype(np.float64) / unit
    pairs = planes[1][:, : (width + 1) // 2 * 2].astype(np.float64) / unit
    u, v = (chroma_at(pairs[:, k::2], height, width, convention) - 128 for k in (0, 1))
    red, blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[convention.matrix]
    if convention.full_range:
        y, scale = luma, 1.0
    else:
        y, scale = (luma - 16) * 255 / 219, 255 / 224
    r, b = y + 2 * (1 - red) * scale * v, y + 2 * (1 - blue) * scale * u
    return np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=2)


def chroma_at(
    plane: NDArray[np.float64], height: int, width: int, convention: Convention
) -> NDArray[np.float64]:
    """A chroma plane at the positions of the luma samples."""
    if not convention.interpolate:
        return plane.repeat(2, 0).repeat(2, 1)[:height, :width]
    for axis, (size, sited) in enumerate(((height, convention.top), (width, convention.left))):
        at = np.arange(size) / 2 - (0 if sited else 0.25)
        low = np.floor(at).astype(int)
        part = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        last = plane.shape[axis] - 1
        below, above = (plane.take(np.clip(low + k, 0, last), axis) for k in (0, 1))
        plane = below * (1 - part) + above * part
    return plane


def exact(image: NDArray[np.float64], item: FramePlan) -> NDArray[np.float64]:
    """The filter in float64, without rounding between its passes."""

    def matrix(taps: Taps, size: int) -> NDArray[np.float64]:
        dense = np.zeros((len(taps.start), size + taps.weight.shape[1]))
        for row, (start, weights) in enumerate(zip(taps.start, taps.weight, strict=True)):
            for tap, weight in enumerate(weights):
                # OpenCV's tables of rows reach one row outside, where the first and last row are repeated.
                dense[row, max(start + tap, 0) if tap + start < size else size - 1] += weight / weights.sum()
        return dense[:, :size]

    rows, columns = matrix(item.rows, item.height), matrix(item.columns, item.width)
    # Clamped between the passes, as the definition says, since bicubic overshoots.
    across = np.clip(columns @ image, 0, 255)
    return np.clip(np.tensordot(rows, across, 1), 0, 255)


def grey_levels(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_rgb_is_the_cpu_path_to_the_bit(kernels: CpuKernels, name: str) -> None:
    height, width = stored_size(name)
    frames = np.random.default_rng(1).integers(0, 256, (3, height, width, 3), np.uint8)
    out = kernels.resize("rgb", [(frame,) for frame in frames], plan_of(name), turn=GEOMETRIES[name][3])

    for made, frame in zip(out, frames, strict=True):
        np.testing.assert_array_equal(made, on_the_cpu(frame, name))


# Not at an odd height, for which FFmpeg scales chroma with a bicubic filter.
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "odd"])
@pytest.mark.parametrize("told", ["BT.601", "BT.709", "BT.601, full range"])
@pytest.mark.parametrize("kind", ["nv12", "i420"])
def test_420_is_the_cpu_path_to_the_bit(
    kernels: CpuKernels, name: str, told: str, kind: SurfaceFormat
) -> None:
    """This includes FFmpeg's conversion, so frames decoded on a GPU and on a CPU give the same features."""
    luma, chroma = semi_planar(name, 2)
    convention = CONVENTIONS[told]
    height, width = stored_size(name)
    frame = av.VideoFrame(width, height, "yuv420p")
    columns = (width + 1) // 2
    for plane, pixels in zip(
        frame.planes,
        (luma[:, :width], chroma[:, : 2 * columns : 2], chroma[:, 1 : 2 * columns : 2]),
        strict=True,
    ):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = pixels
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = convention.matrix, 2 if convention.full_range else 1
    converted = VideoReformatter().reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC)
    planes: tuple[NDArray[np.generic], ...] = (luma, chroma)
    if kind == "i420":
        planes = (luma, *(np.ascontiguousarray(chroma[:, part : 2 * columns : 2]) for part in (0, 1)))
    (made,) = kernels.resize(kind, [planes], plan_of(name), convention, GEOMETRIES[name][3])

    np.testing.assert_array_equal(made, on_the_cpu(converted.to_ndarray(), name))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("told", CONVENTIONS)
@pytest.mark.parametrize("kind", ["nv12", "p016"])
def test_planes_are_converted_and_resized(
    kernels: CpuKernels, name: str, told: str, kind: SurfaceFormat
) -> None:
    planes = semi_planar(name, 2, np.uint16 if kind == "p016" else np.uint8)
    convention, turn = CONVENTIONS[told], GEOMETRIES[name][3]
    (made,) = kernels.resize(kind, [planes], plan_of(name), convention, turn)
    rgb = to_rgb(planes, name, convention)
    rounded = np.clip(np.floor(rgb + 0.5), 0, 255).astype(np.uint8)
    own = colour(convention, kind).as_ffmpeg

    # float32 may round a pixel of the source the other way, which makes one level at most, in and out.
    # FFmpeg's arithmetic instead truncates up to three products.
    cpu = on_the_cpu(rounded, name)
    assert grey_levels(made, cpu) <= (4 if own else 1)
    assert own or np.mean(made != cpu) < 1e-3
    # Pixels are rounded to uint8 three times, by up to half a level each. The absolute values of bicubic's
    # weights add up to 1.5, and OpenCV truncates two products.
    never_rounded = exact(displayed(np.clip(rgb, 0, 255), turn), plan_of(name))  # type: ignore[arg-type]
    levels = 2.5 if name == "bicubic" else 1.55
    assert grey_levels(made, never_rounded) <= levels + (3 if own else 0)


def test_frames_go_where_they_are_told(kernels: CpuKernels) -> None:
    frames = np.random.default_rng(4).integers(0, 256, (5, 40, 60, 3), np.uint8)
    item = plan(short_side(32, 32), 40, 60)
    out = kernels.resize("rgb", [(frame[:, :, :],) for frame in frames[::-1]], item)

    for made, frame in zip(out, frames[::-1], strict=True):
        wanted = np.empty((32, 32, 3), np.uint8)
        item.apply(frame, wanted)
        np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize(("kernel", "shape"), [("gather_chunks", (16, 28, 3)), ("gather_bytes", (7, 9, 3))])
def test_windows_are_gathered(kernels: CpuKernels, kernel: str, shape: tuple[int, ...]) -> None:
    pool = np.random.default_rng(5).integers(0, 256, (7, *shape), np.uint8)
    index = [3, 4, 5, None, 4, 5, 6, 0]
    frames = [None if place is None else pool[place] for place in index]
    made = kernels.gather(kernel, frames, shape, (10, 120, 250))

    for frame, place in zip(made, index, strict=True):
        wanted = np.broadcast_to(np.uint8([10, 120, 250]), shape) if place is None else pool[place]
        np.testing.assert_array_equal(frame, wanted)


# Rows of 768 and 672 bytes are whole chunks; with 936, a chunk ends within the next row; 546 are gathered by
# bytes.
@pytest.mark.parametrize("size", [256, 224, 312, 182, 16, 4])
@pytest.mark.parametrize("portrait", [False, True])
def test_crops_are_gathered(kernels: CpuKernels, size: int, portrait: bool) -> None:
    """Crops of whole frames of any length, beginning at any byte."""
    random = np.random.default_rng(6)
    frames: list[Pixels | None] = []
    for room in (0, 1, 2, 3, 5, 86, 199):
        for crop in range(3):
            shape = (size + room, size) if portrait else (size, size + room)
            # Nothing may be read after a frame's last byte.
            frames.append(cropped(random.integers(0, 256, (*shape, 3), np.uint8), crop))
    frames.insert(5, None)
    kernel = "gather_chunks" if size * size * 3 % 16 == 0 else "gather_bytes"
    made = kernels.gather(kernel, frames, (size, size, 3), (10, 120, 250))

    for got, frame in zip(made, frames, strict=True):
        wanted = np.broadcast_to(np.uint8([10, 120, 250]), (size, size, 3)) if frame is None else frame
        np.testing.assert_array_equal(got, wanted)


def test_structures_are_as_large_as_the_kernel_thinks() -> None:
    import ctypes

    from vfx_runtime.surfaces import Colour, Frames, Geometry
    from vfx_runtime.surfaces import Taps as Addresses

    sizes = [ctypes.sizeof(item) for item in (Surface, Surfaces, Geometry, Colour, Addresses, Frames)]
    assert sizes == [48, 768, 40, 64, 32, 1024]
    assert colour(Convention(), "nv12").red_v == pytest.approx(1.596, abs=1e-3)
