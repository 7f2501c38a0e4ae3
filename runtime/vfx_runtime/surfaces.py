"""The arguments of the CUDA kernels in ``kernels/preprocess.cu``, for Python.

The structures have the same memory layout as the kernels declare. tests/runtime/test_preprocess_kernel.py
runs the same source on a CPU.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.resources import files

from vfx_engines.errors import VideoError
from vfx_runtime.picture import Convention, Orientation, SurfaceFormat
from vfx_runtime.resize import FramePlan

_FIXED = 1 << 13
"""1.0 in FFmpeg's fixed point: samples are multiplied by 8, and the lower 16 bits of a product are
dropped."""

STRIP = 8
"""Output rows per thread, the same as in the kernel."""

MOST_SURFACES = 16
"""Most pictures in one launch."""

MOST_FRAMES = 64
"""Most frames that one launch gathers."""

KERNELS: dict[SurfaceFormat, str] = {
    "nv12": "frames_from_nv12",
    "p016": "frames_from_p016",
    "i420": "frames_from_i420",
    "rgb": "frames_from_rgb",
}


class Surface(ctypes.Structure):
    """One decoded picture: addresses of its planes, bytes from row to row, and where its pixels go."""

    _fields_ = (
        ("luma", ctypes.c_void_p),
        ("chroma", ctypes.c_void_p),
        ("chroma_red", ctypes.c_void_p),
        ("luma_pitch", ctypes.c_longlong),
        ("chroma_pitch", ctypes.c_longlong),
        ("out", ctypes.c_void_p),
    )


class Surfaces(ctypes.Structure):
    """The pictures of one launch."""

    _fields_ = (("at", Surface * MOST_SURFACES),)


class Frame(ctypes.Structure):
    """The part of a resized frame to gather: its address (null for a blank frame), bytes from row to row."""

    _fields_ = (("first", ctypes.c_void_p), ("pitch", ctypes.c_longlong))


class Frames(ctypes.Structure):
    """The frames of a window, or of a part of it."""

    _fields_ = (("at", Frame * MOST_FRAMES),)


class Geometry(ctypes.Structure):
    """How frames of one size become the engine's input; see `FramePlan`."""

    _fields_ = (
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("out_width", ctypes.c_int),
        ("out_height", ctypes.c_int),
        ("column_taps", ctypes.c_int),
        ("row_taps", ctypes.c_int),
        ("transpose", ctypes.c_int),
        ("flip_x", ctypes.c_int),
        ("flip_y", ctypes.c_int),
        ("opencv", ctypes.c_int),
    )


class Colour(ctypes.Structure):
    """Coefficients from Y'CbCr to RGB: FFmpeg's in fixed point, and H.273's in floating point."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("as_ffmpeg", "black_8", "luma_gain")),
        *((name, ctypes.c_int) for name in ("red_cr", "green_cb", "green_cr", "blue_cb")),
        *((name, ctypes.c_float) for name in ("black", "luma_scale")),
        *((name, ctypes.c_float) for name in ("red_v", "green_u", "green_v", "blue_u")),
        *((name, ctypes.c_int) for name in ("interpolate", "left", "top")),
    )


class Taps(ctypes.Structure):
    """Addresses of a `FramePlan`'s tap tables, where the kernel reads them."""

    _fields_ = (
        ("row_start", ctypes.c_void_p),
        ("row_weight", ctypes.c_void_p),
        ("column_start", ctypes.c_void_p),
        ("column_weight", ctypes.c_void_p),
    )


_LUMA_WEIGHTS: dict[int, tuple[float, float]] = {
    1: (0.2126, 0.0722),
    2: (0.299, 0.114),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Weights of red and blue in luma, by AVColorSpace (H.273, table 4)."""


def colour(convention: Convention, kind: SurfaceFormat) -> Colour:
    """The kernel's coefficients for one kind of surface.

    Raises:
        VideoError: the colour matrix is not defined by weights of red, green and blue.
    """
    if convention.matrix not in _LUMA_WEIGHTS:
        raise VideoError(
            f"colour matrix {convention.matrix} is not supported on a GPU, expected one of "
            f"{', '.join(map(str, _LUMA_WEIGHTS))}: decode on the CPU"
        )
    red, blue = _LUMA_WEIGHTS[convention.matrix]
    green = 1 - red - blue
    black, luma, chroma = (0, 1.0, 1.0) if convention.full_range else (16, 255 / 219, 255 / 224)
    red_v, blue_u = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    green_u, green_v = -blue_u * blue / green, -red_v * red / green
    return Colour(
        as_ffmpeg=kind == "i420" or (kind == "nv12" and not convention.interpolate),
        black_8=8 * black,
        luma_gain=round(luma * _FIXED),
        red_cr=round(red_v * _FIXED),
        green_cb=round(green_u * _FIXED),
        green_cr=round(green_v * _FIXED),
        blue_cb=round(blue_u * _FIXED),
        black=black,
        luma_scale=luma,
        red_v=red_v,
        green_u=green_u,
        green_v=green_v,
        blue_u=blue_u,
        interpolate=convention.interpolate,
        left=convention.left,
        top=convention.top,
    )


def geometry(plan: FramePlan, turn: Orientation) -> Geometry:
    """The kernel's geometry: a plan for frames as displayed, applied to surfaces stored in an orientation."""
    return Geometry(
        width=plan.width,
        height=plan.height,
        out_width=plan.out_width,
        out_height=plan.out_height,
        column_taps=plan.columns.weight.shape[1],
        row_taps=plan.rows.weight.shape[1],
        transpose=turn.transpose,
        flip_x=turn.flip_x,
        flip_y=turn.flip_y,
        opencv=plan.opencv,
    )


@cache
def source() -> str:
    """The CUDA source of the kernels."""
    return files("vfx_runtime").joinpath("kernels/preprocess.cu").read_text("utf-8")
