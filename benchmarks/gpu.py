"""What a GPU allows and what vfx takes of it: roofline, engines, preprocessing, decoding, end to end.

    scripts/gpu                                                   # the GPU's tests, then this
    PYTHONPATH=export:engines:runtime python3 benchmarks/gpu.py --engine .bench/i3d_fp16_64.onnx a.mp4

From a bare checkout, without installing. An engine that is not there is exported first, with random
weights, which needs torch and onnxscript. Where a backend is not installed, the reason is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import RESULTS, engine, real_videos

from vfx_engines import Engine, open_engine
from vfx_engines.cuda import Cuda
from vfx_engines.devices import open_cuda
from vfx_engines.errors import VfxError
from vfx_engines.nvrtc import compiled
from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime.job import Job
from vfx_runtime.measuring import make_video, measure_engine
from vfx_runtime.nvdec import gpu_decoders
from vfx_runtime.opening import open_video
from vfx_runtime.picture import UPRIGHT, Convention, SurfaceFormat
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.resize import plan
from vfx_runtime.surfaces import (
    KERNELS,
    MOST_SURFACES,
    STRIP,
    Surface,
    Surfaces,
    Taps,
    colour,
    geometry,
    source,
)

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-bindings", "av", "numba", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="[default: the shared ones, or one made here]")
    parser.add_argument("--engine", action="append", type=Path, help="[default: I3D in fp16 and fp32]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    engines = arguments.engine or [engine("fp16"), engine("fp32")]
    seconds = arguments.seconds

    try:
        cuda = open_cuda()
    except VfxError as error:
        raise SystemExit(f"benchmarks/gpu.py: {error}") from None
    found: dict[str, Any] = {"machine": facts(cuda)}
    try:
        found["roofline"] = show("roofline", roofline())
        found["preprocessing"] = show("preprocessing", preprocessing(cuda, found["roofline"]["copy_gb_s"]))
        with tempfile.TemporaryDirectory() as folder:
            videos = arguments.videos or some_videos(Path(folder))
            found["engines"] = [
                show(str(path), measured(path, videos, seconds, found["roofline"])) for path in engines
            ]
    finally:
        # Whatever a later step does: what was measured before is worth keeping.
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        print(arguments.output)


def facts(cuda: Cuda) -> dict[str, Any]:
    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": cuda.name,
        "compute_capability": cuda.compute_capability,
        "driver": torch.cuda.driver_version() if hasattr(torch.cuda, "driver_version") else None,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: of(package) for package in PACKAGES},
    }


def show(title: str, found: dict[str, Any]) -> dict[str, Any]:
    print(f"\n{title}\n{json.dumps(found, indent=1)}", flush=True)
    return found


def some_videos(folder: Path) -> list[Path]:
    try:
        return real_videos()
    except SystemExit:
        return [make_video(folder / "made.mp4", 60)]


def per_second(work: Callable[[], object], seconds: float) -> float:
    """How often ``work``, which enqueues on torch's stream, is done in a second."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(8):
            work()
        torch.cuda.synchronize()
        count += 8
    return count / (time.perf_counter() - started)


def roofline() -> dict[str, float]:
    """What the device reaches, not what its data sheet says."""
    found = {}
    side = 8192
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        rate = per_second(partial(torch.mm, a, b, out=out), 2)
        found[f"{name}_tflop_s"] = 2 * side**3 * rate / 1e12
    size = 1 << 30
    one, two = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=True)
    # A copy reads and writes: both count.
    found["copy_gb_s"] = 2 * size * per_second(lambda: two.copy_(one), 2) / 1e9
    found["host_to_device_gb_s"] = (
        size // 4 * per_second(lambda: two[: size // 4].copy_(host, non_blocking=True), 2) / 1e9
    )
    return found


def preprocessing(cuda: Cuda, copy: float) -> dict[str, Any]:
    """The kernel alone, on surfaces in device memory: bytes that it has to read and write, per second."""
    stream = cuda.stream()
    module = cuda.load(compiled(source(), "preprocess.cu", cuda.compute_capability))
    transform = Transform(Resize("short_side", 256, 256), Crop(224, 224, "centre_floor"))
    kinds: tuple[SurfaceFormat, ...] = ("nv12", "i420", "p016", "rgb")
    rates = {}
    for width, height in ((320, 240), (640, 360), (1280, 720), (1920, 1080), (3840, 2160)):
        item = plan(transform, height, width)
        tables = torch.from_numpy(
            np.concatenate(
                [
                    np.ascontiguousarray(array).reshape(-1)
                    for array in (item.rows.start, item.rows.weight, item.columns.start, item.columns.weight)
                ]
            )
        ).cuda()
        lengths = (4 * array.size for array in (item.rows.start, item.rows.weight, item.columns.start))
        places = np.cumsum([0, *lengths])
        taps = Taps(*(tables.data_ptr() + int(place) for place in places))
        out = torch.empty(MOST_SURFACES, 224 * 224 * 3, dtype=torch.uint8, device="cuda")
        for kind in kinds:
            sample = 2 if kind == "p016" else 1
            pitch = width * (3 if kind == "rgb" else sample)
            size = pitch * height if kind == "rgb" else pitch * height * 3 // 2
            # Several sets, so that they do not all lie in the cache of the device.
            sets = max(2, (256 << 20) // (size * MOST_SURFACES))
            pixels = torch.randint(0, 256, (sets, MOST_SURFACES, size), dtype=torch.uint8, device="cuda")
            launches = []
            for number in range(sets):
                surfaces = Surfaces()
                for i in range(MOST_SURFACES):
                    luma = pixels[number, i].data_ptr()
                    chroma = luma + pitch * height
                    surfaces.at[i] = Surface(
                        luma,
                        chroma,
                        chroma + (width // 2) * (height // 2),
                        pitch,
                        width // 2 if kind == "i420" else pitch,
                        out[i].data_ptr(),
                    )
                launches.append([surfaces, geometry(item, UPRIGHT), colour(Convention(1), kind), taps])
            kernel = cuda.function(module, KERNELS[kind])
            strips = -(-item.out_height // STRIP)
            grid = (-(-item.out_width // 32), -(-strips // 4), MOST_SURFACES)
            torch.cuda.synchronize()
            for arguments in launches:
                cuda.launch(kernel, grid, (32, 4, 1), arguments, stream)
            cuda.synchronize(stream)
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < 1:
                for arguments in launches:
                    cuda.launch(kernel, grid, (32, 4, 1), arguments, stream)
                cuda.synchronize(stream)
                count += sets * MOST_SURFACES
            frames = count / (time.perf_counter() - started)
            # What the taps reach of the source, once; and the output.
            rows, columns = ((t.span[1] - t.span[0]) for t in (item.rows, item.columns))
            reached = size * (rows / height) * (columns / width) + 224 * 224 * 3
            rates[f"{kind} {width}x{height}"] = {
                "frames_s": frames,
                "gb_s": frames * reached / 1e9,
                "share_of_copy": frames * reached / 1e9 / copy,
            }
    cuda.close_stream(stream)
    return rates


def measured(path: Path, videos: Sequence[Path], seconds: float, roof: dict[str, float]) -> dict[str, Any]:
    """One engine: alone by each backend, torch beside it, decoding, and end to end."""
    found: dict[str, Any] = {"file": path.name}
    try:
        item = open_engine(path, device="cuda")
    except VfxError as error:
        return found | {"error": str(error)}
    with item:
        found |= {"engine": item.name, "batch": item.batch, "model": item.spec.model}
        cost = measure_engine(item, seconds)
        found["clips_s"] = cost.windows_per_second
        peak = roof["fp32_tflop_s" if item.precision == "fp32" else "fp16_tflop_s"]
        if item.spec.macs:
            found["share_of_roofline"] = 2 * item.spec.macs * cost.windows_per_second / 1e12 / peak
        found["torch_clips_s"] = torch_rates(item, seconds)
        on_gpu = gpu_decoders(item)
        found["decode_frames_s"] = {
            f"{where} x {count}": decode_rate(videos, gpu, count, seconds)
            for where, gpu, counts in (("cpu", None, (1, 4, 16)), ("nvdec", 0, (1, 4, 7, 14)))
            if gpu is None or on_gpu
            for count in counts
        }
        found["end_to_end"] = {
            choice: end_to_end(
                item, videos, 0 if choice == "nvdec" else None, 0 if choice == "cpu" else on_gpu, seconds
            )
            for choice in ("cpu", "nvdec", "both")
            if choice == "cpu" or on_gpu
        }
        step = item.spec.sampling.step
        fastest = max(found["decode_frames_s"].values()) / step
        for rates in found["end_to_end"].values():
            rates["share_of_slowest_stage"] = rates["clips_s"] / min(fastest, found["clips_s"])
    return found


def torch_rates(item: Engine, seconds: float) -> dict[str, float | str]:
    """The same network in torch, eager and compiled, in the layout that cuDNN likes best."""
    from vfx_export.catalogue import find
    from vfx_export.exporting import random_weights

    try:
        module = find(item.spec.model).network(False)
    except VfxError as error:
        return {"error": str(error)}
    random_weights(module)
    dtype = torch.float32 if item.precision == "fp32" else torch.float16
    module = module.eval().cuda().to(dtype)
    module = module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs know 4-d formats only
    shape = (item.batch, *(int(axis) for axis in item.spec.input.shape[1:]))
    windows = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    rates: dict[str, float | str] = {}
    for name, network in (("eager", module), ("compile", torch.compile(module, dynamic=False))):
        with torch.inference_mode():
            try:
                rates[name] = item.batch * per_second(partial(network, windows), seconds)
            except Exception as error:  # a compiler that is not installed, memory: the others count
                rates[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return rates


def decode_rate(videos: Sequence[Path], gpu: int | None, workers: int, seconds: float) -> float:
    """Frames per second of so many decoders at once; pictures stay where they were decoded."""
    end = time.perf_counter() + seconds
    counts: list[int] = []

    def work() -> None:
        count = 0
        while time.perf_counter() < end:
            for video in videos:
                with open_video(video, 1, gpu) as decoder:
                    for _ in decoder:
                        count += 1
                        if time.perf_counter() >= end:
                            break
        counts.append(count)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def end_to_end(
    item: Engine, videos: Sequence[Path], workers: int | None, on_gpu: int, seconds: float
) -> dict[str, float]:
    """Clips per second from files to rows in memory, over enough turns to fill the time."""
    turns = 4
    while True:
        pipeline = Pipeline(item, workers=workers, gpu_decoders=on_gpu)
        jobs = [Job(video, f"{turn}-{i}") for turn in range(turns) for i, video in enumerate(videos)]
        started = time.perf_counter()
        for result in pipeline.run(jobs, len(jobs)):
            if result.error is not None:
                raise result.error
            assert result.rows is not None
            result.rows.close()
        taken = time.perf_counter() - started
        if taken >= seconds:
            stats = pipeline.stats
            return {
                "clips_s": stats.windows / taken,
                "frames_s": stats.frames / taken,
                "frames_on_gpu": stats.frames_on_gpu / max(1, stats.frames),
            }
        turns = max(turns + 1, int(turns * seconds / taken * 1.2))


if __name__ == "__main__":
    main()
