"""Runs vfx-run with a fault in it, and judges what is left: for the tests and for scripts/reliability.

A run is forked from a process that has imported everything, so that hundreds of them take minutes. A trap
stands at a boundary between two stages and springs at the n-th call.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_video import make_video
from run_kit import failures, files_in
from tiny import tiny_engine

STAGES = {
    "decode": ("vfx_runtime.pyav_decoder", "PyAvDecoder.__next__"),
    "resize": ("vfx_runtime.preprocess", "CpuPreprocess.prepare"),
    "submit": ("vfx_engines.engine", "Engine.submit"),
    "collect": ("vfx_engines.engine", "Engine.collect"),
    "write .part": ("vfx_runtime.npz", "_write_member"),
    "rename": ("pathlib", "Path.replace"),
}
"""Where a stage begins and ends: module and function."""

CALLS = {"decode": 120, "resize": 120, "submit": 12, "collect": 12, "write .part": 30, "rename": 8}
"""Calls that every run of `Work` has at least."""

LENGTHS = (9, 41, 16, 4, 70, 23, 8, 12)
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Trap:
    """Something that happens at the n-th call of a stage, before or after it."""

    stage: str
    number: int
    action: Callable[..., None]
    """Called with the arguments of the stage's function; pickled, so a function of a module."""
    after: bool = False

    def set(self) -> None:
        """Put it into this process."""
        module, path = STAGES[self.stage]
        owner: Any = importlib.import_module(module)
        *above, name = path.split(".")
        for part in above:
            owner = getattr(owner, part)
        real, lock, calls = getattr(owner, name), threading.Lock(), 0

        def stage(*args: Any, **rest: Any) -> Any:
            nonlocal calls
            with lock:
                calls += 1
                springs = calls == self.number
            if springs and not self.after:
                self.action(*args)
            given = real(*args, **rest)
            if springs and self.after:
                self.action(*args)
            return given

        setattr(owner, name, stage)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: exit code, or minus the signal, and what it said."""

    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Work:
    """An engine, videos, and the bytes of every file of an undisturbed run."""

    engine: Path
    videos: Path
    expected: dict[str, bytes]


def make_work(folder: Path) -> Work:
    """Eight short videos, run once."""
    folder.mkdir(parents=True, exist_ok=True)
    engine, videos = tiny_engine(folder / "tiny.onnx"), folder / "videos"
    videos.mkdir()
    for number, frames in enumerate(LENGTHS):
        make_video(videos / f"v{number}.mp4", frames=frames)
    ended = run([engine, videos, folder / "calm"])
    assert ended.code == 0, ended.said
    return Work(engine, videos, contents(folder / "calm"))


@dataclass(slots=True)
class Trial:
    """One disturbed run on copies of the videos, and the run that follows it."""

    work: Work
    folder: Path
    chance: random.Random
    undo: list[Callable[[], object]] = field(default_factory=list)
    """What ends the disturbance, before the following run."""

    def __post_init__(self) -> None:
        self.folder.mkdir()
        shutil.copytree(self.work.videos, self.videos)

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def run(self, *, trap: Trap | None = None, before: Callable[[], object] | None = None) -> Ended:
        """Run in a process of its own.

        Args:
            trap: set in it.
            before: called in it first.
        """
        return run([self.work.engine, self.videos, self.output], trap, before)

    def restore(self) -> None:
        """The videos as they were."""
        shutil.rmtree(self.videos)
        shutil.copytree(self.work.videos, self.videos)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial."""

    kind: str
    lost: int
    """Results that are wrong, or that the following run does not complete."""
    why: str
    """Of anything that should not be; empty if all is well."""


ALL, NAMED, ENDED, KILLED = "all done", "some failed by name", "run ended with its reason", "killed"
KINDS = (ALL, NAMED, ENDED, KILLED)


def judge(trial: Trial, ended: Ended) -> Outcome:
    """Compare what a disturbed run left with the undisturbed one, then run again, and compare again."""
    expected, problems = trial.work.expected, []
    found = contents(trial.output)
    wrong = {name for name, data in found.items() if name.endswith(".npz") and data != expected.get(name)}
    if wrong:
        problems.append(f"wrong files: {sorted(wrong)}")
    named = {f"{name}.npz" for name in failures(trial.output)}
    missing = expected.keys() - found.keys() - named
    last = (ended.said.splitlines() or [""])[-1]
    if "Traceback" in ended.said:
        problems.append(ended.said[-600:])
    if ended.code < 0:
        kind = KILLED
    elif last.startswith("vfx-run: ") and ended.code in (1, 130):
        kind = ENDED
    else:
        kind = NAMED if named else ALL
        if ended.code != bool(named) or missing:
            problems.append(
                f"exit code {ended.code}, neither done nor named: {sorted(missing)}; {ended.said[-600:]}"
            )
    if kind != KILLED and (left := {name for name in found if ".part" in name}):
        problems.append(f"left over: {sorted(left)}")
    for undo in trial.undo:
        undo()
    again = trial.run()
    final = contents(trial.output)
    lost = {name for name in expected if final.get(name) != expected[name]} | wrong
    if again.code or final != expected:
        problems.append(
            f"the following run: {again.code}, {sorted(final.keys() ^ expected.keys())}; {again.said[-600:]}"
        )
    return Outcome(kind, len(lost), "; ".join(problems))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too; empty where there is no folder."""
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["vfx_runtime.cli", "vfx_runtime.pyav_decoder", "vfx_runtime.preprocess", "vfx_engines.backends.openvino"]
)


def run(paths: list[Path], trap: Trap | None = None, before: Callable[[], object] | None = None) -> Ended:
    """vfx-run of an engine and inputs into a folder, the last path, with two decoders and small batches."""
    engine, *inputs, output = paths
    arguments = [
        "--engine",
        engine,
        *inputs,
        "--output",
        output,
        "--batch",
        2,
        "--threads",
        1,
        "--workers",
        2,
    ]
    log = output.parent / "said.log"
    process = _context.Process(target=_vfx_run, args=([str(item) for item in arguments], log, trap, before))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Ended(99, f"hangs: killed after {_SECONDS} s; {log.read_text('utf-8', 'replace')}")
    code = process.exitcode
    process.close()
    return Ended(code, log.read_text("utf-8", "replace"))


def _vfx_run(arguments: list[str], log: Path, trap: Trap | None, before: Callable[[], object] | None) -> None:
    sys.stdin.close()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from vfx_runtime.cli import main

    if before is not None:
        before()
    if trap is not None:
        trap.set()
    main(arguments)
