"""Addresses such as ``grpc://host:8001/model``: where a served engine is, and how patiently to ask it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from vfx_engines.errors import UsageError

Protocol = Literal["grpc", "http"]

_PORTS: dict[Protocol, int] = {"grpc": 8001, "http": 8000}
_FORM = "expected grpc://HOST[:8001]/MODEL or http://HOST[:8000]/MODEL"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A model on a server, and how a client talks to it."""

    protocol: Protocol
    host: str
    """Host and port; an IPv6 address is in brackets."""
    model: str
    version: str | None = None
    """None takes the newest that the server has ready."""
    requests: int = 4
    """Requests in flight at once, each with a buffer of its own: 2 to 64."""
    tries: int = 8
    """How often a request is tried if the server is away or busy: 1 to 999."""
    timeout: float = 120.0
    """Time limit of one try, in seconds."""

    def __str__(self) -> str:
        return f"{self.protocol}://{self.host}/{self.model}"


def is_address(engine: str | os.PathLike[str]) -> bool:
    """Whether this is the address of a served engine rather than a file.

    One slash after the scheme is enough, because a ``Path`` made from an address drops the other.
    """
    return re.match(r"(grpc|http)s?:/", os.fspath(engine)) is not None


def server_address(engine: str | os.PathLike[str]) -> ServerAddress:
    """Parse an address (see `is_address`).

    Settings may follow the model's name: ``?version=2&requests=8&tries=3&timeout=30``.

    Raises:
        UsageError: the address is malformed, has an unknown setting, or asks for encryption (``https``).
    """
    scheme, _, rest = os.fspath(engine).partition(":")
    text = f"{scheme}://{rest.lstrip('/')}"
    if scheme not in get_args(Protocol):
        raise UsageError(
            f"engine {text!r}: connections are not encrypted by vfx (use a tunnel or a proxy): {_FORM}"
        )
    protocol: Protocol = "grpc" if scheme == "grpc" else "http"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or _PORTS[protocol]
    except ValueError as error:
        raise UsageError(f"engine {text!r}: {error}: {_FORM}") from None
    model = unquote(parts.path.strip("/"))
    if not host or not model or "/" in model or not model.isprintable() or "@" in parts.netloc:
        raise UsageError(f"engine {text!r}: {_FORM}")
    shown_host = f"[{host}]" if ":" in host else host
    return _with_settings(ServerAddress(protocol, f"{shown_host}:{port}", model), text, parts.query)


def _with_settings(address: ServerAddress, text: str, query: str) -> ServerAddress:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "version" and re.fullmatch(r"[1-9]\d{0,17}", value):
            address = replace(address, version=value)
        elif name == "requests" and re.fullmatch(r"\d{1,3}", value) and 2 <= int(value) <= 64:
            address = replace(address, requests=int(value))
        elif name == "tries" and re.fullmatch(r"\d{1,3}", value) and int(value) >= 1:
            address = replace(address, tries=int(value))
        elif name == "timeout" and re.fullmatch(r"\d{1,6}(\.\d+)?", value) and float(value) > 0:
            address = replace(address, timeout=float(value))
        else:
            raise UsageError(
                f"engine {text!r}: {name}={value}: expected version=N, requests=2..64, tries=1..999 or "
                "timeout=SECONDS"
            )
    return address
