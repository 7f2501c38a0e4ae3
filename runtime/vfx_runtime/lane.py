"""The slots of one engine, as a queue from the threads that fill them to the one that collects them.

Windows of any videos go into the slot that is being filled, each to its own row. A full slot is submitted
once all its windows are in place, in the order of filling, and collected in that order: so rows keep the
order in which their windows were reserved.
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
    """One engine of a run. ``T`` is what the caller keeps of a window until its row is there.

    Args:
        engine: its slots are the lane's while the run lasts.
        changed: of the whole run: notified whenever a slot changes hands. It guards all of this.
        wait: waits for ``changed``, which the caller holds; raises to give the run up.
        fail: notes an error that is not one window's, and gives what is to be raised.
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
        """Slots that get no more windows, in the order in which they were filled."""
        self._submitted: deque[int] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is being filled or waits to be submitted."""
        return self._filling is None and not self._sealed

    def reserve(self, window: T, reserved: Callable[[], None]) -> tuple[int, int]:
        """A slot and a row of it to put a window into; then `commit` the slot.

        Args:
            window: handed out again with its row.
            reserved: called under the lock, once the place is sure.
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
        """A window that was reserved in this slot is in place, or will never be."""
        with self._changed:
            self._copying[slot] -= 1
            self._submit_ready()

    def seal(self) -> None:
        """No more windows for the slot that is being filled. The caller holds ``changed``."""
        if self._filling is not None:
            slot, self._filling = self._filling, None
            self._sealed.append(slot)
            self._submit_ready()

    def collect(self, ended: Callable[[], bool]) -> tuple[list[T], Outputs] | None:
        """The windows of the oldest submitted slot, and their rows; None when no more will come.

        Args:
            ended: asked under the lock: whether nobody will reserve any more; raises to end the run.

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
        """Leave the engine with every slot free."""
        while self._submitted:
            # An engine that failed has said so already.
            with suppress(VfxError):
                self.engine.collect(self._submitted.popleft())

    def _submit_ready(self) -> None:
        # In the order of filling, though a later slot may be copied first: rows keep their order by it.
        while self._sealed and not self._copying[self._sealed[0]]:
            slot = self._sealed.popleft()
            try:
                self.engine.submit(slot, len(self._windows[slot]), on_device=self._on_device)
            except Exception as error:  # not of the video that happened to fill the slot
                raise self._fail(error) from error
            self._submitted.append(slot)
            self._changed.notify_all()
