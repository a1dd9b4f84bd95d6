"""What keeps a gateway from listening.

::

    GatewayError        (a BusError)
    ├── OpenToAll       others can reach the address, and nobody would be asked who he is
    └── CannotListen    the address cannot be bound
"""

from telemetry_bus.errors import BusError


class GatewayError(BusError):
    """A gateway cannot listen as it was told to."""


class OpenToAll(GatewayError):
    """Others can reach the address, and nobody would be asked who he is."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"refusing to listen on {host!r} for anybody: expected a loopback address (127.0.0.1, ::1, localhost), a "
            "token, or client certificates. Set gateway.token (environment: NANTUCKET_GATEWAY__TOKEN), or gateway.cert "
            "and gateway.client_ca, or listen on 127.0.0.1."
        )
        self.host = host


class CannotListen(GatewayError):
    """The address cannot be bound."""

    def __init__(self, host: str, port: int, cause: OSError) -> None:
        super().__init__(
            f"the gateway cannot listen on {host}:{port}: {cause.strerror or cause}. Set gateway.host and gateway.port "
            "to an address of this machine that is free; port 0 takes a free one."
        )
        self.host, self.port = host, port
