"""The bounded queue of rows that wait for the collector. One thread uses it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Row(NamedTuple):
    """One row as JSON. ``critical``: something in it is non-finite, so it is what an investigation will look for."""

    text: bytes
    critical: bool


class RowBuffer:
    """Rows in order, bounded in rows and bytes. When full, the oldest row that is not critical goes.

    Critical rows are kept until they alone fill half of the bound; then the first ones stay: they show where it began.
    """

    def __init__(self, rows_max: int, bytes_max: int) -> None:
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._kept: deque[Row] = deque()  # critical rows, all older than those in _rows
        self._kept_bytes = 0
        self._rows: deque[Row] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept) + len(self._rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of JSON that wait."""
        return self._kept_bytes + self._bytes

    def put(self, row: Row) -> int:
        """Append a row and return how many were dropped for it."""
        self._rows.append(row)
        self._bytes += len(row.text)
        dropped = 0
        while len(self) > self._rows_max or self.size_bytes > self._bytes_max:
            dropped += self._shift()
        return dropped

    def _shift(self) -> int:
        row = self._rows.popleft()
        self._bytes -= len(row.text)
        room = len(self._kept) < self._rows_max // 2 and self._kept_bytes + len(row.text) <= self._bytes_max // 2
        if not (row.critical and room):
            return 1
        self._kept.append(row)
        self._kept_bytes += len(row.text)
        return 0

    def take(self, rows_max: int, bytes_max: int) -> list[bytes]:
        """Take the oldest rows: as many as fit, at least one if there is any."""
        taken: list[bytes] = []
        size = 0
        while len(self) and len(taken) < rows_max:
            rows = self._kept or self._rows
            size += len(rows[0].text) + 1
            if taken and size > bytes_max:
                break
            taken.append(self._pop(rows))
        return taken

    def _pop(self, rows: deque[Row]) -> bytes:
        text = rows.popleft().text
        if rows is self._kept:
            self._kept_bytes -= len(text)
        else:
            self._bytes -= len(text)
        return text
