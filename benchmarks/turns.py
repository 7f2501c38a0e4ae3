"""One process, and four that share a folder, by turns of a few seconds: throughput once all have started.

    .venv/bin/python benchmarks/turns.py                    # I3D bf16, 24 frames; four minutes

Each stands still (SIGSTOP) while it is the other's turn, so both meet the same machine, whatever else runs
on it. Each has a thousand short videos of its own, which must last for all turns.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path

from corpus import PROCESSES, SHARE, command, corpus
from material import FOLDER, engine, real_videos, save

from vfx_runtime.measuring import machine_facts

SECONDS_TO_START = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--video", type=Path, action="append", help="cut these  [default: the shared ones]")
    parser.add_argument("--videos", type=int, default=1000, metavar="N")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4, help="length of a turn")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    arguments = parser.parse_args()
    file = engine(arguments.precision, 24)
    videos = corpus(real_videos(arguments.video or ()), arguments.videos)
    one, four = Contender(file, videos, "one", [[]]), Contender(file, videos, "four", [SHARE] * PROCESSES)
    try:
        for contender in (one, four):
            contender.start()
        for turn in range(arguments.turns):
            # Whoever goes first alternates, too.
            for contender in (one, four) if turn % 2 else (four, one):
                contender.turn(arguments.seconds)
    finally:
        for contender in (one, four):
            contender.end()
    ratio = sum(four.rates) / sum(one.rates)
    error = standard_error(one.rates, four.rates, ratio)
    print(f"{PROCESSES} processes: {ratio:.3f} +- {error:.3f} times the throughput of one process")
    found = {
        "engine": file.name,
        "seconds_of_a_turn": arguments.seconds,
        "cores": machine_facts()["cores"],
        "videos_per_second": {"one process": one.rates, f"{PROCESSES} processes": four.rates},
        "throughput_of_one_process": ratio,
        "standard_error": error,
    }
    print(save("turns", found))


class Contender:
    """Runs of vfx-run on one folder, which go on only in their turns.

    Args:
        file: the engine.
        videos: folder of videos.
        name: name of the output folder.
        runs: for each process, its further options.
    """

    def __init__(self, file: Path, videos: Path, name: str, runs: list[list[str]]) -> None:
        self._output = FOLDER / f"turns_{name}"
        self._commands = [command(file, videos, self._output, more) for more in runs]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.rates: list[float] = []
        """Videos per second of each turn."""

    def start(self) -> None:
        """Start all processes, and stop them once they are at work."""
        shutil.rmtree(self._output, ignore_errors=True)
        self._processes = [
            subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for each in self._commands
        ]
        time.sleep(SECONDS_TO_START)
        self._signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Go on for some seconds, and note the throughput."""
        before, started = self._outputs(), time.perf_counter()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        took = time.perf_counter() - started
        if any(process.poll() is not None for process in self._processes):
            raise SystemExit("a process has ended: take more --videos or fewer --turns")
        self.rates.append((self._outputs() - before) / took)

    def end(self) -> None:
        """Kill the processes and remove what they wrote."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        shutil.rmtree(self._output, ignore_errors=True)

    def _outputs(self) -> int:
        return sum(1 for _ in self._output.rglob("*.npz"))

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)


def standard_error(alone: list[float], others: list[float], ratio: float) -> float:
    """The standard error of ``ratio``, which is ``sum(others) / sum(alone)``, of paired measurements."""
    squares = sum((other - ratio * own) ** 2 for own, other in zip(alone, others, strict=True))
    turns = len(alone)
    return math.sqrt(squares * turns / max(1, turns - 1)) / sum(alone)


if __name__ == "__main__":
    main()
