"""The config inside a ``.pyth`` file of PySlowFast, compared with the row that was chosen.

Much of a network leaves no trace in its keys and shapes: how many frames it looks at, which of them are the
slow pathway's, how pixels are normalised, what is pooled over time. The file says it, as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vfx_engines.errors import CheckpointError

Value = float | str | tuple[float | str, ...]
"""Of an option: a number, a text, ``true`` or ``false``, or a list of these."""
Config = Mapping[str, Collection[Value]]
"""Option -> the values with which a checkpoint fits."""

_LINE = re.compile(r"( *)([A-Za-z_][\w.]*):(?: (.*))?")
_ITEM = re.compile(r" *- ([^-\[].*)")


def trained_with(
    frames: int, stride: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Collection[Value]]:
    """What the config of every network of the zoo says: its windows, and how pixels are normalised."""
    return {
        "DATA.NUM_FRAMES": (frames,),
        "DATA.SAMPLING_RATE": (stride,),
        "DATA.MEAN": (mean,),
        "DATA.STD": (std,),
    }


def check_config(text: str, wanted: Config, *, model: str, file: str) -> None:
    """Refuse a checkpoint that was trained as something else.

    Options that the config does not have, as older ones, are not compared.

    Raises:
        CheckpointError: an option has another value; the first few are named.
    """
    found = options(text)
    # C2D without its pool is published as the arch of the one with it, under a class that is no longer there.
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
    """The options of a config by dotted name, as yacs writes them: maps by indentation, and flat lists.

    What is written in any other way is left out.
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
