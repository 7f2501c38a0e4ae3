"""Preprocessing on a simulated device, whose kernels run as C++ and whose streams run in random order.

Rows would be wrong if a frame's memory were reused too early, a window were gathered before its frames are
made, or a slot were computed before its windows are placed.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from cuda_on_cpu import CpuKernels
from make_video import Codec, make_video, picture
from parity_kit import video
from run_kit import counting
from simulated_cuda import SimulatedDriver
from tiny import tiny_features, tiny_spec
from tiny_on_device import TinyOnDevice
from tolerances import TINY
from vfx_engines import cuda_python
from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, VideoError
from vfx_engines.spec import Crop, EngineSpec, Resize, Transform
from vfx_runtime import pipeline as pipeline_module
from vfx_runtime.decode import Frame, VideoInfo
from vfx_runtime.device_frames import DeviceFrames, padded
from vfx_runtime.features import Features
from vfx_runtime.image_names import Images
from vfx_runtime.job import Job
from vfx_runtime.opening import open_video
from vfx_runtime.picture import UPRIGHT, Convention, Picture, Plane
from vfx_runtime.pipeline import Pipeline, Result
from vfx_runtime.preprocess import CpuPreprocess
from vfx_runtime.preprocess_cuda import CudaPreprocess
from vfx_runtime.pyav_decoder import surface, to_rgb
from vfx_runtime.resize import plan
from vfx_runtime.run_sampling import run_sampling
from vfx_runtime.views import Crops, Views


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    return CpuKernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=range(3))
def driver(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kernels: CpuKernels
) -> Iterator[SimulatedDriver]:
    simulated = SimulatedDriver(seed=request.param, kernels=kernels.for_driver())
    monkeypatch.setattr(cuda_python, "driver", simulated)
    yield simulated
    assert simulated.leaks() == []


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Videos of several sizes and formats: 4:2:0 planes, full range, an odd height, a palette, 8-bit RGB."""
    folder = tmp_path_factory.mktemp("videos")
    kinds: list[tuple[Codec, int, int, int]] = [
        ("h264", 40, 30, 37),
        ("mjpeg", 48, 32, 21),
        ("h264", 62, 46, 12),
        ("h264_rgb", 40, 30, 11),
        ("ffv1", 45, 33, 18),
        ("gif", 40, 40, 12),
        ("vp9", 64, 48, 61),
    ]
    suffix = {"gif": ".gif", "ffv1": ".mkv"}
    return [
        Job(
            make_video(
                folder / f"v{i}{suffix.get(codec, '.mp4')}", codec=codec, width=width, height=height, frames=n
            ),
            f"v{i}",
        )
        for i, (codec, width, height, n) in enumerate(kinds)
    ]


def read(results: Iterator[Result]) -> dict[str, Features | Exception]:
    found: dict[str, Features | Exception] = {}
    for result in results:
        if result.rows is None:
            assert result.error is not None
            found[result.job.name] = result.error
        else:
            with result.rows as rows:
                found[result.job.name] = rows.features(result.fps, {})
    return found


class OnHost:
    """A backend that computes the same engine as a plain function of host memory."""

    name, precision = "host", "fp32"

    def __init__(self) -> None:
        spec = tiny_spec()
        self.buffers = [np.zeros((4, *map(int, spec.input.shape[1:])), np.uint8) for _ in range(2)]
        self._counts = [0, 0]

    def start(self, slot: int, count: int) -> None:
        self._counts[slot] = count

    def wait(self, slot: int) -> list[NDArray[Any]]:
        return [tiny_features(self.buffers[slot][: self._counts[slot]])]

    def close(self) -> None:
        pass


SAMPLINGS: dict[str, dict[str, Any]] = {
    "side by side": {},
    "overlapping": {"step": 1},
    "spread": {"stride": 3, "step": 2},
    "filled with blanks": {"edges": "zeros", "anchor": "centre", "step": 1},
    "filled with the last": {"edges": "repeat"},
    "another rate": {"fps": 40.0},
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("slots", [2, 3])
def test_rows_are_those_of_the_cpu(
    driver: SimulatedDriver, videos: list[Job], sampling: str, slots: int
) -> None:
    spec = tiny_spec(**SAMPLINGS[sampling])
    expected = read(Pipeline(Engine(spec, OnHost()), spec.sampling, workers=2).run(videos))
    with Engine(spec, TinyOnDevice(driver, slots, graphs=True), "cuda:0") as engine:
        pipeline = Pipeline(engine, spec.sampling, workers=3)
        found = read(pipeline.run(videos))

    assert found.keys() == expected.keys()
    for name, want in expected.items():
        have = found[name]
        assert isinstance(have, Features)
        assert isinstance(want, Features)
        np.testing.assert_array_equal(have.frame_range, want.frame_range)
        # Pixels are the same bit for bit, and so are the means.
        np.testing.assert_array_equal(have.arrays["features"], want.arrays["features"])
    assert pipeline.stats.frames_on_gpu == 0


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Videos that are rotated, mirrored, portrait, of 10 bits, of odd sizes, or of one frame."""
    folder = tmp_path_factory.mktemp("unusual")
    kinds: dict[str, dict[str, Any]] = {
        "turned": {"rotation": 90},
        "mirrored": {"rotation": 180, "mirrored": True},
        "portrait": {"width": 30, "height": 54},
        "ten bits": {"codec": "hevc", "pix_fmt": "yuv420p10le", "width": 80, "height": 60},
        "full colour": {"pix_fmt": "yuv444p"},
        "odd.mkv": {"codec": "ffv1", "width": 45, "height": 33},
        "odd width.mkv": {"codec": "ffv1", "width": 45, "height": 34},
        "one": {"frames": 1},
    }
    return [
        Job(make_video(folder / (name if "." in name else f"{name}.mp4"), **{"frames": 19, **kind}), name)
        for name, kind in kinds.items()
    ]


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("keep", [False, True])
def test_views_are_those_of_the_cpu(
    driver: SimulatedDriver, videos: list[Job], unusual: list[Job], crops: Crops, keep: bool
) -> None:
    """The videos alternate between many aspect ratios, so whole frames keep changing their size."""
    spec, views = tiny_spec(stride=2), Views(3, crops, keep)
    sampling = run_sampling(spec.sampling, views=views)
    jobs = [*videos, *unusual]
    expected = read(Pipeline(Engine(spec, OnHost()), sampling, views=views, workers=2).run(jobs))
    with Engine(spec, TinyOnDevice(driver, 3, graphs=True), "cuda:0") as engine:
        found = read(Pipeline(engine, sampling, views=views, workers=2).run(jobs))
    assert_alike(found, expected)


def test_unusual_videos_give_the_rows_of_the_cpu(driver: SimulatedDriver, unusual: list[Job]) -> None:
    spec = tiny_spec(edges="zeros", anchor="centre", step=1)
    expected = read(Pipeline(Engine(spec, OnHost()), workers=2).run(unusual))
    with Engine(spec, TinyOnDevice(driver, 3), "cuda:0") as engine:
        assert_alike(read(Pipeline(engine, workers=2).run(unusual)), expected)


def assert_alike(found: dict[str, Features | Exception], expected: dict[str, Features | Exception]) -> None:
    """Check that rows are equal bit for bit, and errors too."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        have = found[name]
        if isinstance(want, Exception):
            assert str(have) == str(want)
            continue
        assert isinstance(have, Features), have
        np.testing.assert_array_equal(have.frame_range, want.frame_range)
        np.testing.assert_array_equal(have.arrays["features"], want.arrays["features"])


@pytest.mark.parametrize("size", [16, 12, 10])
def test_crops_of_any_size_are_those_of_the_cpu(driver: SimulatedDriver, tmp_path: Path, size: int) -> None:
    """Rows of whole chunks, chunks that end in the next row, and bytes; the video's size changes midway."""
    spec = resized_spec(3, size, size, Transform(Resize("short_side", 24, 24), Crop(size, size)))
    paths = [make_video(tmp_path / f"v{w}.mp4", width=w, height=48, frames=2) for w in (64, 90)]
    backend = Blank(driver, spec)
    with Engine(spec, backend, "cuda:0") as engine:
        on_cpu, on_cuda = CpuPreprocess(engine, 3), CudaPreprocess(engine, backend.cuda, 3)
        preprocess: CpuPreprocess | CudaPreprocess
        for crop in range(3):
            for slot, preprocess in enumerate((on_cpu, on_cuda)):
                window: list[Any] = [None]
                for path in paths:
                    with open_video(path) as decoder:
                        window.append(preprocess.prepare(next(decoder)))
                preprocess.place(slot, 0, window, crop)
            on_cuda.synchronize()
            np.testing.assert_array_equal(device_bytes(engine, 1), engine.buffer(0).reshape(-1))
        on_cuda.close()


@pytest.mark.parametrize("alike", [True, False])
def test_two_engines_share_what_is_resized(
    driver: SimulatedDriver, videos: list[Job], monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    """Two engines that take the same frames gather the windows of both from them."""
    first = tiny_spec(step=2, edges="zeros", anchor="centre")
    transform = first.transform if alike else Transform(Resize("short_side", 24, 24), Crop(16, 16))
    second = replace(
        first,
        model="other",
        input=replace(first.input, blank=(1, 2, 3)),
        outputs=(replace(first.outputs[0], name="other"),),
        transform=transform,
    )
    on_host = [Engine(spec, OnHost()) for spec in (first, second)]
    expected = read(Pipeline(on_host, workers=2).run(videos))
    made = counting(monkeypatch, CudaPreprocess, "prepare")
    with (
        Engine(first, TinyOnDevice(driver, 3), "cuda:0") as a,
        Engine(second, TinyOnDevice(driver, 2), "cuda:0") as b,
    ):
        pipeline = Pipeline([a, b], workers=2)
        found = read(pipeline.run(videos))

    assert len(made) == pipeline.stats.frames * (1 if alike else 2)
    assert_alike(found, expected)
    for name, want in expected.items():
        have = found[name]
        assert isinstance(have, Features)
        assert isinstance(want, Features)
        np.testing.assert_array_equal(have.arrays["other"], want.arrays["other"])


def test_an_engine_on_a_gpu_and_one_on_the_cpu_share_a_decode(
    driver: SimulatedDriver, videos: list[Job]
) -> None:
    first = tiny_spec(step=2)
    second = replace(first, model="other", outputs=(replace(first.outputs[0], name="other"),))
    with Engine(first, TinyOnDevice(driver, 3), "cuda:0") as engine:
        found = read(Pipeline([engine, Engine(second, OnHost())], workers=2).run(videos))
    for have in found.values():
        assert isinstance(have, Features), have
        np.testing.assert_array_equal(have.arrays["other"], have.arrays["features"])


def test_frames_that_nobody_wants_do_not_spoil_those_of_the_next_video(
    driver: SimulatedDriver, tmp_path: Path
) -> None:
    """A video's last frames, which fill no window, share a launch with the first frames of the next video."""
    jobs = [Job(make_video(tmp_path / f"v{n}.mp4", frames=n), f"v{n}") for n in (7, 11, 5, 6, 9, 8, 14, 15)]
    spec = tiny_spec(stride=2)
    expected = read(Pipeline(Engine(spec, OnHost()), workers=1).run(jobs))
    with Engine(spec, TinyOnDevice(driver, 2), "cuda:0") as engine:
        assert_alike(read(Pipeline(engine, workers=1).run(jobs)), expected)


def test_memory_of_sizes_that_are_gone_is_given_back(driver: SimulatedDriver) -> None:
    cuda = cuda_python.CudaPython(0)
    stream = cuda.stream()
    frames = DeviceFrames(cuda, stream)
    held = frames.take(16, 100)
    before = cuda.memory()[0]
    for width in range(200, 2000, 100):
        made = [frames.take(16, width) for _ in range(40)]
        assert len({item.address for item in made}) == 40
        made.clear()
    # What is held stays; besides that, there are three sizes and the one asked for last.
    assert before - cuda.memory()[0] <= 4 * 64 * padded(16 * 2000 * 3)
    assert all(frames.take(16, 100).address != held.address for _ in range(40))
    address = held.address
    del held, made
    assert address in {item.address for item in [frames.take(16, 100) for _ in range(32)]}
    assert frames.take(4000, 4000).address, "a chunk of large frames is a few, not 32"
    frames.close()
    cuda.close_stream(stream)
    cuda.close()


def test_more_frames_than_a_launch_takes(driver: SimulatedDriver, tmp_path: Path) -> None:
    """A window of 70 frames is gathered in two launches; frames of 5x7 pixels are not whole chunks."""
    spec = resized_spec(70, 5, 7, Transform(Resize("exact", 6, 9), Crop(5, 7)))
    path = make_video(tmp_path / "v.mp4", frames=70)
    backend = Blank(driver, spec)
    with Engine(spec, backend, "cuda:0") as engine:
        on_cpu, on_cuda = CpuPreprocess(engine), CudaPreprocess(engine, backend.cuda)
        preprocess: CpuPreprocess | CudaPreprocess
        for slot, preprocess in enumerate((on_cpu, on_cuda)):
            with open_video(path) as decoder:
                preprocess.place(slot, 0, [preprocess.prepare(frame) for frame in decoder])
        on_cuda.synchronize()
        np.testing.assert_array_equal(device_bytes(engine, 1), engine.buffer(0).reshape(-1))
        on_cuda.close()


def device_bytes(engine: Engine, slot: int) -> NDArray[np.uint8]:
    size = engine.buffer(slot).nbytes
    address = engine.device_input(slot).address
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def resized_spec(frames: int, height: int, width: int, transform: Transform) -> EngineSpec:
    spec = tiny_spec()
    return replace(
        spec,
        input=replace(spec.input, shape=("batch", frames, height, width, 3)),
        sampling=replace(spec.sampling, frames=frames, step=frames),
        transform=transform,
    )


class Blank(TinyOnDevice):
    """A backend for any spec that computes nothing."""

    def __init__(self, driver: SimulatedDriver, spec: EngineSpec) -> None:
        from vfx_engines.backends.cuda_slots import CudaSlots
        from vfx_engines.cuda_python import CudaPython

        self.driver, self.cuda, self._stream = driver, CudaPython(0), None
        self.slots = CudaSlots(self.cuda, spec, 1, 2, lambda slot, count, stream: None)
        self.buffers = self.slots.buffers


@pytest.mark.parametrize("name", ["v_GGSY1Qvo990.mp4"])
def test_real_pixels_are_those_of_the_cpu(driver: SimulatedDriver, name: str) -> None:
    transform = Transform(Resize("short_side", 256, 256), Crop(224, 224, "centre_floor"))
    spec = resized_spec(3, 224, 224, transform)
    backend = Blank(driver, spec)
    with Engine(spec, backend, "cuda:0") as engine, open_video(video(name)) as decoder:
        preprocess = CudaPreprocess(engine, backend.cuda)
        frames: list[Frame] = [next(decoder) for _ in range(3)]
        preprocess.place(0, 0, [preprocess.prepare(frame) for frame in frames])
        preprocess.synchronize()
        assert frames[0].picture().kind == "i420", "the planes are uploaded as they are"
        made = device_bytes(engine, 0)
        for number, frame in enumerate(frames):
            rgb = frame.rgb()
            wanted = np.empty((224, 224, 3), np.uint8)
            plan(spec.transform, *rgb.shape[:2]).apply(rgb, wanted)
            np.testing.assert_array_equal(made.reshape(3, 224, 224, 3)[number], wanted)
        preprocess.close()


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "i420"), ("png", "rgb")])
@pytest.mark.parametrize("turn", [1, 5, 6, 8])
def test_images_of_a_folder_are_those_of_the_cpu(
    driver: SimulatedDriver, tmp_path: Path, suffix: str, kind: str, turn: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    for number in range(3):
        Image.fromarray(picture(number, 64, 48)).save(tmp_path / f"{number}.{suffix}", exif=exif)
    spec = resized_spec(3, 20, 20, Transform(Resize("short_side", 24, 24), Crop(20, 20)))
    backend = Blank(driver, spec)
    with Engine(spec, backend, "cuda:0") as engine:
        on_cpu, on_cuda = CpuPreprocess(engine), CudaPreprocess(engine, backend.cuda)
        preprocess: CpuPreprocess | CudaPreprocess
        for slot, preprocess in enumerate((on_cpu, on_cuda)):
            with open_video(tmp_path, images=Images(f"%d.{suffix}")) as decoder:
                frames = list(decoder)
            assert frames[0].picture().kind == kind
            preprocess.place(slot, 0, [preprocess.prepare(frame) for frame in frames])
        on_cuda.synchronize()
        np.testing.assert_array_equal(device_bytes(engine, 1), engine.buffer(0).reshape(-1))
        on_cuda.close()


def test_a_picture_whose_rows_run_upwards_is_converted_first() -> None:
    """Some decoders of raw video give such pictures, with a negative pitch that the kernels cannot use."""
    graph = av.filter.Graph()
    begin = graph.add_buffer(width=64, height=48, format="yuv420p", time_base=Fraction(1, 25))
    flip, end = graph.add("vflip"), graph.add("buffersink")
    begin.link_to(flip)
    flip.link_to(end)
    graph.configure()
    upright = av.VideoFrame.from_ndarray(picture(3), format="rgb24").reformat(format="yuv420p")
    graph.push(upright)
    flipped = graph.pull()
    assert isinstance(flipped, av.VideoFrame)
    assert flipped.planes[0].line_size < 0
    wanted = to_rgb(VideoReformatter(), flipped, UPRIGHT, "v")
    made = surface(flipped, UPRIGHT, lambda: wanted)
    assert (made.kind, made.planes[0].address) == ("rgb", wanted.ctypes.data)
    assert surface(upright, UPRIGHT, lambda: wanted).kind == "i420"


# Decoding on the GPU


class Surfaces:
    """Like NVDEC's: few surfaces, each written again as soon as nobody holds its picture."""

    def __init__(self, driver: SimulatedDriver, size: int, count: int) -> None:
        self._driver = driver
        self._free = [int(driver.cuMemAlloc(size)[1]) for _ in range(count)]
        self._addresses = list(self._free)
        self._released = threading.Condition()

    def decode(self, luma: NDArray[np.uint8], chroma: NDArray[np.uint8]) -> tuple[int, object]:
        """Queue the writing of a picture on the default stream; returns its address and its owner."""
        with self._released:
            assert self._released.wait_for(lambda: self._free, 30), "surfaces are held for ever"
            address = self._free.pop()

        def write() -> None:
            ctypes.memmove(address, luma.ctypes.data, luma.nbytes)
            ctypes.memmove(address + luma.nbytes, chroma.ctypes.data, chroma.nbytes)

        self._driver.put(0, write)
        owner = Owner()
        weakref.finalize(owner, self._release, address)
        return address, owner

    def _release(self, address: int) -> None:
        with self._released:
            self._free.append(address)
            self._released.notify()

    def close(self) -> None:
        gc.collect()
        assert len(self._free) == len(self._addresses)
        for address in self._addresses:
            self._driver.cuMemFree(address)


class Owner:
    """An object that weak references can refer to."""


@dataclass
class GpuFrame:
    """A frame whose picture is in simulated device memory."""

    index: int
    start: Fraction
    end: Fraction
    height: int
    width: int
    luma: NDArray[np.uint8]
    chroma: NDArray[np.uint8]
    surfaces: Surfaces

    def rgb(self) -> Any:
        raise AssertionError("a picture on the device must not be converted on the host")

    def picture(self) -> Picture:
        address, owner = self.surfaces.decode(self.luma, self.chroma)
        planes = (
            Plane(address, self.luma.shape[1], len(self.luma)),
            Plane(address + self.luma.nbytes, self.chroma.shape[1], len(self.chroma)),
        )
        return Picture("nv12", planes, self.height, self.width, Convention(), UPRIGHT, True, owner)


class GpuDecoder:
    """Decodes on the CPU, and gives the frames that NVDEC would give."""

    def __init__(self, path: Path, driver: SimulatedDriver) -> None:
        self._inner = open_video(path)
        self.info: VideoInfo = replace(self._inner.info, on_gpu=True)
        self._surfaces = Surfaces(driver, self.info.height * self.info.width * 3 // 2, 60)

    def __iter__(self) -> GpuDecoder:
        return self

    def __next__(self) -> GpuFrame:
        frame = next(self._inner)
        picture = frame.picture()
        assert picture.kind == "i420"
        planes = [
            np.ctypeslib.as_array((ctypes.c_uint8 * item.size).from_address(item.address))
            .reshape(item.rows, item.pitch)[:, : picture.width >> (number > 0)]
            .copy()
            for number, item in enumerate(picture.planes)
        ]
        chroma = np.stack(planes[1:], axis=2).reshape(len(planes[1]), -1)
        return GpuFrame(
            frame.index,
            frame.start,
            frame.end,
            picture.height,
            picture.width,
            planes[0],
            chroma,
            self._surfaces,
        )

    def skip_to(self, index: int) -> None:
        self._inner.skip_to(index)

    def close(self) -> None:
        self._inner.close()


def test_pictures_on_the_device_stay_there(
    driver: SimulatedDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        Job(make_video(tmp_path / f"v{i}.mp4", width=40 + 2 * i, height=32, frames=20 + 13 * i), f"v{i}")
        for i in range(5)
    ]
    spec = tiny_spec(step=2)
    expected = read(Pipeline(Engine(spec, OnHost()), workers=2).run(jobs))
    decoders: list[GpuDecoder] = []

    def open_on(path: Path, threads: int, gpu: int | None, _: object) -> Any:
        if gpu is None:
            return open_video(path, threads)
        decoders.append(GpuDecoder(path, driver))
        return decoders[-1]

    monkeypatch.setattr(pipeline_module, "open_video", open_on)
    with Engine(spec, TinyOnDevice(driver, 3), "cuda:0") as engine:
        pipeline = Pipeline(engine, workers=1, gpu_decoders=2)
        found = read(pipeline.run(jobs))

    assert len(decoders) + pipeline.stats.videos >= len(jobs)
    assert 0 < pipeline.stats.frames_on_gpu <= pipeline.stats.frames
    for name, want in expected.items():
        have = found[name]
        assert isinstance(have, Features)
        assert isinstance(want, Features)
        np.testing.assert_allclose(have.arrays["features"], want.arrays["features"], rtol=TINY)
    for decoder in decoders:
        decoder._surfaces.close()


# What goes wrong


def test_a_bad_video_ends_its_own_job_only(
    driver: SimulatedDriver, videos: list[Job], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.mp4"
    whole = videos[0].path.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    jobs = [videos[0], Job(damaged, "damaged"), videos[1]]
    with Engine(tiny_spec(), TinyOnDevice(driver, 2), "cuda:0") as engine:
        found = read(Pipeline(engine, workers=1).run(jobs))

    assert isinstance(found["damaged"], VideoError)
    assert isinstance(found["v0"], Features)
    assert isinstance(found["v1"], Features)


def test_too_little_memory_ends_the_run_with_its_reason(
    videos: list[Job], kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = SimulatedDriver(memory=1 << 20, kernels=kernels.for_driver())
    monkeypatch.setattr(cuda_python, "driver", simulated)
    with (
        Engine(tiny_spec(), TinyOnDevice(simulated, 2), "cuda:0") as engine,
        pytest.raises(EngineError, match="out of memory"),
    ):
        read(Pipeline(engine, workers=2).run(videos))
    assert simulated.leaks() == []


def test_a_host_engine_has_no_device_input() -> None:
    engine = Engine(tiny_spec(), OnHost())
    assert engine.cuda is None
    with pytest.raises(Exception, match="reads its input from host memory"):
        engine.device_input(0)
    with pytest.raises(Exception, match="reads its input from host memory"):
        engine.submit(0, 1, on_device=True)
