"""vfx against PyTorch doing the same job: the network alone, and from video file to features.

    .venv/bin/python benchmarks/compare.py                  # the shared videos, about ten minutes
    .venv/bin/python benchmarks/compare.py --rounds 7 a.mp4 b.mp4

All contenders have the same weights and take turns within each round, so that what else the machine does
meanwhile hits all of them; ratios are medians over the rounds. That their features agree is checked first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from material import RESULTS, engine, real_videos, save
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_extractor import PyTorchExtractor

from vfx_engines import Engine, open_engine
from vfx_engines.devices import available_cores
from vfx_engines.peak import matrix_peak
from vfx_engines.spec import Precision
from vfx_runtime.delivering import in_memory
from vfx_runtime.job import Job
from vfx_runtime.measuring import measure_end_to_end, measure_engine
from vfx_runtime.pipeline import Pipeline

BASE = "PyTorch eager, fp32"
CONTENDERS: dict[str, dict[str, Any]] = {
    BASE: {"precision": "fp32", "compiled": False},
    "PyTorch eager, fp32, channels_last_3d": {"precision": "fp32", "compiled": False, "channels_last": True},
    "PyTorch compile, fp32": {"precision": "fp32", "compiled": True},
    "PyTorch eager, bf16 autocast": {"precision": "bf16", "compiled": False},
    "PyTorch eager, bf16 autocast, channels_last_3d": {
        "precision": "bf16",
        "compiled": False,
        "channels_last": True,
    },
    "PyTorch compile, bf16 autocast": {"precision": "bf16", "compiled": True},
}
ENGINES: dict[str, Precision] = {"vfx, fp32": "fp32", "vfx, bf16": "bf16"}

AGREEMENT = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest relative difference (L2) from PyTorch eager fp32 at which features still count as the same."""

Rates = dict[str, list[float]]
"""Windows per second of each contender, one number per round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="[default: the shared ones]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=4, help="per round and contender, network alone")
    parser.add_argument("--turns", type=int, default=1, help="each video is extracted this often in a round")
    arguments = parser.parse_args()
    videos = real_videos(arguments.videos)
    extractors = {name: PyTorchExtractor(**settings) for name, settings in CONTENDERS.items()}
    engines = {name: open_engine(engine(precision)) for name, precision in ENGINES.items()}

    print("reading the videos, warming up, comparing the features", flush=True)
    started = time.perf_counter()
    agreement = check_agreement(extractors, engines, videos[0])
    print(f"all agree ({time.perf_counter() - started:.0f} s)", flush=True)

    alone = network_alone(extractors, engines, arguments.windows, arguments.rounds)
    ends = end_to_end(extractors, engines, list(videos) * arguments.turns, arguments.rounds)
    peaks = {precision: matrix_peak(item.precision, available_cores()) for precision, item in engines.items()}
    found = {
        "videos": [video.name for video in videos],
        "difference_from_eager_fp32": agreement,
        "matrix_peak_macs_per_second": peaks,
        "network_alone_windows_per_second": alone,
        "end_to_end_windows_per_second": ends,
        "network_alone_ratio": ratios(alone),
        "end_to_end_ratio": ratios(ends),
    }
    show("network alone", alone)
    show("from video file to features", ends)
    print(save("compare", found))
    draw(RESULTS / "compare.png", ratios(alone), ratios(ends))


def check_agreement(
    extractors: dict[str, PyTorchExtractor], engines: dict[str, Engine], video: Path
) -> dict[str, float]:
    """Relative difference (L2) of each contender's features of a video from the first contender's.

    This also warms the contenders up.

    Raises:
        SystemExit: a contender's features differ too much.
    """
    features: dict[str, NDArray[np.float32]] = {}
    for name, extractor in extractors.items():
        ((_, features[name]),) = extractor.extract([video])
    for name, item in engines.items():
        (done,) = in_memory([Job(video, "video")], Pipeline(item))
        assert done.features is not None, done.error
        features[name] = done.features.arrays["rgb"]
    base = features[BASE]
    found = {}
    for name, rows in features.items():
        if rows.shape != base.shape:
            raise SystemExit(f"{name}: {rows.shape} features, {BASE} has {base.shape}")
        found[name] = float(np.linalg.norm(rows - base) / np.linalg.norm(base))
        allowed = AGREEMENT["bf16" if "bf16" in name else "fp32"]
        if not found[name] <= allowed:
            raise SystemExit(f"{name}: features differ by {found[name]:.1e}, at most {allowed:.0e} allowed")
    return found


def network_alone(
    extractors: dict[str, PyTorchExtractor], engines: dict[str, Engine], windows: int, rounds: int
) -> Rates:
    """Windows per second of the networks alone, on pixels in memory."""
    noise = np.random.default_rng(0).integers(0, 256, (windows, 64, 224, 224, 3), np.uint8)

    def torch_rate(extractor: PyTorchExtractor) -> float:
        started = time.perf_counter()
        extractor.features(noise)
        return windows / (time.perf_counter() - started)

    runs: dict[str, Callable[[], float]] = {}
    for name, extractor in extractors.items():
        runs[name] = lambda extractor=extractor: torch_rate(extractor)  # type: ignore[misc]
    for name, item in engines.items():
        runs[name] = lambda item=item: measure_engine(item, 2.0).windows_per_second  # type: ignore[misc]
    return in_turns("network alone", runs, rounds)


def end_to_end(
    extractors: dict[str, PyTorchExtractor], engines: dict[str, Engine], videos: Sequence[Path], rounds: int
) -> Rates:
    """Windows per second from video file to features; vfx also writes them to files."""

    def torch_rate(extractor: PyTorchExtractor) -> float:
        started = time.perf_counter()
        windows = sum(len(rows) for _, rows in extractor.extract(videos))
        return windows / (time.perf_counter() - started)

    def vfx_rate(item: Engine) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return measure_end_to_end(item, item.spec.sampling, videos, 1, Path(folder)).windows_per_second

    runs: dict[str, Callable[[], float]] = {}
    for name, extractor in extractors.items():
        runs[name] = lambda extractor=extractor: torch_rate(extractor)  # type: ignore[misc]
    for name, item in engines.items():
        runs[name] = lambda item=item: vfx_rate(item)  # type: ignore[misc]
    return in_turns("end to end", runs, rounds)


def in_turns(what: str, runs: dict[str, Callable[[], float]], rounds: int) -> Rates:
    """Run each contender once per round."""
    rates: Rates = {name: [] for name in runs}
    for number in range(rounds):
        print(f"{what}: round {number + 1} of {rounds}", flush=True)
        for name, run in runs.items():
            rates[name].append(run())
            time.sleep(0.3)  # until the last one's threads stop spinning
    return rates


def ratios(rates: Rates) -> dict[str, float]:
    """The ratio of each contender to the first one: the median over the rounds."""
    return {
        name: statistics.median(rate / base for rate, base in zip(found, rates[BASE], strict=True))
        for name, found in rates.items()
    }


def show(title: str, rates: Rates) -> None:
    print(f"\n{title}: windows per second, and times {BASE}")
    for name, ratio in ratios(rates).items():
        print(f"  {name:48} {statistics.median(rates[name]):8.2f} {ratio:8.2f}x")


def draw(path: Path, alone: dict[str, float], ends: dict[str, float]) -> None:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(alone))
    for shift, label, found, colour in (
        (-0.2, "network alone", alone, "#4878a8"),
        (0.2, "from video file to features", ends, "#d9843b"),
    ):
        bars = axes.barh(places + shift, list(found.values()), 0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1fx", padding=3)
    axes.set_yticks(places, list(alone))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(f"times the windows per second of {BASE}")
    axes.legend(loc="upper right")
    axes.set_title("I3D, 64x224x224")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
