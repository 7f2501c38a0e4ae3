"""Whole runs of `extract` on a simulated GPU give the same results as on a CPU.

ONNX Runtime's CUDA provider is a stand-in that computes on the CPU. The kernels are the real ones, compiled
as C++.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda_on_cpu import CpuKernels
from fake_onnxruntime import FakeOnnxRuntime
from make_video import make_video
from simulated_cuda import SimulatedDriver
from tiny import other_engine, tiny_engine
from tiny_flow import tiny_flow_engine
from tiny_sound import sound_engine
from tolerances import TINY
from vfx_engines import cuda_python
from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime import Features, Views, extract
from vfx_runtime.opening import open_video


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    return CpuKernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, kernels: CpuKernels) -> Iterator[SimulatedDriver]:
    driver = SimulatedDriver(kernels=kernels.for_driver())
    monkeypatch.setattr(cuda_python, "driver", driver)
    monkeypatch.setattr("vfx_engines.devices.missing_driver", lambda: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime(driver))
    yield driver
    assert driver.leaks() == []


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos of several sizes, one portrait and one rotated, all with sound."""
    folder = tmp_path_factory.mktemp("videos")
    kinds: list[dict[str, Any]] = [
        {"width": 40, "height": 30, "frames": 17},
        {"width": 30, "height": 40, "frames": 9},
        {"width": 48, "height": 32, "frames": 23, "rotation": 90},
        {"width": 40, "height": 30, "frames": 12},
    ]
    return [make_video(folder / f"v{i}.mp4", audio=True, **kind) for i, kind in enumerate(kinds)]


def assert_alike(videos: list[Path] | Path, engine: Path | list[Path], **options: Any) -> None:
    found: dict[str, dict[str, Features | None]] = {}
    given = videos if isinstance(videos, list) else [videos]
    for device in ("cpu", "cuda"):
        found[device] = {
            item.name: item.features for item in extract(given, engine, device=device, **options)
        }
    assert found["cpu"].keys() == found["cuda"].keys()
    for name, want in found["cpu"].items():
        have = found["cuda"][name]
        assert want is not None, name
        assert have is not None, name
        np.testing.assert_array_equal(have.frame_range, want.frame_range)
        np.testing.assert_array_equal(have.timestamps_ms, want.timestamps_ms)
        assert have.arrays.keys() == want.arrays.keys()
        for key, wanted in want.arrays.items():
            np.testing.assert_allclose(have.arrays[key], wanted, rtol=TINY, atol=TINY)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step": 1, "anchor": "centre", "tail": "zeros"},
        {"tail": "loop", "seed": 3},
        {"fps": 40.0, "tail": "repeat"},
        {"total": 10},
        {"target_fps": 50.0, "stride": 2},
        {"views": Views(3, 3, keep=True)},
        {"views": Views(2, 3, offset=True)},
    ],
)
def test_windows(gpu: SimulatedDriver, tmp_path: Path, videos: list[Path], options: dict[str, Any]) -> None:
    assert_alike(videos, tiny_engine(tmp_path / "tiny.onnx"), **options)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("views", [None, Views(2, 3)])
def test_several_engines(
    gpu: SimulatedDriver, tmp_path: Path, videos: list[Path], alike: bool, views: Views | None
) -> None:
    transform = None if alike else Transform(Resize("short_side", 24, 24), Crop(16, 16))
    engines = [tiny_engine(tmp_path / "a.onnx"), other_engine(tmp_path / "b.onnx", transform=transform)]
    assert_alike(videos, engines, views=views)


@pytest.mark.parametrize(
    "transform", [None, Transform(Resize("long_side", 36, 36, grid="scale", other_side="truncate"))]
)
def test_flow_at_the_size_of_each_video(
    gpu: SimulatedDriver, tmp_path: Path, videos: list[Path], transform: Transform | None
) -> None:
    assert_alike(videos, tiny_flow_engine(tmp_path / "flow.onnx", transform))


def test_sound(gpu: SimulatedDriver, tmp_path: Path, videos: list[Path]) -> None:
    assert_alike(videos, sound_engine(tmp_path / "sound.onnx"))


@pytest.mark.parametrize("views", [None, Views(2, 3, keep=True)])
def test_folders_of_images(
    gpu: SimulatedDriver, tmp_path: Path, videos: list[Path], views: Views | None
) -> None:
    from PIL import Image

    folder = tmp_path / "frames"
    folder.mkdir()
    with open_video(videos[0]) as decoder:
        for frame in decoder:
            Image.fromarray(frame.rgb()).save(folder / f"{frame.index}.{('png', 'jpg')[frame.index % 2]}")
    engine = tiny_engine(tmp_path / "tiny.onnx")
    assert_alike(folder, engine, images="*.*", views=views)
