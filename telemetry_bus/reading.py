"""Where a reader of several topics stands, so that it goes on there when the bus has been away.

Pure: it is told the ends of the topics at the beginning and every record that was read.
"""

from collections.abc import Mapping, Sequence

from telemetry_bus.bus import AtOffset, Latest, Positions, Record, Start
from telemetry_bus.topics import Topic


class Reading:
    """A reader that begins at ``starts``, in topics that end at ``ends`` when it begins."""

    def __init__(self, starts: Mapping[Topic, Start], ends: Positions) -> None:
        self.ends = ends
        self._first = starts
        self._following: dict[Topic, dict[int, int]] = {topic: {} for topic in starts}
        self._again = False

    def take(self, records: Sequence[Record]) -> list[Record]:
        """Those of ``records`` that were not read before."""
        fresh = []
        for record in records:
            following = self._following[record.topic]
            if record.offset >= following.get(record.partition, 0):
                following[record.partition] = record.offset + 1
                fresh.append(record)
        return fresh

    def starts(self) -> Mapping[Topic, Start]:
        """Where to subscribe, the first time or again."""
        starts = {topic: self._start(topic) for topic in self._first}
        self._again = True
        return starts

    def unread(self, partitions: Mapping[Topic, Sequence[int]]) -> Positions:
        """The first ends of those ``partitions`` of which nothing has been read."""
        return {
            topic: {at: self.ends[topic][at] for at in wanted if at not in self._following[topic]}
            for topic, wanted in partitions.items()
        }

    def _start(self, topic: Topic) -> Start:
        following, ends, first = self._following[topic], self.ends[topic], self._first[topic]
        if following.keys() >= ends.keys():
            return AtOffset(partitions=dict(following))
        if self._again and isinstance(first, Latest):
            return AtOffset(partitions={**ends, **following})  # "the latest" would leave out what came meanwhile
        return first  # of some partitions nothing was read yet: what comes again of the others is not fresh
