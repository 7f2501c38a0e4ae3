"""Connections over HTTP: made while their engine is closed, and what a refusal means."""

from __future__ import annotations

import socket
import threading
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


def test_a_model_whose_name_ends_in_ready_is_missing_like_any_other() -> None:
    body = b'{"error": "no such model"}'

    def refuse(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted:
            accepted.recv(4096)
            accepted.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        thread = threading.Thread(target=refuse, args=(listening,))
        thread.start()
        server = HttpServer(
            ServerAddress("http", f"127.0.0.1:{listening.getsockname()[1]}", "already", timeout=5)
        )
        with pytest.raises(EngineError, match="no such model"):
            server.ask("model")
        thread.join()
        server.close()


def test_a_grpc_port_is_named_rather_than_its_bytes() -> None:
    def answer(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted:
            accepted.recv(4096)
            accepted.sendall(bytes.fromhex("000012040000000000000300000000000400400000"))  # HTTP/2's SETTINGS

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        server = HttpServer(
            ServerAddress("http", f"127.0.0.1:{listening.getsockname()[1]}", "tiny", timeout=5)
        )
        with pytest.raises(TransientError, match="not HTTP: is this a gRPC port"):
            server.ask("ready")
        thread.join()
        server.close()
