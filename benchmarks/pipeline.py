"""How near an extraction comes to the limit that its stages' CPU-seconds set: long videos and short ones.

    .venv/bin/python benchmarks/pipeline.py                 # about ten minutes

The short videos are 200 of two seconds (24-frame windows), the long one is the same two seconds 200 times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from material import FOLDER, engine, looped, pieces, real_videos, save

from vfx_engines.spec import Precision
from vfx_runtime.bench import measure
from vfx_runtime.report import summary

SHORT_SECONDS, SHORT_VIDEOS = 2, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--video", type=Path, help="what all is made of  [default: a shared one]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="CASE", help="some of the cases")
    arguments = parser.parse_args()
    source = arguments.video or real_videos()[-1]
    shorts = short_videos(source)
    long = looped(shorts[0], SHORT_SECONDS * SHORT_VIDEOS)
    cases: dict[str, tuple[Precision, int, list[Path]]] = {
        "bf16, 24 frames, 200 videos of 2 s": ("bf16", 24, shorts),
        "bf16, 24 frames, one of 400 s": ("bf16", 24, [long]),
        "bf16, 64 frames, one of 400 s": ("bf16", 64, [long]),
        "fp32, 64 frames, one of 100 s": ("fp32", 64, [looped(shorts[0], 100)]),
    }
    found: dict[str, Any] = {}
    for name in arguments.only or cases:
        precision, frames, videos = cases[name]
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            report = measure(
                engine(precision, frames), videos, Path(folder), batches=[1], rounds=arguments.rounds
            )
        print(f"{name}: {statistics.median(report.shares):.3f} of the limit\n  {summary(report)}", flush=True)
        found[name] = report.plain()
    print(save("pipeline", {"source": source.name, "cases": found}))


def short_videos(source: Path) -> list[Path]:
    """The first two seconds of a video, re-encoded once and linked under 200 names."""
    folder = FOLDER / f"{source.stem}_{SHORT_VIDEOS}x{SHORT_SECONDS}s"
    paths = [folder / f"{number:03}.mp4" for number in range(SHORT_VIDEOS)]
    if all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    pieces(source, SHORT_SECONDS, paths[:1])
    for path in paths[1:]:
        path.unlink(missing_ok=True)
        os.link(paths[0], path)
    return paths


if __name__ == "__main__":
    main()
