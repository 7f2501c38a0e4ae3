"""A TensorRT plan and its spec ``<name>.plan.json``, beside it so that other tools can load the plan."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vfx_engines.errors import EngineError, SpecError, shown
from vfx_engines.spec import MAX_SPEC_BYTES, EngineSpec


def spec_path(plan: Path) -> Path:
    """Path of the spec of a plan: ``<name>.plan.json`` in the same folder."""
    return plan.with_name(f"{plan.name}.json")


def write_plan(path: Path, plan: bytes, spec: EngineSpec) -> None:
    """Write a plan and its spec, the spec first, so that a plan is never there without one.

    Args:
        path: the ``.plan`` file to write.
        plan: the serialised engine.
        spec: a spec whose ``plan`` is set.

    Raises:
        OSError: a file cannot be written.
    """
    assert spec.plan is not None, "a plan's spec says what it was built with"
    written = {spec_path(path): spec.to_json().encode(), path: plan}
    parts = {target: target.with_name(f".{target.name}.part") for target in written}
    try:
        for target, data in written.items():
            # If this were a link, writing would overwrite its target.
            parts[target].unlink(missing_ok=True)
            parts[target].write_bytes(data)
        for target, part in parts.items():
            os.replace(part, target)
    except BaseException:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
        raise


def _at_once(path: str, flags: int) -> int:
    """Opener that does not wait for a writer if the path is a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_plan_spec(path: Path) -> EngineSpec:
    """The spec of a plan.

    Raises:
        EngineError: the plan or the spec beside it is missing.
        SpecError: the spec is malformed, too long, newer than this vfx, or that of an ONNX file.
    """
    if not path.is_file():
        raise EngineError(f"{shown(path)}: no such file; expected a plan made by vfx-export")
    beside = spec_path(path)
    try:
        with open(beside, "rb", opener=_at_once) as file:
            text = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise EngineError(
            f"{shown(path)}: its spec {shown(beside.name)} is missing ({error.strerror}): copy it along, or "
            "export the plan again"
        ) from None
    if len(text) > MAX_SPEC_BYTES:
        raise SpecError(
            f"{shown(beside)}: more than {MAX_SPEC_BYTES} bytes, which no spec has: copy the right one along"
        )
    try:
        spec = EngineSpec.from_json(text)
    except SpecError as error:
        raise SpecError(f"{shown(beside)}: {error}") from None
    if spec.plan is None:
        raise SpecError(f"{shown(beside)}: is the spec of an ONNX file, expected that of a plan")
    return spec
