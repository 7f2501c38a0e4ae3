"""The results of vfx-bench: medians, the limit, and how they are shown."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vfx_runtime.chart import draw_stages
from vfx_runtime.measuring import Cost, cpu_limit, gpu_limit

_QUIET = 0.03
"""Share of the cores' time that other processes may take before it is mentioned."""


@dataclass(frozen=True, slots=True)
class Report:
    """All measurements of a run of vfx-bench."""

    engine: dict[str, Any]
    """Facts about the engine: file, model, precision, what ran it, multiply-adds per window."""
    machine: dict[str, Any]
    videos: dict[str, Any]
    peak: float | None
    """Multiply-adds per second of the machine's matrix units in the engine's precision; None if not
    measured."""
    rounds: list[list[Cost]]
    """For each round, one measurement per stage."""
    batch: int
    """Windows per call, end to end."""
    others: float | None = None
    """Share of all cores' time that other processes took meanwhile; None if the system does not tell."""
    unit: str = "frames"
    """What a window is made of: frames, or samples of sound."""

    def costs(self, stage: str, batch: int | None = None) -> list[Cost]:
        """A stage's measurements, one per round."""
        return [
            cost
            for costs in self.rounds
            for cost in costs
            if cost.stage == stage and batch in (None, cost.batch)
        ]

    def rate(self, stage: str, batch: int | None = None) -> float:
        """Median windows per second; for a stage of frames, the windows that its frames would make."""
        per_window = self.frames_per_window
        return statistics.median(
            cost.windows_per_second if cost.windows else cost.frames_per_second / per_window
            for cost in self.costs(stage, batch)
        )

    def cpu(self, stage: str, batch: int | None = None) -> float:
        """Median CPU-seconds per window."""
        per_window = self.frames_per_window
        return statistics.median(
            cost.cpu_per_window if cost.windows else cost.cpu_per_frame * per_window
            for cost in self.costs(stage, batch)
        )

    @property
    def batches(self) -> list[int]:
        """The batch sizes that the engine was measured with."""
        return sorted({cost.batch for cost in self.costs("engine") if cost.batch is not None})

    @property
    def frames_per_window(self) -> float:
        """Source frames decoded per window, end to end."""
        return statistics.median(cost.frames / cost.windows for cost in self.costs("end to end"))

    @property
    def frame_stages(self) -> list[str]:
        """The stages before the engine: decoding, and resizing unless the engine takes sound."""
        return ["decode", "resize"] if self.costs("resize") else ["decode"]

    @property
    def limits(self) -> list[float]:
        """Windows per second that the stages allow, computed for each round."""
        engines, decodes = self.costs("engine", self.batch), self.costs("decode")
        per_window, cores = self.frames_per_window, self.machine["cores"]
        if self.engine["device"] not in ("cpu", "server"):
            pairs = zip(engines, decodes, strict=True)
            return [gpu_limit(engine, decode, per_window) for engine, decode in pairs]
        resizes: Sequence[Cost | None] = self.costs("resize") or [None] * len(engines)
        stages = zip(engines, decodes, resizes, strict=True)
        limits = [cpu_limit(*stage, frames_per_window=per_window, cores=cores) for stage in stages]
        if self.engine["device"] == "server":
            return [
                min(*pair) for pair in zip(limits, (item.windows_per_second for item in engines), strict=True)
            ]
        return limits

    @property
    def shares(self) -> list[float]:
        """End-to-end speed as a share of the limit, for each round."""
        ends = self.costs("end to end")
        return [end.windows_per_second / limit for end, limit in zip(ends, self.limits, strict=True)]

    def share_of_peak(self, windows_per_second: float) -> float | None:
        """Share of the matrix units' peak, counting the multiply-adds of the published network."""
        macs = self.engine["macs"]
        return windows_per_second * macs / self.peak if macs and self.peak else None

    def plain(self) -> dict[str, Any]:
        """Everything as plain JSON, with the derived figures first."""
        engine_rates = {batch: self.rate("engine", batch) for batch in self.batches}
        return {
            "end_to_end_windows_per_second": self.rate("end to end"),
            "limit_windows_per_second": statistics.median(self.limits),
            "share_of_limit": statistics.median(self.shares),
            "shares_of_limit": self.shares,
            "engine_windows_per_second": engine_rates,
            "peak_macs_per_second": self.peak,
            "share_of_peak": self.share_of_peak(max(engine_rates.values())),
            "frames_per_window": self.frames_per_window,
            "share_of_others": self.others,
            "engine": self.engine,
            "machine": self.machine,
            "videos": self.videos,
            "rounds": [[dataclasses.asdict(cost) for cost in costs] for costs in self.rounds],
        }


def table(report: Report) -> Table:
    """A table with a row for each stage."""
    table = Table(box=None, pad_edge=False)  # without padding, a batch of four digits fits into 80 columns
    for column in ("stage", "windows/s", f"{report.unit}/s", "CPU-s/window", "of peak", "peak MiB"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)

    def row(label: str, stage: str, batch: int | None = None) -> None:
        costs = report.costs(stage, batch)
        rate, share = report.rate(stage, batch), None
        if stage not in ("decode", "resize"):
            share = report.share_of_peak(rate)
        table.add_row(
            label,
            f"{rate:.2f}",
            f"{rate * report.frames_per_window:.0f}",
            f"{report.cpu(stage, batch):.4f}",
            "" if share is None else f"{share:.0%}",
            f"{max(cost.peak_bytes for cost in costs) / 2**20:.0f}",
        )

    for stage in report.frame_stages:
        row(f"{stage} alone", stage)
    for batch in report.batches:
        row(f"engine alone, batch {batch}", "engine", batch)
    row(f"end to end, batch {report.batch}", "end to end")
    return table


def summary(report: Report) -> str:
    """How close the run is to the limit, and whether the figures can be trusted."""
    shares = report.shares
    set_by = {
        "cpu": "the stages' CPU-seconds set",
        "server": "the server, decoding or resizing set",
    }.get(report.engine["device"], "the GPU, or decoding and resizing, set")
    lines = [
        f"end to end is {statistics.median(shares):.2f} of the limit of "
        f"{statistics.median(report.limits):.2f} windows/s that {set_by} on "
        f"{report.machine['cores']} cores ({min(shares):.2f} to {max(shares):.2f} in {len(shares)} rounds)"
    ]
    if report.peak:
        lines.append(
            f"peak of the matrix units in {report.engine['precision']}: {report.peak / 1e9:.0f} GMAC/s"
        )
    if report.others is not None and report.others > _QUIET:
        lines.append(f"others took {report.others:.0%} of this machine meanwhile: the figures are too low")
    return "\n".join(lines)


def draw(report: Report, path: Path) -> None:
    """Write a PNG chart: windows per second of each stage, and what a window's CPU time is spent on.

    Raises:
        OutputError: the file cannot be written.
    """
    rates = {stage: report.rate(stage) for stage in report.frame_stages}
    rates |= {f"engine, batch {batch}": report.rate("engine", batch) for batch in report.batches}
    rates["end to end"] = report.rate("end to end")
    cpu = {stage: report.cpu(stage) for stage in report.frame_stages}
    cpu["engine"] = report.cpu("engine", report.batch)
    whole = statistics.median(cost.cpu_seconds / cost.windows for cost in report.costs("end to end"))
    cpu["all else"] = max(0.0, whole - sum(cpu.values()))
    title = f"{report.engine['model']}, {report.engine['runs']}, {report.machine['cores']} cores"
    draw_stages(path, title, rates, statistics.median(report.limits), cpu)
