"""A model repository as Triton reads it: ``<model>/config.pbtxt`` and ``<model>/<version>/model.onnx``.

A server may look at any moment. So a version's folder is filled under a hidden name, which Triton passes
over, and renamed at the end; before that the configuration is replaced, which holds the specs of the versions
that are there and of the one that comes. Whatever a server sees, each version has its own spec.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vfx_engines.errors import OutputError, UsageError, reason, shown
from vfx_engines.spec import EngineSpec
from vfx_export.triton_config import Serving, config_text, label_files, spec_lines

CONFIG = "config.pbtxt"


class NewVersion:
    """A version that is being made.

    Args:
        model: folder of the model.
        staged: the hidden folder that becomes the version's.
    """

    def __init__(self, model: Path, staged: Path) -> None:
        self._model, self._staged = model, staged

    def file(self, kind: str) -> Path:
        """Where the engine is to be written: ``model.onnx`` or ``model.plan``, as Triton looks for it."""
        return self._staged / f"model.{kind}"

    def publish(self, spec: EngineSpec, serving: Serving) -> Path:
        """Give the version its number and its spec; its folder.

        Raises:
            OSError: as it comes.
        """
        there = _versions(self._model)
        number = max(there, default=0) + 1
        config = self._model / CONFIG
        old = spec_lines(config.read_text("utf-8")) if config.exists() else {}
        kept = [line for version, line in sorted(old.items()) if version in there]
        for name, text in label_files(spec).items():
            self._replace(self._model / name, text)
        self._replace(config, config_text(self._model.name, number, spec, serving, kept))
        final = self._model / str(number)
        os.rename(self._staged, final)
        return final

    def _replace(self, path: Path, text: str) -> None:
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            part.write_text(text, "utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def new_version(repository: Path, name: str) -> Iterator[NewVersion]:
    """A folder for the next version of a model; what was not published leaves nothing.

    Raises:
        UsageError: the repository is a file.
        OutputError: it cannot be written to.
    """
    if repository.exists() and not repository.is_dir():
        raise UsageError(f"--triton {shown(repository)}: this is a file, expected a folder")
    model = repository / name
    made = [folder for folder in (model, repository) if not folder.exists()]
    staged = model / f".vfx-{uuid.uuid4().hex}"
    try:
        try:
            staged.mkdir(parents=True)
            yield NewVersion(model, staged)
        except OSError as error:
            raise OutputError(
                f"{shown(model)}: cannot be written: {error.strerror or reason(error)}"
            ) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # not empty: published
                folder.rmdir()


def _versions(model: Path) -> set[int]:
    return {int(item.name) for item in model.iterdir() if item.name.isdecimal() and item.is_dir()}
