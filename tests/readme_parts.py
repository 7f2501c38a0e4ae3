"""The parts of README.md that are generated from the code: the commands' help, and the table of models.

``python tests/readme_parts.py`` (scripts/help) rewrites these parts, and tests/test_docs.py compares them.
Each is between two comments, ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import click
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

WIDTH = "80"
"""Columns of the terminal; on a wider one, click uses no more either."""


def commands() -> dict[str, click.Command]:
    """The console scripts of pyproject.toml, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: dict[str, click.Command] = {}
    for name, target in project["scripts"].items():
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{name}: {target} is no click command"
        found[name] = command
    return found


def help_text(name: str, command: click.Command) -> str:
    """What ``NAME --help`` prints."""
    result = CliRunner(env={"COLUMNS": WIDTH}).invoke(command, ["--help"], prog_name=name)
    assert result.exit_code == 0, result.output
    return result.output


def model_table() -> str:
    """The table with a row for each model of the catalogue."""
    from vfx_export import CATALOGUE

    head = "| `--model` | output | window | next window | frames of | weights | their licence |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for model in CATALOGUE:
        sampling = model.sampling
        if model.modality == "audio":
            counted, picture = "samples", f"sound at {sampling.fps:g} Hz"
        else:
            height, width = model.input(sampling.frames).shape[2:4]
            counted, picture = "frames", f"{width} x {height}"
        ending = {2: "nd", 3: "rd"}.get(sampling.stride, "th")
        stride = f", every {sampling.stride}{ending}" if sampling.stride > 1 else ""
        size = " x ".join(map(str, model.feature.shape))
        if model.feature.per == "pair":
            size = " x ".join(map(str, model.feature.shape[1:])) + " for each pair"
        cells = (
            f"`{model.name}`",
            f"`{model.feature.name}`, {size}",
            _many(sampling.frames, counted) + stride,
            f"{_many(sampling.step, counted)} on",
            picture,
            f"[{model.source}]({model.download.url})"
            + (f"; {dead}" if (dead := model.download.dead) else ""),
            model.licence,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _many(count: int, things: str) -> str:
    return f"{count} {things if count != 1 else things.removesuffix('s')}"


def parts() -> dict[str, str]:
    """The text of each part, by name."""
    helps = {
        f"help {name}": f"```text\n{help_text(name, command)}```\n" for name, command in commands().items()
    }
    return {"models": model_table(), **helps}


def part(text: str, name: str) -> re.Match[str]:
    """Find a part of a page; group 1 is the text between its comments."""
    found = re.findall(rf"<!-- /?{re.escape(name)} -->", text)
    assert found == [f"<!-- {name} -->", f"<!-- /{name} -->"], f"comments of the part {name!r}: {found}"
    match = re.search(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- /{re.escape(name)} -->", text, re.DOTALL)
    assert match is not None
    return match


def main() -> None:
    """Rewrite all parts."""
    text = README.read_text("utf-8")
    for name, new in parts().items():
        old = part(text, name)
        text = text[: old.start(1)] + new + text[old.end(1) :]
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
