"""CUDA source to machine code through NVRTC, which needs no GPU, kept on disk once compiled."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

from vfx_engines.errors import EngineError, UsageError, reason

ARCHITECTURES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
"""Compute capabilities that the kernels are compiled for in tests: Turing to Blackwell."""


def compiled(source: str, name: str, capability: tuple[int, int], cache: Path | None = None) -> bytes:
    """The cubin of some kernels, from the cache where it is there.

    Args:
        source: CUDA C++; it includes nothing.
        name: for messages.
        capability: compute capability of the device.
        cache: folder; None takes the user's cache folder.

    Raises:
        UsageError: NVRTC is not installed.
        EngineError: the source does not compile.
    """
    folder = cache or platformdirs.user_cache_path("vfx") / "kernels"
    nvrtc = _nvrtc()
    # Without fused multiply-adds: the same roundings as in the tests on a CPU.
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", "--std=c++17", "--fmad=false"]
    version = ".".join(map(str, _checked(nvrtc, nvrtc.nvrtcVersion())))
    key = hashlib.sha256("\0".join([version, *options, source]).encode()).hexdigest()
    path = folder / f"{key[:32]}.cubin"
    if path.is_file():
        return path.read_bytes()
    cubin = _compile(nvrtc, source, name, options)
    # A cache that cannot be written to costs a tenth of a second at the next start, nothing else.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
            part.write(cubin)
        os.replace(part.name, path)
    except OSError:
        pass
    return cubin


def _compile(nvrtc: Any, source: str, name: str, options: list[str]) -> bytes:
    (program,) = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []))
    try:
        (code,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            (size,) = _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
            log = b" " * size
            _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
            raise EngineError(f"{name}: NVRTC cannot compile it ({options[0]}): {reason(log.decode())}")
        (size,) = _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        cubin: bytes = b" " * size
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"compiling kernels needs NVRTC: pip install cuda-bindings nvidia-cuda-nvrtc ({reason(error)})"
        ) from None
    return nvrtc


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    code, *values = result
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"NVRTC failed: {code.name}")
    return tuple(values)
