"""The sending side: messages in, and for each call one answer once all of its messages are durable or have failed."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as RdProducer

from telemetry_bus.errors import BusError, BusUnavailable, InvalidPayload
from telemetry_bus.kafka.driver.faults import Faults, made
from telemetry_bus.kafka.settings import Setting

POLL_SECONDS = 0.05
"""How long the thread of a producer that is closed may take to notice."""
FLUSH_EXTRA_SECONDS = 1.0
"""Messages time out by themselves; a second later the driver has said so."""

Answer = Callable[[list[int] | BusError], None]


class ProducerFailed(BusUnavailable):
    """The driver's producer will send nothing more: a new one must be made."""

    def __init__(self, url: str, message: str) -> None:
        BusError.__init__(self, message)
        self.url = url


class _Call:
    """The messages of one call, and what has become of them. Only the thread of the deliveries touches it."""

    def __init__(self, topic: str, count: int, faults: Faults, answer: Answer) -> None:
        self._topic, self._faults, self._answer = topic, faults, answer
        self._offsets = [-1] * count
        self._left = count
        self._error: BusError | None = None

    def delivered(self, position: int, error: KafkaError | None, message: Message) -> None:
        self._left -= 1
        if error is not None:
            self.failed(position, error)
        else:
            offset = message.offset()
            assert offset is not None
            self._offsets[position] = offset
        if self._left == 0:
            if self._error is None:
                self._faults.worked()
            self._answer(self._offsets if self._error is None else self._error)

    def failed(self, position: int, error: KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            cause = self._faults.unavailable(f"publish to {self._topic}", error)
            self._error = ProducerFailed(self._faults.url, str(cause))
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._error = InvalidPayload(self._topic, position, f"the cluster refuses its size: {error.str()}")
        else:
            self._error = self._faults.of(error, f"publish to {self._topic}", self._topic)


class Producer:
    """One producer of the driver and the thread that hears of its deliveries."""

    def __init__(self, settings: dict[str, Setting], faults: Faults) -> None:
        self._faults = faults
        self._producer: RdProducer = made(RdProducer, settings, faults)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="nantucket-kafka-deliveries", daemon=True)
        self._thread.start()

    def send(
        self, topic: str, partition: int, payloads: Sequence[bytes], answer: Answer, key: bytes | None = None
    ) -> None:
        """Hand ``payloads`` over in order. ``answer`` is called once, in another thread. It never blocks."""
        call = _Call(topic, len(payloads), self._faults, answer)
        for position, payload in enumerate(payloads):
            heard = partial(call.delivered, position)
            try:
                self._producer.produce(topic, payload, key=key, partition=partition, on_delivery=heard)
            except (KafkaException, BufferError) as error:
                # What follows is not handed over either: the call fails as a whole.
                self._refused(call, error, range(position, len(payloads)))
                return

    def _refused(self, call: _Call, error: Exception, positions: Sequence[int]) -> None:
        code = error.args[0] if isinstance(error, KafkaException) else KafkaError(KafkaError._QUEUE_FULL)
        for position in positions:
            call.delivered(position, code, None)  # type: ignore[arg-type]

    def partitions(self, topic: str, timeout_seconds: float) -> int:
        """How many partitions ``topic`` has. Blocks."""
        try:
            found = self._producer.list_topics(topic, timeout_seconds).topics[topic]
        except KafkaException as error:
            raise self._faults.of(error.args[0], f"say what partitions {topic} has", topic) from None
        if found.error is not None:
            raise self._faults.of(found.error, f"say what partitions {topic} has", topic)
        return len(found.partitions)

    def close(self) -> None:
        """Wait until what was handed over is durable or has failed. Blocks, for a bounded time."""
        self._closing.set()
        self._thread.join()

    def _deliver(self) -> None:
        while not self._closing.is_set():
            try:
                self._producer.poll(POLL_SECONDS)
            except KafkaException as error:
                # It is fatal for this producer. Its messages are still to be answered: each of them with that error.
                self._faults.hear(error.args[0])
                self._closing.wait(POLL_SECONDS)
        self._flush()
        del self._producer  # here, since its threads are joined where it ends

    def _flush(self) -> None:
        """Wait until every message has been answered: each of them has a deadline."""
        while True:
            try:
                if not self._producer.flush(FLUSH_EXTRA_SECONDS):
                    return
            except KafkaException as error:
                self._faults.hear(error.args[0])
                time.sleep(POLL_SECONDS)
