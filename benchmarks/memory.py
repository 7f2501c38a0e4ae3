"""Peak memory of vfx-run on a short and on a long video: it must not grow with the length.

    .venv/bin/python benchmarks/memory.py                   # two minutes and two hours, I3D in fp32

Both are the same packets over and over. A video of two hours takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from material import engine, looped, real_videos, save

VFX_RUN = Path(sys.executable).with_name("vfx-run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--video", type=Path, help="what is looped  [default: a shared one]")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--seconds", type=float, nargs="+", default=[120, 7200])
    parser.add_argument("--step", type=int, default=64, help="frames from window to window")
    arguments = parser.parse_args()
    (source, *_) = [arguments.video] if arguments.video else real_videos()
    file = engine(arguments.precision)
    runs = []
    for seconds in arguments.seconds:
        video = looped(source, seconds)
        started = time.perf_counter()
        peak, said = run_alone(file, video, arguments.step)
        runs.append(
            {
                "video_seconds": seconds,
                "peak_bytes": peak,
                "seconds": time.perf_counter() - started,
                "said": said,
            }
        )
        print(f"{seconds:g} s of video: peak {peak / 2**20:.0f} MiB; {'; '.join(said)}", flush=True)
    growth = runs[-1]["peak_bytes"] / runs[0]["peak_bytes"]
    print(f"peak of the longest over that of the shortest: {growth:.3f}")
    found = {
        "engine": file.name,
        "video": source.name,
        "step": arguments.step,
        "growth": growth,
        "runs": runs,
    }
    print(save(f"memory_{arguments.precision}", found))


def run_alone(file: Path, video: Path, step: int) -> tuple[int, list[str]]:
    """Peak resident bytes of a vfx-run process, and the lines of its summary."""
    with tempfile.TemporaryDirectory() as output:
        command = [
            str(part) for part in (VFX_RUN, "--engine", file, video, "--output", output, "--step", step)
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"vfx-run left with {process.returncode}: {lines[-1:]}")
    return usage.ru_maxrss * 1024, [" ".join(line.split()) for line in lines if line.startswith(" ")]


if __name__ == "__main__":
    main()
