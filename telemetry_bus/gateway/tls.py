"""Certificates: what each side of a link shows, and whom it believes. Reads files: not inside the event loop."""

import ssl
from pathlib import Path

from telemetry_bus.errors import UnusableCredentials


def client_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """For a collector: the gateway's name is checked against ``ca`` (default: what this machine trusts)."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UnusableCredentials(f"the authority {ca}", error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        _show(context, cert, key)
    return context


def server_context(cert: Path, key: Path | None, client_ca: Path | None) -> ssl.SSLContext:
    """For a gateway: with ``client_ca`` nobody comes in without a certificate that it signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _show(context, cert, key)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise UnusableCredentials(f"the authority {client_ca}", error) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _show(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    try:
        # A key under a passphrase would ask for it on a terminal, which a daemon does not have.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise UnusableCredentials(f"the certificate {cert} with its key {key or cert}", error) from error
