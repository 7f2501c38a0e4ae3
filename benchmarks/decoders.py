"""CPU time per frame of the decoders that vfx could use: PyAV, which it uses, and decord.

    .venv/bin/python benchmarks/decoders.py [VIDEO ...]

One thread each, every frame converted to RGB, contenders in turns; the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import decord
from material import real_videos, save

from vfx_runtime.opening import open_video


def with_vfx(video: Path) -> int:
    """vfx's decoder, which uses PyAV."""
    with open_video(video) as decoder:
        return sum(1 for frame in decoder if frame.rgb() is not None)


def with_decord(video: Path) -> int:
    """decord's reader, frame by frame (its ``get_batch`` would hold all frames)."""
    reader = decord.VideoReader(str(video), num_threads=1)
    return sum(1 for _ in range(len(reader)) if reader.next().asnumpy() is not None)


CONTENDERS: dict[str, Callable[[Path], int]] = {
    f"PyAV {version('av')}": with_vfx,
    f"decord2 {version('decord2')}": with_decord,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="[default: the shared ones]")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    found = {}
    for video in real_videos(arguments.videos):
        best = dict.fromkeys(CONTENDERS, float("inf"))
        for _ in range(arguments.rounds):
            for name, decode in CONTENDERS.items():
                started = time.process_time()
                frames = decode(video)
                best[name] = min(best[name], (time.process_time() - started) / frames)
        with open_video(video) as decoder:
            size = f"{decoder.info.width}x{decoder.info.height} {decoder.info.codec}"
        found[video.name] = {"video": size, "cpu_ms_per_frame": {k: v * 1e3 for k, v in best.items()}}
        print(f"{video.name} ({size}): " + ", ".join(f"{k} {v * 1e3:.3f} ms" for k, v in best.items()))
    print(save("decoders", {"videos": found}))


if __name__ == "__main__":
    main()
