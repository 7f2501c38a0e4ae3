"""Whether a GPU decodes, according to a stand-in for NVIDIA's library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import av
import av.codec.hwaccel
import pytest

from make_video import cut_video, make_video
from simulated_cuda import SimulatedDriver
from tiny import tiny_engine, tiny_spec
from tiny_on_device import TinyOnDevice
from vfx_engines import cuda_python, open_engine
from vfx_engines.devices import missing_driver
from vfx_engines.engine import Engine
from vfx_engines.errors import UsageError, VideoError
from vfx_runtime import nvdec
from vfx_runtime.opening import open_video
from vfx_runtime.pyav_decoder import PyAvDecoder

# The structure as cuviddec.h declares it.
LIBRARY = """
typedef struct {
    int codec, chroma; unsigned depth, reserved1[3];
    unsigned char supported, units; unsigned short mask;
    unsigned max_width, max_height, max_blocks; unsigned short min_width, min_height;
    unsigned char histogram, bits; unsigned short bins; unsigned reserved3[10];
} Caps;
int cuvidGetDecoderCaps(Caps *caps) {
    if (sizeof(Caps) != 88 || caps->codec != 4 || caps->chroma != 1 || caps->depth != 0) return 1;
    caps->supported = SUPPORTED;
    caps->units = UNITS;
    return 0;
}
"""


def library(folder: Path, supported: int, units: int) -> str:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (folder / "nvcuvid.c").write_text(LIBRARY)
    path = folder / f"libnvcuvid-{supported}-{units}.so"
    flags = [f"-DSUPPORTED={supported}", f"-DUNITS={units}", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", path, folder / "nvcuvid.c"], check=True)
    return str(path)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Engine:
    driver = SimulatedDriver()
    monkeypatch.setattr(cuda_python, "driver", driver)
    return Engine(tiny_spec(), TinyOnDevice(driver, 2), "cuda:0")


def test_pictures_of_another_size_than_the_streams_are_refused(tmp_path: Path) -> None:
    """A GPU gives such pictures if the stream is cropped at its left; the CPU then decodes the video."""
    with PyAvDecoder(cut_video(tmp_path / "v.mp4")) as decoder:
        assert (decoder.info.height, decoder.info.width) == (140, 192)
        decoder._check_surface(av.VideoFrame(192, 140, "nv12"))
        with pytest.raises(VideoError, match="gives pictures of 256x144, not 192x140: decode it on the CPU"):
            decoder._check_surface(av.VideoFrame(256, 144, "nv12"))


@pytest.mark.parametrize(("supported", "units", "decoders"), [(1, 7, 14), (1, 0, 2), (0, 7, 0)])
def test_there_are_two_decoders_for_each_unit(
    on_gpu: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: int, units: int, decoders: int
) -> None:
    monkeypatch.setattr(nvdec, "_LIBRARY", library(tmp_path, supported, units))

    assert nvdec.gpu_decoders(on_gpu) == decoders
    assert nvdec.gpu_decoders(on_gpu, "cpu") == 0
    if not supported:
        with pytest.raises(UsageError, match=r"decodes no H\.264"):
            nvdec.gpu_decoders(on_gpu, "nvdec")


def test_without_the_library_the_cpu_decodes(on_gpu: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvdec, "_LIBRARY", "libnvcuvid-that-is-not-there.so")

    lines: list[str] = []
    assert nvdec.gpu_decoders(on_gpu, said=lines.append) == 0
    (line,) = lines
    assert line.startswith("decoding: on the CPU alone: libnvcuvid-that-is-not-there.so is not found")
    with pytest.raises(UsageError, match="NVIDIA_DRIVER_CAPABILITIES"):
        nvdec.gpu_decoders(on_gpu, "nvdec")


def test_an_engine_on_a_cpu_has_its_videos_decoded_there(tmp_path: Path) -> None:
    with open_engine(tiny_engine(tmp_path / "tiny.onnx")) as engine:
        lines: list[str] = []
        assert nvdec.gpu_decoders(engine, said=lines.append) == 0
        assert lines == []
        with pytest.raises(UsageError, match="is not on a GPU"):
            nvdec.gpu_decoders(engine, "nvdec")


def test_what_a_gpu_cannot_take_is_decoded_on_the_cpu(tmp_path: Path) -> None:
    """Here because there is no GPU at all."""
    if missing_driver() is None:
        pytest.skip("this machine has a CUDA device")
    path = make_video(tmp_path / "v.mp4", frames=5)
    with open_video(path, gpu=0) as decoder:
        assert not decoder.info.on_gpu
        assert [frame.index for frame in decoder] == [0, 1, 2, 3, 4]
    with pytest.raises(VideoError, match="No such file"):
        open_video(tmp_path / "absent.mp4", gpu=0)


def test_the_ffmpeg_of_pyav_has_nvdec() -> None:
    assert "cuda" in av.codec.hwaccel.hwdevices_available()
    for codec in ("h264", "hevc", "vp9"):
        kinds = {item.device_type for item in av.codec.Codec(codec, "r").hardware_configs or ()}
        assert av.codec.hwaccel.HWDeviceType.cuda in kinds
