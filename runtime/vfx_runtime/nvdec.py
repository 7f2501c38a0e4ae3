"""How many videos the engine's GPU decodes at the same time, on its NVDEC units."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Literal, get_args

from vfx_engines.cuda import Cuda
from vfx_engines.engine import Engine
from vfx_engines.errors import UsageError

DecoderName = Literal["auto", "cpu", "nvdec"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)

_PER_UNIT = 2
"""Videos per NVDEC unit, so that one fills the gaps of the other. On an H100 with seven units, 14 videos at
once were reported to be a tenth faster than 7."""

_LIBRARY = "libnvcuvid.so.1"
_H264, _CHROMA_420 = 4, 1


class _Capabilities(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's Video Codec SDK (cuviddec.h)."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved_1", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte),
        ("units", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("histogram", ctypes.c_ubyte),
        ("counter_bits", ctypes.c_ubyte),
        ("histogram_bins", ctypes.c_ushort),
        ("reserved_3", ctypes.c_uint * 10),
    )


def gpu_decoders(
    engine: Engine, choice: DecoderName = "auto", said: Callable[[str], None] = lambda line: None
) -> int:
    """Number of videos to decode at the same time on the engine's GPU; 0 for none.

    Args:
        engine: an open engine.
        choice: ``auto`` uses NVDEC if there is any, in addition to the CPU; ``nvdec`` requires it.
        said: called with the reason, if the engine is on a GPU but ``auto`` finds no NVDEC there.

    Raises:
        UsageError: ``nvdec`` is required, but the engine takes sound or is not on a GPU, or no NVDEC can be
            reached there.
    """
    if choice == "cpu":
        return 0
    if engine.spec.input.modality != "frames":
        units, missing = 0, f"{engine.spec.model} takes sound, which no GPU decodes"
    elif engine.cuda is None:
        units, missing = 0, f"{engine.name} is not on a GPU"
    else:
        units, missing = nvdec_units(engine.cuda)
    if choice == "nvdec" and not units:
        raise UsageError(f"--decoder nvdec: {missing}: leave --decoder out")
    if not units and engine.cuda is not None and engine.spec.input.modality == "frames":
        said(f"decoding: on the CPU alone: {missing}")
    return units * _PER_UNIT


def nvdec_units(cuda: Cuda) -> tuple[int, str]:
    """Number of NVDEC units that decode H.264; or 0, and why there are none."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return 0, (
            f"{_LIBRARY} is not found; in a container pass NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        )
    asked = _Capabilities(codec=_H264, chroma=_CHROMA_420)
    cuda.activate()
    code = library.cuvidGetDecoderCaps(ctypes.byref(asked))
    if code or not asked.supported:
        return 0, f"the driver says that {cuda.name} decodes no H.264 (cuvidGetDecoderCaps gave {code})"
    # Drivers older than version 11.0 of the SDK do not give the number.
    return max(1, asked.units), ""
