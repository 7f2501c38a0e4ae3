"""From an address to a connection, over gRPC or HTTP."""

from __future__ import annotations

from vfx_engines.errors import UsageError
from vfx_engines.triton.address import ServerAddress
from vfx_engines.triton.server import Server


def connect(address: ServerAddress) -> Server:
    """The server at an address. Nothing is sent yet.

    Raises:
        UsageError: Triton's client library is not installed.
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
