"""Parquet shards: a row for each row of a video, a column for each output; see `vfx_runtime.shards`.

A vector is a fixed_size_list. A map, whose size may depend on its video, is a list, with its shape in a
second column. ``fps``, ``meta`` and everything else that does not fit a column is in the file's key-value
metadata under ``vfx``, so nothing of an ``.npz`` file is lost.

Features are neither compressed nor dictionary-encoded: zstd would save about 8 %, and dictionaries only help
values that repeat.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vfx_engines.errors import UsageError
from vfx_engines.spec import Output
from vfx_runtime.features import BLOCK_BYTES, Features, column_dtype
from vfx_runtime.npz import (
    DAMAGE,
    column_types,
    read_blocks,
    read_columns,
    read_fps,
    read_meta,
    system_failure,
)
from vfx_runtime.shards import Contents
from vfx_runtime.staging import text_of

ROW_GROUP_BYTES = 8 << 20
"""Bytes of features in a row group; it may exceed that by one block of rows. Writing takes three times as
much memory, since the levels of lists are as long again."""

_PLACES = {"video": "string", "row": "int64"}
_TIMES = {"start_frame": "int64", "end_frame": "int64", "start_ms": "double", "end_ms": "double"}
_PAIRS = {"frame_range": ("start_frame", "end_frame"), "timestamps_ms": ("start_ms", "end_ms")}
_KEY = "vfx"
_SHAPE = "_shape"
"""Suffix of the column with a map's shape."""

Kind = tuple[tuple[str, str, int, int], ...]
"""For each output: name, dtype as NumPy writes it, number of axes of a row, and the row's length (0 for a
map)."""


@dataclass(frozen=True, slots=True)
class _Video:
    """The entry of a video in the key-value metadata. Its rows follow those of the previous video."""

    name: str
    rows: int
    fps: float
    settings: int
    """Index into the file's list of settings; these and ``source`` make up the video's ``meta``."""
    source: Any
    shapes: dict[str, list[int]]
    """For each map, the shape of a row."""


class ParquetLayout:
    """Parquet files as PyArrow, pandas, Polars, DuckDB, Hugging Face's datasets and Ray Data read them.

    Args:
        outputs: the outputs of a run, to check that their names make distinct columns.

    Raises:
        UsageError: PyArrow is not installed, or an output has the name of another column.
    """

    suffix = ".parquet"
    staging = ".parquet.parts"

    def __init__(self, outputs: Sequence[Output] = ()) -> None:
        try:
            import pyarrow.parquet  # imported here: not every run should take its 36 MB
        except ImportError:
            raise UsageError("Parquet needs PyArrow, which is not installed: pip install pyarrow") from None
        self.damage: tuple[type[Exception], ...] = (
            *(*DAMAGE, LookupError, TypeError, AttributeError),
            pyarrow.ArrowException,
        )
        twice = _twice(_kind({output.name: (column_dtype(output), output.row) for output in outputs}))
        if twice is not None:
            raise UsageError(
                f"--format parquet would have two columns called {twice!r}, for an output of the engine has "
                "the name of another column: export it with another name, or use --format webdataset"
            )

    def kind(self, archive: zipfile.ZipFile) -> Hashable:
        """The columns of a staged video. All rows of a shard must have the same columns.

        Raises:
            ValueError: the archive is not what vfx writes, or two columns would have the same name.
        """
        _, columns = read_columns(archive)
        kind = _kind(columns)
        if _twice(kind) is not None:
            raise ValueError("two columns of one name")
        return kind

    def contents(self, shard: Path) -> Contents:
        """What a shard holds. It is empty if the end of the file, where that is recorded, is damaged.

        Raises:
            OSError: the system cannot read the file.
        """
        found = Contents()
        try:
            kind, settings, videos = _said(shard)
            for video in videos:
                found.add(video.name, {**settings[video.settings], "source": video.source})
            found.kind, found.whole = kind, True
        except self.damage as error:
            failure = system_failure(error)
            if failure is not None:
                raise failure from None
            return Contents()
        return found

    def read(self, shard: Path, name: str) -> Features:
        """Read all features of one video of a shard into memory.

        Raises:
            KeyError: the shard does not hold the video.
            ValueError: the shard has too few or too many rows.
        """
        kind, settings, videos = _said(shard)
        video = next((video for video in videos if video.name == name), None)
        if video is None:
            raise KeyError(name)
        columns: dict[str, tuple[str, tuple[int, ...]]] = {
            key: (dtype, tuple(video.shapes[key]) if axes > 1 else (length,) * axes)
            for key, dtype, axes, length in kind
        } | column_types(())
        arrays = {key: np.empty((video.rows, *shape), dtype) for key, (dtype, shape) in columns.items()}
        at = 0
        for batch in _rows_of(shard, videos, {name}):
            for key, array in arrays.items():
                part = array[at : at + len(batch)]
                if key in _PAIRS:
                    for side, column in enumerate(_PAIRS[key]):
                        part[:, side] = _numbers(batch.column(column))
                else:
                    part[...] = _numbers(batch.column(key)).reshape(part.shape)
            at += len(batch)
        if at != video.rows:
            raise ValueError(f"{at} rows of {video.rows}")
        meta = {**settings[video.settings], "source": video.source}
        ranges, times = arrays.pop("frame_range"), arrays.pop("timestamps_ms")
        return Features(arrays, ranges, times, video.fps, meta)

    def write(
        self,
        file: IO[bytes],
        kind: Any,
        kept: Mapping[Path, Sequence[str]],
        staged: Mapping[str, Path],
    ) -> None:
        """Write a shard; see `vfx_runtime.shards.Layout.write`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([*_fields({**_PLACES, **_TIMES}), *_columns(kind)])
        shapes = [f"{key}{_SHAPE}.list.element" for key, _, axes, _ in kind if axes > 1]
        with pq.ParquetWriter(
            file,
            schema,
            compression={name: "zstd" for name in (*_PLACES, *_TIMES)},
            use_dictionary=["video", *shapes],
            write_statistics=[*_PLACES, *_TIMES],
            write_page_checksum=True,
        ) as writer:
            group = _RowGroup(writer, schema)
            settings: dict[str, int] = {}
            videos: list[_Video] = []
            for shard, names in kept.items():
                _, old_settings, old = _said(shard)
                chosen = {*names}
                for video in old:
                    if video.name in chosen:
                        text = json.dumps(old_settings[video.settings])
                        number = settings.setdefault(text, len(settings))
                        videos.append(replace(video, settings=number))
                for batch in _rows_of(shard, old, chosen):
                    group.add(pa.record_batch(batch.columns, schema=schema))
            for name, path in staged.items():
                with zipfile.ZipFile(path) as archive:
                    rows, columns = read_columns(archive)
                    meta = read_meta(archive)
                    number = settings.setdefault(json.dumps({**meta, "source": None}), len(settings))
                    sizes = {key: [*columns[key][1]] for key, _, axes, _ in kind if axes > 1}
                    videos.append(_Video(name, rows, read_fps(archive), number, meta["source"], sizes))
                    for batch in _batches(archive, name, columns, schema):
                        group.add(batch)
            group.end()
            said = {
                "outputs": kind,
                "settings": [json.loads(text) for text in settings],
                "videos": [asdict(video) for video in videos],
            }
            writer.add_key_value_metadata({_KEY: json.dumps(said)})


def _said(shard: Path) -> tuple[Kind, list[dict[str, Any]], list[_Video]]:
    """Outputs, settings and videos of a shard, from its key-value metadata."""
    import pyarrow.parquet as pq

    with shard.open("rb") as file:
        footer = pq.read_metadata(file)
        said = json.loads(footer.metadata[_KEY.encode()])
    kind = tuple((str(name), str(dtype), int(axes), int(n)) for name, dtype, axes, n in said["outputs"])
    videos = [_Video(**video) for video in said["videos"]]
    if sum(video.rows for video in videos) != footer.num_rows:
        raise ValueError("other rows than its videos have")
    return kind, said["settings"], videos


def _kind(columns: Mapping[str, tuple[str, tuple[int, ...]]]) -> Kind:
    return tuple(
        (name, dtype, len(shape), shape[0] if len(shape) == 1 else 0)
        for name, (dtype, shape) in columns.items()
        if name not in column_types(())
    )


def _twice(kind: Kind) -> str | None:
    """A name that two columns would have; None if there is none."""
    names = [*_PLACES, *_TIMES, *(name for name, _ in _columns(kind))]
    return next((name for name in names if names.count(name) > 1), None)


def _fields(types: Mapping[str, str]) -> list[Any]:
    import pyarrow as pa

    return [pa.field(name, pa.type_for_alias(alias)) for name, alias in types.items()]


def _columns(kind: Kind) -> Iterator[tuple[str, Any]]:
    """Name and Arrow type of each column that holds an output."""
    import pyarrow as pa

    for name, dtype, axes, length in kind:
        number = pa.from_numpy_dtype(np.dtype(dtype))
        yield name, pa.list_(number, length or -1) if axes else number
        if axes > 1:
            yield f"{name}{_SHAPE}", pa.list_(pa.int32(), axes)


class _RowGroup:
    """Collects rows, of several videos if they are short, and writes them as row groups of bounded size."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema = writer, schema
        self._batches: list[Any] = []
        self._bytes = 0

    def add(self, batch: Any) -> None:
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= ROW_GROUP_BYTES:
            self.end()

    def end(self) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self._batches, self._schema)
        if len(table):
            self._writer.write_table(table, len(table))
        self._batches.clear()
        self._bytes = 0


def _batches(
    archive: zipfile.ZipFile, name: str, columns: Mapping[str, tuple[str, tuple[int, ...]]], schema: Any
) -> Iterator[Any]:
    """The rows of a checked archive as record batches."""
    import pyarrow as pa

    row_bytes = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in columns.values())
    block_rows = max(1, BLOCK_BYTES // row_bytes)
    blocks = [read_blocks(archive, key, block_rows)[1] for key in columns]
    at = 0
    for block in zip(*blocks, strict=True):
        arrays = dict(zip(columns, block, strict=True))
        rows = len(arrays["frame_range"])
        made = {"video": pa.repeat(text_of(name), rows), "row": pa.array(np.arange(at, at + rows))}
        for pair, ends in _PAIRS.items():
            made |= zip(ends, map(pa.array, arrays.pop(pair).T), strict=True)
        for key, array in arrays.items():
            made[key] = _array(array, schema.field(key).type)
            if array.ndim > 2:
                shapes = np.tile(np.array(array.shape[1:], np.int32), (rows, 1))
                made[f"{key}{_SHAPE}"] = _array(shapes, schema.field(f"{key}{_SHAPE}").type)
        at += rows
        yield pa.record_batch([made[key] for key in schema.names], schema=schema)


def _array(rows: NDArray[Any], kind: Any) -> Any:
    """Rows as an Arrow array that shares their memory."""
    import pyarrow as pa

    flat = pa.array(rows.reshape(-1))
    if rows.ndim == 1:
        return flat
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    length = math.prod(rows.shape[1:])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32) * length), flat)


def _numbers(column: Any) -> NDArray[Any]:
    """The numbers in an Arrow array of numbers or of lists, as a flat array."""
    import pyarrow as pa

    nested = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    numbers: NDArray[Any] = (column.flatten() if nested else column).to_numpy(zero_copy_only=False)
    return numbers


def _rows_of(shard: Path, videos: Sequence[_Video], names: set[str]) -> Iterator[Any]:
    """The rows of some videos of a shard as record batches, in the order of the shard, in one pass."""
    import pyarrow.parquet as pq

    spans: list[list[int]] = []
    end = 0
    for video in videos:
        start, end = end, end + video.rows
        if video.name in names and spans and spans[-1][1] == start:
            spans[-1][1] = end
        elif video.name in names:
            spans.append([start, end])
    last = 0
    with (
        shard.open("rb") as raw,
        pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True) as file,
    ):
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            first, last = last, last + group.num_rows
            if not any(start < last and end > first for start, end in spans):
                continue
            size = max(1, BLOCK_BYTES * group.num_rows // max(1, group.total_byte_size))
            at = first
            for batch in file.iter_batches(batch_size=size, row_groups=[number], use_threads=False):
                for start, end in spans:
                    low, high = max(start - at, 0), min(end - at, len(batch))
                    if low < high:
                        # A part is copied, because a slice would keep its whole batch in memory.
                        yield batch if high - low == len(batch) else batch.take(np.arange(low, high))
                at += len(batch)
