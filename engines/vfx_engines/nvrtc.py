"""Compiling CUDA source to machine code with NVRTC, which needs no GPU, and caching the result on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from vfx_engines.errors import EngineError, UsageError, reason

ARCHITECTURES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
"""Compute capabilities for which tests compile the kernels: Turing to Blackwell."""


def compiled(source: str, name: str, capability: tuple[int, int], cache: Path | None = None) -> bytes:
    """Compile kernels, or take them from the cache.

    Args:
        source: CUDA C++ that includes nothing.
        name: name of the source in messages.
        capability: compute capability of the device.
        cache: folder of the cache; None takes the user's cache folder.

    Returns:
        The cubin for that compute capability.

    Raises:
        UsageError: NVRTC is not installed.
        EngineError: the source does not compile.
    """
    folder = cache or platformdirs.user_cache_path("vfx") / "kernels"
    nvrtc = _nvrtc()
    # No fused multiply-adds, so that results are rounded as in the tests on a CPU.
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", "--std=c++17", "--fmad=false"]
    version = ".".join(map(str, _checked(nvrtc, nvrtc.nvrtcVersion())))
    key = hashlib.sha256("\0".join([version, *options, source]).encode()).hexdigest()
    path = folder / f"{key[:32]}.cubin"
    if path.is_file():
        return path.read_bytes()
    cubin = _compile(nvrtc, source, name, options)
    # If the cache cannot be written, the next start only takes a tenth of a second longer.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        # A folder, because it is removed even if what is in it cannot be written or renamed.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / path.name
            part.write_bytes(cubin)
            os.replace(part, path)
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
