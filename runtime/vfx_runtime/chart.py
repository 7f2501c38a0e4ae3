"""The PNG chart of ``vfx-bench``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from vfx_engines.errors import UsageError
from vfx_runtime.atomic import output_error

_COLOURS = {"decode": "#4878a8", "resize": "#7fb069", "engine": "#d9843b", "all else": "#b0b0b0"}


def check_chart(path: Path) -> None:
    """Check before anything is measured that the chart can be written.

    Raises:
        UsageError: matplotlib is not installed, ``path`` does not end in ``.png``, or its folder does not
            exist.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a chart needs matplotlib: pip install matplotlib")
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise UsageError(f"--chart {path}: expected a .png file in a folder that exists")


def draw_stages(
    path: Path, title: str, rates: Mapping[str, float], limit: float, cpu: Mapping[str, float]
) -> None:
    """Draw the speed of each stage, and what a window's CPU time is spent on.

    Args:
        path: the ``.png`` file to write.
        title: title above both panels.
        rates: windows per second, for each stage.
        limit: windows per second that all stages together allow.
        cpu: CPU-seconds per window, for each part of the work: decode, resize, engine, all else.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.4 + 0.45 * len(rates)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.plot(list(rates.values()), list(rates), "o", color=_COLOURS["decode"])
    for name, rate in rates.items():
        left.annotate(f"{rate:.1f}", (rate, name), (8, 0), textcoords="offset points", va="center")
    left.axvline(limit, color="black", linestyle="--", linewidth=1)
    left.set_xscale("log")
    left.margins(0.2, 0.15)
    left.invert_yaxis()
    left.grid(axis="y", alpha=0.3)
    left.set_xlabel(f"windows per second, all cores (dashed: the limit of all stages, {limit:.1f})")
    start = 0.0
    for name, seconds in cpu.items():
        right.barh(["a window"], [seconds], left=start, label=f"{name} {seconds:.3f}", color=_COLOURS[name])
        start += seconds
    right.set_xlabel("CPU-seconds of a window, end to end")
    right.set_yticks([])
    right.margins(y=0.6)
    right.legend(fontsize="small", loc="upper left")
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise output_error(error, path) from None
