"""Run vfx-run in this process, and compute by other means what the tiny engine's rows must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from tiny import FRAMES, SIZE, tiny_features
from vfx_runtime.cli import main


def vfx_run(*arguments: object) -> Result:
    """Run the command; gives its exit code, stdout and stderr."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def expected_rows(video: Path, *, turns: int = 0, step: int = FRAMES) -> NDArray[np.float32]:
    """The tiny engine's features of a video, computed with PyAV's conversion, Pillow and NumPy.

    Args:
        video: a video whose every frame can be decoded.
        turns: quarter turns counter-clockwise by which frames are rotated for display.
        step: frames from one window to the next.
    """
    frames = []
    with av.open(f"file:{video}") as container:
        for frame in container.decode(video=0):
            pixels = np.rot90(frame.to_ndarray(format="rgb24", interpolation="BICUBIC"), turns)
            height, width = pixels.shape[:2]
            short = min(height, width)
            image = Image.fromarray(np.ascontiguousarray(pixels))
            image = image.resize((20 * width // short, 20 * height // short), Image.Resampling.BILINEAR)
            left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
            frames.append(np.asarray(image.crop((left, top, left + SIZE, top + SIZE))))
    firsts = range(0, len(frames) - FRAMES + 1, step)
    return tiny_features(np.stack([np.stack(frames[first : first + FRAMES]) for first in firsts]))


def files_in(folder: Path) -> set[str]:
    """All files below a folder, including hidden ones, as relative paths."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def failures(output: Path) -> dict[str, str]:
    """The failures in failures.jsonl, from name to reason; empty if there is no such file."""
    path = output / "failures.jsonl"
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {line["name"]: line["error"] for line in lines}


def counting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """A list that collects the first argument of each call of a function or method from here on."""
    calls: list[object] = []
    real: Callable[..., Any] = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[0])
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)
    return calls
