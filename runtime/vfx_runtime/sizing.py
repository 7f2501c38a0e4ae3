"""For engines that take frames of the video's own size: find each video's size, and group videos by it.

An engine is opened at one size (`vfx_engines.open_engine`), and opening it takes seconds. So a few videos at
a time are looked at, and those of the same size are run together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vfx_engines.errors import VfxError, VideoError, shown
from vfx_engines.spec import EngineSpec
from vfx_runtime.job import Job
from vfx_runtime.opening import open_video
from vfx_runtime.remote import at_hand
from vfx_runtime.resize import FrameError, plan

_AT_ONCE = 64
"""Number of videos that are looked at before the first of them is run."""

Sizes = dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Videos that the same engines can run."""

    sizes: list[Sizes]
    """For each engine, the sizes of its open axes, see `vfx_engines.open_engine`; empty if it has none."""
    jobs: Iterable[Job]
    failed: list[tuple[Job, VfxError]] = field(default_factory=list)
    """Videos that could not be opened, with the reason. They form a group of their own, without jobs."""


def is_sized(spec: EngineSpec) -> bool:
    """Whether the engine must be opened at a size."""
    return any(isinstance(axis, str) for axis in spec.input.shape[1:])


def grouped(jobs: Iterable[Job], specs: Sequence[EngineSpec]) -> Iterator[Group]:
    """Group jobs by size; a single group of all jobs if no engine has open axes.

    Args:
        jobs: taken one at a time, or 64 at a time if sizes matter.
        specs: the specs as in the engines' files, that is, with axes still open.
    """
    if not any(map(is_sized, specs)):
        yield Group([{} for _ in specs], jobs)
        return
    waiting = iter(jobs)
    while some := list(itertools.islice(waiting, _AT_ONCE)):
        groups: dict[tuple[tuple[tuple[str, int], ...], ...], list[Job]] = {}
        failed: list[tuple[Job, VfxError]] = []
        for job in some:
            try:
                sizes = _sizes(job, specs)
            except FrameError as error:
                failed.append((job, VideoError(f"{shown(job.where)}: {error}")))
            except VfxError as error:
                failed.append((job, error))
            else:
                groups.setdefault(tuple(tuple(item.items()) for item in sizes), []).append(job)
        if failed:
            yield Group([], [], failed)
        for key, members in groups.items():
            yield Group([dict(item) for item in key], members)


def _sizes(job: Job, specs: Sequence[EngineSpec]) -> list[Sizes]:
    # A remote video is fetched for this and fetched again for its run, since keeping 64 could fill a disk.
    with at_hand(job) as path, open_video(path, images=job.images) as decoder:
        height, width = decoder.info.height, decoder.info.width
    found = []
    for spec in specs:
        made = plan(spec.transform, height, width)
        if min(made.out_height, made.out_width) < spec.input.smallest_side:
            raise FrameError(
                f"frames of {made.out_width}x{made.out_height}, {spec.model} needs "
                f"{spec.input.smallest_side} pixels or more on each side: use a larger video, or an engine "
                f"exported with --resize short:{spec.input.smallest_side}"
            )
        axes = zip(spec.input.shape[2:4], (made.out_height, made.out_width), strict=False)
        found.append({axis: size for axis, size in axes if isinstance(axis, str)})
    return found
