"""The blobs of a Caffe2 checkpoint, without Caffe2: PySlowFast's older ``.pkl`` files.

Such a file is a pickle of ``{"blobs": {name: array}}``, mostly from Python 2. Our unpickler only knows the
names that NumPy's pickles ask for, and only makes arrays of numbers. If a pickle asks for anything else,
reading ends before it is called.

A small file cannot take much memory or time either: all arrays together have at most twice as many bytes as
the file; see `vfx_export.unpickling`.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfx_engines.errors import CheckpointError, reason
from vfx_export.unpickling import PlainUnpickler

_NUMBERS = re.compile(r"[<>|=]?[biuf][1-8]")
_MOST_AXES = 8
_MOST_ON_AN_AXIS = 2**63 - 1

Numbers = np.ndarray[Any, np.dtype[Any]]


def read_caffe2(path: Path, where: str) -> dict[str, Tensor]:
    """The blobs of a Caffe2 pickle by name, in their own dtypes, without those of training (``*_momentum``).

    Args:
        path: the file.
        where: name of the file in messages.

    Raises:
        CheckpointError: the pickle asks for anything but arrays of numbers, is damaged, or holds no blobs.
            Nothing in it is run.
    """
    try:
        with path.open("rb") as file:
            loaded = _Unpickler(file, path.stat().st_size).load()
    except _RefusedError as error:
        raise CheckpointError(
            f"{where}: unpickling it would call {error}: refused, and nothing in it was run; "
            "expected a Caffe2 pickle of NumPy arrays, a checkpoint of torch.save or .safetensors"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        if isinstance(error, EOFError) or "truncated" in str(error):
            raise CheckpointError(f"{where}: truncated; fetch or copy the file again") from None
        raise CheckpointError(
            f"{where}: damaged pickle: {type(error).__name__}: {reason(error)}; fetch or copy the file again"
        ) from None
    blobs = loaded.get("blobs") if isinstance(loaded, dict) else None
    if not isinstance(blobs, dict):
        raise CheckpointError(
            f"{where}: a Python pickle that torch.save did not write, without the blobs of Caffe2; nothing "
            "in it was run; expected a checkpoint of torch.save or .safetensors"
        )
    return {
        name: torch.from_numpy(blob.array)
        for name, blob in blobs.items()
        if isinstance(name, str) and isinstance(blob, _Array) and not name.endswith("_momentum")
    }


class _RefusedError(Exception):
    """Carries the name that a pickle asked for and did not get."""


class _Type:
    """Stands for a NumPy dtype: kind, size and byte order of numbers."""

    def __init__(self, text: object) -> None:
        if not isinstance(text, str) or not _NUMBERS.fullmatch(text):
            raise ValueError(f"numbers of type {reprlib.repr(text)}")
        self.text = text

    def __setstate__(self, state: object) -> None:
        # (version, byte order, ...): NumPy stores the byte order here rather than in the name.
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {reprlib.repr(order)}")
        self.text = order + self.text.lstrip("<>|=")


class _Array:
    """Stands for a NumPy array, which is made when its bytes arrive.

    Args:
        spend: called with the number of bytes that the array takes.
    """

    def __init__(self, spend: Callable[[int], None]) -> None:
        self.array: Numbers = np.zeros(0, np.float32)
        self._spend = spend

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, str):
            data = data.encode("latin1")  # Python 2's bytes are unpickled as text
        self._spend(len(data))
        self.array = _shaped(data, shape, kind, "F" if fortran else "C")


def _shaped(data: object, shape: object, kind: object, order: Any) -> Numbers:
    if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array without numbers")
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_AXES
        or not all(isinstance(size, int) and 0 <= size <= _MOST_ON_AN_AXIS for size in shape)
    ):
        raise ValueError(f"an array of shape {reprlib.repr(shape)}")
    numbers = np.dtype(kind.text)
    if math.prod(shape) * numbers.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array of {list(shape)} numbers of {numbers}")
    made = np.frombuffer(data, numbers).astype(numbers.newbyteorder("=")).reshape(shape, order=order)
    # Copied here rather than once per name, because an array may have many names.
    return made if made.flags.c_contiguous else made.copy()


class _Unpickler(PlainUnpickler):
    """Hands out functions made for this one pickle, so that whatever it does to them ends with it."""

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file, encoding="latin1")
        # Twice, because bytes that Python 3 wrote for Python 2 are counted as text and as numbers.
        left = 2 * size

        def spend(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise ValueError("arrays of more bytes than the file can hold")

        class NDArray:
            """Stands for ``numpy.ndarray``, which pickles name but do not call."""

        def dtype(text: object, *rest: object) -> _Type:
            return _Type(text)

        def empty(*rest: object) -> _Array:
            return _Array(spend)

        def scalar(kind: object, data: object = b"") -> float:
            """A NumPy scalar, such as the iteration at which training stopped."""
            data = data.encode("latin1") if isinstance(data, str) else data
            return float(_shaped(data, (), kind, "C"))

        def from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
            if not isinstance(data, bytes | bytearray):
                raise ValueError("an array without numbers")
            spend(len(data))
            made = _Array(spend)
            made.array = _shaped(data, shape, kind, "F" if order == "F" else "C")
            return made

        def encode(text: Any, encoding: Any = "latin1") -> bytes:
            """Bytes, as Python 3 writes them for Python 2."""
            if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
                raise ValueError("bytes that are not written as latin1")
            spend(len(text))
            return text.encode("latin1")

        def no_bytes() -> bytes:
            """The bytes of an empty array, as Python 3 writes them for Python 2."""
            return b""

        names: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "dtype"): dtype,
            ("numpy", "ndarray"): NDArray,
            ("_codecs", "encode"): encode,
            ("__builtin__", "bytes"): no_bytes,
        }
        for core in ("numpy.core", "numpy._core"):
            names[f"{core}.multiarray", "_reconstruct"] = empty
            names[f"{core}.multiarray", "scalar"] = scalar
            names[f"{core}.numeric", "_frombuffer"] = from_buffer
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        known = self._names.get((module, name))
        if known is None:
            full = f"{module}.{name}"
            raise _RefusedError(full if full.isprintable() else repr(full))
        return known
