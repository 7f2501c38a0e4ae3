"""An engine on a server: each slot is a request in flight, retried if the server is away or busy."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np

from vfx_engines.engine import Array
from vfx_engines.errors import EngineError, UsageError
from vfx_engines.spec import EngineSpec, Precision
from vfx_engines.triton.address import ServerAddress
from vfx_engines.triton.served import ServedModel
from vfx_engines.triton.server import Patience, Server


class TritonBackend:
    """See `vfx_engines.engine.AbandoningBackend`.

    Args:
        address: address of the model, which also says how many requests may be in flight.
        spec: spec of the model, every axis but the batch with a size.
        model: what the server says about the model.
        server: the connection; closed with the backend.
        patient: retries requests to that server.
        batch: rows of a slot.

    Raises:
        UsageError: the server takes fewer rows per request.
    """

    def __init__(
        self,
        address: ServerAddress,
        spec: EngineSpec,
        model: ServedModel,
        server: Server,
        patient: Patience,
        batch: int,
    ) -> None:
        if batch > model.most:
            raise UsageError(
                f"{address}: batch {batch}: the server takes {model.most} windows in a request: "
                "give fewer, or export with a larger --batch"
            )
        self._address, self._spec, self._version = address, spec, model.version
        self._server, self._patient = server, patient
        self.precision: Precision = spec.precision
        # Without the host: the name is saved with the features, which do not depend on where they are made.
        self.name = f"{model.server}, {address.protocol}, version {model.version}, {spec.precision}"
        shape = [batch if i == 0 else int(axis) for i, axis in enumerate(spec.input.shape)]
        self.buffers = [np.zeros(shape, spec.input.dtype) for _ in range(address.requests)]
        self._workers = ThreadPoolExecutor(address.requests, "triton")
        self._running: list[Future[Sequence[Array]] | None] = [None] * address.requests

    def start(self, slot: int, count: int) -> None:
        """Send the first ``count`` rows, which the server may batch with those of other requests."""
        rows = self.buffers[slot][:count]
        self._running[slot] = self._workers.submit(
            self._patient, lambda: self._server.infer(self._spec, self._version, rows)
        )

    def wait(self, slot: int) -> Sequence[Array]:
        """The output arrays of the server's answer."""
        future, self._running[slot] = self._running[slot], None
        assert future is not None, "Engine waits only for what it started"
        try:
            return future.result()
        except CancelledError:
            raise EngineError(f"{self._address}: given up, since the engine was closed") from None

    def abandon(self) -> None:
        """Cancel the requests in flight, and the pauses between tries."""
        self._patient.end()
        self._server.cancel()

    def close(self) -> None:
        """Cancel everything, end the threads, then close the connections."""
        self.abandon()
        self._workers.shutdown(cancel_futures=True)
        self._server.close()
        self.buffers = []
