"""Compile the runtime's CUDA kernels as C++, and run them on the CPU, one thread after another."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from simulated_cuda import Kernel
from vfx_engines.cuda import Argument
from vfx_runtime.picture import UPRIGHT, Convention, Orientation, SurfaceFormat
from vfx_runtime.resize import FramePlan
from vfx_runtime.surfaces import (
    KERNELS,
    STRIP,
    Colour,
    Frames,
    Geometry,
    Surface,
    Surfaces,
    Taps,
    colour,
    geometry,
    source,
)

UNTOLD = Convention()
_BLOCK = (32, 4, 1)

# Like the driver's launch, it takes an array of the arguments' addresses.
_ENTRY = """
extern "C" void run_{name}(const int* grid, const int* block, void** arguments) {{
    launch(grid, block, [&] {{ {name}({arguments}); }});
}}
"""
_RESIZE = ("Surfaces", "Geometry", "Colour", "Taps")
_PARAMETERS = {
    **dict.fromkeys(KERNELS.values(), _RESIZE),
    "gather_chunks": ("Frames", "int", "int", "int", "uint4*"),
    "gather_bytes": ("Frames", "int", "int", "int", "u8*"),
}
_SIZES = {
    **{kind.__name__: ctypes.sizeof(kind) for kind in (Surfaces, Geometry, Colour, Taps, Frames)},
    "int": 4,
    "uint4*": 8,
    "u8*": 8,
}


class CpuKernels:
    """The kernels, as functions of NumPy arrays."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("g++ is not installed")
        code = folder / "kernels.cpp"
        entries = "".join(
            _ENTRY.format(
                name=name, arguments=", ".join(f"*({kind}*)arguments[{i}]" for i, kind in enumerate(kinds))
            )
            for name, kinds in _PARAMETERS.items()
        )
        code.write_text(source() + entries)
        library = folder / "kernels.so"
        shim = Path(__file__).with_name("cuda_shim.h")
        # No contraction into fused multiply-adds here; on a GPU they may change a rounding by one level.
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

    def for_driver(self) -> dict[str, tuple[Kernel, list[int]]]:
        """The kernels in the form that `SimulatedDriver` takes: a function, and its arguments' sizes."""

        def runner(name: str) -> Kernel:
            def run(grid: Sequence[int], block: Sequence[int], addresses: list[int]) -> None:
                self._run(name, grid, block, addresses)

            return run

        return {name: (runner(name), [_SIZES[kind] for kind in kinds]) for name, kinds in _PARAMETERS.items()}

    def _run(self, name: str, grid: Sequence[int], block: Sequence[int], addresses: Sequence[int]) -> None:
        self._library[f"run_{name}"](
            (ctypes.c_int * 3)(*grid),
            (ctypes.c_int * 3)(*block),
            (ctypes.c_void_p * len(addresses))(*addresses),
        )

    def _call(self, name: str, grid: Sequence[int], block: Sequence[int], *arguments: Argument) -> None:
        self._run(name, grid, block, [ctypes.addressof(item) for item in arguments])

    def resize(
        self,
        kind: SurfaceFormat,
        planes: list[tuple[NDArray[np.generic], ...]],
        plan: FramePlan,
        convention: Convention = UNTOLD,
        turn: Orientation = UPRIGHT,
    ) -> NDArray[np.uint8]:
        """Convert, resize and crop pictures of 1 to 3 planes: uint8 ``[n, out_height, out_width, 3]``."""
        out = np.zeros((len(planes), plan.out_height, plan.out_width, 3), np.uint8)
        taps = Taps(
            plan.rows.start.ctypes.data,
            plan.rows.weight.ctypes.data,
            plan.columns.start.ctypes.data,
            plan.columns.weight.ctypes.data,
        )
        surfaces = Surfaces()
        for number, item in enumerate(planes):
            surfaces.at[number] = Surface(
                item[0].ctypes.data,
                item[1].ctypes.data if len(item) > 1 else None,
                item[2].ctypes.data if len(item) > 2 else None,
                item[0].strides[0],
                item[-1].strides[0],
                out[number].ctypes.data,
            )
        strips = -(-plan.out_height // STRIP)
        grid = (-(-plan.out_width // _BLOCK[0]), -(-strips // _BLOCK[1]), len(planes))
        self._call(
            KERNELS[kind], grid, _BLOCK, surfaces, geometry(plan, turn), colour(convention, kind), taps
        )
        return out

    def gather(
        self,
        kernel: str,
        frames: list[NDArray[np.uint8] | None],
        shape: tuple[int, ...],
        blank: tuple[int, int, int],
    ) -> NDArray[np.uint8]:
        """Gather frames of this shape, or parts of larger ones, into one array; None gives a blank frame."""
        out = np.zeros((len(frames), *shape), np.uint8)
        size = int(np.prod(shape))
        gathered, row = Frames(), size
        for i, frame in enumerate(frames):
            if frame is not None:
                gathered.at[i].first, gathered.at[i].pitch = frame.ctypes.data, frame.strides[0]
                row = row if frame.flags.c_contiguous else shape[1] * 3
        count = size // 16 if kernel == "gather_chunks" else size
        self._call(
            kernel,
            (-(-count // 128), len(frames), 1),
            (128, 1, 1),
            gathered,
            ctypes.c_int(row),
            ctypes.c_int(count),
            ctypes.c_int(blank[0] | blank[1] << 8 | blank[2] << 16),
            ctypes.c_void_p(out.ctypes.data),
        )
        return out
