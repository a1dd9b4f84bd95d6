"""Records of many partitions in the order of the bus's time.

Pure. A reader that is behind fetches each partition at its own speed; detectors find silence by ticks, so a tick must
not overtake the rows of an earlier second that merely lie in another partition. Each partition is a *lane*. A record is
held back while some lane that is not at its end has not come so far in time; a lane at its end holds nobody back, so
that nothing waits when the reader is live. A lane that brings nothing for :data:`HOLD_SECONDS` of waiting is not waited
for any more until it does.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from telemetry_bus.bus import Record
from telemetry_bus.topics import Topic

HOLD_SECONDS = 5.0
"""A partition changes its leader within seconds; longer than that its silence must not blind the detectors."""
HELD_BYTES_MAX = 128 * 1024 * 1024
"""What waits for its turn, of all lanes together: a second and a half of 300,000 GPUs. Beyond it, lanes that hold more
than their share are fetched no further until half of it has gone out. A pause is dear, since the driver drops what it
has fetched ahead and fetches it again; so none is made while there is room. A fetch may exceed the bound by what it
brings."""
BATCH_RECORDS = 256
BATCH_BYTES = 4 * 1024 * 1024
"""One batch for the reader, as of the embedded log: at 65 MiB/s it is the work of 60 ms."""

Lane = tuple[Topic, int]


@dataclass(slots=True)
class _State:
    following: int
    waiting: deque[tuple[float, Record]] = field(default_factory=deque)
    bytes: int = 0
    newest: float = -math.inf
    at_end: bool = False
    idle_seconds: float = 0.0
    paused: bool = False


class TimeOrder:
    """Takes records lane by lane and gives them back in time order. ``first`` has each lane's first offset."""

    def __init__(
        self, first: dict[Lane, int], *, hold_seconds: float = HOLD_SECONDS, held_bytes_max: int = HELD_BYTES_MAX
    ) -> None:
        self._lanes = {lane: _State(following) for lane, following in first.items()}
        self._hold_seconds = hold_seconds
        self._held_bytes_max = held_bytes_max
        self._held, self._held_bytes_max = 0, held_bytes_max
        self._share = held_bytes_max // max(1, len(self._lanes))
        self._heads: list[tuple[float, int, Lane]] = []
        self._ranks = {lane: rank for rank, lane in enumerate(self._lanes)}

    def put(self, record: Record) -> None:
        """``record`` is the next of its lane."""
        lane = (record.topic, record.partition)
        state = self._lanes[lane]
        state.newest = max(state.newest, record.time)  # a broker's clock may step; the lane's own order stays
        state.waiting.append((state.newest, record))
        state.bytes += len(record.payload)
        self._held += len(record.payload)
        state.following = record.offset + 1
        state.idle_seconds = 0.0
        if len(state.waiting) == 1:
            heapq.heappush(self._heads, (state.newest, self._ranks[lane], lane))

    def reached(self, lane: Lane, end: int, *, fetched: bool = False) -> None:
        """The lane's log ended at ``end`` when it was last asked; ``fetched`` if everything before it has been put."""
        state = self._lanes[lane]
        if fetched:
            state.following = max(state.following, end)
        state.at_end = state.following >= end
        state.idle_seconds = 0.0

    def waited(self, seconds: float, moved: Iterable[Lane]) -> None:
        """``seconds`` were spent waiting for more, and only ``moved`` brought anything."""
        brought = set(moved)
        for lane, state in self._lanes.items():
            if lane not in brought and not state.paused:
                state.idle_seconds += seconds

    def take(self, records_max: int = BATCH_RECORDS, bytes_max: int = BATCH_BYTES) -> list[Record]:
        """What may go out now, oldest first, within the bounds of one batch."""
        frontier = self._frontier()
        batch: list[Record] = []
        size = 0
        while self._heads and self._heads[0][0] <= frontier and len(batch) < records_max and size < bytes_max:
            _, rank, lane = self._heads[0]
            state = self._lanes[lane]
            record = state.waiting.popleft()[1]
            if state.waiting:
                heapq.heapreplace(self._heads, (state.waiting[0][0], rank, lane))
            else:
                heapq.heappop(self._heads)
            state.bytes -= len(record.payload)
            self._held -= len(record.payload)
            size += len(record.payload)
            batch.append(record)
        return batch

    def _frontier(self) -> float:
        return min((state.newest for state in self._lanes.values() if self._is_awaited(state)), default=math.inf)

    def _is_awaited(self, state: _State) -> bool:
        return not state.at_end and state.idle_seconds < self._hold_seconds

    def to_pause(self) -> Sequence[Lane]:
        """Lanes that are to be fetched no further for now; they count as paused from now on.

        Only while more is held than may be, since what the driver has fetched ahead for them is fetched again.
        """
        if self._held <= self._held_bytes_max:
            return []
        ahead = [lane for lane, state in self._lanes.items() if not state.paused and state.bytes > self._share]
        for lane in ahead:
            self._lanes[lane].paused = True
        return ahead

    def to_resume(self) -> Sequence[Lane]:
        """Paused lanes of which enough has gone out."""
        low = [lane for lane, state in self._lanes.items() if state.paused and state.bytes <= self._share // 2]
        for lane in low:
            self._lanes[lane].paused = False
        return low

    def passed(self, lane: Lane) -> int:
        """The offset of ``lane`` before which everything has gone out."""
        state = self._lanes[lane]
        return state.waiting[0][1].offset if state.waiting else state.following
