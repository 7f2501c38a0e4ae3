"""The blobs of a Caffe2 checkpoint, without Caffe2: PySlowFast's older ``.pkl`` files.

Such a file is a pickle, mostly of Python 2, of ``{"blobs": {name: array}}``. It is read by an unpickler that
knows what NumPy's own pickles ask for and makes nothing but arrays of numbers: whatever else it asks for ends
the reading before it is called.

Nor can a small file take much memory or time: all arrays together have at most twice the bytes of the
file; see `vfx_export.unpickling`.
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
    """The blobs of a Caffe2 pickle by name; of the others, those of training (``*_momentum``) are left out.

    Args:
        path: the file.
        where: how messages name it.

    Raises:
        CheckpointError: its pickle asks for anything but arrays of numbers, is damaged, or holds no blobs.
            Nothing of it is run.
    """
    try:
        with path.open("rb") as file:
            loaded = _Unpickler(file, path.stat().st_size).load()
    except _RefusedError as error:
        raise CheckpointError(
            f"{where}: unpickling it would call {error}: refused, and nothing in it was run; "
            "expected a Caffe2 pickle of NumPy arrays, a checkpoint of torch.save or .safetensors"
        ) from None
    except Exception as error:  # damaged pickles raise whatever their opcodes stumble over
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
    """The name of what a pickle asked for and did not get."""


class _Type:
    """Stands for a NumPy dtype: a kind and size of number, in an order of bytes."""

    def __init__(self, text: object) -> None:
        if not isinstance(text, str) or not _NUMBERS.fullmatch(text):
            raise ValueError(f"numbers of type {reprlib.repr(text)}")
        self.text = text

    def __setstate__(self, state: object) -> None:
        # (version, byte order, ...): NumPy stores the order here and not in the name.
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {reprlib.repr(order)}")
        self.text = order + self.text.lstrip("<>|=")


class _Array:
    """Stands for a NumPy array, which is made of its bytes once they are there.

    Args:
        spend: called with the bytes that it takes.
    """

    def __init__(self, spend: Callable[[int], None]) -> None:
        self.array: Numbers = np.zeros(0, np.float32)
        self._spend = spend

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, str):
            data = data.encode("latin1")  # bytes are text in Python 2
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
    # Here and not where names are given to arrays, of which one may have many.
    return made if made.flags.c_contiguous else made.copy()


class _Unpickler(PlainUnpickler):
    """Gives functions that are made for this one pickle: what it does to them ends with it."""

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file, encoding="latin1")
        # What Python 3 wrote for Python 2 is counted twice: as text, and as numbers.
        left = 2 * size

        def spend(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise ValueError("arrays of more bytes than the file can hold")

        class NDArray:
            """Stands for ``numpy.ndarray``, which pickles name and do not call."""

        def dtype(text: object, *rest: object) -> _Type:
            return _Type(text)

        def empty(*rest: object) -> _Array:
            return _Array(spend)

        def scalar(kind: object, data: object = b"") -> float:
            """Such as the iteration at which training stopped."""
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
            """How Python 3 writes bytes for Python 2."""
            if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
                raise ValueError("bytes that are not written as latin1")
            spend(len(text))
            return text.encode("latin1")

        def no_bytes() -> bytes:
            """How Python 3 writes the bytes of an empty array for Python 2."""
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
