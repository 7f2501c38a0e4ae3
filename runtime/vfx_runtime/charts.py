"""Charts for HTML pages: lines as SVG and matrices as PNG, with the data that a reader can point at."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfx_runtime.markup import Markup, data_island, data_uri, tag
from vfx_runtime.showing import Line, Similarity

_CLOCK_STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
_TICKS = 5
_NO_VALUE = -32768
_FULL = 10_000
"""The integer that stands for a cosine of 1 in a matrix's data."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The range of an axis, and its ticks as (value, label)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Where a value is on the axis: 0 at ``low``, 1 at ``high``."""
        return (value - self.low) / (self.high - self.low)


def number_axis(low: float, high: float, count: int = _TICKS) -> Axis:
    """An axis for numbers, extended to round numbers at both ends, in about ``count`` steps."""
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = tuple((k * step, f"{k * step:,.{digits}f}") for k in range(first, last + 1))
    return Axis(first * step, last * step, ticks)


def time_axis(start: float, end: float) -> Axis:
    """An axis for seconds that runs exactly from ``start`` to ``end``."""
    if not end > start:
        end = start + 1
    step = _round_step((end - start) / _TICKS)
    if step > 30:
        step = next((item for item in _CLOCK_STEPS if item >= step / 2), 86400)
    ticks = [k * step for k in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1)]
    return Axis(start, end, tuple((tick, clock(tick, step)) for tick in ticks))


def clock(seconds: float, step: float = 0.01) -> str:
    """Format a time in seconds: as ``4.25 s``, or as ``1:02:03`` if ``step`` is at least a minute."""
    if step < 60:
        return f"{seconds:.{max(0, -math.floor(math.log10(step)))}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def line_chart(
    caption: str,
    note: str,
    x: Axis,
    places: Sequence[float],
    line: Line,
    labels: Sequence[str],
    *,
    zero: bool = False,
) -> Markup:
    """A line chart over time.

    Args:
        caption: what is drawn.
        note: the unit, and anything else worth saying.
        x: the horizontal axis.
        places: horizontal positions of the points, in the axis's unit.
        line: values of the points. Where a point stands for several rows, their extremes are drawn as a band.
        labels: the text shown for each point.
        zero: whether the vertical axis begins at 0.
    """
    values = np.concatenate([line.low, line.high])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    y = number_axis(0.0 if zero else low, high or 1.0 if zero else high, 3)
    xs = [round(1000 * x.at(place), 2) for place in places]
    up = [
        [round(1000 * (1 - y.at(v)), 1) if math.isfinite(v) else None for v in part]
        for part in (line.mean, line.low, line.high)
    ]
    parts: list[object] = [tag("title", f"{caption}: {note}")]
    for tick, label in y.ticks:
        share = f"{100 * (1 - y.at(tick)):.2f}%"
        parts.append(tag("line", x1="0", x2="100%", y1=share, y2=share, class_="grid"))
        parts.append(tag("text", label, x="-8", y=share, dy="0.32em", text_anchor="end"))
    for tick, label in x.ticks:
        along = x.at(tick)
        anchor = "start" if along < 0.03 else "end" if along > 0.97 else "middle"
        place = f"{100 * along:.2f}%"
        parts.append(tag("line", x1=place, x2=place, y1="100%", y2="100%", class_="tick"))
        parts.append(tag("text", label, x=place, y="100%", dy="1.5em", text_anchor=anchor))
    drawn: list[object] = []
    if np.any(line.high > line.low):
        drawn.append(tag("path", d=_band(xs, up[1], up[2]), class_="band"))
    drawn.append(tag("path", d=_path(xs, up[0]), class_="line"))
    missing = "".join(f"M{place} 1000v-60" for place, value in zip(xs, up[0], strict=True) if value is None)
    if missing:
        drawn.append(tag("path", d=missing, class_="missing"))
    if len(xs) <= 80:
        dots = "".join(f"M{px} {py}h0" for px, py in zip(xs, up[0], strict=True) if py is not None)
        drawn.append(tag("path", d=dots, class_="dots"))
    parts.append(
        tag(
            "svg",
            *drawn,
            viewBox="0 0 1000 1000",
            preserveAspectRatio="none",
            width="100%",
            height="100%",
            overflow="visible",
        )
    )
    shape = tag("svg", *parts, class_="drawing", role="img", aria_label=f"{caption}: {note}")
    data = {"x": [place / 1000 for place in xs], "labels": list(labels)}
    return _figure("line", caption, note, shape, data)


def matrix_chart(caption: str, note: str, similar: Similarity, labels: Sequence[str]) -> Markup:
    """A similarity matrix as an image.

    Args:
        caption: what is drawn.
        note: anything else worth saying.
        similar: the matrix.
        labels: the text shown for each of its rows.
    """
    low, high = similar.scale
    count = len(similar.values)
    picture = png(similar.values, low, high)
    digits = max(3, 1 - math.floor(math.log10(high - low)))
    said = f"{caption}, {count} by {count}: from {low:.{digits}f}, dark, to {high:.{digits}f}, light"
    image = tag("img", src=data_uri("image/png", picture), alt=said, width=str(count), height=str(count))
    rows = int(similar.bounds[-1])
    parts: list[object] = []
    # A tick is at the middle of its row, hence the 0.5 below.
    step = max(1, round(number_axis(0, max(rows, 2), 4).ticks[1][0]))
    for row in range(0, rows, step):
        share, label = (row + 0.5) / rows, f"{row:,}"
        place = f"{100 * share:.2f}%"
        anchor = "end" if share > 0.97 and rows > 1 else "middle"
        parts.append(tag("text", label, x=place, y="100%", dy="1.5em", text_anchor=anchor))
        parts.append(tag("text", label, x="-8", y=place, dy="0.32em", text_anchor="end"))
    ticks = tag("svg", *parts, class_="drawing", aria_hidden="true")
    values = np.where(np.isfinite(similar.values), similar.values, np.nan)
    fixed = np.where(np.isnan(values), _NO_VALUE, np.rint(np.nan_to_num(values) * _FULL)).astype("<i2")
    data = {
        "count": count,
        "full": _FULL,
        "none": _NO_VALUE,
        "values": base64.b64encode(fixed.tobytes()).decode("ascii"),
        "labels": list(labels),
    }
    scale = tag(
        "p",
        f"{low:.{digits}f}",
        tag("img", src=data_uri("image/png", png(np.linspace(0, 1, 128)[None], 0, 1)), alt="dark to light"),
        f"{high:.{digits}f}",
        class_="scale",
    )
    return _figure("matrix", caption, note, tag("div", image, ticks, class_="stack"), data, scale)


def _figure(
    kind: str, caption: str, note: str, shape: Markup, data: object, below: Markup | None = None
) -> Markup:
    return tag(
        "figure",
        tag("figcaption", tag("strong", caption), " ", tag("span", note)),
        tag(
            "div",
            shape,
            tag("i", class_="cross x", aria_hidden="true"),
            tag("i", class_="cross y", aria_hidden="true") if kind == "matrix" else None,
            class_=f"plot {kind}",
            data_kind=kind,
            tabindex="0",
            role="group",
            aria_label=f"{caption}. Arrow keys read values.",
        ),
        tag("p", class_="readout", aria_live="polite"),
        below,
        data_island(data),
    )


def _path(xs: Sequence[float], ys: Sequence[float | None]) -> str:
    """An SVG path with gaps where there is no value."""
    found, begin = [], True
    for x, y in zip(xs, ys, strict=True):
        if y is not None:
            found.append(f"{'M' if begin else 'L'}{x} {y}")
        begin = y is None
    return "".join(found)


def _band(xs: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> str:
    found: list[str] = []
    run: list[tuple[float, float, float]] = []
    for x, below, above in [*zip(xs, low, high, strict=True), (0.0, None, None)]:
        if below is not None and above is not None:
            run.append((x, below, above))
            continue
        if run:
            there = "L".join(f"{x} {above}" for x, _, above in run)
            back = "L".join(f"{x} {below}" for x, below, _ in reversed(run))
            found.append(f"M{there}L{back}Z")
        run = []
    return "".join(found)


def _ramp() -> NDArray[np.uint8]:
    """255 RGB colours, uint8 ``[255, 3]``, from dark blue through green to light yellow.

    Lightness increases evenly (in Ottosson's Oklab).
    """
    share = np.linspace(0, 1, 255)
    lightness = 0.2 + 0.77 * share
    hue = np.radians(285 - 185 * share)
    chroma = 0.05 + 0.09 * np.sin(np.pi * share) ** 0.8
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    ) @ (lms**3)
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: NDArray[np.uint8] = np.rint(encoded.T * 255).astype(np.uint8)
    return colours


def png(values: NDArray[np.float64], low: float, high: float) -> bytes:
    """Draw numbers as a PNG image, one pixel each. Values that are not finite become transparent.

    Args:
        values: float64 ``[height, width]``.
        low: the value that gets the darkest colour; lower ones get it too.
        high: the value that gets the lightest colour.

    Returns:
        The bytes of a PNG file.
    """
    height, width = values.shape
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1)
    pixels = np.where(known, 1 + np.rint(share * 254), 0).astype(np.uint8)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes(3) + _ramp().tobytes()),
            chunk(b"tRNS", b"\0"),
            chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            chunk(b"IEND", b""),
        )
    )
