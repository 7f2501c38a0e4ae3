"""Connections over HTTP: made while their engine is closed, and what a refusal means."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

from vfx_engines import EngineError
from vfx_engines.triton.address import ServerAddress

pytest.importorskip("tritonclient.http")

from vfx_engines.triton.over_http import HttpServer
from vfx_engines.triton.server import TransientError


def test_a_connection_that_is_being_made_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cancel` finds no socket to end: the request must see by itself that it is over."""
    connect = HTTPConnection.connect

    def cancelled_meanwhile(connection: HTTPConnection) -> None:
        server.cancel()
        connect(connection)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = HttpServer(ServerAddress("http", f"127.0.0.1:{silent.getsockname()[1]}", "tiny", timeout=5))
        monkeypatch.setattr(HTTPConnection, "connect", cancelled_meanwhile)
        with pytest.raises(EngineError, match="given up, since the engine was closed"):
            server.ask("ready")
        silent.settimeout(5)
        accepted, _ = silent.accept()
        with accepted:
            assert accepted.recv(1) == b"", "a request was sent"


@contextmanager
def answering(answer: bytes, model: str) -> Iterator[HttpServer]:
    """A client of a server that gives this answer to whatever it is asked first."""

    def give(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted:
            accepted.recv(4096)
            accepted.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        thread = threading.Thread(target=give, args=(listening,))
        thread.start()
        server = HttpServer(
            ServerAddress("http", f"127.0.0.1:{listening.getsockname()[1]}", model, timeout=5)
        )
        yield server
        thread.join()
        server.close()


def test_a_model_whose_name_ends_in_ready_is_missing_like_any_other() -> None:
    body = b'{"error": "no such model"}'
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(refusal, "already") as server, pytest.raises(EngineError, match="no such model"):
        server.ask("model")


def test_a_grpc_port_is_named_rather_than_its_bytes() -> None:
    settings = bytes.fromhex("000012040000000000000300000000000400400000")  # of HTTP/2
    said = pytest.raises(TransientError, match="not HTTP: is this a gRPC port")
    with answering(settings, "tiny") as server, said:
        server.ask("ready")
