"""From decoded pictures to windows in an engine's device memory: kernels convert, resize, crop and gather.

A single crop is cut while the frame is resized, so only its pixels are computed. For three crops, the whole
frame is resized once, and each crop is cut when a window is gathered.

Each thread has its own stream, on which everything happens to its frames: the upload if the CPU decoded them,
the kernel that makes the frame, and the kernels that gather windows. So a frame's memory can be reused as
soon as Python drops the frame. The only thing that is ever waited for is a block of uploads that is to be
filled again. A slot's own stream waits for the windows that were placed in it.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vfx_engines.cuda import Bytes, Cuda
from vfx_engines.engine import Engine
from vfx_engines.nvrtc import compiled
from vfx_runtime.decode import Frame
from vfx_runtime.device_frames import DeviceFrame, DeviceFrames, padded
from vfx_runtime.picture import Convention, Orientation, Picture, SurfaceFormat
from vfx_runtime.resize import FramePlan, plan, plan_for
from vfx_runtime.surfaces import (
    KERNELS,
    MOST_FRAMES,
    MOST_SURFACES,
    STRIP,
    Frames,
    Surface,
    Surfaces,
    Taps,
    colour,
    geometry,
    source,
)
from vfx_runtime.views import Crops, crop_offset, view_transform

_BLOCKS = 3
"""Upload blocks per thread: one is filled while the others are being copied and read."""

_BLOCK_BYTES = 8 << 20
_TABLES_KEPT = 32
"""How many tap tables are kept on the device, one for each video size used lately."""

_THREADS = (32, 4, 1)
_CHUNK = 16
_THREADS_THAT_COPY = 256

_DEFAULT_STREAM = 0
"""The stream on which FFmpeg writes what NVDEC decodes."""


@dataclass(frozen=True, slots=True)
class _Group:
    """What pictures must have in common to share a launch."""

    kind: SurfaceFormat
    height: int
    width: int
    convention: Convention
    turn: Orientation
    on_device: bool


@dataclass(slots=True, eq=False)
class _Block:
    """Memory for uploads, and references that keep the pictures alive that a launch reads."""

    done: int
    host: Bytes
    device: int
    used: int = 0
    owners: list[object] = field(default_factory=list)


class CudaPreprocess:
    """`vfx_runtime.preprocess.Preprocess` on the engine's own device.

    Args:
        engine: the engine. A slot of it may be written between its collection and its next submission.
        cuda: the engine's device.
        crops: number of crops of each frame.

    Raises:
        UsageError: NVRTC is not installed, or the engine's frames cannot be cropped three times.
        OutOfDeviceMemory: the device has no memory for a thread's buffers.
    """

    def __init__(self, engine: Engine, cuda: Cuda, crops: Crops = 1) -> None:
        self._engine, self._cuda, self._crops = engine, cuda, crops
        self._transform = view_transform(engine.spec, crops)
        height, width = (int(axis) for axis in engine.spec.input.shape[2:4])
        self._frame_bytes = height * width * 3
        # A frame that is gathered whole is copied as one row.
        self._gathered_row = self._frame_bytes if crops == 1 else width * 3
        self._tables: OrderedDict[tuple[int, int], tuple[Taps, int]] = OrderedDict()
        self._blocks: list[_Block] = []
        self._pending: list[tuple[Surface, DeviceFrame]] = []
        """Surfaces waiting to be launched. Their frames are held here, because otherwise a later frame of the
        same launch could get the memory of one that has been dropped meanwhile."""
        self._group: _Group | None = None
        self._closed = False
        cuda.activate()
        self._undo = ExitStack()
        with ExitStack() as undo:
            self._stream = cuda.stream()
            undo.callback(cuda.close_stream, self._stream)
            self._decoded, self._placed = cuda.event(), cuda.event()
            undo.callback(cuda.close_event, self._decoded)
            undo.callback(cuda.close_event, self._placed)
            self._frames = DeviceFrames(cuda, self._stream)
            undo.callback(self._frames.close)
            module = cuda.load(compiled(source(), "preprocess.cu", cuda.compute_capability))
            self._kernels = {kind: cuda.function(module, name) for kind, name in KERNELS.items()}
            self._in_chunks = self._frame_bytes % _CHUNK == 0
            self._gather = cuda.function(module, "gather_chunks" if self._in_chunks else "gather_bytes")
            for _ in range(_BLOCKS):
                done = cuda.event()
                undo.callback(cuda.close_event, done)
                self._blocks.append(_Block(done, *self._room(_BLOCK_BYTES)))
                undo.callback(self._give_back_block, self._blocks[-1])
            self._undo = undo.pop_all()

    def prepare(self, frame: Frame) -> DeviceFrame:
        """Queue one frame to be made. Up to 16 alike pictures share an upload and a launch."""
        picture = frame.picture()
        group = _Group(
            picture.kind,
            picture.height,
            picture.width,
            picture.convention,
            picture.turn,
            picture.on_device,
        )
        if self._crops == 1:
            item = plan_for(self._engine.spec, group.height, group.width)
        else:
            item = plan(self._transform, group.height, group.width)
        needed = 0 if picture.on_device else sum(padded(plane.size) for plane in picture.planes)
        if self._pending and (
            group != self._group
            or len(self._pending) == MOST_SURFACES
            or self._blocks[0].used + needed > len(self._blocks[0].host)
        ):
            self._flush()
        if not self._pending:
            self._group = group
            self._open_block(needed)
        made = self._frames.take(item.out_height, item.out_width)
        self._pending.append((self._surface(picture, made.address), made))
        return made

    @property
    def maker(self) -> CudaPreprocess:
        """Itself."""
        return self

    def like(self, engine: Engine) -> bool:
        """Whether the frames made here are those that the given engine takes, on the same GPU."""
        own = self._engine
        return (
            engine.device == own.device
            and engine.spec.input.shape[2:4] == own.spec.input.shape[2:4]
            and view_transform(engine.spec, self._crops) == self._transform
        )

    def place(self, slot: int, row: int, frames: Sequence[DeviceFrame | None], crop: int = 0) -> None:
        """Gather a window on this thread's stream, for which the slot's stream then waits."""
        self.place_in(self._engine, slot, row, frames, crop)

    def place_in(
        self, engine: Engine, slot: int, row: int, frames: Sequence[DeviceFrame | None], crop: int
    ) -> None:
        """Like `place`, for any engine for which `like` is true."""
        self._flush()
        target, blank = engine.device_input(slot), engine.spec.input.blank
        address = target.address + row * int(engine.spec.input.shape[1]) * self._frame_bytes
        for first in range(0, len(frames), MOST_FRAMES):
            part = frames[first : first + MOST_FRAMES]
            gathered = Frames()
            for i, item in enumerate(part):
                if item is not None:
                    gathered.at[i].first = item.address + self._crop_begins(item, crop)
                    gathered.at[i].pitch = item.width * 3
            count = self._frame_bytes // (_CHUNK if self._in_chunks else 1)
            self._cuda.launch(
                self._gather,
                (-(-count // _THREADS_THAT_COPY), len(part), 1),
                (_THREADS_THAT_COPY, 1, 1),
                [
                    gathered,
                    ctypes.c_int(self._gathered_row),
                    ctypes.c_int(count),
                    ctypes.c_int(blank[0] | blank[1] << 8 | blank[2] << 16),
                    ctypes.c_void_p(address + first * self._frame_bytes),
                ],
                self._stream,
            )
        self._cuda.record(self._placed, self._stream)
        self._cuda.wait(target.stream, self._placed)

    def synchronize(self) -> None:
        """Block until all frames and windows so far are made; for benchmarks."""
        self._flush()
        self._cuda.synchronize(self._stream)

    def close(self) -> None:
        """Wait for the stream, and free everything. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._cuda.activate()
        self._cuda.synchronize(self._stream)
        for _, address in self._tables.values():
            self._cuda.free(address)
        self._undo.close()

    def _crop_begins(self, frame: DeviceFrame, crop: int) -> int:
        """Offset in bytes of a crop within a frame."""
        if self._crops == 1:
            return 0
        top, left = crop_offset(frame.height, frame.width, crop)
        return (top * frame.width + left) * 3

    def _flush(self) -> None:
        """Upload the pending pictures, and launch the kernel that makes frames of them."""
        if not self._pending or self._group is None:
            return
        cuda, block, group = self._cuda, self._blocks[0], self._group
        if group.on_device:
            cuda.record(self._decoded, _DEFAULT_STREAM)
            cuda.wait(self._stream, self._decoded)
        else:
            cuda.copy_in(block.device, block.host[: block.used], self._stream)
        item = plan(self._transform, group.height, group.width)
        surfaces = Surfaces()
        for i, (surface, _) in enumerate(self._pending):
            surfaces.at[i] = surface
        strips = -(-item.out_height // STRIP)
        grid = (-(-item.out_width // _THREADS[0]), -(-strips // _THREADS[1]), len(self._pending))
        arguments = [
            surfaces,
            geometry(item, group.turn),
            colour(group.convention, group.kind),
            self._taps(item),
        ]
        cuda.launch(self._kernels[group.kind], grid, _THREADS, arguments, self._stream)
        cuda.record(block.done, self._stream)
        self._blocks.append(self._blocks.pop(0))
        self._pending = []

    def _open_block(self, needed: int) -> None:
        """Wait until the next block is free, and make it large enough."""
        block = self._blocks[0]
        self._cuda.block(block.done)
        block.owners.clear()
        block.used = 0
        if needed > len(block.host):
            larger = self._room(needed)
            self._give_back_block(block)
            block.host, block.device = larger

    def _surface(self, picture: Picture, out: int) -> Surface:
        block = self._blocks[0]
        addresses = []
        for plane in picture.planes:
            if picture.on_device:
                addresses.append(plane.address)
                continue
            ctypes.memmove(block.host.ctypes.data + block.used, plane.address, plane.size)
            addresses.append(block.device + block.used)
            block.used += padded(plane.size)
        if picture.on_device:
            block.owners.append(picture.owner)
        return Surface(
            addresses[0],
            addresses[1] if len(addresses) > 1 else None,
            addresses[2] if len(addresses) > 2 else None,
            picture.planes[0].pitch,
            picture.planes[-1].pitch,
            out,
        )

    def _taps(self, item: FramePlan) -> Taps:
        """The tap tables of a plan, on the device."""
        key = item.height, item.width
        found = self._tables.get(key)
        if found is None:
            arrays = (item.rows.start, item.rows.weight, item.columns.start, item.columns.weight)
            tables = [_bytes(array) for array in arrays]
            places = np.cumsum([0, *(len(table) for table in tables)])
            address = self._cuda.allocate(int(places[-1]))
            staged = self._cuda.pinned(int(places[-1]))
            np.concatenate(tables, out=staged)
            self._cuda.copy_in(address, staged, self._stream)
            self._cuda.synchronize(self._stream)
            self._cuda.unpin(staged)
            found = Taps(*(address + int(place) for place in places[:-1])), address
            self._tables[key] = found
            if len(self._tables) > _TABLES_KEPT:
                _, (_, old) = self._tables.popitem(last=False)
                self._cuda.free(old)  # safe, since the stream was synchronized above
        self._tables.move_to_end(key)
        return found[0]

    def _room(self, size: int) -> tuple[Bytes, int]:
        host = self._cuda.pinned(size)
        with ExitStack() as undo:
            undo.callback(self._cuda.unpin, host)
            device = self._cuda.allocate(size)
            undo.pop_all()
        return host, device

    def _give_back_block(self, block: _Block) -> None:
        self._cuda.unpin(block.host)
        self._cuda.free(block.device)


class CudaSharing:
    """`vfx_runtime.preprocess.Preprocess` of an engine that uses the frames of another one, on the same GPU.

    Args:
        engine: the engine. A slot of it may be written between its collection and its next submission.
        maker: the preprocess of the other engine, on the same thread; it is closed after this one.
    """

    def __init__(self, engine: Engine, maker: CudaPreprocess) -> None:
        self._engine, self.maker = engine, maker

    def prepare(self, frame: Frame) -> DeviceFrame:
        """Make a frame with the other preprocess."""
        return self.maker.prepare(frame)

    def place(self, slot: int, row: int, frames: Sequence[DeviceFrame | None], crop: int = 0) -> None:
        """Gather a window, on the stream on which its frames are made."""
        self.maker.place_in(self._engine, slot, row, frames, crop)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _bytes(array: NDArray[np.int32]) -> NDArray[np.uint8]:
    """An array's bytes, padded so that the next array is aligned."""
    flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return np.pad(flat, (0, padded(len(flat)) - len(flat)))
