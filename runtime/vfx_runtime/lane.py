"""The slots of one engine, used as a queue from the threads that fill them to the thread that collects them.

Windows of all videos go into the slot that is being filled, each into a row of its own. A full slot is
submitted once all its windows are in place. Slots are submitted and collected in the order in which they were
filled, so rows keep the order in which their windows were reserved.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from vfx_engines.engine import Engine, Outputs
from vfx_engines.errors import VfxError
from vfx_runtime.preprocess import prepares_on_device

T = TypeVar("T")


class Lane(Generic[T]):
    """One engine of a run. ``T`` is what the caller remembers about a window until its row is there.

    Args:
        engine: an open engine; the lane alone uses its slots during the run.
        changed: the run's condition, notified whenever a slot changes hands. It guards the lane's state.
        wait: waits for ``changed``, which the lane then holds; raises to abandon the run.
        fail: records an error that does not belong to a single window, and returns the exception to raise.
    """

    def __init__(
        self,
        engine: Engine,
        changed: threading.Condition,
        wait: Callable[[], None],
        fail: Callable[[Exception], Exception],
    ) -> None:
        self.engine = engine
        self._on_device = prepares_on_device(engine)
        self._changed, self._wait, self._fail = changed, wait, fail
        self._free = deque(range(engine.slots))
        self._filling: int | None = None
        self._windows: list[list[T]] = [[] for _ in range(engine.slots)]
        self._copying = [0] * engine.slots
        self._sealed: deque[int] = deque()
        """Slots that get no more windows but are not submitted yet, in the order of filling."""
        self._submitted: deque[int] = deque()

    @property
    def idle(self) -> bool:
        """Whether no slot is being filled or waiting to be submitted."""
        return self._filling is None and not self._sealed

    def reserve(self, window: T, reserved: Callable[[], None]) -> tuple[int, int]:
        """Reserve a place for a window, waiting for a free slot; after copying the window, `commit` the slot.

        Args:
            window: returned by `collect` together with its row.
            reserved: called under the lock once the place is certain.

        Returns:
            The slot, and the row in it.
        """
        with self._changed:
            while self._filling is None:
                if self._free:
                    self._filling = self._free.popleft()
                else:
                    self._wait()
            slot = self._filling
            row = len(self._windows[slot])
            self._windows[slot].append(window)
            self._copying[slot] += 1
            reserved()
            if row + 1 == self.engine.batch:
                self.seal()
            return slot, row

    def commit(self, slot: int) -> None:
        """Record that a window reserved in this slot is in place, or never will be."""
        with self._changed:
            self._copying[slot] -= 1
            self._submit_ready()

    def seal(self) -> None:
        """Close the slot that is being filled, even if it is not full. The caller holds ``changed``."""
        if self._filling is not None:
            slot, self._filling = self._filling, None
            self._sealed.append(slot)
            self._submit_ready()

    def collect(self, ended: Callable[[], bool]) -> tuple[list[T], Outputs] | None:
        """Wait for the oldest submitted slot, and free it.

        Args:
            ended: called under the lock; tells whether no more windows will be reserved, or raises to end the
                run.

        Returns:
            The slot's windows and their outputs, in order; None when no more will come.

        Raises:
            EngineError: the engine failed.
        """
        with self._changed:
            while not self._submitted:
                if ended() and self.idle:
                    return None
                self._wait()
            slot = self._submitted.popleft()
        outputs = self.engine.collect(slot)
        with self._changed:
            windows, self._windows[slot] = self._windows[slot], []
            self._free.append(slot)
            self._changed.notify_all()
        return windows, outputs

    def drain(self) -> None:
        """Collect what is still submitted, so that all of the engine's slots are free."""
        while self._submitted:
            # If the engine failed, that has been reported already.
            with suppress(VfxError):
                self.engine.collect(self._submitted.popleft())

    def _submit_ready(self) -> None:
        # A later slot may have all its windows first, but slots are submitted in the order of filling, which
        # keeps rows in order.
        while self._sealed and not self._copying[self._sealed[0]]:
            slot = self._sealed.popleft()
            try:
                self.engine.submit(slot, len(self._windows[slot]), on_device=self._on_device)
            except Exception as error:  # not the fault of the video that happened to complete the slot
                raise self._fail(error) from error
            self._submitted.append(slot)
            self._changed.notify_all()
