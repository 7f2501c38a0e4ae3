"""Resized frames in device memory, and the pools that their memory comes from and returns to."""

from __future__ import annotations

from collections import OrderedDict

from vfx_engines.cuda import Cuda

_FRAMES_PER_CHUNK = 32
_CHUNK_BYTES = 32 << 20
"""Frames are allocated 32 at a time, or fewer if 32 would take more than 32 MiB."""

_SIZES_KEPT = 4
"""How many frame sizes memory is kept for. Frames that are cropped as they are resized all have one size;
frames that are cropped later have a size for each aspect ratio among the videos."""


class DeviceFrame:
    """A frame in device memory, uint8 ``[height, width, 3]``, RGB.

    Its memory returns to the pool when Python drops this object.
    """

    __slots__ = ("_free", "address", "height", "width")

    def __init__(self, address: int, height: int, width: int, free: list[int]) -> None:
        self.address, self.height, self.width, self._free = address, height, width, free

    def __del__(self) -> None:
        self._free.append(self.address)


class DeviceFrames:
    """Pools of device memory for the frames of one stream.

    All work on a frame is queued on that stream, so its memory can be reused in stream order without waiting.
    Memory of sizes not used lately is freed once the work queued on the stream is done.

    Args:
        cuda: the device.
        stream: the stream on which all work on the frames is queued.
    """

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self._pools: OrderedDict[int, _Pool] = OrderedDict()

    def take(self, height: int, width: int) -> DeviceFrame:
        """Take a frame with undefined pixels.

        Args:
            height: in pixels.
            width: in pixels.

        Raises:
            OutOfDeviceMemory: the device has no memory left.
        """
        size = padded(height * width * 3)
        pool = self._pools.get(size)
        if pool is None:
            self._trim()
            pool = self._pools[size] = _Pool(self._cuda, size)
        self._pools.move_to_end(size)
        return DeviceFrame(pool.take(), height, width, pool.free)

    def close(self) -> None:
        """Free all memory. The stream must be done with it."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _trim(self) -> None:
        """Free the pools not used lately, to make room for one more size. A pool in use stays as a whole."""
        old = [size for size, pool in self._pools.items() if pool.whole]
        old = old[: max(0, len(self._pools) - _SIZES_KEPT + 1)]
        if old:
            self._cuda.synchronize(self._stream)
        for size in old:
            self._pools.pop(size).close()


class _Pool:
    """Memory for frames of one size in bytes."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self._size = cuda, size
        self._count = max(1, min(_FRAMES_PER_CHUNK, _CHUNK_BYTES // size))
        self._chunks: list[int] = []
        self.free: list[int] = []

    @property
    def whole(self) -> bool:
        """Whether all frames have been returned."""
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
    """Round a size in bytes up to a multiple of 256, CUDA's alignment."""
    return -(-size // 256) * 256
