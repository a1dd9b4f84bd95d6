"""What a gateway promises: an answer when it is durable upstream, a clear word when it is not, and nothing kept."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from telemetry_bus import (
    BusUnavailable,
    FrameError,
    FrameFault,
    FrameMaker,
    FrameRefused,
    OutletFull,
    Report,
    Topic,
    encode,
)
from telemetry_bus.gateway import Gateway, GatewayOptions, MergeOptions, ReportOutcome
from telemetry_bus.gateway import upstream as upstream_module
from telemetry_bus.gateway.wire import Answered
from tests.telemetry_bus.gateway.scene import (
    CLOCK,
    FarEnd,
    a_gateway,
    event,
    finding,
    gpu,
    train_frame,
    until,
)


@dataclass
class Sender:
    """Who sends, and keeps the answers."""

    durable_ids: list[int] = field(default_factory=list)
    errors: dict[int, Exception] = field(default_factory=dict)

    def durable(self, id_: int) -> None:
        """It is there."""
        self.durable_ids.append(id_)

    def not_taken(self, id_: int, error: Exception) -> None:
        """It is not."""
        self.errors[id_] = error

    def __hash__(self) -> int:
        return id(self)


@pytest.fixture
def far_end() -> FarEnd:
    """Return what stands behind the gateway."""
    return FarEnd()


@pytest.fixture
async def gateway(far_end: FarEnd) -> AsyncIterator[Gateway]:
    """Return a gateway that merges for as long as a test looks."""
    async with a_gateway(far_end, GatewayOptions(merging=MergeOptions(seconds=0.02))) as gateway:
        yield gateway


def node(number: int) -> FrameMaker:
    """The maker of a node's frames."""
    return FrameMaker(f"n{number}/gpu")


async def test_nothing_is_acknowledged_before_it_is_durable_upstream(gateway: Gateway, far_end: FarEnd) -> None:
    """The answer waits for the answer from above, and then says all that went up together."""
    far_end.answers.clear()
    sender = Sender()
    for number in range(10):
        gateway.accept(sender, number, "telemetry.gpu", "rack", gpu(node(number)))
    await until(lambda: far_end.asked)
    assert (sender.durable_ids, far_end.taken) == ([], [])
    far_end.answers.set()
    await until(lambda: len(sender.durable_ids) == 10)
    assert len(far_end.taken) == 1
    assert gateway.room.used == 0


async def test_what_is_critical_is_not_held_back_for_merging(far_end: FarEnd) -> None:
    """A NaN and an event go up at once, though others would wait for minutes."""
    async with a_gateway(far_end, GatewayOptions(merging=MergeOptions(seconds=600))) as gateway:
        sender = Sender()
        gateway.accept(sender, 1, "telemetry.gpu", "rack", gpu(node(1)))
        nan = train_frame(FrameMaker("j/a/0/train"), 7, loss=math.nan)
        gateway.accept(sender, 2, "telemetry.train", "", encode(nan))
        gateway.accept(sender, 3, "telemetry.events", "", event(FrameMaker("n1/gpu-events")))
        await until(lambda: sorted(sender.durable_ids) == [2, 3])
        assert [topic for topic, _, _ in far_end.taken] == [Topic.TRAIN, Topic.EVENTS]


async def test_the_last_word_of_a_sender_that_is_gone_goes_up_at_once(far_end: FarEnd) -> None:
    """A node that dies says why with its last rows: they do not wait."""
    async with a_gateway(far_end, GatewayOptions(merging=MergeOptions(seconds=600))) as gateway:
        sender = Sender()
        gateway.accept(sender, 1, "telemetry.gpu", "rack", gpu(node(1)))
        gateway.gone(sender)
        await until(lambda: far_end.taken)


async def test_a_bus_that_is_away_is_said_at_once_and_found_again(gateway: Gateway, far_end: FarEnd) -> None:
    """What is under way is put off, so is what comes next, without waiting; when the bus is back frames go through."""
    far_end.lose()
    sender = Sender()
    gateway.accept(sender, 0, "telemetry.gpu", "rack", gpu(node(0)))
    await until(lambda: sender.errors)
    gateway.accept(sender, 1, "telemetry.gpu", "rack", gpu(node(1)))
    assert isinstance(sender.errors[1], BusUnavailable)
    assert gateway.counters.put_off[Answered.UNAVAILABLE] == 2
    asked, far_end.away = far_end.asked, None
    assert asked == 1
    await until(lambda: gateway.away() is None)
    gateway.accept(sender, 2, "telemetry.gpu", "rack", gpu(node(2)))
    await until(lambda: sender.durable_ids == [2])


async def test_a_bus_that_hangs_is_away_after_a_while(
    gateway: Gateway, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is let in for a far end that acknowledges nothing, and what hangs is put off in the end."""
    monkeypatch.setattr(upstream_module, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(upstream_module, "PUBLISH_SECONDS_MAX", 0.5)
    far_end.answers.clear()
    sender = Sender()
    gateway.accept(sender, 0, "telemetry.gpu", "rack", gpu(node(0)))
    await until(lambda: gateway.away() is not None)
    gateway.accept(sender, 1, "telemetry.gpu", "rack", gpu(node(1)))
    assert list(sender.errors) == [1]
    await until(lambda: 0 in sender.errors)
    assert "no answer within" in str(sender.errors[0])


async def test_a_full_gateway_puts_off_and_says_for_how_long(far_end: FarEnd) -> None:
    """Memory is bounded: beyond it frames are put off, and taken again when there is room."""
    payload = gpu(node(0))
    options = GatewayOptions(merging=MergeOptions(seconds=0), in_flight_bytes_max=2 * len(payload))
    async with a_gateway(far_end, options) as gateway:
        far_end.answers.clear()
        sender = Sender()
        for number in range(3):
            gateway.accept(sender, number, "telemetry.gpu", "rack", gpu(node(number)))
        full = sender.errors[2]
        assert isinstance(full, OutletFull)
        assert full.retry_after_seconds > 0
        far_end.answers.set()
        await until(lambda: len(sender.durable_ids) == 2)
        gateway.accept(sender, 3, "telemetry.gpu", "rack", gpu(node(3)))
        await until(lambda: len(sender.durable_ids) == 3)


async def test_live_frames_go_before_the_backlog(far_end: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much backlog waits, a live frame is the next to go."""
    monkeypatch.setattr(upstream_module, "PUBLISHES_MAX", 2)
    async with a_gateway(far_end, GatewayOptions(merging=MergeOptions(seconds=0))) as gateway:
        far_end.answers.clear()
        sender = Sender()
        for number in range(10):
            gateway.accept(sender, number, "telemetry.backlog", "rack", gpu(node(number)))
        gateway.accept(sender, 10, "telemetry.gpu", "rack", gpu(node(10)))
        await until(lambda: far_end.asked == 2)
        far_end.answers.set()
        await until(lambda: len(sender.durable_ids) == 11)
        assert [topic for topic, _, _ in far_end.taken].index(Topic.GPU) == 2


async def test_the_backlog_is_held_to_its_pace(far_end: FarEnd) -> None:
    """Who sends faster than was granted is put off and told for how long; live frames pass."""
    options = GatewayOptions(merging=MergeOptions(seconds=0), backlog_bytes_per_second=10_000.0)
    async with a_gateway(far_end, options) as gateway:
        sender = Sender()
        for number in range(100):
            gateway.accept(sender, number, "telemetry.backlog", "rack", gpu(node(number)))
        gateway.accept(sender, 100, "telemetry.gpu", "rack", gpu(node(100)))
        await until(lambda: 100 in sender.durable_ids)
        assert 1 < len(sender.durable_ids) < 50
        assert all(isinstance(error, OutletFull) for error in sender.errors.values())


async def test_a_gateway_grants_no_more_than_it_was_granted(far_end: FarEnd) -> None:
    """The pace of a tree is that of its top."""
    far_end.pace = 1e6
    async with a_gateway(far_end, GatewayOptions(backlog_bytes_per_second=50e6)) as gateway:
        assert gateway.backlog_bytes_per_second == 1e6


def corrupted(payload: bytes) -> bytes:
    """A frame in which a bit was turned."""
    return payload[:-1] + bytes([payload[-1] ^ 1])


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        pytest.param("telemetry.gpu", b"", FrameFault.TOO_SHORT, id="empty"),
        pytest.param("telemetry.gpu", b"GET / HTTP/1.1\r\n\r\n" * 10, FrameFault.NOT_A_FRAME, id="another-protocol"),
        pytest.param("telemetry.gpu", corrupted(gpu(node(1))), FrameFault.CHECKSUM, id="changed-on-the-way"),
        pytest.param("telemetry.train", gpu(node(1)), FrameFault.WRONG_TOPIC, id="another-topics-schema"),
        pytest.param("findings", finding(), FrameFault.FOREIGN, id="a-finding-from-below"),
        pytest.param("ticks", gpu(node(1)), FrameFault.FOREIGN, id="a-tick-from-below"),
        pytest.param("verdicts", gpu(node(1)), FrameFault.FOREIGN, id="a-verdict-from-below"),
        pytest.param("no.such", gpu(node(1)), FrameFault.WRONG_TOPIC, id="no-topic"),
    ],
)
async def test_what_is_no_frame_for_that_topic_is_refused_counted_and_kept_as_a_dead_letter(
    gateway: Gateway, far_end: FarEnd, topic: str, payload: bytes, reason: FrameFault
) -> None:
    """It will never be taken, somebody can look at it, and the next frame goes through."""
    sender = Sender()
    gateway.accept(sender, 1, topic, "", payload)
    gateway.accept(sender, 2, "telemetry.gpu", "rack", gpu(node(2)))
    await until(lambda: 1 in sender.errors)
    error = sender.errors[1]
    assert isinstance(error, FrameError)
    assert error.reason is reason
    assert gateway.counters.refused[reason] == 1
    await until(lambda: sender.durable_ids == [2] and far_end.frames(Topic.DEAD_LETTER))
    (letter,) = far_end.frames(Topic.DEAD_LETTER)
    row = letter.batch.to_pylist()[0]
    assert (row["topic"], row["reason"], row["payload"]) == (topic, reason.value, payload)


async def test_dead_letters_are_bounded(gateway: Gateway, far_end: FarEnd) -> None:
    """A flood of garbage fills neither memory nor the topic: what goes beyond is counted."""
    sender = Sender()
    for number in range(2_000):
        gateway.accept(sender, number, "telemetry.gpu", "", b"garbage" * 10)
    letters = gateway.letters
    await until(lambda: letters.written + letters.only_counted == 2_000)
    assert letters.written <= 600
    assert gateway.counters.refused.total() == 2_000


async def test_of_a_merged_frame_that_is_refused_above_only_the_bad_part_is(far_end: FarEnd) -> None:
    """A newer gateway above may refuse what this one took: the others of the same frame are not lost with it."""

    def refuse(payload: bytes) -> Exception | None:
        bad = b"n1/gpu" in payload
        return FrameRefused("above", FrameFault.BAD_BATCH, "it does not like n1") if bad else None

    far_end.refuse = refuse
    async with a_gateway(far_end, GatewayOptions(merging=MergeOptions(seconds=0.02))) as gateway:
        sender = Sender()
        for number in range(3):
            gateway.accept(sender, number, "telemetry.gpu", "rack", gpu(node(number)))
        await until(lambda: len(sender.durable_ids) == 2 and sender.errors)
        assert list(sender.errors) == [1]
        assert gateway.counters.refused[FrameFault.BAD_BATCH] == 1


class Receivers:
    """Who is paged here."""

    def __init__(self, receipts: tuple[str, ...] = ("oncall:1:x",)) -> None:
        self.paged: list[bytes] = []
        self.receipts = receipts

    async def page(self, payload: bytes) -> tuple[str, ...]:
        """Take the page."""
        self.paged.append(payload)
        return self.receipts


async def test_a_report_is_published_while_the_bus_is_there(far_end: FarEnd) -> None:
    """Nobody is paged past a bus that works."""
    receivers = Receivers()
    async with a_gateway(far_end, pager=receivers.page) as gateway:
        assert await gateway.report(finding()) == Report(published=True)
        assert receivers.paged == []
        assert gateway.counters.reports[ReportOutcome.PUBLISHED] == 1


async def test_a_pager_that_fails_costs_its_report_only(far_end: FarEnd) -> None:
    """Whatever goes wrong in it, the sender hears to come again, and the gateway goes on."""

    async def fails(payload: bytes) -> tuple[str, ...]:
        raise RuntimeError("a fault of ours")

    far_end.lose()
    async with a_gateway(far_end, GatewayOptions(report_seconds=0.2), fails) as gateway:
        with pytest.raises(BusUnavailable, match="its pager failed: a fault of ours"):
            await gateway.report(finding())
        assert gateway.counters.reports[ReportOutcome.NOT_TAKEN] == 1
        with pytest.raises(BusUnavailable):
            await gateway.report(finding())


@pytest.mark.parametrize("how", ["refuses", "hangs", "known"])
async def test_a_report_is_paged_while_the_bus_is_away(far_end: FarEnd, how: str) -> None:
    """Whether the bus refuses, hangs or was away before: a page goes out within a second, and receipts come back."""
    receivers = Receivers()
    async with a_gateway(far_end, GatewayOptions(report_seconds=0.2), receivers.page) as gateway:
        if how == "hangs":
            far_end.answers.clear()
        else:
            far_end.lose()
        if how == "known":
            with contextlib.suppress(BusUnavailable):
                await gateway.publish(Topic.GPU, [gpu(node(1))])
        asked, began = far_end.asked, CLOCK.monotonic()
        assert await gateway.report(finding()) == Report(published=False, receipts=("oncall:1:x",))
        assert CLOCK.monotonic() - began < 1.0
        assert far_end.asked - asked == (0 if how == "known" else 1)
        assert len(receivers.paged) == 1


@pytest.mark.parametrize("receipts", [None, ()], ids=["no-receivers", "nobody-took-it"])
async def test_a_report_that_nobody_takes_is_said(far_end: FarEnd, receipts: tuple[str, ...] | None) -> None:
    """Its sender keeps it and comes again."""
    far_end.lose()
    pager = None if receipts is None else Receivers(receipts).page
    async with a_gateway(far_end, pager=pager) as gateway:
        with pytest.raises(BusUnavailable):
            await gateway.report(finding())
        assert gateway.counters.reports[ReportOutcome.NOT_TAKEN] == 1


async def test_without_receivers_the_gateway_above_is_asked_though_its_bus_is_away(far_end: FarEnd) -> None:
    """A rack's gateway holds no secrets: the one above may be able to page."""

    async def paged_above(payload: bytes) -> Report:
        return Report(published=False, receipts=("above:1:x",))

    async with a_gateway(far_end) as gateway:
        far_end.lose()
        with pytest.raises(BusUnavailable):
            await gateway.publish(Topic.GPU, [gpu(node(1))])
        assert gateway.away() is not None
        far_end.report = paged_above  # type: ignore[method-assign]  # what stands there now is a gateway with receivers
        assert await gateway.report(finding()) == Report(published=False, receipts=("above:1:x",))


async def test_only_findings_are_reported(gateway: Gateway) -> None:
    """The way past the bus is for findings and for nothing else."""
    with pytest.raises(FrameError) as caught:
        await gateway.report(gpu(node(1)))
    assert caught.value.reason is FrameFault.WRONG_TOPIC


async def test_stopping_sends_up_what_waits(far_end: FarEnd) -> None:
    """An ordinary stop leaves nothing unanswered."""
    async with a_gateway(far_end, GatewayOptions(merging=MergeOptions(seconds=600))) as gateway:
        sender = Sender()
        gateway.accept(sender, 1, "telemetry.gpu", "rack", gpu(node(1)))
        await gateway.drain(5.0)
        assert sender.durable_ids == [1]


async def test_a_publisher_that_gives_up_leaves_no_trace(gateway: Gateway, far_end: FarEnd) -> None:
    """A cancelled publish of another entry is answered into the void, and the room comes back."""
    far_end.answers.clear()
    publishing = asyncio.ensure_future(gateway.publish(Topic.GPU, [gpu(node(1))]))
    await until(lambda: far_end.asked)
    publishing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await publishing
    far_end.answers.set()
    await until(lambda: gateway.room.used == 0)
