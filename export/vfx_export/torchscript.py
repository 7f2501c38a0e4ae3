"""The tensors of a TorchScript archive, without TorchScript.

Such an archive (``torch.jit.save``; OpenAI's CLIP) holds the module as a pickle of objects, and its code as
text. The code is never read. Our unpickler only knows eight functions, the archive's own classes and torch's
storages, and only makes tensors, lists and plain records of them. If a pickle asks for anything else, reading
ends before it is called.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfx_engines.errors import CheckpointError, reason
from vfx_export.unpickling import PlainUnpickler

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_MOST_MODULES = 100_000


def read_torchscript(path: Path, where: str) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive by key, as in the module's ``state_dict``.

    A module that has two names is returned only under the first one.

    Args:
        path: the archive, whose checksums have been verified.
        where: name of the file in messages.

    Raises:
        CheckpointError: the pickle asks for anything but tensors, is damaged, or names records that are
            missing or have another size. Nothing in it is run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = min((name for name in archive.namelist() if name.endswith("/data.pkl")), key=len)
            loaded = _Unpickler(archive, root.removesuffix("data.pkl"), root).load()
    except _RefusedError as error:
        raise CheckpointError(
            f"{where}: unpickling it would call {error}: refused, and nothing in it was run; "
            "expected a TorchScript archive of tensors, a state dict or .safetensors"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{where}: damaged TorchScript archive: {type(error).__name__}: {reason(error)}; "
            "fetch or copy the file again"
        ) from None
    return _tensors(loaded)


class _RefusedError(Exception):
    """Carries the name that a pickle asked for and did not get."""


class _Unpickler(PlainUnpickler):
    """Hands out classes and functions made for this one pickle; whatever it does to them ends with it."""

    def __init__(self, archive: zipfile.ZipFile, root: str, record: str) -> None:
        super().__init__(io.BytesIO(archive.read(record)))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

        class Module:
            """Stands for any class of the archive: attributes, and nothing that could be called."""

        def tensor(storage: Tensor, offset: int, size: Any, stride: Any, *rest: object) -> Tensor:
            return storage.as_strided(size, stride, offset)

        def same(value: object, *rest: object) -> object:
            return value

        self._module = Module
        self._names: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._utils", "_rebuild_parameter"): same,
            ("torch.jit._pickle", "restore_type_tag"): same,
            ("collections", "OrderedDict"): lambda *rest: OrderedDict(),
            **{("torch.jit._pickle", name): same for name in _LISTS},
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self._module
        if module == "torch" and name in _STORAGES:
            return name
        known = self._names.get((module, name))
        if known is None:
            full = f"{module}.{name}"
            raise _RefusedError(full if full.isprintable() else repr(full))
        return known

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        name, dtype = f"{self._root}data/{key}", _STORAGES[kind]
        if name not in self._storages:
            size = self._archive.getinfo(name).file_size
            if size != count * dtype.itemsize or not size:
                raise ValueError(f"{name} has {size} bytes, its pickle says {count} of {dtype}")
            if sys.byteorder != "little":
                raise ValueError("its numbers are little-endian, this machine's are not")
            self._storages[name] = torch.frombuffer(bytearray(self._archive.read(name)), dtype=dtype)
        if self._storages[name].dtype != dtype:
            raise ValueError(f"{name} is read as {dtype} and as {self._storages[name].dtype}")
        return self._storages[name]


def _tensors(loaded: object) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    modules = [("", loaded)]
    # Each module only once, because in a pickle a module can contain itself.
    while modules and len(seen) < _MOST_MODULES:
        prefix, module = modules.pop()
        attributes = getattr(module, "__dict__", None)
        if not isinstance(attributes, dict) or id(module) in seen:
            continue
        seen.add(id(module))
        inner = []
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                state[f"{prefix}{name}"] = value
            else:
                inner.append((f"{prefix}{name}.", value))
        modules += reversed(inner)
    return state
