"""A thousand short videos by one process, four that share a folder, and Ray: same bytes, and how fast.

    .venv/bin/python benchmarks/corpus.py                   # I3D bf16, 24 frames; about half an hour
    .venv/bin/python benchmarks/corpus.py --videos 100 --rounds 1 --without-ray

Contenders take turns within each round. Four processes have a share of the cores each (``--threads``), as
have four actors; a run of one process has them all.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

from material import FOLDER, engine, pieces, real_videos, save

from vfx_engines.devices import available_cores
from vfx_runtime.measuring import machine_facts

VFX_RUN = Path(sys.executable).with_name("vfx-run")
PROCESSES = 4
SHARE = ["--threads", str(max(1, available_cores() // PROCESSES))]
"""Options of each of these processes."""
SECONDS = 2
PIECES = 5
"""Number of pieces that each source video is cut into."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--video", type=Path, action="append", help="cut these  [default: the shared ones]")
    parser.add_argument("--videos", type=int, default=1000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--engine", type=Path, help="another engine  [default: I3D of 24 frames]")
    parser.add_argument("--without-ray", action="store_true")
    arguments = parser.parse_args()
    file = arguments.engine or engine(arguments.precision, 24)
    videos = corpus(real_videos(arguments.video or ()), arguments.videos)
    output = FOLDER / "corpus"
    contenders: dict[str, list[list[str]]] = {
        "one process": [[]],
        f"{PROCESSES} processes": [SHARE] * PROCESSES,
    }
    if not arguments.without_ray:
        contenders[f"Ray, {PROCESSES} actors"] = [["--ray", "--actors", str(PROCESSES)]]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    first: dict[str, str] = {}
    for number in range(arguments.rounds):
        for name, runs in contenders.items():
            shutil.rmtree(output, ignore_errors=True)
            seconds[name].append(timed(file, videos, output, runs))
            found = digests(output)
            first = first or found
            if len(found) != arguments.videos or found != first:
                raise SystemExit(f"{name}: its features are not those of one process")
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.1f} s", flush=True)
    alone = seconds["one process"]
    ratios = {
        name: statistics.median(own / other for own, other in zip(alone, took, strict=True))
        for name, took in seconds.items()
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f} times the throughput of one process, byte-identical features")
    shutil.rmtree(output, ignore_errors=True)
    found_all = {
        "engine": file.name,
        "videos": arguments.videos,
        "seconds_of_each": SECONDS,
        "cores": machine_facts()["cores"],
        "seconds": seconds,
        "throughput_of_one_process": ratios,
    }
    print(save("corpus", found_all))


def corpus(sources: list[Path], number: int) -> Path:
    """A folder of links to short pieces of the source videos, which alternate so that neighbours differ."""
    kept = FOLDER / f"pieces_of_{SECONDS}s"
    kept.mkdir(parents=True, exist_ok=True)
    made = [[kept / f"{source.stem}_{piece}.mp4" for piece in range(PIECES)] for source in sources]
    for source, paths in zip(sources, made, strict=True):
        if not all(path.exists() for path in paths):
            pieces(source, SECONDS, paths)
    turns = cycle(path for of_each in zip(*made, strict=True) for path in of_each)
    folder = FOLDER / f"corpus_{number}"
    shutil.rmtree(folder, ignore_errors=True)
    for index, piece in zip(range(number), turns, strict=False):
        path = folder / f"{index // 100:02}" / f"{index:05}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(piece, path)
    return folder


def command(file: Path, videos: Path, output: Path, more: list[str]) -> list[str]:
    """The command of one process, with its further options."""
    return [*map(str, (VFX_RUN, videos, "--engine", file, "--output", output)), *more]


def timed(file: Path, videos: Path, output: Path, runs: list[list[str]]) -> float:
    """Seconds until the last of several runs on one folder has ended, including their start-up."""
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            command(file, videos, output, more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for more in runs
    ]
    said = [process.communicate()[1] for process in processes]
    seconds = time.perf_counter() - started
    if any(process.returncode for process in processes):
        raise SystemExit(f"vfx-run failed: {said}")
    return seconds


def digests(output: Path) -> dict[str, str]:
    """The hash of every file that was written, by name."""
    return {
        path.relative_to(output).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    main()
