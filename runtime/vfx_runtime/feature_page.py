"""The HTML page about one feature file: thumbnails, a section per output, the engines, the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfx_engines.errors import SpecError
from vfx_engines.spec import EngineSpec, Output
from vfx_runtime import showing
from vfx_runtime.charts import line_chart, matrix_chart
from vfx_runtime.features import Features
from vfx_runtime.flow_picture import flow_picture
from vfx_runtime.markup import Markup, data_uri, document, facts, joined, table, tag, warning
from vfx_runtime.showing import Line
from vfx_runtime.thumbnails import Thumbnail, encode
from vfx_runtime.timeline import Timeline

STRIP = 12
"""Number of pictures in a strip along the time axis."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The contents of a page."""

    name: str
    features: Features
    about_file: Sequence[tuple[str, object]]
    """Facts about the file and the video, as (name, value)."""
    thumbnails: Sequence[Thumbnail] = ()
    notes: Sequence[str] = ()
    """Warnings, shown at the top."""


def specs_of(meta: object) -> list[EngineSpec]:
    """The specs, from a file's metadata, of the engines that made it. Invalid ones are left out."""
    found = []
    for part in _parts(meta):
        try:
            found.append(EngineSpec.from_json(json.dumps(part.get("spec"))))
        except SpecError:
            continue
    return found


def _parts(meta: object) -> list[dict[str, Any]]:
    """The part of ``meta`` about each engine. Nothing is taken for granted: anyone may have made the file."""
    if not isinstance(meta, dict):
        return []
    others = meta.get("others")
    return [meta, *(part for part in (others if isinstance(others, list) else []) if isinstance(part, dict))]


def random_models(specs: Sequence[EngineSpec]) -> list[str]:
    """Names of the models whose weights are random, entirely or in part."""
    return [spec.model for spec in specs if "random" in spec.weights.file.split(" + ")]


def feature_page(shown: Shown) -> str:
    """The page as one self-contained HTML document."""
    features = shown.features
    specs = specs_of(features.meta)
    outputs = {output.name: output for spec in specs for output in spec.outputs}
    rows = len(features.frame_range) if features.frame_range.ndim else 0
    times = Timeline(features.timestamps_ms, rows)
    under = [", ".join(spec.model for spec in specs), _many(rows, "row")]
    if times.timed:
        under.append(times.time(0, rows - 1))
    if features.fps > 0:
        under.append(f"{features.fps:g} fps")
    sections = [
        tag("section", tag("h2", name, id=f"output-{k}"), *_output(name, array, outputs.get(name), times))
        for k, (name, array) in enumerate(features.arrays.items())
    ]
    places = [(f"#output-{k}", name) for k, name in enumerate(features.arrays)]
    places += [("#engine", "Engine"), ("#file", "File")]
    return document(
        shown.name,
        tag(
            "header",
            tag("h1", shown.name),
            tag("p", " · ".join(part for part in under if part), class_="under"),
            *(_random(model) for model in random_models(specs)),
            *(warning(note) for note in shown.notes),
            tag("nav", *(tag("a", name, href=href) for href, name in places), aria_label="Sections"),
        ),
        _strip(
            [
                (thumb.jpeg, thumb.width, thumb.height, f"{thumb.seconds:.2f} s", f"frame {thumb.frame}")
                for thumb in shown.thumbnails
            ],
            "Frames of the video",
        ),
        *sections,
        tag("section", tag("h2", "Engine", id="engine"), *_engines(features.meta, specs)),
        tag("section", tag("h2", "File", id="file"), facts(shown.about_file)),
    )


def _random(model: str) -> Markup:
    return warning(tag("strong", "RANDOM WEIGHTS"), f": the features of {model} mean nothing")


def _strip(pictures: Sequence[tuple[bytes, int, int, str, str]], caption: str) -> Markup | None:
    if not pictures:
        return None
    items = []
    for jpeg, width, height, time, alt in pictures:
        source = data_uri("image/jpeg", jpeg)
        image = tag("img", src=source, width=width, height=height, alt=f"{alt}, {time}".rstrip(", "))
        items.append(tag("li", image, tag("span", time)))
    return tag("ol", *items, class_="strip", aria_label=caption)


def _output(
    name: str, array: NDArray[Any], output: Output | None, times: Timeline
) -> Iterator[Markup | None]:
    shape = " × ".join(map(str, array.shape))
    what = f"{array.dtype}, {shape}" + (f"; one row for each {output.per}" if output else "")
    yield tag("p", what, class_="under")
    if not array.ndim or not np.issubdtype(array.dtype, np.floating):
        yield tag("p", "Not shown: rows of floating-point numbers are expected.")
        return
    if not len(array):
        yield tag("p", "No rows.")
        return
    if len(array) != times.rows:
        yield warning(f"{_many(len(array), 'row')} here, {times.rows} in frame_range: the file is not whole.")
        times = Timeline(np.empty(0), len(array))
    bad = showing.not_finite(array)
    if bad.size:
        runs = np.split(bad, np.flatnonzero(np.diff(bad) > 1) + 1)
        said = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs[:20]]
        named = ", ".join(said) + (", …" if len(runs) > 20 else "")
        yield warning(f"{_many(bad.size, 'row')} of {len(array):,} not finite (NaN or infinity): {named}")
    if output is not None and output.kind == "logits" and array.ndim == 2:
        yield from _predictions(array, output, times)
    elif array.ndim == 4 and array.shape[1] == 2 and (output is None or output.per == "pair"):
        yield from _flow(array, times)
    elif showing.is_feature(array):
        yield _line(times, showing.line(showing.norms(array)), "Length of rows", "Euclidean norm")
        yield _similarity(array, times)
    else:
        yield _line(times, showing.line(showing.norms(array)), "Length of rows", "Euclidean norm, all axes")
        axes = " × ".join(map(str, array.shape[1:]))
        yield tag(
            "p",
            f"Rows are maps of {axes or 'no axis'}. Only rows of one axis are "
            "compared and drawn: the maps themselves and their similarity are not shown.",
        )


def _line(times: Timeline, line: Line, caption: str, note: str, digits: int = 4, **more: bool) -> Markup:
    values = []
    for mean, low, high in zip(line.mean, line.low, line.high, strict=True):
        spread = f" ({low:.{digits}g} to {high:.{digits}g})" if high > low else ""
        values.append("no value" if np.isnan(mean) else f"{mean:.{digits}g}{spread}")
    labels = [f"{said}: {value}" for said, value in zip(times.labels(line.bounds), values, strict=True)]
    if len(line.mean) < times.rows:
        each = times.rows / len(line.mean)
        note += f"; each point is the mean of about {each:.3g} rows, the band their extremes"
    if not times.timed:
        note += "; by row, since times are not known"
    return line_chart(caption, note, times.axis(), times.places(line.bounds), line, labels, **more)


def _similarity(array: NDArray[Any], times: Timeline) -> Markup:
    similar = showing.similarity(array)
    note = "cosine of every row with every row"
    if similar.averaged:
        each = len(array) / len(similar.values)
        note += f"; each cell is the mean over about {each:.3g} × {each:.3g} pairs"
    if not np.isfinite(similar.values).all():
        note += "; hatched: rows without a direction (not finite, or all zeros)"
    return matrix_chart("Self-similarity", note, similar, times.labels(similar.bounds))


def _predictions(array: NDArray[Any], output: Output, times: Timeline) -> Iterator[Markup]:
    activation = output.activation or "softmax"
    shares = showing.chances(array, activation)

    def label(index: int) -> str:
        return output.labels[index] if output.labels else f"class {index}"

    best = showing.line(shares.max(1))
    yield _line(times, best, "Probability of the most likely class", f"{activation} of the logits", zero=True)
    known = shares[np.isfinite(shares).all(1)]
    overall: Markup | None = None
    if len(known):
        mean = known.mean(0)
        cells = [
            (label(int(k)), tag("span", f"{mean[k]:.3f}"), bar([(mean[k], "b1")])) for k in showing.top(mean)
        ]
        overall = table(("class", "mean probability", ""), cells, "Most likely classes over all rows")
    listed = showing.spread(len(array), showing.LISTED)
    rows = []
    for row in listed:
        said = times.time(int(row), int(row)) or f"row {row}"
        if not np.isfinite(shares[row]).all():
            rows.append([said, "no value"])
            continue
        items = [
            [label(int(k)), " ", tag("small", f"{shares[row, k]:.3f}")] for k in showing.top(shares[row])
        ]
        text = joined(part for item in items for part in (*item, " · "))
        rows.append([said, Markup(text.removesuffix(" · "))])
    title = (
        "Top 5 of each row" if len(listed) == len(array) else f"Top 5 of {len(listed)} of {len(array):,} rows"
    )
    yield tag(
        "div",
        tag("div", tag("h3", "Over all rows"), overall or tag("p", "No row is finite.")),
        tag(
            "div",
            tag("h3", title),
            table(("time" if times.timed else "row", "classes"), rows, title, class_="top"),
        ),
        class_="two",
    )


def bar(parts: Sequence[tuple[float, str]]) -> Markup:
    """A horizontal bar of shares of a whole (0 to 1), each with the CSS class that colours it."""
    drawn, x = [], 0.0
    for share, kind in parts:
        width = max(0.0, min(share, 1 - x))
        drawn.append(tag("rect", x=f"{100 * x:.3f}", width=f"{100 * width:.3f}", height=10, class_=kind))
        x += width
    return tag(
        "svg", *drawn, class_="bar", viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true"
    )


def _flow(array: NDArray[Any], times: Timeline) -> Iterator[Markup | None]:
    yield _line(
        times, showing.line(showing.motion(array)), "Motion", "mean length of the vectors, pixels", zero=True
    )
    # The middles of equal parts, like the frames of the video at the top of the page.
    count = min(STRIP, len(array))
    chosen = [int((k + 0.5) * len(array) / count) for k in range(count)]
    lengths = [np.hypot(*array[row].astype(np.float64)) for row in chosen]
    finite = [length[np.isfinite(length)].max(initial=0) for length in lengths]
    longest = float(max(finite)) or 1.0
    pictures = []
    for row in chosen:
        (width, height), jpeg = encode(flow_picture(array[row], longest))
        pictures.append((jpeg, width, height, times.time(row, row) or f"row {row}", f"flow of row {row}"))
    yield _strip(pictures, "Optical flow")
    yield tag(
        "p",
        f"Direction as colour (red to the right, yellow down), white where nothing moves, full colour at "
        f"{longest:.3g} pixels. Flow fields are pictures: their similarity as rows is not shown.",
        class_="under",
    )


def _engines(meta: dict[str, Any], specs: Sequence[EngineSpec]) -> Iterator[Markup | None]:
    if not specs:
        yield tag("p", "The file's meta holds no spec that this version of vfx reads.")
    for spec in specs:
        part = next((p for p in _parts(meta) if _model_of(p) == spec.model), {})
        if len(specs) > 1:
            yield tag("h3", spec.model)
        yield facts(_spec_facts(spec, part))
        plain = json.loads(spec.to_json())
        for output in plain["outputs"]:
            if output["labels"]:
                output["labels"] = f"{len(output['labels'])} labels, not repeated here"
        text = json.dumps(plain, indent=1, ensure_ascii=False)
        yield tag("details", tag("summary", f"Spec of {spec.model}, whole"), tag("pre", text))


def _model_of(part: dict[str, Any]) -> object:
    spec = part.get("spec")
    return spec.get("model") if isinstance(spec, dict) else None


def _spec_facts(spec: EngineSpec, part: dict[str, Any]) -> list[tuple[str, object]]:
    weights, transform, proof = spec.weights, spec.transform, spec.proof
    force = part.get("sampling")
    sampling = {**json.loads(spec.to_json())["sampling"], **(force if isinstance(force, dict) else {})}
    unit = "samples" if spec.input.modality == "audio" else "frames"
    windows = (
        f"{sampling['frames']} {unit if sampling['frames'] != 1 else unit[:-1]}, every {sampling['step']}"
    )
    windows += f", stride {sampling['stride']}" if sampling["stride"] != 1 else ""
    windows += f", at {sampling['fps']} per second" if sampling["fps"] else ""
    steps = []
    if transform.resize:
        size = transform.resize
        to = f"{size.height} × {size.width}" if size.rule == "exact" else str(size.height)
        steps.append(f"{size.rule.replace('_', ' ')} to {to}, {size.filter}")
    if transform.crop:
        steps.append(f"crop {transform.crop.height} × {transform.crop.width}")
    proved = f"{proof.error:.1e} from {proof.reference} ({proof.tolerance:.0e} allowed)" if proof else None
    return [
        ("Model", spec.model),
        ("Ran on", part.get("engine")),
        ("Precision", spec.precision),
        ("Weights", weights.file),
        ("SHA-256", tag("code", weights.sha256) if weights.sha256 else None),
        ("Source", weights.source),
        ("Licence", weights.licence),
        ("Input", f"{spec.input.dtype} {' × '.join(map(str, spec.input.shape))}"),
        ("Windows", windows),
        ("Anchor, edges", f"{sampling['anchor']}, {sampling['edges']}"),
        ("Transform", "; ".join(steps) or None),
        ("Outputs", ", ".join(f"{o.name} {' × '.join(map(str, o.shape))}" for o in spec.outputs)),
        ("Compared", proved),
        ("Work", f"{spec.macs / 1e9:,.2f} GMAC a window" if spec.macs else None),
        ("vfx", spec.vfx_version or None),
    ]


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"
