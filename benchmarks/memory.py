"""Peak memory of vfx-run on a short and on a long video: it must not grow with the length.

    .venv/bin/python benchmarks/memory.py                   # two minutes and two hours, I3D in fp32
    .venv/bin/python benchmarks/memory.py --engine raft_sintel.onnx --size 128x96 --fps 1 --seconds 240 1200

Both are the same packets over and over. A video of two hours takes about half an hour on two cores. RAFT's
memory also depends on the size of the frames: --size 320x240 --fps 1 --seconds 10 says how much.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from material import FOLDER, engine, looped, real_videos, save

VFX_RUN = [sys.executable, "-c", "from vfx_runtime.cli import main; main()"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--video", type=Path, help="what is looped  [default: a shared one]")
    parser.add_argument("--engine", type=Path, help="an engine file  [default: I3D, random weights]")
    parser.add_argument("--size", help="WIDTHxHEIGHT: loop a made video of noise instead")
    parser.add_argument("--fps", type=float, help="frame rate to bring the videos to")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--seconds", type=float, nargs="+", default=[120, 7200])
    parser.add_argument("--step", type=int, help="frames from window to window  [default: the engine's]")
    arguments = parser.parse_args()
    if arguments.size:
        source = made(*map(int, arguments.size.split("x")))
    else:
        (source, *_) = [arguments.video] if arguments.video else real_videos()
    file = arguments.engine or engine(arguments.precision)
    options = [f"--{name}={value}" for name in ("step", "fps") if (value := getattr(arguments, name))]
    runs = []
    for seconds in arguments.seconds:
        video = looped(source, seconds)
        started = time.perf_counter()
        peak, resident, said = run_alone(file, video, options)
        runs.append(
            {
                "video_seconds": seconds,
                "peak_bytes": peak,
                "resident_mib": resident,
                "seconds": time.perf_counter() - started,
                "said": said,
            }
        )
        print(f"{seconds:g} s of video: peak {peak / 2**20:.0f} MiB; {'; '.join(said)}", flush=True)
        print(f"  resident MiB, at ten times of the run: {resident}", flush=True)
    growth = runs[-1]["peak_bytes"] / runs[0]["peak_bytes"]
    print(f"peak of the longest over that of the shortest: {growth:.3f}")
    found = {
        "engine": file.name,
        "video": source.name,
        "options": options,
        "growth": growth,
        "runs": runs,
    }
    name = f"{file.stem}_{arguments.size or source.stem}" if arguments.engine else arguments.precision
    print(save(f"memory_{name}", found))


def made(width: int, height: int) -> Path:
    """Ten seconds of moving noise at 10 frames per second, H.264."""
    path = FOLDER / f"noise_{width}x{height}.mp4"
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (height + 100, width + 100, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # No B-frames, because `looped` repeats packets in the order in which they are stored.
        stream.options = {"bf": "0"}
        for number in range(100):
            shifted = np.ascontiguousarray(noise[number : number + height, number : number + width])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        out.mux(stream.encode())
    return path


def run_alone(file: Path, video: Path, options: list[str]) -> tuple[int, list[int], list[str]]:
    """Run vfx-run: its peak resident bytes, its resident MiB at ten moments, and its summary's lines."""
    samples: list[int] = []

    def watch(pid: int) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        with suppress(OSError, IndexError):
            while pages := int(Path(f"/proc/{pid}/statm").read_text().split()[1]):
                samples.append(pages * page >> 20)
                time.sleep(0.5)

    with tempfile.TemporaryDirectory() as output:
        command = [str(part) for part in (*VFX_RUN, "--engine", file, video, "--output", output, *options)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        threading.Thread(target=watch, args=(process.pid,), daemon=True).start()
        lines = process.stderr.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    resident = [samples[(len(samples) - 1) * part // 9] for part in range(10)] if samples else []
    if process.returncode:
        raise SystemExit(f"vfx-run left with {process.returncode}: {lines[-1:]}")
    return (
        usage.ru_maxrss * 1024,
        resident,
        [" ".join(line.split()) for line in lines if line.startswith(" ")],
    )


if __name__ == "__main__":
    main()
