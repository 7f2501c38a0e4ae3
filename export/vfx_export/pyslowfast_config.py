"""The config inside a ``.pyth`` file of PySlowFast, compared with the chosen row of the catalogue.

Much of a network cannot be seen in keys and shapes: how many frames it takes, which of them the slow pathway
sees, how pixels are normalised, what is pooled over time. The config inside the file says it, as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vfx_engines.errors import CheckpointError

Value = float | str | tuple[float | str, ...]
"""Value of an option: a number, a text (also ``true`` and ``false``), or a list of these."""
Config = Mapping[str, Collection[Value]]
"""Dotted name of an option -> the values that a fitting checkpoint may have."""

_LINE = re.compile(r"( *)([A-Za-z_][\w.]*):(?: (.*))?")
_ITEM = re.compile(r" *- ([^-\[].*)")


def trained_with(
    frames: int, stride: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Collection[Value]]:
    """The options that every network of the zoo has: its windows, and how pixels are normalised.

    Args:
        frames: frames in a window.
        stride: frames from one frame of a window to the next.
        mean: mean of each colour, in [0, 1].
        std: standard deviation of each colour, likewise.
    """
    return {
        "DATA.NUM_FRAMES": (frames,),
        "DATA.SAMPLING_RATE": (stride,),
        "DATA.MEAN": (mean,),
        "DATA.STD": (std,),
    }


def check_config(text: str, wanted: Config, *, model: str, file: str) -> None:
    """Refuse a checkpoint that was trained as another network.

    Options that the config lacks are not compared, since older configs have fewer.

    Args:
        text: the config, as YAML.
        wanted: the values that fit.
        model: name of the model, for messages.
        file: name of the file, for messages.

    Raises:
        CheckpointError: an option has another value; the first three are named.
    """
    found = options(text)
    # C2D without its pool is published under the arch name of C2D with it, and a class that no longer exists.
    if found.get("MODEL.MODEL_NAME") == "ResNet_nopool":
        found["MODEL.ARCH"] = "c2d_nopool"
    apart = [
        f"{name} {_shown(found[name])} and not {' or '.join(map(_shown, allowed))}"
        for name, allowed in wanted.items()
        if name in found and found[name] not in allowed
    ]
    if apart:
        raise CheckpointError(
            f"{file} does not fit {model}: the config inside says {', '.join(apart[:3])}; "
            "choose the model that it was trained as"
        )


def options(text: str) -> dict[str, Value]:
    """The options of a config by dotted name.

    Reads YAML as yacs writes it: maps by indentation, and flat lists. Anything else is left out.
    """
    out: dict[str, Value] = {}
    path: list[tuple[int, str]] = []
    items: list[float | str] = []
    for line in text.splitlines():
        item = _ITEM.fullmatch(line)
        if item is not None and path:
            items.append(_scalar(item[1]))
            out[".".join(name for _, name in path)] = tuple(items)
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            continue
        depth, items = len(match[1]), []
        path = [*((d, name) for d, name in path if d < depth), (depth, match[2])]
        if match[3]:
            out[".".join(name for _, name in path)] = _value(match[3])
    return out


def _value(text: str) -> Value:
    if text.startswith("[") and text.endswith("]"):
        return tuple(_scalar(item.strip()) for item in text[1:-1].split(",") if item.strip())
    return _scalar(text)


def _scalar(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _shown(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    text = f"{value:g}" if isinstance(value, float | int) else value
    return text[:40] if text.isprintable() else repr(text[:40])
