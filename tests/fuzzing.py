"""What hypothesis makes up, fed to every reader of what comes from outside; scripts/fuzz, tests/test_fuzz.py.

The property is one: an answer or a `VfxError` of one line, in seconds, and without memory that the input does
not account for.
"""

from __future__ import annotations

import argparse
import atexit
import io
import json
import pickle
import resource
import shutil
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tiny import tiny_engine, tiny_spec
from vfx_engines.errors import SpecError, UsageError, VfxError
from vfx_engines.opening import read_spec
from vfx_engines.spec import EngineSpec
from vfx_runtime.features import RowSpool
from vfx_runtime.image_names import Images
from vfx_runtime.inputs import find_videos
from vfx_runtime.npy import _pickle_rows, npy_rows
from vfx_runtime.npz import _write, is_whole, read_features
from vfx_runtime.parquet import ParquetLayout
from vfx_runtime.reading import read_features as read_shard
from vfx_runtime.shards import Layout
from vfx_runtime.webdataset import TarLayout

_SLOWEST = timedelta(seconds=10)
"""Deadline for something that takes milliseconds. We look for reads that never end, and machines may be
busy."""

_MOST_BYTES = 400 << 20
"""More than hypothesis and its history take. The bombs that we look for take gigabytes."""


@cache
def _folder() -> Path:
    """The folder that inputs are written to, which is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="vfx-fuzz-")
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


@dataclass(frozen=True, slots=True)
class Reader:
    """A function that reads outside data, and the inputs to feed it."""

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    """Raises a `VfxError` for input that it refuses."""


def one_line(reader: Reader, data: Any) -> None:
    """Check the property of this module: the reader gives an answer, or raises a `VfxError` of one line."""
    said = "nothing"
    try:
        reader.read(data)
    except VfxError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    assert len(said) < 100_000


# Nearly valid bytes


def mutated(whole: Callable[[], bytes]) -> st.SearchStrategy[bytes]:
    """A valid file in which some bytes are replaced, doubled, cut out or added."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        data = bytearray(whole())
        for _ in range(draw(st.integers(0, 4))):
            first = draw(st.integers(0, len(data)))
            last = draw(st.integers(first, min(len(data), first + 200)))
            data[first:last] = draw(
                st.one_of(
                    st.binary(max_size=12), st.sampled_from([b"", b"\xff" * 8, bytes(data[first:last]) * 2])
                )
            )
        return bytes(data)

    return build()


# Specs and engines

_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def _spec_texts(draw: st.DrawFn) -> bytes:
    data: Any = json.loads(tiny_spec(labels=True).to_json())
    for _ in range(draw(st.integers(1, 3))):
        place = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(_anything)
            break
    deep = draw(st.sampled_from(["", "[" * 2000, '{"a":' * 2000]))
    return (deep + json.dumps(data)).encode()


def _read_spec(data: bytes) -> None:
    spec = EngineSpec.from_json(data)
    try:
        again = EngineSpec.from_json(spec.to_json())
    except SpecError as error:
        raise AssertionError("a spec that was read does not read back") from error
    assert again == spec


def _read_plan(data: bytes) -> None:
    plan = _folder() / "a.plan"
    plan.write_bytes(b"plan")
    (_folder() / "a.plan.json").write_bytes(data)
    read_spec(plan)


@cache
def _engine() -> bytes:
    return (
        tiny_engine(_folder() / "whole.onnx", labels=True).read_bytes().replace(b"vfx_sha256", b"xxx_sha256")
    )


def _read_engine(data: bytes) -> None:
    path = _folder() / "a.onnx"
    path.write_bytes(data)
    read_spec(path)


# Lists

_pieces = st.sampled_from(
    [
        *(
            "..",
            "/",
            "a",
            "b.mp4",
            ".",
            "\0",
            "\n",
            "\r\n",
            ",",
            '"',
            " ",
            "#",
            "video",
            "path",
            "\\",
            "~",
            ";",
        ),
        *(
            "../" * 40,
            "/etc/passwd",
            "link/",
            "a" * 5000,
            "a/" * 3000,
            "\u2028",
            "é",
            "\x1b[2J",
            "list.txt",
            "%s",
        ),
    ]
)


@st.composite
def _lists(draw: st.DrawFn) -> tuple[bytes, str, bool]:
    text = "".join(draw(st.lists(_pieces | st.text(max_size=5), max_size=30)))
    code = draw(st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "latin-1"]))
    return text.encode(code, "replace"), draw(st.sampled_from([".txt", ".csv"])), draw(st.booleans())


def _read_list(given_: tuple[bytes, str, bool]) -> None:
    data, suffix, rooted = given_
    folder = _folder() / "lists"
    if not folder.exists():
        folder.mkdir()
        (folder / "link").symlink_to("/etc")
        (folder / "b.mp4").touch()
    path = folder / f"list{suffix}"
    path.write_bytes(data)
    for job in find_videos([path], folder if rooted else None):
        parts = job.name.split("/")
        assert job.name
        assert "\0" not in job.name
        assert not set(parts) & {"", ".", ".."}, job.name


# Caffe2's pickles

_blobs = {"a_w": np.ones((2, 3), np.float32), "b_w": np.asfortranarray(np.ones((2, 2))), "i": np.int64(3)}
_OPCODES = [
    getattr(pickle, name)
    for name in pickle.__all__
    if name.isupper() and isinstance(getattr(pickle, name), bytes)
]


@st.composite
def _opcodes(draw: st.DrawFn) -> bytes:
    small = st.integers(0, 255).map(lambda number: bytes([number]))
    long = st.integers(0, 2**32 - 1).map(lambda number: struct.pack("<I", number))
    names = st.sampled_from(
        [
            *(
                b"numpy\ndtype\n",
                b"numpy\nndarray\n",
                b"numpy.core.multiarray\n_reconstruct\n",
                b"os\nsystem\n",
            ),
            *(b"numpy.core.numeric\n_frombuffer\n", b"numpy.core.multiarray\nscalar\n", b"_codecs\nencode\n"),
            *(b"blobs\n", b"latin1\n", b"f4\n", b"1\n", b"(I1\n"),
        ]
    )
    piece = st.sampled_from(_OPCODES) | small | long | names
    start = draw(st.sampled_from([b"\x80\x02}X\x05\x00\x00\x00blobs}", b"\x80\x04", b"(dp1\n", b"\x80\x02}"]))
    return start + b"".join(draw(st.lists(piece, max_size=40))) + b"s."


def _read_caffe2(data: bytes) -> None:
    from vfx_export.caffe2 import read_caffe2

    path = _folder() / "a.pkl"
    path.write_bytes(data)
    total = sum(value.numel() * value.element_size() for value in read_caffe2(path, "a.pkl").values())
    assert total <= len(data) * 40, "names may share an array, and arrays may not outgrow the file"


def _scan_tuples(data: bytes) -> None:
    from vfx_export.unpickling import refuse_deep_tuples

    with suppress(ValueError):
        refuse_deep_tuples(io.BytesIO(data))


# Feature files

_OUTPUTS = tiny_spec().outputs


@cache
def _npz() -> bytes:
    file = io.BytesIO()
    with RowSpool(_OUTPUTS) as rows:
        rows.append({"features": np.ones((2, 4))}, np.ones((2, 2)), np.ones((2, 2)))
        _write(file, rows, 25.0, {"fingerprint": "f", "source": {"size": 1}})
    return file.getvalue()


@st.composite
def _archives(draw: st.DrawFn) -> bytes:
    """Valid archives of arrays with lying headers."""
    file = io.BytesIO()
    number = st.sampled_from(["0", "1", "2", "4", "1 2", "", "9" * 12, "9" * 200, "-1", "1e9", "True"])
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("features", "frame_range", "timestamps_ms", "fps", "meta"):
            shape = draw(st.lists(number, max_size=3))
            kind = draw(
                st.sampled_from(["<f4", "<i8", "<f8", "<U9", "<U999999999", "|O", "<U0", "|V0", "<f3"])
            )
            text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({', '.join(shape)},), }}"
            head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"
            content = draw(st.sampled_from([b"", bytes(16), bytes(1000), ("[" * 5000).encode("utf-32-le")]))
            member = zipfile.ZipInfo(f"{draw(st.sampled_from(['', '', '', '../']))}{name}.npy")
            member.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED]))
            archive.writestr(member, head + content)
    return file.getvalue()


def _read_npz(data: bytes) -> None:
    path = _folder() / "a.npz"
    path.write_bytes(data)
    whole = is_whole(path, _OUTPUTS, "f", {"size": 1})
    try:
        read_features(path)
    except VfxError:
        assert not whole, "verified, and not readable"
        raise


@cache
def _shard(layout: Layout) -> bytes:
    """A shard with two videos."""
    staged = _folder() / "staged.npz"
    staged.write_bytes(_npz())
    with zipfile.ZipFile(staged) as archive:
        kind = layout.kind(archive)
    file = io.BytesIO()
    layout.write(file, kind, {}, {"a": staged, "b": staged})
    return file.getvalue()


def _read_shard(layout: Layout, data: bytes) -> None:
    path = _folder() / f"a{layout.suffix}"
    path.write_bytes(data)
    # First what resuming reads, which must never raise; then what a user reads.
    for name in layout.contents(path).videos:
        read_shard(path, name)
    read_shard(path, "a")


@st.composite
def _arrays(draw: st.DrawFn) -> bytes:
    data = draw(_archives())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return draw(st.sampled_from([archive.read(item) for item in archive.infolist()]))


def _read_array(data: bytes) -> None:
    path = _folder() / "a.npy"
    path.write_bytes(data)
    for check in (npy_rows, _pickle_rows):
        for shape in (None, (), (4,), (0,)):
            for dtype in ("<f4", "<f8"):
                check(path, shape, dtype)


# Names of images, and a config

_patterns = st.lists(
    st.sampled_from(
        [*"*?[]{}%d!-0123456789ai:\\.^$+()|", "%06d", "{:04d}", "**", "[z-a]", "/", "\0", "%99d", "{{"]
    )
    | st.text(max_size=3),
    max_size=40,
).map("".join)


def _read_pattern(given_: tuple[str, str, float]) -> None:
    pattern, name, fps = given_
    images = Images(pattern, fps)
    images.fits(name)
    images.fits(pattern)
    try:
        again = Images(pattern, fps)
    except UsageError as error:
        raise AssertionError("read once, and not twice") from error
    assert again == images


def _read_config(text: str) -> None:
    from vfx_export.pyslowfast_config import check_config, options

    options(text)
    check_config(text, {"MODEL.ARCH": ("slow",), "DATA.MEAN": ((0.45,) * 3,)}, model="slow", file="a.pyth")


_options = st.sampled_from(
    ["MODEL", "ARCH", "DATA", "MEAN", ": ", ":", "\n", "  ", "- ", "[", "]", ",", "0.45", "slow", "1e999"]
)

READERS: dict[str, Reader] = {
    "spec": Reader(_spec_texts() | mutated(lambda: tiny_spec().to_json().encode()), _read_spec),
    "spec of a plan": Reader(_spec_texts() | st.binary(max_size=50), _read_plan),
    "engine": Reader(mutated(_engine), _read_engine),
    "list": Reader(_lists(), _read_list),
    "Caffe2 pickle": Reader(
        _opcodes() | st.integers(0, 5).flatmap(lambda n: mutated(lambda: pickle.dumps({"blobs": _blobs}, n))),
        _read_caffe2,
    ),
    "tuples of a pickle": Reader(_opcodes(), _scan_tuples),
    "npz": Reader(_archives() | mutated(_npz), _read_npz),
    **{
        f"shard, {layout.suffix}": Reader(mutated(partial(_shard, layout)), partial(_read_shard, layout))
        for layout in (TarLayout(), ParquetLayout())
    },
    "npy": Reader(_arrays() | mutated(lambda: pickle.dumps(np.zeros((3, 4)), 5)), _read_array),
    "names of images": Reader(st.tuples(_patterns, st.text(max_size=255), st.floats()), _read_pattern),
    "config of PySlowFast": Reader(
        st.lists(_options | st.text(max_size=4), max_size=60).map("".join), _read_config
    ),
}


def fuzz(name: str, examples: int) -> None:
    """Feed one reader with random inputs.

    Args:
        name: name of the reader, see `READERS`.
        examples: number of inputs.

    Raises:
        AssertionError: the reader took too much memory, or does not have the property.
    """
    reader = READERS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # No database: inputs that failed in the past have tests of their own.
    @settings(
        max_examples=examples,
        deadline=_SLOWEST,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(reader.inputs)
    def check(data: Any) -> None:
        one_line(reader, data)

    check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < _MOST_BYTES, f"{name}: {grown >> 20} MiB more"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", choices=[[], *READERS], help="[default: all]")
    parser.add_argument("--seconds", type=float, default=60, help="for each reader [default: 60]")
    arguments = parser.parse_args()
    for name in arguments.readers or READERS:
        end, rounds = time.monotonic() + arguments.seconds, 0
        while time.monotonic() < end:
            fuzz(name, 500)
            rounds += 1
        print(f"{name}: {rounds * 500} inputs", flush=True)


if __name__ == "__main__":
    main()
