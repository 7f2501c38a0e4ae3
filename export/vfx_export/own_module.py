"""The user's own torch module, from ``FILE.py:FACTORY``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from torch import nn

from vfx_engines.errors import ExportError, UsageError, reason, shown


def build(text: str) -> nn.Module:
    """The module that the factory of ``FILE.py:FACTORY`` returns. Only here does vfx execute a user's file.

    Raises:
        UsageError: no such file, or no such function in it.
        ExportError: the user's code fails, or does not return a torch module.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise UsageError(f"--module {shown(text)}: expected FILE.py:FACTORY with a file that exists")
    loaded = importlib.util.spec_from_file_location(f"_vfx_module_{Path(file).stem}", file)
    assert loaded is not None
    assert loaded.loader is not None
    code = importlib.util.module_from_spec(loaded)
    # Dataclasses and pickle look up the module of a class there.
    sys.modules[code.__name__] = code
    sys.path.insert(0, str(Path(file).resolve().parent))
    try:
        loaded.loader.exec_module(code)
        factory = getattr(code, name, None)
        built = factory() if callable(factory) else None
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ExportError(
            f"--module {shown(text)}: {type(error).__name__}: {reason(error)} (--debug shows where)"
        ) from error
    if not callable(factory):
        raise UsageError(f"--module {shown(text)}: the file has no function {name!r}")
    if not isinstance(built, nn.Module):
        raise ExportError(
            f"--module {shown(text)}: {name} returned a {type(built).__name__}, no torch module"
        )
    return built
