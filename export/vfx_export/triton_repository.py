"""A model repository as Triton reads it: ``<model>/config.pbtxt`` and ``<model>/<version>/model.onnx``.

A server may read the repository at any moment. So a version's folder is filled under a hidden name, which
Triton ignores, and renamed at the end. Just before, the configuration is replaced by one with the specs of
the existing versions and of the new one. So whatever a server sees, each version has its own spec.
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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.pbtxt"


class NewVersion:
    """A version of a model that is being written.

    Args:
        model: folder of the model.
        staged: the hidden folder that becomes the version's folder.
    """

    def __init__(self, model: Path, staged: Path) -> None:
        self._model, self._staged = model, staged

    def file(self, kind: str) -> Path:
        """Path to write the engine to: ``model.onnx`` or ``model.plan``, the names that Triton expects."""
        return self._staged / f"model.{kind}"

    def publish(self, spec: EngineSpec, serving: Serving) -> Path:
        """Give the version the next number, and put its spec into the configuration.

        Args:
            spec: spec of the engine in the staged folder.
            serving: how Triton should run it.

        Returns:
            The version's folder.

        Raises:
            OSError: the repository cannot be written.
        """
        with _alone(self._model):
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
    """A folder for the next version of a model. If it is not published, nothing is left of it.

    Args:
        repository: folder of the repository, created if necessary.
        name: name of the model.

    Raises:
        UsageError: the repository is a file.
        OutputError: the repository cannot be written.
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
            with suppress(OSError):  # not empty, because something was published
                folder.rmdir()


@contextmanager
def _alone(model: Path) -> Iterator[None]:
    """Wait until no other export publishes a version of this model: it would take the same number.

    The kernel drops the lock with its process. Systems without such locks for folders do without.
    """
    if fcntl is None:
        yield
        return
    folder = os.open(model, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _versions(model: Path) -> set[int]:
    return {int(item.name) for item in model.iterdir() if item.name.isdecimal() and item.is_dir()}
