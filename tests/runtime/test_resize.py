import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vfx_engines.errors import VideoError
from vfx_engines.spec import Crop, Filter, Resize, Transform
from vfx_runtime.resize import FramePlan, plan, resized_size
from vfx_runtime.taps import taps

Pixels = npt.NDArray[np.uint8]
SHARED = Path(__file__).parents[3] / "shared"
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
I3D = Transform(Resize("short_side", 256, 256), Crop(224, 224))


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Random pixels, many of them 0 or 255, so that clamping matters."""
    values = np.random.default_rng(seed).integers(-128, 384, (height, width, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def applied(plan: FramePlan, rgb: Pixels) -> Pixels:
    out = np.full((plan.out_height, plan.out_width, 3), 77, np.uint8)
    plan.apply(rgb, out)
    return out


def by_pillow(plan: FramePlan, rgb: Pixels, filter: Filter) -> Pixels:
    # Columns and rows are filtered separately, because Pillow 13 may filter rows first, unlike earlier
    # versions.
    image = Image.fromarray(rgb)
    for size in (plan.resized_width, plan.height), (plan.resized_width, plan.resized_height):
        image = image.resize(size, PILLOW[filter])
    return cropped(plan, image)


def cropped(plan: FramePlan, image: Image.Image) -> Pixels:
    whole = np.asarray(image)
    return whole[plan.top : plan.top + plan.out_height, plan.left : plan.left + plan.out_width]


@settings(max_examples=150, deadline=None)
@given(
    source=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    target=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kept=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    rule=st.sampled_from(["short_side", "long_side", "exact"]),
    filter=st.sampled_from(["bilinear", "bicubic"]),
    other_side=st.sampled_from(["truncate", "round"]),
    crop_rule=st.sampled_from(["centre_floor", "centre_round"]),
    seed=st.integers(0, 9),
)
def test_pixels_are_those_of_pillow(
    source: tuple[int, int],
    target: tuple[int, int],
    kept: tuple[float, float],
    rule: Literal["short_side", "long_side", "exact"],
    filter: Filter,
    other_side: Literal["truncate", "round"],
    crop_rule: Literal["centre_floor", "centre_round"],
    seed: int,
) -> None:
    if rule != "exact":
        target = target[0], target[0]
    resize = Resize(rule, *target, filter, True, other_side)
    full = resized_size(resize, *source)
    if min(full) < 1:
        with pytest.raises(VideoError, match="would shrink to"):
            plan(Transform(resize), *source)
        return
    height, width = (max(1, round(n * k)) for n, k in zip(full, kept, strict=True))
    crop = Crop(height, width, crop_rule)
    rgb = noise(*source, seed)
    chosen = plan(Transform(resize, crop), *source)
    np.testing.assert_array_equal(applied(chosen, rgb), by_pillow(chosen, rgb, filter))


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (240, 320), (360, 480), (1080, 1920), (1920, 1080), (320, 240), (241, 323), (1, 1), (2, 3),
        (256, 341), (256, 256), (341, 256), (224, 224), (3, 700), (255, 257),
    ],
)  # fmt: skip
def test_frames_of_real_sizes_are_those_of_pillow(height: int, width: int, filter: Filter) -> None:
    rgb = noise(height, width)
    chosen = plan(Transform(Resize("short_side", 256, 256, filter), Crop(224, 224)), height, width)
    size = chosen.resized_width, chosen.resized_height
    expected = cropped(chosen, Image.fromarray(rgb).resize(size, PILLOW[filter]))
    np.testing.assert_array_equal(applied(chosen, rgb), expected)


def test_a_huge_frame_is_that_of_pillow() -> None:
    rgb = np.tile(noise(500, 500), (16, 16, 1))
    chosen = plan(I3D, 8000, 8000)
    np.testing.assert_array_equal(applied(chosen, rgb), by_pillow(chosen, rgb, "bilinear"))


def test_a_crop_of_a_very_long_frame_costs_only_the_crop() -> None:
    chosen = plan(I3D, 1, 8000)
    assert (chosen.resized_height, chosen.resized_width) == (256, 2_048_000)
    assert chosen.columns.weight.shape[0] == 224
    rgb = noise(1, 8000)
    assert applied(chosen, rgb).shape == (224, 224, 3)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("channel", "value"), [(0, 0), (1, 0), (2, 0), (0, 255), (1, 255), (2, 255)])
def test_flat_colours_stay_what_they_are(channel: int, value: int, filter: Filter, antialias: bool) -> None:
    rgb = np.full((97, 131, 3), 255 - value, np.uint8)
    rgb[..., channel] = value
    resize = Resize("exact", 60, 200, filter, antialias)
    out = applied(plan(Transform(resize), 97, 131), rgb)
    assert (out == rgb[0, 0]).all()


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        (Resize("short_side", 256, 256), (240, 320), (256, 341)),
        (Resize("short_side", 256, 256), (320, 240), (341, 256)),
        (Resize("short_side", 256, 256), (256, 999), (256, 999)),
        (Resize("short_side", 256, 256, other_side="round"), (240, 319), (256, 340)),
        (Resize("short_side", 256, 256), (240, 319), (256, 340)),
        (Resize("short_side", 256, 256), (360, 479), (256, 340)),
        (Resize("short_side", 256, 256, other_side="round"), (360, 479), (256, 341)),
        (Resize("long_side", 128, 128), (240, 320), (96, 128)),
        (Resize("long_side", 128, 128), (320, 240), (128, 96)),
        (Resize("long_side", 128, 128), (77, 128), (77, 128)),
        (Resize("long_side", 128, 128), (50, 50), (128, 128)),
        (Resize("exact", 128, 171), (240, 320), (128, 171)),
    ],
)
def test_sizes_follow_the_rule(resize: Resize, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(resize, *size) == expected


@pytest.mark.parametrize(
    ("rule", "length", "offset"),
    [
        ("centre_floor", 341, 58), ("centre_round", 341, 58), ("centre_floor", 343, 59),
        ("centre_round", 343, 60), ("centre_round", 342, 59), ("centre_floor", 342, 59),
        ("centre_ceil", 341, 59), ("centre_ceil", 343, 60), ("centre_ceil", 342, 59),
    ],
)  # fmt: skip
def test_crops_round_half_a_pixel_by_their_rule(
    rule: Literal["centre_floor", "centre_round", "centre_ceil"], length: int, offset: int
) -> None:
    chosen = plan(Transform(None, Crop(224, 224, rule)), 300, length)
    assert chosen.left == offset
    rgb = noise(300, length)
    np.testing.assert_array_equal(applied(chosen, rgb), rgb[38:262, offset : offset + 224])


def test_a_frame_that_fits_is_copied_unchanged() -> None:
    rgb = noise(256, 256)
    np.testing.assert_array_equal(applied(plan(Transform(), 256, 256), rgb), rgb)
    chosen = plan(Transform(Resize("short_side", 256, 256, "bicubic", False)), 256, 300)
    assert chosen.unscaled
    wide = noise(256, 300)
    np.testing.assert_array_equal(applied(chosen, wide), wide)


@pytest.mark.parametrize("transform", [I3D, Transform(None, Crop(100, 90)), Transform()])
def test_rows_may_lie_further_apart_than_they_are_long(transform: Transform) -> None:
    padded = noise(240, 352)
    view = padded[:, :320]
    chosen = plan(transform, 240, 320)
    expected = applied(chosen, view.copy())
    np.testing.assert_array_equal(applied(chosen, view), expected)
    raw = np.zeros(240 * 1000, np.uint8)
    odd = np.lib.stride_tricks.as_strided(raw, (240, 320, 3), (1000, 3, 1))
    odd[:] = view
    raw.flags.writeable = False
    np.testing.assert_array_equal(applied(chosen, odd), expected)


def test_flipped_and_transposed_views_are_read_as_they_look() -> None:
    rgb = noise(200, 300)
    for view in (rgb[::-1], rgb[:, ::-1], rgb.transpose(1, 0, 2), rgb[..., ::-1]):
        chosen = plan(I3D, *view.shape[:2])
        np.testing.assert_array_equal(applied(chosen, view), applied(chosen, view.copy()))


def test_nothing_is_written_beside_the_frame() -> None:
    for width in (1, 5, 10, 11, 224):
        chosen = plan(Transform(Resize("exact", 7, width)), 40, 50)
        batch = np.full((3, 7, width, 3), 9, np.uint8)
        chosen.apply(noise(40, 50), batch[1])
        assert (batch[[0, 2]] == 9).all()


def test_threads_share_a_plan() -> None:
    chosen = plan(I3D, 360, 480)
    frames = [noise(360, 480, seed) for seed in range(24)]
    expected = [applied(chosen, frame) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda frame: applied(chosen, frame), frames * 4))
    for i, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, expected[i % 24])


def test_a_plan_is_made_once_for_a_size() -> None:
    assert plan(I3D, 123, 456) is plan(I3D, 123, 456)


@pytest.mark.parametrize(
    ("transform", "size", "message"),
    [
        (Transform(None, Crop(224, 224)), (200, 300), "smaller than the engine's crop of 224x224"),
        (Transform(Resize("exact", 100, 300), Crop(101, 224)), (9, 9), "300x100 once resized"),
        (Transform(Resize("long_side", 128, 128)), (2, 8000), "would shrink to 128x0"),
    ],
)
def test_frames_that_cannot_fit_are_refused_in_one_line(
    transform: Transform, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        plan(transform, *size)
    assert "\n" not in str(caught.value)


def test_arrays_of_another_size_or_layout_are_refused() -> None:
    chosen = plan(I3D, 240, 320)
    out = np.empty((224, 224, 3), np.uint8)
    with pytest.raises(ValueError, match="plan is for"):
        chosen.apply(noise(240, 321), out)
    with pytest.raises(ValueError, match="plan is for"):
        chosen.apply(noise(240, 320).astype(np.int8), out)
    for wrong in (np.empty((224, 223, 3), np.uint8), np.empty((3, 224, 224), np.uint8).T):
        with pytest.raises(ValueError, match="out must be contiguous"):
            chosen.apply(noise(240, 320), wrong)


@given(
    source=st.integers(1, 400),
    resized=st.integers(1, 400),
    where=st.floats(0, 1),
    filter=st.sampled_from(["bilinear", "bicubic"]),
    antialias=st.booleans(),
)
def test_tables_never_reach_outside_the_source(
    source: int, resized: int, where: float, filter: Filter, antialias: bool
) -> None:
    first = int((resized - 1) * where)
    table = taps(source, resized, first, resized - first, filter, antialias)
    assert table.start.dtype == table.weight.dtype == np.int32
    assert table.start.shape == (resized - first,) == table.weight.shape[:1]
    assert table.span[0] >= 0
    assert table.span[1] <= source
    assert (np.diff(table.start) >= 0).all()
    np.testing.assert_allclose(table.weight.sum(axis=1), 1 << 22, atol=table.weight.shape[1])


@pytest.mark.parametrize(
    ("source", "resized"),
    [((240, 320), (128, 171)), ((60, 80), (128, 171)), ((97, 33), (97, 50)), ((1, 1), (5, 4))],
)
def test_without_antialias_pixels_are_those_of_torch(
    source: tuple[int, int], resized: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    rgb = noise(*source)
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        image, resized, mode="bilinear", align_corners=False, antialias=False
    )
    found = applied(plan(Transform(Resize("exact", *resized, antialias=False)), *source), rgb)
    difference = np.abs(found - expected[0].permute(1, 2, 0).numpy())
    # Half a level from rounding the columns, half from rounding the rows.
    assert difference.max() <= 1.0 + 1e-6
    assert difference.mean() < 0.4


@pytest.mark.parametrize("source", [(240, 320), (360, 480), (321, 120), (60, 80), (480, 720), (224, 300)])
def test_the_grid_of_a_scale_is_that_of_torch(source: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    rgb = noise(*source)
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        image, scale_factor=224 / min(source), mode="bilinear", align_corners=False, antialias=False
    )
    resize = Resize("short_side", 224, 224, antialias=False, grid="scale")
    found = applied(plan(Transform(resize), *source), rgb)
    assert found.shape[:2] == expected.shape[2:]
    difference = np.abs(found - expected[0].permute(1, 2, 0).numpy())
    # Half a level from rounding the columns, half from rounding the rows.
    assert difference.max() <= 1.0 + 1e-6
    assert difference.mean() < 0.4


@pytest.mark.parametrize(("source", "resized"), [(240, 128), (60, 171), (5, 3), (1, 4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_without_antialias_bicubic_is_that_of_torch(source: int, resized: int, axis: int) -> None:
    torch = pytest.importorskip("torch")
    size, target = [40, 40], [40, 40]
    size[axis], target[axis] = source, resized
    rgb = noise(size[0], size[1])
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        image, target, mode="bicubic", align_corners=False, antialias=False
    ).clamp(0, 255)
    resize = Resize("exact", target[0], target[1], "bicubic", antialias=False)
    found = applied(plan(Transform(resize), size[0], size[1]), rgb)
    difference = np.abs(found - expected[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 0.5 + 1e-4


@pytest.mark.parametrize("number", [0, 100, 350])
def test_decoded_frames_become_what_the_reference_fed_its_networks(number: int) -> None:
    video, golden = SHARED / "videos/v_GGSY1Qvo990.mp4", SHARED / "parity/e2e/frames.npz"
    if not (video.exists() and golden.exists()):
        pytest.skip(f"{SHARED} has no parity kit")
    import av

    with av.open(video) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == number:
                rgb = frame.to_ndarray(format="rgb24").astype(np.uint8)
                break
    wanted = np.load(golden)
    i3d = applied(plan(I3D, *rgb.shape[:2]), rgb)[::8, ::8].transpose(2, 0, 1)
    np.testing.assert_allclose(2 * (i3d / np.float32(255)) - 1, wanted[f"i3d_rgb.{number}"], atol=1e-6)
    torchvision = Transform(Resize("short_side", 256, 256), Crop(224, 224, "centre_round"))
    resnet = applied(plan(torchvision, *rgb.shape[:2]), rgb)[::8, ::8] / np.float32(255)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(
        ((resnet - mean) / std).transpose(2, 0, 1), wanted[f"resnet.{number}"], atol=1e-5
    )


def test_planning_does_not_load_the_compiler() -> None:
    code = "import sys, vfx_runtime.resize; print('llvmlite' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


_UNKNOWN_PROCESSOR = """
import numpy as np
from llvmlite import binding
def unknown():
    raise RuntimeError("failed to get host cpu features")
binding.get_host_cpu_features = unknown
from vfx_engines.spec import Resize, Transform
from vfx_runtime.resize import plan
for filter in ("bilinear", "opencv_linear"):
    out = np.empty((20, 20, 3), np.uint8)
    resize = Resize("exact", 20, 20, filter=filter, antialias=filter == "bilinear")
    plan(Transform(resize), 40, 50).apply(np.full((40, 50, 3), 7, np.uint8), out)
    assert (out == 7).all()
"""


def test_an_unknown_processor_still_resizes() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _UNKNOWN_PROCESSOR], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
