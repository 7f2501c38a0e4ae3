"""Check that each package's public names are listed in its README and have docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("engines", "export", "runtime")


def room_module(room: str) -> ModuleType:
    if room == "export":
        pytest.importorskip("torch")
    return importlib.import_module(f"vfx_{room}")


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_those_of_the_readme(room: str) -> None:
    module = room_module(room)
    text = (ROOT / room / "README.md").read_text("utf-8").partition("\n## Public names\n")[2]
    assert re.findall(r"`(\w+)`", text) == module.__all__
    for name in module.__all__:
        assert hasattr(module, name), name


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_described(room: str) -> None:
    module = room_module(room)
    assert module.__doc__
    for name in module.__all__:
        item = getattr(module, name)
        if inspect.isfunction(item):
            assert item.__doc__, name
        elif inspect.isclass(item):
            # A dataclass without a docstring gets its signature as docstring.
            assert item.__doc__, name
            assert not item.__doc__.startswith(f"{name}("), name
            for attribute, member in vars(item).items():
                if attribute.startswith("_") or not (
                    inspect.isfunction(member) or isinstance(member, property)
                ):
                    continue
                assert member.__doc__, f"{name}.{attribute}"


@pytest.mark.parametrize("room", ROOMS)
def test_arguments_are_described(room: str) -> None:
    """Public functions with several arguments describe each of them by name under ``Args``."""
    module = room_module(room)
    for name in module.__all__:
        item = getattr(module, name)
        if not inspect.isfunction(item):
            continue
        arguments = list(inspect.signature(item).parameters)
        if len(arguments) > 1:
            described = re.findall(r"^ +(\w+): ", (item.__doc__ or "").partition("Args:")[2], re.MULTILINE)
            assert set(arguments) <= set(described), f"{name}: {set(arguments) - set(described)}"
