"""Cut a video's frames into windows, for one engine or for several whose windows cover the same frames."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

from vfx_engines.errors import UsageError, VideoError
from vfx_engines.spec import EngineSpec, Sampling
from vfx_runtime.decode import Frame, VideoInfo
from vfx_runtime.sampling import Held, Window, Windows, resample
from vfx_runtime.views import Views, ViewWindows, check_views

FPS_LIMIT = 10_000
"""Upper bound, exclusive, of the frame rate that a video may be converted to."""

_SHARED_FRAMES = 8

_SKIP_WORTH = 32
"""Distance in samples to the next one needed, beyond which asking the decoder to seek can pay off."""


@runtime_checkable
class Seekable(Protocol):
    """A stream of frames that can skip some of them."""

    def skip_to(self, index: int) -> None:
        """See `vfx_runtime.decode.Decoder.skip_to`."""


def check_alike(
    specs: Sequence[EngineSpec], samplings: Sequence[Sampling], views: Views | None = None
) -> None:
    """Check that the windows of a run's engines cover the same frames, so that their rows belong together.

    Args:
        specs: the specs of the engines.
        samplings: the samplings of the run, one per engine.
        views: the run's test-time views, if any.

    Raises:
        UsageError: the windows differ; an engine takes texts; two outputs have the same name; an engine gives
            a row per pair of frames but neighbours in a window would not be neighbours in the video; or an
            engine cannot have views.
    """
    for spec in specs:
        if spec.input.modality == "text":
            raise UsageError(
                f"{spec.model} takes texts: give it as --text-engine, beside an engine of frames"
            )
        if spec.input.modality != specs[0].input.modality:
            raise UsageError(
                f"{specs[0].model} takes {specs[0].input.modality} and {spec.model} {spec.input.modality}, "
                "so their rows do not belong together: run them one after the other"
            )
    if views is not None:
        check_views(specs, samplings, views)
    for spec, sampling in zip(specs, samplings, strict=True):
        own = spec.sampling
        if spec.outputs[0].per == "pair" and (sampling.anchor, sampling.stride) != (own.anchor, own.stride):
            raise UsageError(
                f"{spec.model} gives a row for each pair of neighbouring frames: leave --anchor and --stride "
                "out; --fps takes frames further apart"
            )
        if spec.outputs[0].per == "pair" and sampling.edges == "loop":
            raise UsageError(
                f"{spec.model} gives a row for each pair of neighbouring frames, and --tail loop puts the "
                "first frames of a window behind the last one of the video: take --tail repeat"
            )

    def layout(spec: EngineSpec, sampling: Sampling) -> tuple[object, ...]:
        rate, clip = sampling.target_fps, sampling.frames * sampling.stride
        if views is not None:
            return rate, clip
        lead = sampling.lead if sampling.edges == "drop" else 0
        reach = sampling.span + lead if rate is None else (rate, clip, lead)
        windows = sampling.fps, sampling.step, sampling.anchor, sampling.edges, sampling.seed, reach
        return *windows, spec.outputs[0].per == "pair"

    first, *others = zip(specs, samplings, strict=True)
    for other in others:
        if layout(*other) != layout(*first):
            raise UsageError(
                f"{first[0].model} and {other[0].model} lay their windows differently "
                f"({_windows_said(*first, views)}; {_windows_said(*other, views)}), so their rows do not "
                "belong together: run them one after the other"
                + ("" if views else ", or give a --step or --fps for both")
            )
    names = [output.name for spec in specs for output in spec.outputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two engines have an output called {twice!r}: run them one after the other")


def spread(samplings: Sequence[Sampling], total: int, info: VideoInfo, name: str) -> list[Sampling]:
    """Set the frame rate at which one video has about ``total`` frames, evenly spread over it.

    The rate is ``total * fps / frames``, of the values that the file claims, as in video_features'
    ``extraction_total``. If the file claims a wrong number of frames, there will be a few more or fewer.

    Args:
        samplings: the samplings to change; a frame rate from the engine's spec is replaced.
        total: number of frames, 1 or more.
        info: about the video.
        name: the video's name in messages.

    Raises:
        VideoError: the file tells neither its number of frames nor its duration, or the rate would not be
            below `FPS_LIMIT`.
    """
    if not info.frames or not info.fps:
        raise VideoError(
            f"{name}: does not say how many frames it has, so --total {total} cannot spread any over it: "
            "use --fps, or put it into another container (ffmpeg -i IN -c copy OUT.mkv)"
        )
    fps = total * info.fps / info.frames
    if fps >= FPS_LIMIT:
        raise VideoError(
            f"{name}: {info.frames} frames at {info.fps:g} fps, so --total {total} asks for {fps:.0f} frames "
            f"per second, expected less than {FPS_LIMIT}: ask for fewer"
        )
    return [dataclasses.replace(sampling, fps=fps) for sampling in samplings]


def _windows_said(spec: EngineSpec, sampling: Sampling, views: Views | None) -> str:
    if views is not None:
        return f"{sampling.frames}x{sampling.stride} frames at {sampling.target_fps or 0:g} fps"
    rate = f" at {sampling.fps:g} fps" if sampling.fps else ""
    return f"{sampling.span} {spec.input.modality} every {sampling.step}{rate}"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A prepared frame at one position of the (possibly resampled) video."""

    prepared: Any
    """What `Preprocess.prepare` returned for the frame."""
    frame: int
    """Index of the source frame."""
    start: Fraction
    """When it begins, in seconds."""
    end: Fraction
    """When it ends, in seconds."""


def windows(
    frames: Iterable[Frame],
    planners: Sequence[tuple[Sampling, Windows | ViewWindows]],
    prepares: Sequence[Callable[[Frame], Any]],
) -> Iterator[tuple[int, Window, dict[int, Sample]]]:
    """Yield the windows of a video, for each planner.

    Args:
        frames: the video's frames, decoded once however many planners there are.
        planners: fresh planners, each with its sampling. Their windows must cover the same frames, so that no
            planner gets far ahead of another.
        prepares: for each planner, what prepares a frame. A frame is prepared once by each distinct function,
            however many windows use it, and not at all if none does. At most a window's span is kept.

    Yields:
        The planner's number, the window, and the samples kept at this moment, by number; they include those
        of the window.
    """

    def laid(stream: Iterable[Frame], number: int, prepare: Callable[[Frame], Any]) -> _Laid:
        sampling, planner = planners[number]
        if isinstance(planner, ViewWindows):
            return _views(stream, planner, prepare)
        return _windows(stream, sampling, planner, prepare)

    if len(planners) == 1:
        for found in laid(frames, 0, prepares[0]):
            if found is not None:
                yield 0, *found
        return
    streams = itertools.tee(frames, len(planners))
    once = {prepare: _Once(prepare) for prepare in prepares}
    running = [
        (number, laid(stream, number, once[prepare]))
        for number, (stream, prepare) in enumerate(zip(streams, prepares, strict=True))
    ]
    while running:
        for item in list(running):
            number, stream = item
            for found in stream:
                if found is None:
                    break
                yield number, *found
            else:
                running.remove(item)


class _Once:
    """Prepares each of the latest frames once. All streams ask for it within a few frames of each other."""

    def __init__(self, prepare: Callable[[Frame], Any]) -> None:
        self._prepare = prepare
        self._latest: OrderedDict[int, Any] = OrderedDict()

    def __call__(self, frame: Frame) -> Any:
        if frame.index not in self._latest:
            self._latest[frame.index] = self._prepare(frame)
            if len(self._latest) > _SHARED_FRAMES:
                self._latest.popitem(last=False)
        return self._latest[frame.index]


_Laid = Iterator[tuple[Window, dict[int, Sample]] | None]
"""Windows with their samples, and None after each frame, so that several streams can advance in step."""


def _views(frames: Iterable[Frame], planner: ViewWindows, prepare: Callable[[Frame], Any]) -> _Laid:
    kept: dict[int, Sample] = {}
    seekable = frames if isinstance(frames, Seekable) else None
    for frame in frames:
        if planner.needs(frame.index):
            kept[frame.index] = Sample(prepare(frame), frame.index, frame.start, frame.end)
        for window in planner.add(frame.index):
            yield window, kept
        if planner.done:
            return
        for old in [n for n in kept if n < planner.floor]:
            del kept[old]
        if seekable is not None and planner.floor > frame.index + _SKIP_WORTH:
            seekable.skip_to(planner.floor)
        yield None


def _windows(
    frames: Iterable[Frame], sampling: Sampling, planner: Windows, prepare: Callable[[Frame], Any]
) -> _Laid:
    kept: dict[int, Sample] = {}
    number = -1
    # If windows are far apart, the decoder may seek. Not if edges are filled, because which frames fill them
    # is known only at the end.
    may_skip = sampling.fps is None and sampling.edges == "drop"
    seekable = frames if may_skip and isinstance(frames, Seekable) else None
    for held, is_last in _last_marked(resample(frames, sampling.fps)):
        prepared = None
        first = held.first if sampling.fps else held.frame.index
        if first > number + 1:
            planner.skip(first)
        for i in range(held.count):
            number = first + i
            if planner.needs(number, last=is_last and i == held.count - 1):
                if prepared is None:
                    prepared = prepare(held.frame)
                start = held.start + i * held.length
                kept[number] = Sample(prepared, held.frame.index, start, start + held.length)
            window = planner.add(number)
            if window is not None:
                yield window, kept
            for old in [n for n in kept if n < planner.floor]:
                del kept[old]
        if seekable is not None and planner.floor > number + _SKIP_WORTH:
            seekable.skip_to(planner.floor)
        yield None
    for window in planner.finish():
        yield window, kept


def _last_marked(items: Iterator[Held[Frame]]) -> Iterator[tuple[Held[Frame], bool]]:
    held = next(items, None)
    while held is not None:
        following = next(items, None)
        yield held, following is None
        held = following
