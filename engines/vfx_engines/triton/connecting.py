"""From an address to a connection: which of the two ways, and what it needs."""

from __future__ import annotations

from vfx_engines.errors import UsageError
from vfx_engines.triton.address import ServerAddress
from vfx_engines.triton.server import Server


def connect(address: ServerAddress) -> Server:
    """A server at an address; nothing is sent yet.

    Raises:
        UsageError: the client library is missing.
    """
    try:
        if address.protocol == "grpc":
            from vfx_engines.triton.over_grpc import GrpcServer

            return GrpcServer(address)
        from vfx_engines.triton.over_http import HttpServer

        return HttpServer(address)
    except ImportError as error:
        raise UsageError(
            f"{address}: needs Triton's client, of which {error.name} is missing: "
            "pip install 'tritonclient[grpc,http]'"
        ) from None
