"""What ``vfx-export --list`` prints: the catalogue, as a table or as JSON."""

from __future__ import annotations

import json
import re

import click
from rich.console import Console
from rich.table import Table

from vfx_engines.spec import Input, Output
from vfx_export.catalogue import CATALOGUE


def print_catalogue(*, as_json: bool) -> None:
    """Print all models to stdout, as a table or as JSON."""
    rows = [
        {
            "model": model.name,
            "source": model.source,
            "licence": model.licence,
            "frames": model.sampling.frames,
            "stride": model.sampling.stride,
            "step": model.sampling.step,
            "input": _size(model.input(model.sampling.frames)),
            "output": model.feature.name,
            "length": _length(model.feature),
            "checkpoint": " ".join(part.download.url for part in model.parts) or model.download.url,
            "dead": model.download.dead,
        }
        for model in CATALOGUE
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    # The table fits a terminal of 80 columns; what would not fit is printed below it.
    table = Table(box=None, pad_edge=False)
    for name in ("model", "output", "length", "window", "step", "input"):
        table.add_column(name, no_wrap=True)
    by_licence: dict[str, list[str]] = {}
    for row in rows:
        size, length = (re.sub("(h)eight|(w)idth", r"\1\2", str(row[key])) for key in ("input", "length"))
        window = f"{row['frames']}x{row['stride']}"
        table.add_row(str(row["model"]), str(row["output"]), length, window, str(row["step"]), size)
        by_licence.setdefault(str(row["licence"]), []).append(str(row["model"]))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nwindow: frames x stride; step: from one window to the next, in frames (for audio, in samples)"
    )
    console.print("For sources and addresses of the weights see --list --json. Their licences:")
    for licence, names in by_licence.items():
        console.print(f"  {licence}: {', '.join(names)}", markup=False)
    for row in rows:
        if row["dead"]:
            console.print(f"No longer at its address, {row['dead']}: {row['model']}", markup=False)


def _length(feature: Output) -> int | str:
    """Length of a row; for a field of flow, its shape, which depends on the size of the frames."""
    row = feature.shape[1:] if feature.per == "pair" else feature.shape
    (length, *others) = row
    return "x".join(map(str, row)) if others else length


def _size(taken: Input) -> str:
    """Height and width of frames; only "audio" for audio, whose length is in the column for windows."""
    return "audio" if taken.modality == "audio" else "x".join(map(str, taken.shape[2:4]))
