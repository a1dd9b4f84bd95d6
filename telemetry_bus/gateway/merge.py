"""Many small frames into few large ones, by time and by size; what is critical or large already goes on at once.

Pure: entries and ``now`` in, batches out. Frames are merged only with frames of the same topic, schema and partition
key, in the order in which they came; manifests are kept, so that nothing of where a row came from is lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from telemetry_bus.errors import FrameError
from telemetry_bus.frames import FRAME_ROWS_MAX, RUNS_MAX, encode, merge
from telemetry_bus.gateway.entry import Answering, Entry, is_critical
from telemetry_bus.topics import Topic

MERGE_SECONDS = 0.25
"""Two tiers hold a row back half a second at most, which leaves as much of the second for the way and the commits."""
MERGED_BYTES_WANTED = 4 * 1024 * 1024
"""A merged second of 14,000 GPUs; far below what a reader takes (16 MiB), and a commit that stays short."""
LARGE_BYTES = 1024 * 1024
"""From here on the cost of a frame is its bytes: it is passed on as it came. Below it every reader gains: the rows of a
whole region cost it 0.1 CPU-seconds a second in frames of 2 MiB and 0.3 in the frames of its racks (170 KiB), and
merging these costs 0.08 once."""
LARGE_RUNS = 1_024
"""A frame of so many runs has been merged twice below."""


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How long, and up to what size, frames wait for others."""

    seconds: float = MERGE_SECONDS
    bytes_wanted: int = MERGED_BYTES_WANTED
    large_bytes: int = LARGE_BYTES
    large_runs: int = LARGE_RUNS

    def build(self) -> "Merger":
        """A merger without anything in it."""
        return Merger(self)


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes up as one frame, and the entries that it is made of."""

    topic: Topic
    key: str
    payload: bytes
    entries: tuple[Entry, ...]


@dataclass(slots=True)
class _Group:
    entries: list[Entry] = field(default_factory=list)
    bytes: int = 0
    rows: int = 0
    runs: int = 0
    due: float = 0.0


class Merger:
    """Holds what waits. ``now`` is monotonic seconds."""

    def __init__(self, options: MergeOptions) -> None:
        self._options = options
        self._groups: dict[tuple[Topic, str, str], _Group] = {}

    def add(self, entry: Entry, now: float) -> list[Batch]:
        """Take ``entry``; gives what has to go up at once, in order."""
        options, place = self._options, (entry.topic, entry.frame.schema_id, entry.key)
        size, rows, runs = len(entry.payload), entry.frame.rows, len(entry.frame.manifest)
        large = size >= options.large_bytes or runs >= options.large_runs
        batches = []
        group = self._groups.get(place)
        if group is not None and (large or not self._fits(group, size, rows, runs)):
            batches += self._closed(place)
            group = None
        if large:
            return [*batches, Batch(entry.topic, entry.key, entry.payload, (entry,))]
        if group is None:
            group = self._groups[place] = _Group(due=now + options.seconds)
        group.entries.append(entry)
        group.bytes, group.rows, group.runs = group.bytes + size, group.rows + rows, group.runs + runs
        if options.seconds <= 0 or is_critical(entry.topic, entry.frame):
            batches += self._closed(place)  # with those that came before it: the order is kept
        return batches

    def due(self, now: float) -> list[Batch]:
        """What has waited long enough."""
        ripe = [place for place, group in self._groups.items() if group.due <= now]
        return self._close_those(ripe)

    def next_due(self) -> float | None:
        """When something will have waited long enough; ``None`` while nothing waits."""
        return min((group.due for group in self._groups.values()), default=None)

    def last_word(self, owner: Answering) -> list[Batch]:
        """What has to go up because ``owner`` has gone: its last rows tell why."""
        return self._close_those(
            place for place, group in self._groups.items() if any(entry.owner is owner for entry in group.entries)
        )

    def everything(self) -> list[Batch]:
        """All that waits."""
        return self._close_those(self._groups)

    def _close_those(self, places: Iterable[tuple[Topic, str, str]]) -> list[Batch]:
        return [batch for place in list(places) for batch in self._closed(place)]

    def _fits(self, group: _Group, size: int, rows: int, runs: int) -> bool:
        return (
            group.bytes + size <= self._options.bytes_wanted
            and group.rows + rows <= FRAME_ROWS_MAX
            and group.runs + runs <= RUNS_MAX
        )

    def _closed(self, place: tuple[Topic, str, str]) -> list[Batch]:
        topic, _, key = place
        return _merged(topic, key, tuple(self._groups.pop(place).entries))


def _merged(topic: Topic, key: str, entries: tuple[Entry, ...]) -> list[Batch]:
    """``entries`` as one batch, or as several where one would be larger than any frame.

    A frame has no columns behind the last that has a value: beside one with all of them, rows grow up to tenfold.
    """
    if len(entries) == 1:
        return [Batch(topic, key, entries[0].payload, entries)]
    try:
        return [Batch(topic, key, encode(merge([entry.frame for entry in entries])), entries)]
    except FrameError:
        half = len(entries) // 2
        return [*_merged(topic, key, entries[:half]), *_merged(topic, key, entries[half:])]
