"""Resized frames in device memory, and the pools that they come from and go back to."""

from __future__ import annotations

from collections import OrderedDict

from vfx_engines.cuda import Cuda

_FRAMES_PER_CHUNK = 32
_CHUNK_BYTES = 32 << 20
"""Frames are allocated so many at a time, fewer where they are large."""

_SIZES_KEPT = 4
"""Sizes of frames that memory is kept for. Frames that are cropped while they are made have one size; those
that are to be cropped later have as many as videos have aspect ratios."""


class DeviceFrame:
    """A frame in device memory, uint8 [height, width, 3]; it goes back to its pool when Python drops this."""

    __slots__ = ("_free", "address", "height", "width")

    def __init__(self, address: int, height: int, width: int, free: list[int]) -> None:
        self.address, self.height, self.width, self._free = address, height, width, free

    def __del__(self) -> None:
        self._free.append(self.address)


class DeviceFrames:
    """Pools of device memory for the frames of one stream.

    A frame's memory is used again in the order of the stream, so nothing is waited for. Memory of sizes that
    have not been seen of late goes back to the device, once all on the stream is done.

    Args:
        cuda: the device.
        stream: that all work on the frames is put on.
    """

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self._pools: OrderedDict[int, _Pool] = OrderedDict()

    def take(self, height: int, width: int) -> DeviceFrame:
        """A frame whose pixels are still to be made.

        Raises:
            OutOfDeviceMemory: no room for more.
        """
        size = padded(height * width * 3)
        pool = self._pools.get(size)
        if pool is None:
            self._trim()
            pool = self._pools[size] = _Pool(self._cuda, size)
        self._pools.move_to_end(size)
        return DeviceFrame(pool.take(), height, width, pool.free)

    def close(self) -> None:
        """Give all memory back; the stream is done with it."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _trim(self) -> None:
        """Make room for another size. Frames that somebody still holds stay, with all of their size."""
        old = [size for size, pool in self._pools.items() if pool.whole]
        old = old[: max(0, len(self._pools) - _SIZES_KEPT + 1)]
        if old:
            self._cuda.synchronize(self._stream)
        for size in old:
            self._pools.pop(size).close()


class _Pool:
    """Frames of one size."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self._size = cuda, size
        self._count = max(1, min(_FRAMES_PER_CHUNK, _CHUNK_BYTES // size))
        self._chunks: list[int] = []
        self.free: list[int] = []

    @property
    def whole(self) -> bool:
        """Whether nobody holds a frame."""
        return len(self.free) == len(self._chunks) * self._count

    def take(self) -> int:
        if not self.free:
            self._chunks.append(self._cuda.allocate(self._size * self._count))
            self.free.extend(self._chunks[-1] + i * self._size for i in range(self._count))
        return self.free.pop()

    def close(self) -> None:
        for chunk in self._chunks:
            self._cuda.free(chunk)


def padded(size: int) -> int:
    """The next multiple of what CUDA aligns memory to."""
    return -(-size // 256) * 256
