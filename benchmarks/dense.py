"""A window on every frame: SlowFast 8x8 on 40 frames, as slowfast_feature_extractor runs it.

    .venv/bin/python benchmarks/dense.py                     # two minutes a round

vfx-run is timed as a process, from its start to its end. The yardstick is the same network in torch,
eager and fp32, a window a call, on the same windows; its start, imports and weights are not counted. The
public tool's own time is in the parity kit, from another machine.

What is not the engine is decoding, resizing and gathering windows, timed without one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import FOLDER, SHARED_VIDEOS, save
from numpy.typing import NDArray

from vfx_engines import Engine, open_engine
from vfx_engines.spec import Precision, Sampling
from vfx_export.catalogue import find
from vfx_export.exporting import export_model, random_weights
from vfx_runtime.laying import windows
from vfx_runtime.measuring import Others, measure_engine
from vfx_runtime.opening import open_video
from vfx_runtime.preprocess import preprocess_for
from vfx_runtime.run_sampling import run_sampling
from vfx_runtime.sampling import Windows

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
ROW = find("slowfast_8x8_r50").resized("squash")
WINDOWS = ("--fps", "20", "--step", "1", "--stride", "1", "--anchor", "centre", "--tail", "zeros")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--video", type=Path, default=SHARED_VIDEOS / "v_GGSY1Qvo990_40f20.mp4")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    video: Path = arguments.video
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    files = {precision: exported(precision) for precision in PRECISIONS}
    module = ROW.network(False)
    random_weights(module)
    module.eval()
    seconds: dict[str, list[float]] = {"eager": [], **{name: [] for name in PRECISIONS}}
    engine_seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    other_seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    count = 0
    errors: dict[str, float] = {}
    shares: list[float | None] = []
    for _ in range(arguments.rounds):
        others = Others()
        wanted, taken = eager(module, files["fp32"], video)
        shares.append(others.share)
        count = len(wanted)
        seconds["eager"].append(taken)
        for name, file in files.items():
            rows, taken = vfx_run(file, video)
            seconds[name].append(taken)
            errors[name] = float(np.linalg.norm(rows - wanted) / np.linalg.norm(wanted))
            assert errors[name] < 2e-2, f"{name}: rows differ by {errors[name]:.1e}"
            with open_engine(file) as engine:
                engine_seconds[name].append(count / measure_engine(engine, 3).windows_per_second)
                other_seconds[name].append(without_engine(engine, video))
    found: dict[str, Any] = {"video": video.name, "windows": count, "rounds": arguments.rounds}
    found["eager_seconds"] = statistics.median(seconds["eager"])
    found["peer_seconds"] = peer_seconds()
    for name in PRECISIONS:
        engine_time, other = statistics.median(engine_seconds[name]), statistics.median(other_seconds[name])
        found[name] = {
            "seconds": statistics.median(seconds[name]),
            "times_eager": statistics.median(
                base / own for base, own in zip(seconds["eager"], seconds[name], strict=True)
            ),
            "engine_seconds": engine_time,
            "decode_resize_gather_seconds": other,
            "share_not_engine": other / (other + engine_time),
            "relative_error": errors[name],
        }
        print(
            f"{name}: {count} windows in {found[name]['seconds']:.1f} s, start included; "
            f"{found[name]['times_eager']:.1f} times eager ({found['eager_seconds']:.1f} s); "
            f"not the engine: {found[name]['share_not_engine']:.1%}"
        )
    print(save("dense", {"share_of_others": max(share or 0 for share in shares), **found}))


def exported(precision: Precision) -> Path:
    path = FOLDER / f"slowfast_8x8_r50_squash_{precision}.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        export_model(ROW, path, checkpoint=None, precision=precision, exact_zeros=True)
    return path


def vfx_run(engine: Path, video: Path) -> tuple[NDArray[np.float32], float]:
    """The rows that the command gives, and its seconds from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(sys.executable).with_name("vfx-run"))
        command = [program, "--engine", str(engine), str(video), "--output", folder, "--format", "slowfast"]
        started = time.perf_counter()
        subprocess.run([*command, *WINDOWS], check=True, capture_output=True)
        taken = time.perf_counter() - started
        return np.load(next(Path(folder).glob("*.npy"))), taken


def sampling() -> Sampling:
    return run_sampling(ROW.sampling, fps=20, step=1, stride=1, anchor="centre", tail="zeros")


def eager(module: torch.nn.Module, file: Path, video: Path) -> tuple[NDArray[np.float32], float]:
    """The rows by torch, one window per call, and the seconds taken, which include vfx making the windows."""
    rows = []
    with open_engine(file) as engine, torch.inference_mode():
        started = time.perf_counter()
        for window in gathered(engine, video):
            rows.append(module(torch.from_numpy(window))[0].numpy())
        taken = time.perf_counter() - started
    return np.concatenate(rows), taken


def without_engine(engine: Engine, video: Path) -> float:
    """Seconds to make all windows and put them where the engine reads them."""
    for _ in gathered(engine, video):  # the first pass loads the resize filter
        pass
    started = time.perf_counter()
    for _ in gathered(engine, video):
        pass
    return time.perf_counter() - started


def gathered(engine: Engine, video: Path) -> Any:
    """The windows of a video one by one, uint8 ``[1, time, height, width, 3]``, in the engine's buffer."""
    preprocess = preprocess_for(engine)
    with open_video(video) as decoder:
        laid = [(sampling(), Windows(sampling(), decoder.info.fps))]
        for _, window, kept in windows(decoder, laid, [preprocess.prepare]):
            pixels = [None if sample < 0 else kept[sample].prepared for sample in window.samples]
            preprocess.place(0, 0, pixels)
            yield engine.buffer(0)[:1]
    preprocess.close()


def peer_seconds() -> float | None:
    """Seconds that slowfast_feature_extractor took for 40 windows on the parity kit's machine, if known."""
    index = SHARED_VIDEOS.parent / "parity" / "e2e" / "index.json"
    if not index.exists():
        return None
    return float(json.loads(index.read_text())["jobs"]["slowfast_windows"]["peer_seconds"])


if __name__ == "__main__":
    main()
