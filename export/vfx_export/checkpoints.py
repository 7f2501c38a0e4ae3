"""Reading weights files.

A checkpoint is not trusted: it is recognised by its content, checked against its own checksums, and unpickled
by torch's restricted unpickler (``weights_only``). TorchScript archives, whose code torch would run, are read
by `vfx_export.torchscript`; Caffe2's pickles, which torch cannot read, by `vfx_export.caffe2`. Nothing in a
checkpoint is ever run. `vfx_export.fitting` then checks whether it fits a network.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
import stat
import warnings
import zipfile
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vfx_engines.errors import CheckpointError, reason, shown
from vfx_export.caffe2 import read_caffe2
from vfx_export.torchscript import read_torchscript
from vfx_export.unpickling import refuse_deep_tuples

_WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")
_PREFIXES = ("module.", "model.")

# The LONG1 opcode of torch's magic number, with which every file of torch.save before 1.6 begins.
_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
_LEGACY_PICKLES = 5
"""Such a file is a sequence of five pickles: magic number, version, system, object, names of its storages."""
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\((?:dp|lp)|[}\]]q\x00|c[\w.]+\n\w+\n(?:p\d|\()")

# Pattern of a file's first bytes -> what kind of file it is; more specific patterns come first.
_LOOKS_LIKE: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what)
    for pattern, what in (
        (rb"version https://git-lfs", "a git-lfs pointer (`git lfs pull` fetches the file itself)"),
        (rb"\s*(?:<!doctype html|<html)", "an HTML page (often an error or sign-in page, saved)"),
        (rb"\s*<", "an XML or HTML text"),
        (rb"....ftyp", "an MP4 video"),
        (rb"\x1aE\xdf\xa3", "a Matroska or WebM video"),
        (rb"RIFF....(?:AVI |WAVE|WEBP)", "an AVI, WAV or WebP file"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "a compressed archive"),
        (rb".{257}ustar", "a tar archive"),
        (rb"\x89HDF", "an HDF5 file"),
        (rb"\x93NUMPY", "a NumPy array"),
        (rb"\x08[\x01-\x20]\x12", "an ONNX file, a graph and no checkpoint"),
        (rb"\s*[{\[]", "a JSON text"),
        (rb"[\x09\x0a\x0d\x20-\x7e]+\Z", "a text"),
    )
)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """As `read_with_config`, without the config."""
    return read_with_config(path)[0]


def read_with_config(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a weights file by key, and the config inside it.

    Reads files of ``torch.save`` (zip, or the layout that PyTorch wrote before 1.6), TorchScript archives,
    safetensors and Caffe2 pickles (by the names of their blobs), whatever their suffix. A state dict under
    ``state_dict``, ``model_state``, ``model_state_dict`` or ``model`` is unwrapped. The prefixes ``module.``
    (DataParallel) and ``model.`` are removed if every key has them.

    Returns:
        The tensors by key, on the CPU, in the file's own dtypes; and the text under ``cfg``, where PySlowFast
        keeps its training config, or None if there is none.

    Raises:
        CheckpointError: the file is missing, empty, truncated, damaged, not a checkpoint or without tensors,
            or asks for code to be run when unpickled (which does not happen).
    """
    where = shown(path)
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            # Reading a pipe or a device may never end.
            raise CheckpointError(f"{where}: no regular file, expected a checkpoint: save it to a file first")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror}") from None
    if not size:
        raise CheckpointError(f"{where}: zero bytes, expected a checkpoint; fetch the file again")
    if head.startswith(b"PK\x03\x04"):
        script = _check_zip(path, where)
        loaded = read_torchscript(path, where) if script else _torch_load(path, where)
    elif _LEGACY_MAGIC in head[:32]:
        loaded = _torch_load(path, where, legacy=True)
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        loaded = _load_safetensors(path, where)
    elif _PICKLE.match(head):
        loaded = read_caffe2(path, where)
    else:
        raise CheckpointError(f"{where}: {_foreign(head)}")
    config = loaded.get("cfg") if isinstance(loaded, dict) else None
    return _state_dict(loaded, where), config if isinstance(config, str) else None


def _check_zip(path: Path, where: str) -> bool:
    """Refuse zips that PyTorch did not write, and records that differ from their checksums.

    torch does not check the CRCs of records, so a flipped bit would become a wrong weight.

    Returns:
        Whether it is a TorchScript archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            if not any(name.endswith("/data.pkl") for name in names):
                what = "NumPy .npz" if names and names[0].endswith(".npy") else "zip"
                raise CheckpointError(
                    f"{where}: a {what} archive that torch.save did not write, expected a checkpoint"
                )
            # torch stores records uncompressed. A file that was compressed later stays within this limit too,
            # because what compresses well, such as running statistics of zeros, is small beside the weights.
            if sum(record.file_size for record in records) > 8 * path.stat().st_size + (64 << 20):
                raise zipfile.BadZipFile("its records are far larger than the file")
            # torch counts a record with the folder attribute as read, and leaves its tensor unset.
            if any(record.external_attr & 0x10 for record in records):
                raise zipfile.BadZipFile("a record is marked as a folder")
            for record in records:
                if record.filename.endswith("/data.pkl"):
                    bare = copy.copy(record)
                    del bare.CRC  # makes zipfile skip the check; the CRC may be missing, see below
                    with archive.open(bare) as file:
                        refuse_deep_tuples(io.BytesIO(file.read()))
            # With torch.serialization.set_crc32_options(False), all CRCs are zero.
            if any(record.CRC for record in records):
                for record in records:
                    with archive.open(record) as file:
                        while file.read(1 << 20):
                            pass
            return any(name.endswith("/constants.pkl") for name in names)
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        ValueError,
        zlib.error,
    ) as error:
        # zipfile says this if it finds no directory, which is at the end of the file.
        cut = str(error) == "File is not a zip file"
        what = "truncated" if cut else f"damaged: {reason(error)}"
        raise CheckpointError(f"{where}: {what}; fetch or copy the file again") from None


def _torch_load(path: Path, where: str, *, legacy: bool = False) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old layouts and pickle protocols, which load or raise
            # Not with mmap, where torch trusts the pickle on where records begin and end: from a short or
            # compressed record, it would read neighbouring bytes as weights.
            with path.open("rb") as file:  # an open file, because torch judges a path by its suffix
                if legacy:
                    for _ in range(_LEGACY_PICKLES):
                        refuse_deep_tuples(file)
                    file.seek(0)
                loaded: object = torch.load(file, map_location="cpu", weights_only=True)
            return loaded
    except pickle.UnpicklingError as error:
        text = str(error)
        asked = re.search(r"GLOBAL ([\w.]+)", text)
        if asked is None:
            found = re.search(r"WeightsUnpickler error:\s*(.+)", text)
            detail = reason(found[1] if found else text)
            raise CheckpointError(
                f"{where}: its pickle is damaged or holds more than tensors ({detail}): refused, and "
                "nothing in it was run; expected a state dict of tensors or .safetensors"
            ) from None
        raise CheckpointError(
            f"{where}: unpickling it would call {asked[1]}: refused, and nothing in it was run; "
            "expected a state dict of tensors (torch.save(model.state_dict(), ...)) or .safetensors"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        if isinstance(error, EOFError) or "unexpected EOF" in str(error):
            raise CheckpointError(f"{where}: truncated; fetch or copy the file again") from None
        detail = f"{type(error).__name__}: {reason(error)}"
        raise CheckpointError(
            f"{where}: truncated or damaged: {detail}; fetch or copy the file again"
        ) from None


def _load_safetensors(path: Path, where: str) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{where}: truncated or damaged safetensors: {reason(error)}; fetch the file again"
        ) from None


def _foreign(head: bytes) -> str:
    """What a file that is not a checkpoint probably is, judged by its first bytes."""
    for pattern, what in _LOOKS_LIKE:
        if pattern.match(head):
            return f"looks like {what}, expected a checkpoint of torch.save or .safetensors"
    return f"not a checkpoint: it begins with {head[:8].hex(' ')}, expected torch.save or .safetensors"


def _state_dict(loaded: object, where: str) -> dict[str, Tensor]:
    for _ in range(len(_WRAPPERS)):  # bounded, because in a pickle a dict can contain itself
        if not isinstance(loaded, dict):
            break
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, dict):
        what = type(loaded).__name__
        raise CheckpointError(f"{where}: holds a {what}, expected a dict of tensors by key")
    state = {
        key: value for key in loaded if isinstance(key, str) and isinstance(value := loaded[key], Tensor)
    }
    if not state:
        held = f"the keys {str(list(loaded)[:5])[1:-1][:200]}" if loaded else "an empty dict"
        raise CheckpointError(
            f"{where}: no tensors inside: found {held}, expected a state dict, bare or under "
            f"{', '.join(_WRAPPERS)}"
        )
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
