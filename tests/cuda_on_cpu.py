"""Compiles the CUDA kernels of the runtime as C++ and runs them on the CPU, thread after thread."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vfx_runtime.orientation import UPRIGHT, Orientation
from vfx_runtime.resize import FramePlan
from vfx_runtime.surfaces import (
    KERNELS,
    STRIP,
    Convention,
    Geometry,
    Surface,
    SurfaceFormat,
    Taps,
    colour,
    geometry,
    source,
)

UNTOLD = Convention()
_BLOCK = (32, 4, 1)

_ENTRIES = """
extern "C" void run_{name}(const int* grid, const int* block, const Surface* surfaces,
                           const Geometry* geometry, const Colour* colour, const Taps* taps, u8* out) {{
    launch(grid, block, [&] {{ {name}(surfaces, *geometry, *colour, *taps, out); }});
}}
"""
_GATHER = """
extern "C" void run_gather(const int* grid, const int* block, const uint4* ring, const int* index,
                           long long chunks, int blank, uint4* out) {
    launch(grid, block, [&] { gather_windows(ring, index, chunks, blank, out); });
}
"""


class CpuKernels:
    """The kernels, as functions of NumPy arrays."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("g++ is not installed")
        code = folder / "kernels.cpp"
        entries = "".join(_ENTRIES.format(name=name) for name in KERNELS.values())
        code.write_text(source() + entries + _GATHER)
        library = folder / "kernels.so"
        shim = Path(__file__).with_name("cuda_shim.h")
        # No contraction into fused multiply-adds here; the GPU's may move a rounding by one level.
        flags = [
            "-O2",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wno-unknown-pragmas",
            "-ffp-contract=off",
        ]
        subprocess.run([compiler, *flags, "-include", shim, "-o", library, code], check=True)
        self._library = ctypes.CDLL(str(library))

    def resize(
        self,
        kind: SurfaceFormat,
        planes: list[tuple[NDArray[np.generic], ...]],
        plan: FramePlan,
        convention: Convention = UNTOLD,
        turn: Orientation = UPRIGHT,
    ) -> NDArray[np.uint8]:
        """Pictures of one or two planes each to uint8 [n, out_height, out_width, 3]."""
        out = np.zeros((len(planes), plan.out_height, plan.out_width, 3), np.uint8)
        surfaces = (Surface * len(planes))(
            *(
                Surface(
                    item[0].ctypes.data,
                    item[-1].ctypes.data,
                    item[0].strides[0],
                    item[-1].strides[0],
                    number * out[0].nbytes,
                )
                for number, item in enumerate(planes)
            )
        )
        taps = Taps(
            plan.rows.start.ctypes.data,
            plan.rows.weight.ctypes.data,
            plan.columns.start.ctypes.data,
            plan.columns.weight.ctypes.data,
        )
        sizes: Geometry = geometry(plan, turn)
        colours = colour(convention, kind)
        strips = -(-plan.out_height // STRIP)
        grid = (-(-plan.out_width // _BLOCK[0]), -(-strips // _BLOCK[1]), len(planes))
        run = self._library[f"run_{KERNELS[kind]}"]
        run(
            (ctypes.c_int * 3)(*grid),
            (ctypes.c_int * 3)(*_BLOCK),
            surfaces,
            ctypes.byref(sizes),
            ctypes.byref(colours),
            ctypes.byref(taps),
            ctypes.c_void_p(out.ctypes.data),
        )
        return out

    def gather(
        self, ring: NDArray[np.uint8], index: list[int], blank: tuple[int, int, int]
    ) -> NDArray[np.uint8]:
        """Frames [n, height, width, 3] of a ring by their places; a negative one is blank."""
        out = np.zeros((len(index), *ring.shape[1:]), np.uint8)
        chunks = ring[0].nbytes // 16
        places = np.array(index, np.int32)
        self._library.run_gather(
            (ctypes.c_int * 3)(-(-chunks // 128), len(index), 1),
            (ctypes.c_int * 3)(128, 1, 1),
            ctypes.c_void_p(ring.ctypes.data),
            ctypes.c_void_p(places.ctypes.data),
            ctypes.c_longlong(chunks),
            ctypes.c_int(blank[0] | blank[1] << 8 | blank[2] << 16),
            ctypes.c_void_p(out.ctypes.data),
        )
        return out
