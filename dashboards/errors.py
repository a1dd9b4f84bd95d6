"""What can go wrong in the dashboards.

::

    DashboardError
    ├── TokenRequired       a listener that others can reach, without a token
    ├── CannotListen        the address cannot be bound
    ├── StoreUnavailable    the incident store cannot be read just now
    └── StartFailed         the web server did not come up
"""

import errno
import socket


class DashboardError(Exception):
    """Anything that the dashboards refuse or cannot do."""


class TokenRequired(DashboardError):
    """The page was to listen where others can reach it, but no token is configured."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"refusing to listen on {host!r} without a token: expected a loopback address (127.0.0.1, ::1, localhost) "
            "or a configured token. Set serve.token (environment: NANTUCKET_SERVE__TOKEN), or listen on 127.0.0.1."
        )
        self.host = host


class CannotListen(DashboardError):
    """The address cannot be bound."""

    def __init__(self, host: str, port: int, cause: OSError) -> None:
        said = cause.strerror or str(cause)
        super().__init__(f"cannot listen on {host}:{port}: {said[:1].lower()}{said[1:]}. {_remedy(host, cause)}")
        self.host = host
        self.port = port


def _remedy(host: str, cause: OSError) -> str:
    if isinstance(cause, socket.gaierror) or cause.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
        return f"{host!r} is no address of this machine: expected 127.0.0.1, another of its addresses, or 0.0.0.0."
    return "Choose another port, or 0 for any free one."


class StoreUnavailable(DashboardError):
    """The incident store cannot be read just now; the same question may be answered later."""

    def __init__(self, cause: BaseException) -> None:
        # Only the kind of the cause: its text may name files, and a reader of the page need not know them.
        super().__init__(
            f"the incident store cannot be read ({type(cause).__name__}): expected the store of the alert role. "
            "The log of this process and `nantucket doctor` say more; ask again."
        )


class StartFailed(DashboardError):
    """The web server ended before it listened."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"the web server on {host}:{port} ended before it was ready; its log, above, says why.")
