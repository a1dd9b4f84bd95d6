"""From a stream of bytes to messages, without ever holding more than was agreed to.

Pure. Small messages are held until they are whole. A large one (a frame) is held only where ``admit`` has room for it
before its body has come; where it has none the body is let go by as it arrives, and the message comes out as
:class:`Skipped`, so that it can be refused by its id and the connection lives on.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from telemetry_bus.gateway.wire import HEAD, PUT_HEAD_BYTES, SMALL_BYTES_MAX, Kind, LinkFault, WireFault, bytes_max

_ID = struct.Struct("<Q")
_WITH_ID = (Kind.PUT, Kind.REPORT)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole message. ``body`` is what stands behind the kind; it is valid until the next one is asked for."""

    kind: int
    body: memoryview
    admitted: int = 0
    """Bytes for which :attr:`Splitter.admit` had made room: to be given back."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message for which there was no room."""

    kind: int
    id: int


class Splitter:
    """Splits one connection's bytes. ``allowed`` are the kinds that this side takes."""

    def __init__(self, allowed: frozenset[Kind], admit: Callable[[int], bool]) -> None:
        self.allowed, self._admit = allowed, admit
        self._chunks: list[bytes] = []
        self._held = 0
        self._wanted = HEAD.size
        self._skipping = 0
        self.admitted = 0
        """Room that was made for a message which is not whole yet."""

    @property
    def within_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._held > 0 or self._skipping > 0

    def feed(self, data: bytes) -> Iterator[Whole | Skipped]:
        """The messages that ``data`` completes. Raises :class:`WireFault`; after that nothing more can be fed."""
        if self._chunks:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._wanted:
                return
            data = b"".join(self._chunks)
        self._chunks, self._held = [], 0
        view, at = memoryview(data), 0
        while True:
            if self._skipping:
                gone = min(self._skipping, len(data) - at)
                at, self._skipping = at + gone, self._skipping - gone
            left = len(data) - at
            if left < HEAD.size:
                self._keep(data, at, HEAD.size)
                return
            length, kind = HEAD.unpack_from(data, at)
            self._check(length, kind)
            whole = 4 + length
            if left >= whole:
                admitted, self.admitted = self.admitted, 0
                yield Whole(kind, view[at + HEAD.size : at + whole], admitted)
                at += whole
            elif whole <= SMALL_BYTES_MAX or self.admitted:
                self._keep(data, at, whole)
                return
            elif left < PUT_HEAD_BYTES:
                self._keep(data, at, PUT_HEAD_BYTES)
                return
            elif kind in _WITH_ID and not self._admit(whole):
                self._skipping = whole
                yield Skipped(kind, _ID.unpack_from(data, at + HEAD.size)[0])
            else:
                self.admitted = whole

    def _keep(self, data: bytes, at: int, wanted: int) -> None:
        self._held, self._wanted = len(data) - at, wanted
        self._chunks = [data[at:]] if self._held else []

    def _check(self, length: int, kind: int) -> None:
        if kind not in self.allowed:
            expected = ", ".join(sorted(Kind(one).name for one in self.allowed))
            raise WireFault(LinkFault.UNEXPECTED, f"expected one of {expected} here, found a message of kind {kind}")
        if not 0 < length <= bytes_max(kind):
            raise WireFault(
                LinkFault.OVERSIZED, f"{length} bytes in a {Kind(kind).name}; expected 1 to {bytes_max(kind)}"
            )
