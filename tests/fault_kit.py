"""Run vfx-run with a fault, and judge what is left; for the tests and for scripts/reliability.

Runs are forked from a process that has imported everything, so that hundreds of them take only minutes. A
trap sits at the boundary between two stages, and springs at the n-th call.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import pyarrow.parquet

from make_video import make_video
from run_kit import failures, files_in
from tiny import tiny_engine
from vfx_runtime.reading import read_features

STAGES = {
    "decode": ("vfx_runtime.pyav_decoder", "PyAvDecoder.__next__"),
    "resize": ("vfx_runtime.preprocess", "CpuPreprocess.prepare"),
    "submit": ("vfx_engines.engine", "Engine.submit"),
    "collect": ("vfx_engines.engine", "Engine.collect"),
    "write .part": ("vfx_runtime.npz", "_write_member"),
    "rename": ("pathlib", "Path.replace"),
}
"""For each stage, the module and the function where traps are set."""

PACKING = {
    "check staged": ("vfx_runtime.packing", "_sound_kind"),
    "write tar": ("vfx_runtime.webdataset", "_add"),
    "write table": ("vfx_runtime.parquet", "_batches"),
    "sync": ("os", "fsync"),
    "rename all": ("pathlib", "Path.replace"),
    "remove staged": ("vfx_runtime.packing", "remove"),
    "write HDF5": ("vfx_runtime.hdf5", "Hdf5Writer._pack_one"),
    "remove staged of HDF5": ("vfx_runtime.hdf5", "remove"),
}
"""The same for the steps after the last video, in formats that pack videos."""

CALLS = {"decode": 120, "resize": 120, "submit": 12, "collect": 12, "write .part": 30, "rename": 8}
CALLS |= {"check staged": 8, "write tar": 8, "write table": 8, "sync": 1, "rename all": 9}
CALLS |= {"remove staged": 2, "write HDF5": 8, "remove staged of HDF5": 2}
"""For each stage, a number of calls that every run of `Work` reaches."""

PACKS = {
    "webdataset": ("check staged", "write tar", "sync", "rename all", "remove staged"),
    "parquet": ("check staged", "write table", "sync", "rename all", "remove staged"),
    "hdf5": ("write HDF5", "sync", "rename all", "remove staged of HDF5"),
}
"""The formats that pack videos, with the steps that each goes through."""

LENGTHS = (9, 41, 16, 4, 70, 23, 8, 12)
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Trap:
    """Something that happens at the n-th call of a stage, before or after the call."""

    stage: str
    number: int
    action: Callable[..., None]
    """Called with the arguments of the stage's function. It is pickled, so it must be a module's function."""
    after: bool = False

    def set(self) -> None:
        """Set the trap in this process."""
        module, path = (STAGES | PACKING)[self.stage]
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
            try:
                return real(*args, **rest)
            finally:
                # Also if the call raised: a decoder's last call raises StopIteration at the end of its video.
                if springs and self.after:
                    self.action(*args)

        setattr(owner, name, stage)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its exit code (or minus the signal), and what it printed."""

    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Work:
    """An engine, videos, and the `results` of undisturbed runs, by format."""

    folder: Path
    engine: Path
    videos: Path
    calm: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def expected(self, format: str) -> dict[str, bytes]:
        """The results in a format, from a run made when they are first asked for."""
        if format not in self.calm:
            ended = run([self.engine, self.videos, self.folder / format], format=format)
            assert ended.code == 0, ended.said
            self.calm[format] = results(self.folder / format)
            assert len(self.calm[format]) == len(LENGTHS)
        return self.calm[format]


def make_work(folder: Path) -> Work:
    """Make the tiny engine and eight short videos."""
    folder.mkdir(parents=True, exist_ok=True)
    engine, videos = tiny_engine(folder / "tiny.onnx"), folder / "videos"
    videos.mkdir()
    for number, frames in enumerate(LENGTHS):
        make_video(videos / f"v{number}.mp4", frames=frames)
    return Work(folder, engine, videos)


@dataclass(slots=True)
class Trial:
    """One disturbed run on copies of the videos, and the run that follows it."""

    work: Work
    folder: Path
    chance: random.Random
    undo: list[Callable[[], object]] = field(default_factory=list)
    """Called before the following run, to end the disturbance."""
    format: str = "npz"

    def __post_init__(self) -> None:
        self.folder.mkdir()
        shutil.copytree(self.work.videos, self.videos)

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def run(
        self,
        *,
        trap: Trap | None = None,
        before: Callable[[], object] | None = None,
        log: str = "said.log",
    ) -> Ended:
        """Run in a process of its own.

        Args:
            trap: a trap to set in that process.
            before: called in that process first.
            log: name of the file for what it prints.
        """
        return run([self.work.engine, self.videos, self.output], trap, before, format=self.format, log=log)

    def restore(self) -> None:
        """Restore the videos as they were."""
        shutil.rmtree(self.videos)
        shutil.copytree(self.work.videos, self.videos)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a trial."""

    kind: str
    """One of `KINDS`."""
    lost: int
    """Number of results that are wrong, or that the following run did not complete."""
    why: str
    """What went wrong; empty if all is well."""


ALL, NAMED, ENDED, KILLED = "all done", "some failed by name", "run ended with its reason", "killed"
KINDS = (ALL, NAMED, ENDED, KILLED)


def judge(trial: Trial, ended: Ended) -> Outcome:
    """Compare what a disturbed run left with an undisturbed run, then run again and compare again."""
    expected, problems = trial.work.expected(trial.format), []
    found, named = results(trial.output), failures(trial.output)
    wrong = {name for name, data in found.items() if data != expected.get(name)}
    if wrong:
        problems.append(f"wrong: {sorted(wrong)}")
    missing = expected.keys() - found.keys() - named.keys()
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
    if kind != KILLED and (left := {name for name in files_in(trial.output) if name.endswith(".part")}):
        problems.append(f"left over: {sorted(left)}")
    for undo in trial.undo:
        undo()
    again = trial.run()
    final, others = results(trial.output), {name for name in files_in(trial.output) if not _is_output(name)}
    lost = {name for name in expected if final.get(name) != expected[name]} | wrong
    if again.code or final != expected or others:
        problems.append(
            f"the following run: {again.code}, {sorted(final.keys() ^ expected.keys())}, {sorted(others)}; "
            f"{again.said[-600:]}"
        )
    return Outcome(kind, len(lost), "; ".join(problems))


def _is_output(name: str) -> bool:
    return not name.startswith(".") and name.endswith((".npz", ".tar", ".parquet", ".h5"))


def results(folder: Path) -> dict[str, bytes]:
    """The saved bytes of each video, in any format; ``twice`` for a video that was saved twice."""
    found: dict[str, bytes] = {}
    for file in sorted(name for name in files_in(folder) if _is_output(name)):
        for name, data in _saved(folder / file, file):
            found[name] = b"twice" if name in found else data
    return found


def _saved(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """Read a file without vfx, except Parquet, where only vfx can put a video's ``meta`` together."""
    match path.suffix:
        case ".npz":
            yield name.removesuffix(".npz"), path.read_bytes()
        case ".tar":
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    data = archive.extractfile(member)
                    if data is not None and member.name.endswith(".npz"):
                        yield member.name.removesuffix(".npz"), data.read()
        case ".h5":
            with h5py.File(path) as file:
                for video, group in file.items():
                    yield video, b"".join(key.encode() + bytes(group[key][()]) for key in sorted(group))
        case ".parquet":
            footer = json.loads(pyarrow.parquet.read_metadata(path).metadata[b"vfx"])
            for video in (item["name"] for item in footer["videos"]):
                features = read_features(path, video)
                arrays = (features.frame_range, features.timestamps_ms, *features.arrays.values())
                said = json.dumps([features.fps, features.meta, *features.arrays]).encode()
                yield video, said + b"".join(map(bytes, arrays))


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, including hidden ones; empty if there is no folder."""
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["vfx_runtime.cli", "vfx_runtime.pyav_decoder", "vfx_runtime.preprocess", "vfx_engines.backends.openvino"]
)


def run(
    paths: list[Path],
    trap: Trap | None = None,
    before: Callable[[], object] | None = None,
    *,
    format: str = "npz",
    log: str = "said.log",
) -> Ended:
    """Run vfx-run with two decoders and small batches; ``paths`` are the engine, inputs, and the output."""
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
        "--format",
        format,
    ]
    words = output.parent / log
    process = _context.Process(target=_vfx_run, args=([str(item) for item in arguments], words, trap, before))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Ended(99, f"hangs: killed after {_SECONDS} s; {words.read_text('utf-8', 'replace')}")
    code = process.exitcode
    process.close()
    return Ended(code, words.read_text("utf-8", "replace"))


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
