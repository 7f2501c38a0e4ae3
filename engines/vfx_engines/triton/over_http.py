"""A server over HTTP, with tritonclient's message bodies and the standard library's connections.

Tritonclient's own connections use gevent: they belong to one thread and cannot be closed from another.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import BadStatusLine, HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote

from tritonclient import http as client

from vfx_engines.engine import Array
from vfx_engines.errors import EngineError, reason
from vfx_engines.spec import EngineSpec
from vfx_engines.triton.address import ServerAddress
from vfx_engines.triton.server import Question, TransientError
from vfx_engines.triton.tensors import as_input, read_outputs, requested

_TRANSIENT = {408, 425, 429, 502, 503, 504}
"""HTTP status codes worth another try."""
_CONNECTING = 10.0
"""Time limit for opening a connection, in seconds."""
_READY = "v2/health/ready"
_HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpServer:
    """See `vfx_engines.triton.server.Server`. Each request under way has a connection to itself."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        self._busy: set[HTTPConnection] = set()
        self._cancelled = False

    def ask(self, question: Question, version: str | None = None) -> dict[str, Any]:
        """See `Server.ask`."""
        model = self._model(version)
        paths: dict[Question, str] = {
            "ready": _READY,
            "server": "v2",
            "model": model,
            "config": f"{model}/config",
        }
        body, _ = self._request("GET", paths[question])
        if question == "ready":
            return {}
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EngineError(f"{self._address}: not JSON: this is not a KServe v2 server")
        return answer

    def infer(self, spec: EngineSpec, version: str, rows: Array) -> Sequence[Array]:
        """See `Server.infer`."""
        body, header = client.InferenceServerClient.generate_request_body(
            [as_input(client.InferInput, spec, rows)], outputs=requested(client.InferRequestedOutput, spec)
        )
        answer, length = self._request("POST", f"{self._model(version)}/infer", body, header)
        try:
            result = client.InferenceServerClient.parse_response_body(answer, header_length=length)
        except Exception as error:  # from its JSON reader, or whatever else damaged bytes lead to
            raise EngineError(f"{self._address}: the answer is damaged: {reason(error)}") from None
        return read_outputs(result, spec, self._address)

    def cancel(self) -> None:
        """See `Server.cancel`."""
        with self._lock:
            self._cancelled = True
            for connection in self._busy:
                _end(connection)

    def close(self) -> None:
        """See `Server.close`."""
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _model(self, version: str | None) -> str:
        path = f"v2/models/{quote(self._address.model, safe='')}"
        return f"{path}/versions/{version}" if version else path

    def _request(
        self, method: str, path: str, body: bytes | None = None, header: int | None = None
    ) -> tuple[bytes, int | None]:
        """Body of the answer, and the length in bytes of the JSON that it begins with, if it is given."""
        headers = {} if header is None else {_HEADER_LENGTH: str(header)}
        try:
            with self._connection() as connection:
                connection.request(method, f"/{path}", body, headers)
                response = connection.getresponse()
                answer = response.read()
        except (OSError, HTTPException) as error:
            if self._cancelled:
                raise EngineError(f"{self._address}: given up, since the engine was closed") from None
            said = reason(error)
            if isinstance(error, TimeoutError):
                said = f"no answer in {self._address.timeout:g} s"
            elif type(error) is BadStatusLine:
                said = "an answer that is not HTTP: is this a gRPC port?"
            raise TransientError(said) from None
        if response.status != 200:
            raise self._failure(path, response.status, answer)
        length = response.getheader(_HEADER_LENGTH)
        return answer, int(length) if length and length.isdecimal() else None

    @contextmanager
    def _connection(self) -> Iterator[HTTPConnection]:
        with self._lock:
            connection = self._idle.pop() if self._idle else HTTPConnection(self._address.host)
            self._busy.add(connection)
        try:
            if connection.sock is None:
                self._connect(connection)
            with self._lock:
                # From here on, `cancel` finds a socket to shut down.
                if self._cancelled:
                    raise ConnectionError("cancelled")
            yield connection
        except BaseException:
            with self._lock:
                self._busy.discard(connection)
            connection.close()
            raise
        with self._lock:
            self._busy.discard(connection)
            self._idle.append(connection)

    def _connect(self, connection: HTTPConnection) -> None:
        # Another thread cannot interrupt this, so closing an engine may have to wait for it.
        connection.timeout = min(_CONNECTING, self._address.timeout)
        try:
            connection.connect()
        except TimeoutError:
            raise TransientError(f"no connection in {connection.timeout:g} s") from None
        connection.sock.settimeout(self._address.timeout)

    def _failure(self, path: str, status: int, answer: bytes) -> Exception:
        try:
            said = reason(json.loads(answer)["error"])
        except (ValueError, KeyError, TypeError):
            said = f"HTTP status {status} for /{path}"
        if path == _READY:
            # Triton answers 400 here instead of 503.
            return TransientError("the server is not ready: it loads its models, or could not")
        if status in _TRANSIENT or "not at ready state" in said or "no available versions" in said:
            return TransientError(said)
        return EngineError(f"{self._address}: {said}")


def _end(connection: HTTPConnection) -> None:
    """Shut down a connection's socket, which wakes the thread that waits for it."""
    with suppress(OSError):
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
