"""Which frames a run takes: an engine's own sampling, with the changes that the run asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal, get_args

from vfx_engines.errors import UsageError
from vfx_engines.spec import EngineSpec, Sampling
from vfx_runtime.laying import FPS_LIMIT
from vfx_runtime.sampling import rate
from vfx_runtime.views import TARGET_FPS, Views

Tail = Literal["drop", "repeat", "zeros", "loop"]
Anchor = Literal["start", "centre"]
Fps = float | Literal["source"]
"""Frames per second to convert videos to; "source" keeps their own even if the engine's spec has a rate."""


def run_sampling(
    own: Sampling,
    *,
    fps: Fps | None = None,
    step: int | None = None,
    tail: Tail | None = None,
    anchor: Anchor | None = None,
    stride: int | None = None,
    target_fps: float | None = None,
    seed: int | None = None,
    views: Views | None = None,
) -> Sampling:
    """An engine's sampling, with the changes that a run asks for; None keeps the engine's own value.

    A target fps, or views, replaces the engine's own ``fps``: the frames are then the video's own.

    Args:
        own: the sampling of the engine's spec.
        fps: see `extract`, like the rest.
        step: frames from one window to the next.
        tail: what to do with a window that reaches beyond the video.
        anchor: whether windows start at their frame or are centred on it.
        stride: frames from one frame of a window to the next.
        target_fps: the frame rate that ``stride`` refers to.
        seed: for the random frames of ``tail`` "loop".
        views: test-time views instead of windows.

    Raises:
        UsageError: a value is out of range, or values contradict each other.
    """
    for name, count in (("step", step), ("stride", stride)):
        if count is not None and not (isinstance(count, int) and count > 0):
            raise UsageError(f"{name} {count!r}: expected 1 or more frames, a whole number")
    for name, choice, known in (("tail", tail, get_args(Tail)), ("anchor", anchor, get_args(Anchor))):
        if choice is not None and choice not in known:
            raise UsageError(f"{name} {choice!r}: expected {', '.join(known)}")
    if isinstance(fps, str) and fps != "source":
        raise UsageError(f"fps {fps!r}: expected a rate, or 'source'")
    if fps is not None and fps != "source" and not 0 < fps < FPS_LIMIT:
        raise UsageError(f"fps {fps:g}: expected a rate between 0 and {FPS_LIMIT}")
    if target_fps is not None and not 0 < target_fps < FPS_LIMIT:
        raise UsageError(f"target fps {target_fps:g}: expected a rate between 0 and {FPS_LIMIT}")
    for asked in (fps, target_fps):
        if isinstance(asked, float | int):
            rate(asked)
    if views is not None:
        given = {"step": step, "anchor": anchor, "tail": tail, "fps": fps, "seed": seed}
        for name in (name for name, value in given.items() if value is not None):
            raise UsageError(
                f"--views and --{name}: views choose among a video's own frames by their own rule; leave "
                f"--{name} out" + ("; --target-fps is the rate that --stride counts at" * (name == "fps"))
            )
        target_fps = target_fps or own.target_fps or own.fps or TARGET_FPS
    if target_fps is not None:
        own = dataclasses.replace(own, fps=None, target_fps=target_fps)
    if fps == "source":
        own, fps = dataclasses.replace(own, fps=None), None
    edges = tail or own.edges
    if edges == "loop" and (anchor or own.anchor) != "start":
        raise UsageError("--tail loop fills windows that begin in the video: leave --anchor out")
    if seed is not None and (edges != "loop" or not 0 <= seed < 2**32):
        raise UsageError(f"seed {seed}: expected 0 to {2**32 - 1}, together with --tail loop")
    if edges != "loop":
        own = dataclasses.replace(own, seed=None)
    return dataclasses.replace(
        own,
        fps=fps or own.fps,
        step=step or own.step,
        edges=edges,
        anchor=anchor or own.anchor,
        stride=stride or own.stride,
        seed=own.seed if seed is None else seed,
    )


def check_frames(
    specs: Iterable[EngineSpec],
    *,
    fps: Fps | None = None,
    target_fps: float | None = None,
    total: int | None = None,
    views: Views | None = None,
) -> None:
    """Check that a run's options for choosing frames fit together; `run_sampling` checks each by itself.

    Raises:
        UsageError: ``total`` is below 1 or combined with ``fps`` or ``views``, or frames are to be chosen for
            an engine that takes sound.
    """
    asked = {"fps": fps, "target-fps": target_fps, "total": total, "views": views}
    given = [name for name, value in asked.items() if value is not None]
    sound = next((spec for spec in specs if spec.input.modality == "audio"), None)
    if sound is not None and given:
        raise UsageError(
            f"--{given[0]}: {sound.model} takes sound at {sound.sampling.fps or 0:g} Hz, to which every "
            f"file is resampled: leave --{given[0]} out"
        )
    if total is None:
        return
    if total < 1:
        raise UsageError(f"total {total}: expected 1 or more frames of a video")
    if fps is not None:
        raise UsageError(f"total {total} and fps {fps}: both choose frames, give one of them")
    if views is not None:
        raise UsageError(f"total {total} and {views.count} views: both choose frames, give one of them")
