"""On a real GPU: kernels, slots and graphs, ONNX Runtime's CUDA provider, TensorRT. scripts/gpu runs these.

They need no parity kit, and no installation: a bare checkout with the rooms on PYTHONPATH will do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import lacking
from cuda_on_cpu import CpuKernels
from make_video import Codec, cut_video, make_video
from tiny import FRAMES, SIZE, tiny_engine, tiny_features, tiny_spec
from tolerances import TINY
from vfx_engines import Engine, open_engine
from vfx_engines.backends.cuda_slots import CudaSlots
from vfx_engines.build_settings import BuildSettings
from vfx_engines.cuda import Cuda
from vfx_engines.devices import missing_driver, open_cuda
from vfx_engines.engine import DeviceInput
from vfx_engines.nvrtc import compiled
from vfx_engines.spec import Crop, Output, Precision, Resize, Sampling, Transform
from vfx_engines.tensorrt_api import is_installed
from vfx_runtime import nvdec
from vfx_runtime.job import Job
from vfx_runtime.opening import open_video
from vfx_runtime.picture import UPRIGHT, Convention, SurfaceFormat
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.resize import FramePlan, plan
from vfx_runtime.run_sampling import run_sampling
from vfx_runtime.surfaces import (
    KERNELS,
    STRIP,
    Frames,
    Surface,
    Surfaces,
    Taps,
    colour,
    geometry,
    source,
)
from vfx_runtime.views import Crops, Views, crop_offset, cropped

pytestmark = pytest.mark.gpu

BATCH = 4


@pytest.fixture(scope="module")
def cuda() -> Iterator[Cuda]:
    reason = missing_driver()
    if reason is not None:
        lacking("gpu", reason)
    device = open_cuda()
    yield device
    device.close()


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    return CpuKernels(tmp_path_factory.mktemp("kernels"))


class Uploaded:
    """Arrays on the device, freed together."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self.cuda, self._stream, self._addresses = cuda, stream, list[int]()

    def put(self, array: NDArray[np.generic]) -> int:
        address = self.room(array.nbytes)
        self.cuda.copy_in(address, np.ascontiguousarray(array), self._stream)
        return address

    def room(self, size: int) -> int:
        self._addresses.append(self.cuda.allocate(size))
        return self._addresses[-1]

    def free(self) -> None:
        self.cuda.synchronize(self._stream)
        for address in self._addresses:
            self.cuda.free(address)


def resized(
    cuda: Cuda,
    kind: SurfaceFormat,
    planes: list[tuple[NDArray[np.generic], ...]],
    item: FramePlan,
    convention: Convention,
) -> NDArray[np.uint8]:
    """As `CpuKernels.resize`, on the device."""
    cubin = compiled(source(), "preprocess.cu", cuda.compute_capability)
    kernel = cuda.function(cuda.load(cubin), KERNELS[kind])
    stream = cuda.stream()
    device = Uploaded(cuda, stream)
    out = np.zeros((len(planes), item.out_height, item.out_width, 3), np.uint8)
    target = device.room(out.nbytes)
    surfaces = Surfaces()
    for number, pair in enumerate(planes):
        addresses = [device.put(plane) for plane in pair]
        surfaces.at[number] = Surface(
            addresses[0],
            addresses[1] if len(pair) > 1 else None,
            addresses[2] if len(pair) > 2 else None,
            pair[0].strides[0],
            pair[-1].strides[0],
            target + number * out[0].nbytes,
        )
    taps = Taps(
        device.put(item.rows.start),
        device.put(item.rows.weight),
        device.put(item.columns.start),
        device.put(item.columns.weight),
    )
    arguments = [surfaces, geometry(item, UPRIGHT), colour(convention, kind), taps]
    strips = -(-item.out_height // STRIP)
    grid = (-(-item.out_width // 32), -(-strips // 4), len(planes))
    cuda.launch(kernel, grid, (32, 4, 1), arguments, stream)
    cuda.copy_out(out, target, stream)
    device.free()
    cuda.close_stream(stream)
    return out


@pytest.mark.parametrize("size", [(240, 320), (360, 480), (1080, 1920), (640, 360)])
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("convention", [Convention(5), Convention(1), Convention(9, interpolate=True)])
def test_kernels_give_what_they_give_on_a_cpu(
    cuda: Cuda, on_cpu: CpuKernels, size: tuple[int, int], kind: SurfaceFormat, convention: Convention
) -> None:
    height, width = size
    random = np.random.default_rng(0)
    item = plan(Transform(Resize("short_side", 256, 256), Crop(224, 224, "centre_floor")), height, width)
    planes: list[tuple[NDArray[np.generic], ...]] = []
    for _ in range(3):
        if kind == "rgb":
            planes.append((random.integers(0, 256, (height, width, 3), np.uint8),))
            continue
        dtype = np.uint16 if kind == "p016" else np.uint8
        top = np.iinfo(dtype).max
        luma = random.integers(0, top, (height, width), dtype, endpoint=True)
        count, columns = (2, width // 2) if kind == "i420" else (1, width)
        shape = (count, height // 2, columns)
        planes.append((luma, *random.integers(0, top, shape, dtype, endpoint=True)))

    made = resized(cuda, kind, planes, item, convention)
    wanted = on_cpu.resize(kind, planes, item, convention)

    np.testing.assert_array_equal(made, wanted)


class Copying:
    """A backend whose executor is the gather kernel: the output is the input."""

    name = "copy"
    precision: Precision = "fp32"

    def __init__(self, cuda: Cuda) -> None:
        cubin = compiled(source(), "preprocess.cu", cuda.compute_capability)
        self.cuda, self._kernel = cuda, cuda.function(cuda.load(cubin), "gather_chunks")
        self._stream = cuda.stream()
        self._device = Uploaded(cuda, self._stream)
        self.slots = CudaSlots(cuda, SPEC, BATCH, 3, self._enqueue, graphs=True)
        self.buffers = self.slots.buffers

    def _enqueue(self, slot: int, count: int, stream: int) -> None:
        address, (target,) = self.slots.addresses(slot)
        chunks = FRAMES * SIZE * SIZE * 3 // 16
        rows = Frames()
        for row in range(count):
            rows.at[row].first = address + row * chunks * 16
        arguments = [
            rows,
            ctypes.c_int(chunks * 16),
            ctypes.c_int(chunks),
            ctypes.c_int(0),
            ctypes.c_void_p(target),
        ]
        self.cuda.launch(self._kernel, (-(-chunks // 128), count, 1), (128, 1, 1), arguments, stream)

    def start(self, slot: int, count: int) -> None:
        self.slots.start(slot, count)

    def device_input(self, slot: int) -> DeviceInput:
        return self.slots.device_input(slot)

    def start_on_device(self, slot: int, count: int) -> None:
        self.slots.start(slot, count, on_device=True)

    def wait(self, slot: int) -> list[NDArray[np.generic]]:
        return list(self.slots.wait(slot))

    def close(self) -> None:
        self.slots.close()
        self._device.free()
        self.cuda.close_stream(self._stream)


def _copying_spec() -> object:
    spec = tiny_spec()
    return type(spec)(
        model="copy",
        weights=spec.weights,
        precision="fp32",
        input=spec.input,
        sampling=spec.sampling,
        transform=spec.transform,
        # Four bytes of pixels are one number.
        outputs=(Output("pixels", (FRAMES * SIZE * SIZE * 3 // 4,)),),
    )


SPEC = _copying_spec()


def test_slots_overlap_and_graphs_replay(cuda: Cuda) -> None:
    backend = Copying(cuda)
    with Engine(SPEC, backend) as engine:  # type: ignore[arg-type]
        flying: dict[int, NDArray[np.uint8]] = {}
        for turn in range(60):
            slot = turn % engine.slots
            if slot in flying:
                check_copy(engine, slot, flying[slot])
            count = 1 + turn % 7 % BATCH
            # Bytes below 64 make no NaN of any four.
            given = np.random.default_rng(turn).integers(0, 64, (count, FRAMES, SIZE, SIZE, 3), np.uint8)
            engine.buffer(slot)[:count] = given
            engine.submit(slot, count)
            flying[slot] = given
        for slot, given in flying.items():
            check_copy(engine, slot, given)
        assert backend.slots.graphs, "a kernel and two copies can be captured"


def check_copy(engine: Engine, slot: int, given: NDArray[np.uint8]) -> None:
    found = engine.collect(slot)["pixels"]
    np.testing.assert_array_equal(found.view(np.uint8).reshape(given.shape), given)


def test_onnx_runtime_on_cuda(cuda: Cuda, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        lacking("onnxruntime-cuda", "this ONNX Runtime has no CUDA provider")
    windows = np.random.default_rng(0).integers(0, 256, (11, FRAMES, SIZE, SIZE, 3), np.uint8)
    with open_engine(tiny_engine(tmp_path / "tiny.onnx"), device="cuda", batch=BATCH) as engine:
        np.testing.assert_allclose(engine.run(windows)["features"], tiny_features(windows), rtol=TINY)


def on_the_device(cuda: Cuda) -> Engine:
    """The tiny engine's spec over an executor that copies, so that its rows are the pixels it was given."""
    return Engine(SPEC, Copying(cuda), "cuda:0")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [256, 224, 312, 182])
@pytest.mark.parametrize("portrait", [False, True])
def test_crops_are_gathered(cuda: Cuda, size: int, portrait: bool) -> None:
    """Of frames of any length, in 16 bytes from whatever address, or byte by byte."""
    in_chunks = size * size * 3 % 16 == 0
    cubin = compiled(source(), "preprocess.cu", cuda.compute_capability)
    kernel = cuda.function(cuda.load(cubin), "gather_chunks" if in_chunks else "gather_bytes")
    stream = cuda.stream()
    device, random = Uploaded(cuda, stream), np.random.default_rng(0)
    frames, wanted = Frames(), []
    for room in (0, 1, 2, 3, 5, 85, 199):
        shape = (size + room, size) if portrait else (size, size + room)
        whole = random.integers(0, 256, (*shape, 3), np.uint8)
        address = device.put(whole)
        for crop in range(3):
            top, left = crop_offset(*shape, crop)
            item = frames.at[len(wanted)]
            item.first, item.pitch = address + (top * shape[1] + left) * 3, shape[1] * 3
            wanted.append(cropped(whole, crop))
    wanted.append(np.broadcast_to(np.uint8([10, 120, 250]), (size, size, 3)))
    out = np.zeros((len(wanted), size, size, 3), np.uint8)
    target = device.room(out.nbytes)
    count = size * size * 3 // (16 if in_chunks else 1)
    blank = ctypes.c_int(10 | 120 << 8 | 250 << 16)
    arguments = [frames, ctypes.c_int(size * 3), ctypes.c_int(count), blank, ctypes.c_void_p(target)]
    cuda.launch(kernel, (-(-count // 256), len(wanted), 1), (256, 1, 1), arguments, stream)
    cuda.copy_out(out, target, stream)
    device.free()
    cuda.close_stream(stream)

    np.testing.assert_array_equal(out, np.stack(wanted))


@pytest.mark.parametrize("sampling", [{}, {"step": 1}, {"stride": 3, "step": 2}, {"edges": "zeros"}])
@pytest.mark.parametrize("gpu_decoders", [0, 2])
def test_windows_from_files_are_those_of_the_cpu(
    cuda: Cuda, tmp_path: Path, sampling: dict[str, object], gpu_decoders: int
) -> None:
    if gpu_decoders:
        lacking_nvdec(cuda)
    assert_same_on_both(cuda, tmp_path, tiny_spec(**sampling).sampling, gpu_decoders)


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("gpu_decoders", [0, 2])
def test_views_of_files_are_those_of_the_cpu(
    cuda: Cuda, tmp_path: Path, crops: Crops, gpu_decoders: int
) -> None:
    if gpu_decoders:
        lacking_nvdec(cuda)
    views = Views(3, crops, keep=True)
    sampling = run_sampling(tiny_spec(stride=2).sampling, views=views)
    assert_same_on_both(cuda, tmp_path, sampling, gpu_decoders, views)


def assert_same_on_both(
    cuda: Cuda, folder: Path, sampling: Sampling, gpu_decoders: int, views: Views | None = None
) -> None:
    """Windows whose frames are prepared on the device, and on the CPU."""
    jobs = [
        Job(make_video(folder / f"v{i}.mp4", width=160 + 2 * i, height=128, frames=20 + 17 * i), f"v{i}")
        for i in range(6)
    ]
    rows = {}
    for where in ("cpu", "gpu"):
        with on_the_device(cuda) as engine:
            # Without the device's own input all is prepared on the CPU, and copied.
            if where == "cpu":
                engine._on_device = None
            workers = 0 if where == "gpu" and gpu_decoders else 3
            pipeline = Pipeline(
                engine,
                sampling,
                views=views,
                workers=workers,
                gpu_decoders=gpu_decoders if where == "gpu" else 0,
            )
            for result in pipeline.run(jobs, len(jobs)):
                assert result.error is None, result.error
                assert result.rows is not None
                with result.rows as found:
                    rows[where, result.job.name] = found.features(result.fps, {}).arrays["pixels"]
            on_gpu = pipeline.stats.frames_on_gpu
    assert on_gpu == (pipeline.stats.frames if gpu_decoders else 0)
    for job in jobs:
        np.testing.assert_array_equal(
            rows["gpu", job.name].view(np.uint8), rows["cpu", job.name].view(np.uint8)
        )


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_nvdec_decodes_to_the_same_pixels(cuda: Cuda, tmp_path: Path, codec: Codec) -> None:
    lacking_nvdec(cuda)
    path = make_video(tmp_path / "v.mp4", codec=codec, width=256, height=144, frames=30)
    cuda.activate()
    with open_video(path, gpu=0) as on_gpu, open_video(path) as on_cpu:
        if not on_gpu.info.on_gpu:
            pytest.skip(f"this GPU decodes no {codec}")
        for ours, theirs in zip(on_gpu, on_cpu, strict=True):
            assert (ours.index, ours.start, ours.end) == (theirs.index, theirs.start, theirs.end)
            assert ours.picture().on_device
            # Downloaded: these codecs are exact, so the planes are the same.
            np.testing.assert_array_equal(ours.rgb(), theirs.rgb())


def test_a_stream_that_is_cut_at_its_left_is_decoded_on_the_cpu(cuda: Cuda, tmp_path: Path) -> None:
    """A GPU's pictures are cut at the right and the bottom alone."""
    lacking_nvdec(cuda)
    path = cut_video(tmp_path / "v.mp4")
    with open_video(path, gpu=0) as on_gpu, open_video(path) as on_cpu:
        assert (on_gpu.info.height, on_gpu.info.width) == (on_cpu.info.height, on_cpu.info.width)
        for ours, theirs in zip(on_gpu, on_cpu, strict=True):
            np.testing.assert_array_equal(ours.rgb(), theirs.rgb())


def lacking_nvdec(cuda: Cuda) -> None:
    units, missing = nvdec.nvdec_units(cuda)
    if not units:
        lacking("nvdec", missing)


@pytest.mark.tensorrt
@pytest.mark.parametrize("settings", [BuildSettings(), BuildSettings(batches=((4, 4, 4),), level=0)])
def test_a_plan_is_built_and_run(cuda: Cuda, tmp_path: Path, settings: BuildSettings) -> None:
    if not is_installed():
        lacking("tensorrt", "TensorRT is not installed")
    from vfx_engines.plan_builder import build_plan

    path = tmp_path / "tiny.plan"
    spec = build_plan(tiny_engine(tmp_path / "tiny.onnx"), path, settings, cache=tmp_path)
    windows = np.random.default_rng(0).integers(0, 256, (11, FRAMES, SIZE, SIZE, 3), np.uint8)

    assert spec.plan is not None
    assert spec.plan.device == cuda.name
    with open_engine(path) as engine:
        np.testing.assert_allclose(engine.run(windows)["features"], tiny_features(windows), rtol=1e-3)
