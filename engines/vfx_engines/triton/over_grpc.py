"""A server over gRPC, through `tritonclient`, with one channel for all threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import grpc
from tritonclient import grpc as client

from vfx_engines.engine import Array
from vfx_engines.errors import EngineError, reason
from vfx_engines.spec import EngineSpec
from vfx_engines.triton.address import ServerAddress
from vfx_engines.triton.server import Question, TransientError
from vfx_engines.triton.tensors import as_input, read_outputs, requested

_TRANSIENT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"}
"""Status codes worth another try. UNAVAILABLE means that the server is away or its queue is full, CANCELLED
that it is shutting down."""

_CHANNEL = [
    # No limits: windows take megabytes, and the default limit is 4 MiB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By default, the channel waits up to two minutes before it tries to reach a server again.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Do not share a connection with other engines of this process, which would close it.
    ("grpc.use_local_subchannel_pool", 1),
]


class GrpcServer:
    """See `vfx_engines.triton.server.Server`."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._client: Any = client.InferenceServerClient(address.host, channel_args=_CHANNEL)
        self._lock = threading.Lock()
        self._under_way: set[Any] = set()
        self._cancelled = False

    def ask(self, question: Question, version: str | None = None) -> dict[str, Any]:
        """See `Server.ask`."""
        wait: dict[str, Any] = {"client_timeout": self._address.timeout}
        model = (self._address.model, version or "")
        try:
            match question:
                case "ready":
                    if not self._client.is_server_ready(**wait):
                        raise TransientError("the server is not ready: it loads its models, or could not")
                    return {}
                case "server":
                    answer = self._client.get_server_metadata(as_json=True, **wait)
                case "model":
                    answer = self._client.get_model_metadata(*model, as_json=True, **wait)
                case "config":
                    answer = self._client.get_model_config(*model, as_json=True, **wait)["config"]
        except client.InferenceServerException as error:
            raise self._failure(error) from None
        found: dict[str, Any] = answer
        return found

    def infer(self, spec: EngineSpec, version: str, rows: Array) -> Sequence[Array]:
        """See `Server.infer`."""
        done = threading.Event()
        answers: list[tuple[Any, Any]] = []

        def answered(result: Any, error: Any) -> None:
            answers.append((result, error))
            done.set()

        # Not the client's `infer`, which another thread could not cancel.
        call = self._client.async_infer(
            self._address.model,
            [as_input(client.InferInput, spec, rows)],
            answered,
            model_version=version,
            outputs=requested(client.InferRequestedOutput, spec),
            client_timeout=self._address.timeout,
        )
        with self._lock:
            self._under_way.add(call)
            if self._cancelled:
                call.cancel()
        done.wait()
        with self._lock:
            self._under_way.discard(call)
        result, error = answers[0]
        if error is not None:
            raise self._failure(error)
        return read_outputs(result, spec, self._address)

    def cancel(self) -> None:
        """See `Server.cancel`."""
        with self._lock:
            self._cancelled = True
            for call in self._under_way:
                call.cancel()

    def close(self) -> None:
        """See `Server.close`."""
        self._client.close()

    def _failure(self, error: Any) -> Exception:
        status = str(error.status() or "").removeprefix("StatusCode.")
        said = reason(error.message() or status)
        if status in _TRANSIENT and not self._cancelled:
            return TransientError(said)
        if status == grpc.StatusCode.UNIMPLEMENTED.name:
            said = f"this is not a KServe v2 server with Triton's model configuration ({said})"
        return EngineError(f"{self._address}: {said}")
