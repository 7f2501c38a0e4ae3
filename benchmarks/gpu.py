"""What a GPU allows and what vfx takes of it: roofline, preprocessing, decoding, engines, end to end.

    scripts/gpu                                                   # the GPU's tests, then this
    PYTHONPATH=export:engines:runtime python3 benchmarks/gpu.py --engine .bench/i3d_fp16_64.onnx a.mp4

From a bare checkout, without installing. Each step is kept as soon as it is done, and one that fails says
why and holds up no other. An engine that is not there is exported first, with random weights, which needs
onnxscript. A network in torch, eager and compiled, is an engine too: that needs no backend for CUDA.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
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
from vfx_engines.cuda import Argument, Cuda
from vfx_engines.devices import open_cuda
from vfx_engines.errors import UsageError, VfxError
from vfx_engines.nvrtc import compiled
from vfx_engines.spec import Crop, Precision, Resize, Transform
from vfx_runtime.job import Job
from vfx_runtime.measuring import make_video, measure_engine
from vfx_runtime.nvdec import gpu_decoders, nvdec_units
from vfx_runtime.opening import open_video
from vfx_runtime.picture import UPRIGHT, Convention, SurfaceFormat
from vfx_runtime.pipeline import Pipeline
from vfx_runtime.resize import plan
from vfx_runtime.surfaces import (
    KERNELS,
    MOST_FRAMES,
    MOST_SURFACES,
    STRIP,
    Frames,
    Surface,
    Surfaces,
    Taps,
    colour,
    geometry,
    source,
)

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-bindings", "av", "llvmlite", "numpy")
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="[default: the shared ones, or one made here]")
    parser.add_argument("--engine", action="append", type=Path, help="[default: I3D in fp16 and fp32]")
    parser.add_argument("--model", default="i3d", help="run in torch [default: i3d]")
    parser.add_argument("--batch", type=int, default=8, help="of the model in torch [default: 8]")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement [default: 4]")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    seconds = arguments.seconds

    try:
        cuda = open_cuda()
    except VfxError as error:
        raise SystemExit(f"benchmarks/gpu.py: {error}") from None
    found: dict[str, Any] = {"machine": facts(cuda)}

    def step(title: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure, print, and save all results so far, since the next step may end in any way."""
        started = time.perf_counter()
        try:
            result = measure()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"}
        result["took_s"] = round(time.perf_counter() - started, 1)
        found[title] = result
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        print(f"\n{title}\n{json.dumps(result, indent=1)}", flush=True)
        return result

    roof = step("roofline", roofline)
    step("preprocessing", lambda: preprocessing(cuda, roof.get("copy_gb_s", math.inf)))
    step("gathering", lambda: gathering(cuda, roof.get("copy_gb_s", math.inf)))
    with tempfile.TemporaryDirectory() as folder:
        videos = arguments.videos or some_videos(Path(folder))
        rates = step("decoding, frames per second", lambda: decoding(cuda, videos, seconds))
        fastest = max((rate for name, rate in rates.items() if " x " in name), default=math.inf)
        work: list[tuple[str, Callable[[], Engine]]] = [
            (
                f"torch {'compiled' if compile else 'eager'}, {arguments.model} {precision}",
                partial(in_torch, cuda, arguments.model, precision, arguments.batch, compile),
            )
            for precision in PRECISIONS
            for compile in (False, True)
        ]
        work += [(str(path), partial(open_engine, path, device="cuda")) for path in arguments.engine or ()]
        if not arguments.engine:
            work += [(f"file, i3d {precision}", partial(exported, precision)) for precision in PRECISIONS]
        for title, opened in work:
            step(title, partial(measured, opened, videos, seconds, roof, fastest))
            torch.cuda.empty_cache()
    print(arguments.output)


def in_torch(cuda: Cuda, model: str, precision: Precision, batch: int, compile: bool) -> Engine:
    from torch_on_cuda import torch_engine  # if the exporter cannot be imported, only this step fails

    return torch_engine(cuda, model, precision, batch, compile=compile)


def exported(precision: Precision) -> Engine:
    """I3D's engine file, which is only made if something here can run it."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UsageError("ONNX Runtime has no CUDA provider here: pip install onnxruntime-gpu")
    return open_engine(engine(precision), device="cuda")


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


def some_videos(folder: Path) -> list[Path]:
    try:
        return real_videos()
    except SystemExit:
        return [make_video(folder / "made.mp4", 60)]


def per_second(work: Callable[[], object], seconds: float) -> float:
    """How often per second ``work``, which queues work on torch's stream, is completed."""
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


def roofline() -> dict[str, Any]:
    """The peak rates that the device reaches in practice, not those of its data sheet."""
    found: dict[str, Any] = {}
    side = 8192
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        rate = per_second(partial(torch.mm, a, b, out=out), 2)
        found[f"{name}_tflop_s"] = 2 * side**3 * rate / 1e12
    size = 1 << 30
    one, two = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=True)
    # A copy reads and writes, and both count.
    found["copy_gb_s"] = 2 * size * per_second(lambda: two.copy_(one), 2) / 1e9
    found["host_to_device_gb_s"] = (
        size // 4 * per_second(lambda: two[: size // 4].copy_(host, non_blocking=True), 2) / 1e9
    )
    return found


def preprocessing(cuda: Cuda, copy: float) -> dict[str, Any]:
    """The kernel alone, on surfaces in device memory: frames, and bytes read and written, per second."""
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
            # Several sets, so that they do not all fit into the device's cache.
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
            # The part of the source that the taps reach, counted once, and the output.
            rows, columns = ((t.span[1] - t.span[0]) for t in (item.rows, item.columns))
            reached = size * (rows / height) * (columns / width) + 224 * 224 * 3
            rates[f"{kind} {width}x{height}"] = {
                "frames_s": frames,
                "gb_s": frames * reached / 1e9,
                "share_of_copy": frames * reached / 1e9 / copy,
            }
    cuda.close_stream(stream)
    return rates


def gathering(cuda: Cuda, copy: float) -> dict[str, Any]:
    """Gathering windows of 64 frames, whole or cropped from wider ones: bytes read and written per second."""
    stream = cuda.stream()
    module = cuda.load(compiled(source(), "preprocess.cu", cuda.compute_capability))
    rates: dict[str, Any] = {}
    for size, width in ((224, 224), (224, 398), (256, 455), (312, 555), (182, 324)):
        pool = torch.randint(0, 256, (16, MOST_FRAMES, size, width, 3), dtype=torch.uint8, device="cuda")
        out = torch.empty(MOST_FRAMES, size, size, 3, dtype=torch.uint8, device="cuda")
        whole, total = width == size, size * size * 3
        chunks = total % 16 == 0
        kernel = cuda.function(module, "gather_chunks" if chunks else "gather_bytes")
        count = total // 16 if chunks else total
        launches: list[list[Argument]] = []
        for window in pool:
            frames = Frames()
            for i, frame in enumerate(window):
                frames.at[i].first = frame.data_ptr() + (width - size + 1) // 2 * 3
                frames.at[i].pitch = width * 3
            row = ctypes.c_int(total if whole else size * 3)
            launches.append(
                [frames, row, ctypes.c_int(count), ctypes.c_int(0), ctypes.c_void_p(out.data_ptr())]
            )
        torch.cuda.synchronize()
        turns, started = 0, time.perf_counter()
        while time.perf_counter() - started < 1:
            for arguments in launches:
                cuda.launch(kernel, (-(-count // 256), MOST_FRAMES, 1), (256, 1, 1), arguments, stream)
            cuda.synchronize(stream)
            turns += len(launches)
        windows = turns / (time.perf_counter() - started)
        moved = 2 * MOST_FRAMES * total * windows / 1e9
        rates[f"{size} of {width}"] = {"windows_s": windows, "gb_s": moved, "share_of_copy": moved / copy}
    cuda.close_stream(stream)
    return rates


def decoding(cuda: Cuda, videos: Sequence[Path], seconds: float) -> dict[str, Any]:
    """Frames per second of several decoders at once, on the CPU and on NVDEC. Pictures are not moved."""
    units, missing = nvdec_units(cuda)
    places = [("cpu", None, (1, 4, 16)), ("nvdec", 0, (1, 4, 7, 14) if units else ())]
    found: dict[str, Any] = {"nvdec": f"{units} units" if units else missing}
    for where, gpu, counts in places:
        for count in counts:
            found[f"{where} x {count}"] = decode_rate(videos, gpu, count, seconds)
    return found


def measured(
    opened: Callable[[], Engine],
    videos: Sequence[Path],
    seconds: float,
    roof: dict[str, Any],
    fastest: float,
) -> dict[str, Any]:
    """Measure one engine, alone and from files to rows."""
    with opened() as item:
        found: dict[str, Any] = {"engine": item.name, "batch": item.batch, "model": item.spec.model}
        found["clips_s"] = measure_engine(item, seconds).windows_per_second
        peak = roof.get("fp32_tflop_s" if item.precision == "fp32" else "fp16_tflop_s")
        if item.spec.macs and peak:
            found["share_of_roofline"] = 2 * item.spec.macs * found["clips_s"] / 1e12 / peak
        on_gpu = gpu_decoders(item)
        ends = found["end_to_end"] = {
            choice: end_to_end(
                item, videos, 0 if choice == "nvdec" else None, 0 if choice == "cpu" else on_gpu, seconds
            )
            for choice in ("cpu", "nvdec", "both")
            if choice == "cpu" or on_gpu
        }
        limit = min(fastest / item.spec.sampling.step, found["clips_s"])
        for rates in ends.values():
            rates["share_of_slowest_stage"] = rates["clips_s"] / limit
    return found


def decode_rate(videos: Sequence[Path], gpu: int | None, workers: int, seconds: float) -> float:
    """Frames per second of ``workers`` decoders at once."""
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
    """Clips per second from files to rows in memory, repeating the videos often enough to fill the time."""
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
