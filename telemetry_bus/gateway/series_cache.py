"""What a series means, remembered: a scraper sends the same names and labels again and again."""

from collections.abc import Callable, Hashable, Mapping

from telemetry_bus.gateway.metric_mapping import Series, series_of

SERIES_MAX = 65_536
"""64 nodes of 8 GPUs with 128 series each; with 1.2 KiB for a key of 15 labels 80 MiB. At the bound it begins anew, and
each series costs 15 µs once more."""
KEY_BYTES_MAX = 4_096
"""A longer one is looked at each time, so that nobody fills the memory with labels."""


class SeriesCache:
    """Meanings by ``key``: whatever a protocol sends before its samples. It may be used by several threads."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Series] = {}

    @property
    def get(self) -> Callable[[Hashable], Series | None]:
        """The meaning of a key, if it is known."""
        return self._known.get

    def learn(self, key: Hashable, key_bytes: int, name: str, labels: Mapping[str, str]) -> Series:
        """The meaning of a key that is not known, which then is."""
        series = series_of(name, labels)
        if key_bytes <= KEY_BYTES_MAX:
            if len(self._known) >= SERIES_MAX:
                self._known.clear()
            self._known[key] = series
        return series
