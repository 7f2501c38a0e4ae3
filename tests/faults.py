"""The faults that a run must survive, each a function that disturbs one `Trial`; see `fault_kit`."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from broken import cut, spoil
from fault_kit import CALLS, PACKS, STAGES, Ended, Trap, Trial, run
from make_video import make_video
from tiny import tiny_engine
from vfx_engines.errors import EngineError

Fault = Callable[[Trial], Ended]


# Actions of traps, in the disturbed process


def send(number: int, *_: object) -> None:
    """Send a signal to the whole process."""
    os.kill(os.getpid(), number)


def throw(error: BaseException, *_: object) -> None:
    raise error


def hang(*_: object) -> None:
    """A read that never returns, and a user who loses patience and presses Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()


def remove_folder(folder: Path, *_: object) -> None:
    """Take the folder away at once: removed file by file, it would get new files meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        folder.rename(folder.with_name("taken away"))


def truncate_it(decoder: Any, *_: object) -> None:
    path = Path(decoder._path)
    os.truncate(path, path.stat().st_size // 2)


def append_to_it(decoder: Any, *_: object) -> None:
    with Path(decoder._path).open("ab") as file:
        file.write(bytes(4096))


def overwrite_it(decoder: Any, *_: object) -> None:
    """Replace the bytes by as many others, as copying another file over it would."""
    path = Path(decoder._path)
    path.write_bytes(path.read_bytes()[::-1])


def replace_it(decoder: Any, *_: object) -> None:
    """Put another video in its place."""
    path = Path(decoder._path)
    other = next(item for item in sorted(path.parent.iterdir()) if item.stat().st_size != path.stat().st_size)
    new = path.with_suffix(".new")
    shutil.copy(other, new)
    os.replace(new, path)


def remove_it(decoder: Any, *_: object) -> None:
    Path(decoder._path).unlink(missing_ok=True)


# Done before the disturbed run, in its process


def impatient() -> None:
    """Wait one second instead of ten for threads that hang."""
    from vfx_runtime import pipeline

    pipeline.SECONDS_TO_STOP = 1.0


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def jump_clock() -> None:
    """Let the wall clock jump forwards or backwards by up to ten years each time it is read."""
    real, chance = time.time, random.Random(0)
    years = 10 * 365 * 86400
    time.time = lambda: real() + chance.uniform(-years, years)
    time.time_ns = lambda: int(time.time() * 1e9)
    time.gmtime = functools.wraps(time.gmtime)(lambda *_: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))


# The faults


def at(stage: str, action: Callable[..., None], trial: Trial, **rest: Any) -> Ended:
    """Spring an action at a random call of a stage, before or after it."""
    number = trial.chance.randint(1, CALLS[stage])
    return trial.run(trap=Trap(stage, number, action, trial.chance.random() < 0.5), **rest)


def while_packing(action: Callable[..., None], trial: Trial, **rest: Any) -> Ended:
    """Spring an action at a random step of packing, in a random format that packs."""
    trial.format = trial.chance.choice([*PACKS])
    return at(trial.chance.choice(PACKS[trial.format]), action, trial, **rest)


def disk_fails_while_packing(trial: Trial) -> Ended:
    """The disk fails to read or to write during packing."""
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    trial.format = trial.chance.choice([*PACKS])
    # Steps that remove files are left out, since they ignore files that cannot be removed.
    stages = [stage for stage in PACKS[trial.format] if "remove" not in stage]
    return at(trial.chance.choice(stages), partial(throw, error), trial)


def full_disk_while_packing(trial: Trial) -> Ended:
    trial.format = trial.chance.choice([*PACKS])
    return full_disk(trial, (40, 90))


def one_of_two_killed(trial: Trial) -> Ended:
    """Two processes share the folder, and one is killed; returns how the other one ended."""
    trial.format = trial.chance.choice(["npz", *PACKS])
    stage = trial.chance.choice([*STAGES])
    # A quarter of the calls, so that the process reaches the trap with its part of the videos.
    trap = Trap(stage, trial.chance.randint(1, max(1, CALLS[stage] // 4)), partial(send, signal.SIGKILL))
    beside = threading.Thread(target=partial(trial.run, trap=trap, log="beside.log"))
    beside.start()
    ended = trial.run()
    beside.join()
    return ended


def full_disk(trial: Trial, kibibytes: tuple[int, int] = (8, 60)) -> Ended:
    """A small tmpfs as output folder; if none may be mounted, a limit on the size of files instead."""
    trial.output.mkdir()
    room = trial.chance.randint(*kibibytes)
    options = ["mount", "-t", "tmpfs", "-o", f"size={room}k", "vfx-faults", str(trial.output)]
    if not may_mount() or subprocess.run(options, capture_output=True).returncode:
        return trial.run(before=partial(limit_files, 2000))

    def unmount() -> None:
        kept = trial.folder / "kept"
        shutil.copytree(trial.output, kept)
        subprocess.run(["umount", str(trial.output)], check=True)
        trial.output.rmdir()
        kept.rename(trial.output)

    trial.undo.append(unmount)
    return trial.run()


def may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


def disk_stand_in() -> str:
    """Text for how `full_disk` simulates a full disk here."""
    return (
        "a tmpfs of 8 to 60 KiB, of 40 to 90 while packing"
        if may_mount()
        else "a limit of 2,000 bytes for a file: no tmpfs may be mounted"
    )


def vanishing_output(trial: Trial) -> Ended:
    stage = trial.chance.choice(["decode", "collect", "write .part", "rename"])
    return at(stage, partial(remove_folder, trial.output), trial)


ERRORS = (
    *(OSError(5, "Input/output error"), MemoryError(), RuntimeError("a defect"), RecursionError("deep")),
    *(ValueError("two\nlines"), AssertionError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd")),
    *(KeyError("key"), SystemExit(0), TimeoutError(110, "Connection timed out")),
)


def decoder_raises(trial: Trial) -> Ended:
    return at("decode", partial(throw, trial.chance.choice(ERRORS)), trial)


def decoder_hangs(trial: Trial) -> Ended:
    return at("decode", hang, trial, before=impatient)


def silent_pipe(trial: Trial) -> Ended:
    """Replace videos by links to named pipes that nobody writes to (a run ignores pipes in a folder)."""
    for path in trial.chance.sample(sorted(trial.videos.iterdir()), 3):
        path.unlink()
        path.symlink_to(path.with_suffix(".pipe"))
        os.mkfifo(path.with_suffix(".pipe"))
    trial.undo.append(trial.restore)
    return trial.run()


def vanishing_video(trial: Trial) -> Ended:
    trial.undo.append(trial.restore)
    return at("decode", remove_it, trial)


def changing_video(trial: Trial) -> Ended:
    change = trial.chance.choice([truncate_it, append_to_it, overwrite_it, replace_it])
    trial.undo.append(trial.restore)
    return at("decode", change, trial)


def engine_raises(trial: Trial) -> Ended:
    stage = trial.chance.choice(["submit", "collect"])
    error = EngineError("tiny.onnx: the device was lost: look at its driver's log")
    return at(stage, partial(throw, error), trial)


def jumping_clock(trial: Trial) -> Ended:
    """The clock jumps during the run, and file times are random before the next run."""
    ended = at("rename", partial(send, signal.SIGKILL), trial, before=jump_clock)

    def date_files() -> None:
        for path in (*trial.output.glob("*"), *trial.videos.iterdir()):
            when = trial.chance.uniform(0, 4e9)
            os.utime(path, (when, when))

    trial.undo.append(date_files)
    return ended


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
FAULTS: dict[str, Fault] = {
    **{
        f"{which.name} at {stage}": partial(at, stage, partial(send, which))
        for stage in STAGES
        for which in SIGNALS
    },
    **{f"{which.name} while packing": partial(while_packing, partial(send, which)) for which in SIGNALS},
    "one of two processes killed": one_of_two_killed,
    "disk full": full_disk,
    "disk full while packing": full_disk_while_packing,
    "disk fails while packing": disk_fails_while_packing,
    "output folder vanishes": vanishing_output,
    "decoder raises anything": decoder_raises,
    "decoder hangs, then Ctrl-C": decoder_hangs,
    "named pipe that never delivers": silent_pipe,
    "video vanishes while it is read": vanishing_video,
    "video changes while it is read": changing_video,
    "engine raises in the middle": engine_raises,
    "clock jumps, SIGKILL": jumping_clock,
}


# Many broken videos


def folder_called(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link_to_nothing(path: Path) -> Path:
    path.symlink_to("gone.mp4")
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


WAYS: dict[str, Callable[[Path], Path]] = {
    "missing": lambda path: path,
    "empty": lambda path: written(path, b""),
    "a text": lambda path: written(path, b"these are words\n" * 99),
    "cut": lambda path: cut(make_video(path, frames=20), 0.6),
    "cut, index first": lambda path: cut(
        make_video(path, frames=20, container_options={"movflags": "faststart"}), 0.6
    ),
    "damaged": lambda path: spoil(make_video(path, frames=40), 0.5),
    "sound alone": lambda path: make_video(path, frames=0, audio=True),
    "one frame": lambda path: make_video(path, frames=1),
    "a named pipe": pipe,
    "a link to nothing": link_to_nothing,
}


def thousand(folder: Path, good: int = 900, of_each: int = 10) -> tuple[Ended, set[str], set[str]]:
    """Run good and broken videos together.

    Returns:
        How the run ended, the names of the good videos, and those of the broken ones.
    """
    sources = [make_video(folder / f"source{i}.mp4", frames=4 + 3 * i) for i in range(5)]
    videos = folder / "videos"
    videos.mkdir()
    makers: dict[str, Callable[[Path], object]] = {
        **{f"good{i}": partial(_link, sources[i % 5]) for i in range(good)},
        **{f"{way.replace(' ', '_')}{i}": make for way, make in WAYS.items() for i in range(of_each)},
    }
    names = list(makers)
    random.Random(0).shuffle(names)
    for name in names:
        makers[name](videos / f"{name}.mp4")
    (videos / "list.txt").write_text("".join(f"{name}.mp4\n" for name in names))
    ended = run([tiny_engine(folder / "tiny.onnx"), videos / "list.txt", folder / "out"])
    whole = {name for name in names if name.startswith("good")}
    return ended, whole, {*names} - whole


def _link(source: Path, path: Path) -> Path:
    path.hardlink_to(source)
    return path
