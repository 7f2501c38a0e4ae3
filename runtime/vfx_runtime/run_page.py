"""The HTML page about a run: what it did, how fast, where the time went, what failed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import numpy as np

from vfx_runtime.charts import line_chart, time_axis
from vfx_runtime.feature_page import bar, random_models
from vfx_runtime.markup import Markup, document, facts, table, tag, warning
from vfx_runtime.recording import Recording
from vfx_runtime.showing import Line
from vfx_runtime.stages import DECODE, GATHER, RESIZE, VERIFY, WAIT_SLOT, WAIT_WINDOWS, WRITE, Taken

_POINTS = 120
_FAILURES = 1000
_STAGES = (
    (DECODE, "read, decode, convert to RGB"),
    (RESIZE, "resize and crop"),
    (GATHER, "copy windows into the engine's slots"),
    (VERIFY, "read outputs that were there"),
    (WRITE, "write outputs"),
)


def run_page(run: Recording) -> str:
    """The page as one self-contained HTML document."""
    windows, frames = run.moments[-1].windows, run.moments[-1].frames
    sound = run.specs[0].input.modality == "audio"
    failed = len(run.failures)
    left = run.videos - run.written - run.skipped - run.others - failed
    seconds = max(run.seconds, 1e-3)
    headline = [
        ("videos done", f"{run.written:,}"),
        ("done before", f"{run.skipped:,}" if run.skipped else None),
        ("done by other processes", f"{run.others:,}" if run.others else None),
        ("failed", tag("span", f"{failed:,}", class_="bad") if failed else "0"),
        ("left", f"{left:,}" if left else None),
        ("windows", f"{windows:,}"),
        ("windows per second", f"{windows / seconds:.2f}"),
        ("samples per second" if sound else "frames per second", f"{frames / seconds:,.0f}"),
        ("time", f"{seconds:,.1f} s"),
    ]
    places = [("#speed", "Speed"), ("#stages", "Stages"), ("#failures", "Failures"), ("#run", "Run")]
    return document(
        f"vfx-run, {run.started}",
        tag(
            "header",
            tag("h1", "vfx-run"),
            tag("p", f"{run.started} · {', '.join(spec.model for spec in run.specs)}", class_="under"),
            *(
                warning(tag("strong", "RANDOM WEIGHTS"), f": the features of {model} mean nothing")
                for model in random_models(run.specs)
            ),
            warning(f"The run did not reach its end: {run.ended}.") if run.ended else None,
            tag("nav", *(tag("a", name, href=href) for href, name in places), aria_label="Sections"),
            tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in headline if v), class_="headline"),
        ),
        tag("section", tag("h2", "Speed", id="speed"), *_speed(run, sound)),
        tag("section", tag("h2", "Stages", id="stages"), *_stages(run)),
        tag("section", tag("h2", "Failures", id="failures"), _failures(run)),
        tag("section", tag("h2", "Run", id="run"), *_run(run)),
    )


def _speed(run: Recording, sound: bool) -> Iterator[Markup]:
    unit = "samples" if sound else "frames"
    # Counts rise in steps of a batch, so rates are taken over equal parts of the run, not between moments.
    times = np.array([moment.seconds for moment in run.moments])
    end = max(float(times[-1]), 1e-3)
    edges = np.linspace(0, end, max(2, min(_POINTS, len(times) // 4)) + 1)
    middles, width = (edges[1:] + edges[:-1]) / 2, edges[1]
    axis = time_axis(0, end)
    series = (
        ("Windows per second", "results of the engine", [m.windows for m in run.moments], 1),
        (f"{unit.capitalize()} per second", "decoded", [m.frames for m in run.moments], 1),
        ("Cores at work", "CPU-seconds of this process per second", [m.cpu_seconds for m in run.moments], 2),
    )
    for caption, note, counts, digits in series:
        rates = np.diff(np.interp(edges, times, np.array(counts, np.float64))) / width
        line = Line(rates, rates, rates, np.arange(len(rates) + 1))
        labels = [f"{t:.1f} s: {rate:,.{digits}f}" for t, rate in zip(middles, rates, strict=True)]
        yield line_chart(caption, note, axis, list(middles), line, labels, zero=True)


def _stages(run: Recording) -> Iterator[Markup]:
    if run.stages is None:
        yield tag("p", "Not measured: several processes shared the list, one for each GPU or actor of Ray.")
        return
    taken, seconds = run.stages.taken, max(run.seconds, 1e-3)
    used = run.moments[-1].cpu_seconds
    cores = max(1, int(run.facts.get("cores", 1)))
    whole = cores * seconds
    rows: list[tuple[object, ...]] = []

    def row(name: str, what: str, cpu: float, clock: str = "", kind: str = "b1") -> None:
        said = tag("span", name, tag("small", f" {what}", class_="what"))
        rows.append((said, f"{cpu:.2f}", f"{cpu / whole:.0%}", bar([(cpu / whole, kind)]), clock))

    for stage, what in _STAGES:
        if stage in taken:
            row(stage, what, taken[stage].cpu_seconds, f"{taken[stage].seconds:.2f}")
    row("engine", "its own threads, and FFmpeg's where few videos share many cores", run.engine_cpu)
    known = run.engine_cpu + sum(item.cpu_seconds for item in taken.values())
    row("all else", "Python between the stages, opening engines", max(0.0, used - known))
    row("not used", f"of {cores} cores in {seconds:.1f} s", max(0.0, whole - used), kind="idle")
    head = ("stage", "CPU-seconds", "of the cores", "", "seconds by the clock")
    yield table(head, rows, "CPU-seconds of each stage", class_="numbers")
    waits = [
        ("decoding threads waited for a free slot of the engine", taken.get(WAIT_SLOT, Taken()).seconds),
        ("the engine had no batch to work on", taken.get(WAIT_WINDOWS, Taken()).seconds),
    ]
    yield tag("h3", "Waiting", class_="apart")
    yield table(
        ("who", "seconds, over all threads"),
        [(who, f"{waited:.2f}") for who, waited in waits],
        "Seconds of waiting",
        class_="numbers",
    )
    slot, empty = waits[0][1], waits[1][1]
    if max(slot, empty) > 0.2 * seconds:
        by = "the engine: decoding waits for it" if slot > empty else "decoding: the engine waits for it"
        yield tag("p", f"What sets the pace is {by}.")


def _failures(run: Recording) -> Markup:
    if not run.failures:
        return tag("p", "None.")
    listed = [(video, error.removeprefix(f"{video}: ")) for video, error in run.failures[:_FAILURES]]
    parts = [table(("video", "reason"), listed, "Videos that failed, and why")]
    if len(listed) < len(run.failures):
        parts.append(
            tag("p", f"The first {_FAILURES:,} of {len(run.failures):,}; all are in {run.failures_file}.")
        )
    return tag("div", *parts)


def _run(run: Recording) -> Iterator[Markup]:
    yield tag("pre", tag("code", shlex.join(run.command)), aria_label="Command")
    yield facts(
        [("Output", run.output), *((line.partition(": ")[0], line.partition(": ")[2]) for line in run.said)]
    )
    for spec, sampling in zip(run.specs, run.samplings, strict=True):
        yield facts(
            [
                ("Model", spec.model),
                ("Weights", spec.weights.file),
                ("Precision", spec.precision),
                ("Windows", f"{sampling.frames}, every {sampling.step}, stride {sampling.stride}"),
                ("Frame rate", f"{sampling.fps:g}" if sampling.fps else "of each video"),
                ("Edges", sampling.edges),
            ]
        )
    yield facts([(name, value) for name, value in run.facts.items()])
