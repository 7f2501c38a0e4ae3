"""``grpc://host:8001/model``: where a served engine is, and how patient a client of it is."""

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
    """A model of a server."""

    protocol: Protocol
    host: str
    """With its port; an IPv6 address in brackets."""
    model: str
    version: str | None = None
    """None takes the newest that the server has ready."""
    requests: int = 4
    """In flight at once, each with a buffer of its own: 2 to 64."""
    tries: int = 8
    """Of a request, where the server is away or busy."""
    timeout: float = 120.0
    """Seconds for one try."""

    def __str__(self) -> str:
        return f"{self.protocol}://{self.host}/{self.model}"


def is_address(engine: str | os.PathLike[str]) -> bool:
    """Whether this names a served engine, not a file. A ``Path`` of an address has one slash less."""
    return re.match(r"(grpc|http)s?:/", os.fspath(engine)) is not None


def server_address(engine: str | os.PathLike[str]) -> ServerAddress:
    """The address that ``engine`` is (`is_address`).

    After the model's name may stand settings: ``?version=2&requests=8&tries=3&timeout=30``.

    Raises:
        UsageError: it has another form.
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
