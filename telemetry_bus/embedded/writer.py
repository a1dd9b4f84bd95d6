"""The writer's thread: everything that waits is written in one transaction, so that many publishers share one sync."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from telemetry_bus.embedded.store import LogFile, TopicLimit
from telemetry_bus.embedded.wake import Knocker
from telemetry_bus.errors import BusError, BusUnavailable
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

GROUP_BYTES_MAX = 16 * 1024 * 1024
"""One transaction's worth: what an ordinary disk syncs in 50 ms."""
TRIM_EVERY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Append:
    topic: Topic
    payloads: Sequence[bytes]
    answer: Callable[[list[int] | BaseException], None]


@dataclass(frozen=True, slots=True)
class _Remember:
    reader: str
    offsets: Mapping[Topic, int]
    answer: Callable[[list[int] | BaseException], None]


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class Writer:
    """Owns the one write connection of this process. Started and stopped by the bus."""

    def __init__(self, folder: Path, url: str, limits: Mapping[Topic, TopicLimit], clock: Clock) -> None:
        self._folder, self._url, self._limits, self._clock = folder, url, limits, clock
        self._queue: queue.SimpleQueue[_Append | _Remember | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="nantucket-log-writer", daemon=True)
        self._opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._writing: list[_Append | _Remember | _Stop] = []
        self._fault: BaseException | None = None
        self._trimmed_at = clock.monotonic()
        self._untrimmed = 0.0

    def start(self) -> None:
        """Open the log, in the thread that will use it, and raise what that raised. Blocks."""
        self._thread.start()
        error = self._opened.get()
        if error is not None:
            self._thread.join()
            raise error

    def stop(self) -> None:
        """Write what waits, close the log and join the thread. Blocks."""
        self._queue.put(_Stop())
        self._thread.join()

    def append(self, topic: Topic, payloads: Sequence[bytes]) -> "asyncio.Future[list[int]]":
        """The offsets of ``payloads``, once they are durable."""
        future, answer = _promise()
        self._put(_Append(topic, payloads, answer))
        return future

    def remember(self, reader: str, offsets: Mapping[Topic, int]) -> "asyncio.Future[list[int]]":
        """Done once the positions of ``reader`` are durable."""
        future, answer = _promise()
        self._put(_Remember(reader, offsets, answer))
        return future

    def _run(self) -> None:
        try:
            knocker = Knocker(self._folder)
            with contextlib.ExitStack() as opened:
                opened.callback(knocker.close)
                log = LogFile(self._folder, self._url)
                opened.callback(log.close)
                log.create()
                opened.pop_all()
        except BusError as error:
            self._opened.put(error)
            return
        self._opened.put(None)
        try:
            while self._turn(log, knocker):
                pass
        except BaseException as error:
            # A fault of ours. It ends the thread, and whoever waits for it, now or later, must hear so.
            self._fault = error
            self._refuse(self._writing)
            raise
        finally:
            knocker.close()
            log.close()

    def _refuse(self, items: Sequence[_Append | _Remember | _Stop]) -> None:
        """Answer ``items``, and whatever else waits, that nothing is written any more."""
        waiting = list(items)
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._queue.get_nowait())
        for item in waiting:
            if not isinstance(item, _Stop):
                item.answer(BusUnavailable(self._url, "write, because its writer has failed", self._fault))

    def _put(self, item: _Append | _Remember) -> None:
        self._queue.put(item)
        if self._fault is not None:
            self._refuse([])

    def _turn(self, log: LogFile, knocker: Knocker) -> bool:
        """Write one group; False once it is time to stop."""
        try:
            group = self._group(self._queue.get(timeout=TRIM_EVERY_SECONDS))
        except queue.Empty:
            group = []
        self._writing = group
        appends = [item for item in group if isinstance(item, _Append)]
        if appends:
            self._append(log, appends)
            knocker.knock()
        for item in group:
            if isinstance(item, _Remember):
                self._remember(log, item)
        self._trim(log, sum(len(item.payloads) for item in appends))
        return not any(isinstance(item, _Stop) for item in group)

    def _group(self, first: _Append | _Remember | _Stop) -> list[_Append | _Remember | _Stop]:
        group, size = [first], 0
        while not isinstance(group[-1], _Stop) and size < GROUP_BYTES_MAX:
            if isinstance(group[-1], _Append):
                size += sum(map(len, group[-1].payloads))
            try:
                group.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return group

    def _append(self, log: LogFile, appends: Sequence[_Append]) -> None:
        try:
            log.check_in_place()
            offsets = log.append([(item.topic, item.payloads) for item in appends], self._clock.now())
        except BusError as error:
            for item in appends:
                item.answer(error)
            return
        for item, given in zip(appends, offsets, strict=True):
            item.answer(given)

    def _remember(self, log: LogFile, item: _Remember) -> None:
        try:
            log.check_in_place()
            log.remember(item.reader, item.offsets)
        except BusError as error:
            item.answer(error)
        else:
            item.answer([])

    def _trim(self, log: LogFile, appended: int) -> None:
        """Trim if it is time: all that is over its limit or, if somebody waits, twice what was appended since."""
        self._untrimmed += appended
        now = self._clock.monotonic()
        if now - self._trimmed_at < TRIM_EVERY_SECONDS:
            return
        try:
            while trimmed := log.trim(self._limits, self._clock.now()):
                self._untrimmed -= trimmed / 2
                if self._untrimmed <= 0 and not self._queue.empty():
                    return
            self._trimmed_at, self._untrimmed = now, 0.0
        except BusError:
            self._trimmed_at = now  # a full or locked disk: publishers are told; retention tries again in its turn


def _promise() -> "tuple[asyncio.Future[list[int]], Callable[[list[int] | BaseException], None]]":
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[int]] = loop.create_future()

    def settle(result: list[int] | BaseException) -> None:
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    def answer(result: list[int] | BaseException) -> None:
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:
            return  # the loop is closed: whoever waited is gone, and what was written stays written

    return future, answer
