"""Where the listener for the SDK may stand, and its sockets: a path of this node, a port of this machine."""

import asyncio
import ipaddress
import os
import socket
import stat
import struct
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from collectors.credentials import JobCredentials
from collectors.errors import SocketTaken, UnsafeListener

BACKLOG = 512
"""Connections that may wait to be accepted: every rank of a job comes back in the same second."""
PROBE_SECONDS = 1.0
"""How long a collector that may still be there has to answer."""
UNIX_PATH_BYTES_MAX = 107
"""Linux's ``sun_path`` has 108 bytes with its final zero."""
UNIX_MODE = 0o660
"""Who may connect may write training rows: the collector's user and its group. A node whose jobs run under many users
puts them in that group, or asks every job for its token."""
_CREDENTIALS = struct.Struct("3i")
"""Linux's ``struct ucred``: process, user, group."""


def check_place(
    unix_path: str | os.PathLike[str] | None,
    tcp: tuple[str, int] | None,
    credentials: JobCredentials | None,
    require: bool,
) -> None:
    """Raise ``UnsafeListener`` where anybody could write a job's rows, and for what is no place."""
    if unix_path is None and tcp is None:
        raise UnsafeListener("the listener for the SDK: expected a socket's path or a port, found neither")
    if unix_path is not None and len(os.fsencode(unix_path)) > UNIX_PATH_BYTES_MAX:
        raise UnsafeListener(
            f"the socket's path: expected at most {UNIX_PATH_BYTES_MAX} bytes, found {os.fspath(unix_path)}"
        )
    if tcp is not None and not _is_loopback(tcp[0]):
        raise UnsafeListener(f"the port for the SDK: expected a loopback address (127.0.0.1), found {tcp[0]}")
    if (tcp is not None or require) and credentials is None:
        raise UnsafeListener("a listener that asks for tokens: expected credentials to check them with, found none")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def bind_unix_owned(path: Path, mode: int, stack: AsyncExitStack) -> socket.socket:
    """Bind to ``path``, and see to it that the socket is closed and its file removed at the end."""
    bound = await asyncio.to_thread(_bind_unix, path, mode)
    stack.callback(bound.close)
    inode = (await asyncio.to_thread(path.stat)).st_ino
    stack.push_async_callback(asyncio.to_thread, _unlink_own, path, inode)
    return bound


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen on a port of ``host``, which has been checked."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    bound.setblocking(False)
    return bound


def peer_of(writer: asyncio.StreamWriter) -> tuple[int | None, int | None]:
    """The process at the other end of a Unix socket, and its user, as the kernel says; ``None`` for a process that this
    one's namespace does not show."""
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _group = _CREDENTIALS.unpack(raw)
    return pid or None, uid


def _bind_unix(path: Path, mode: int) -> socket.socket:
    """Bind to ``path``; a socket file that nobody answers at is what a killed collector left, and is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not stat.S_ISSOCK(path.stat().st_mode)):
        raise SocketTaken(str(path), "something there is not a socket")
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_SECONDS)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise SocketTaken(str(path), "another collector answers there")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(mode)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _unlink_own(path: Path, inode: int) -> None:
    """Remove our socket's file, unless somebody else has put theirs in its place."""
    with suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()
