"""What `from vfx_export import ...` gives, and when."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vfx_export
from vfx_export.catalogue import CATALOGUE, find
from vfx_export.exporting import export_model, export_module
from vfx_export.model import Model


def test_the_public_names() -> None:
    assert vfx_export.export_module is export_module
    assert vfx_export.export_model is export_model
    assert vfx_export.find is find
    assert vfx_export.CATALOGUE is CATALOGUE
    assert vfx_export.Model is Model
    with pytest.raises(AttributeError, match="has no attribute 'export_moduel'"):
        _ = vfx_export.export_moduel


def test_torch_is_imported_on_first_use() -> None:
    code = (
        "import sys, vfx_export; before = 'torch' in sys.modules;"
        "from vfx_export import export_module; sys.exit(before or 'torch' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_type_checkers_know_them() -> None:
    """They do not run `__getattr__`: what they see is imported under TYPE_CHECKING."""
    tree = ast.parse(Path(vfx_export.__file__).read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(guarded.test) == "TYPE_CHECKING"
    names = [alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(names) == sorted(vfx_export.__all__)
