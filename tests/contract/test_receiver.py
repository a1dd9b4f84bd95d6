"""What every receiver does: it takes, refuses or asks for patience in the same words, and gives no secret away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from alerting import (
    BadSetting,
    DeliveryFailed,
    Outcome,
    Receiver,
    Secret,
    Tier,
    UnknownReceiver,
    WebhookSettings,
    send_test_page,
)
from alerting.delivery import Delivery
from alerting.http import ANSWER_BYTES_MAX
from alerting.receipts import NO_PAGE, RECEIPTS_MAX, Receipt, Receipts, Told
from alerting.receivers import RECEIVERS
from alerting.receivers.webhook import retry_after_seconds
from telemetry_bus import Finding, FindingKind, FindingState, Severity
from telemetry_bus.runtime.clock import SystemClock
from tests.fakes.webhook_server import SECRET, Answer, WebhookServer

CLOCK = SystemClock()
BODY = '{"version":1,"status":"firing","incident":{"title":"Überlauf","evidence":{"grad_norm":"NaN"}}}'
DELIVERY = Delivery("6c1b8a3e-0000-5000-8000-000000000001", "incident", "ops", "firing", BODY, 0.0, 0.0)


def webhook(server: WebhookServer) -> Receiver:
    """The generic webhook that leads to ``server``."""
    return WebhookSettings("ops", Secret(server.url), Secret(SECRET)).build(CLOCK)


BUILDERS: dict[str, Callable[[WebhookServer], Receiver]] = {"webhook": webhook}


@pytest.fixture(params=sorted(BUILDERS))
async def receiver(request: pytest.FixtureRequest, server: WebhookServer) -> AsyncIterator[Receiver]:
    """Return each kind of receiver, open, leading to ``server``."""
    async with BUILDERS[request.param](server) as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    """Return a receiver's other side; `with server:` lets it answer."""
    made = WebhookServer()
    yield made
    made.close()


def test_every_kind_of_receiver_is_held_to_this_contract() -> None:
    """A receiver that is added to the table is added here."""
    assert BUILDERS.keys() == RECEIVERS.keys()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_taken(receiver: Receiver, server: WebhookServer, status: int) -> None:
    """What was taken arrived as it was written, under its id, signed."""
    with server:
        server.answers.append(Answer(status))
        assert await receiver.send(DELIVERY) == status
    (arrival,) = server.arrivals
    assert (arrival.id, arrival.body) == (DELIVERY.id, json.loads(BODY))
    assert server.unsigned == 0


@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (301, Outcome.REDIRECTED, False),
        (302, Outcome.REDIRECTED, False),
        (307, Outcome.REDIRECTED, False),
        (308, Outcome.REDIRECTED, False),
        (400, Outcome.REFUSED, False),
        (401, Outcome.REFUSED, False),
        (403, Outcome.REFUSED, False),
        (404, Outcome.REFUSED, False),
        (408, Outcome.NOT_NOW, True),
        (409, Outcome.REFUSED, False),
        (410, Outcome.REFUSED, False),
        (413, Outcome.REFUSED, False),
        (422, Outcome.REFUSED, False),
        (425, Outcome.NOT_NOW, True),
        (429, Outcome.NOT_NOW, True),
        (500, Outcome.SERVER_ERROR, True),
        (501, Outcome.SERVER_ERROR, True),
        (503, Outcome.SERVER_ERROR, True),
        (599, Outcome.SERVER_ERROR, True),
    ],
)
async def test_an_answer_says_whether_to_try_again(
    receiver: Receiver, server: WebhookServer, status: int, reason: Outcome, retryable: bool
) -> None:
    """408, 425, 429 and 5xx are tried again; other 4xx and every redirect are not."""
    with server, WebhookServer() as elsewhere:
        server.otherwise = Answer(status, {"location": elsewhere.url}, b"because")
        with pytest.raises(DeliveryFailed) as failure:
            await receiver.send(DELIVERY)
        assert elsewhere.arrivals == []
    assert (failure.value.reason, failure.value.retryable, failure.value.status) == (reason, retryable, status)
    assert f"answered {status}: because" in str(failure.value)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (format_datetime(datetime(2030, 1, 1, 0, 0, 30, tzinfo=UTC), usegmt=True), 30.0),
        (format_datetime(datetime(2029, 1, 1, tzinfo=UTC), usegmt=True), 0.0),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(asked: str | None, seconds: float | None) -> None:
    """What cannot be read is as if nothing had been asked for."""
    now = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert retry_after_seconds({} if asked is None else {"retry-after": asked}, now) == seconds


async def test_retry_after_comes_with_the_failure(receiver: Receiver, server: WebhookServer) -> None:
    """Who asks for patience is heard, in seconds or as a date."""
    with server:
        later = datetime.fromtimestamp(CLOCK.now(), UTC) + timedelta(seconds=600)
        server.answers.extend([Answer(429, {"retry-after": "7"}), Answer(503, {"retry-after": format_datetime(later)})])
        with pytest.raises(DeliveryFailed) as first:
            await receiver.send(DELIVERY)
        with pytest.raises(DeliveryFailed) as second:
            await receiver.send(DELIVERY)
    assert first.value.retry_after_seconds == 7.0
    assert second.value.retry_after_seconds is not None
    assert 500 < second.value.retry_after_seconds <= 600


async def test_nobody_there_is_tried_again(receiver: Receiver, server: WebhookServer) -> None:
    """A refused connection is a fault of the way, not of the delivery."""
    with server:
        pass
    with pytest.raises(DeliveryFailed) as failure:
        await receiver.send(DELIVERY)
    assert (failure.value.reason, failure.value.retryable, failure.value.status) == (Outcome.UNREACHABLE, True, None)


async def test_a_connection_that_breaks_before_the_answer_is_tried_again(
    receiver: Receiver, server: WebhookServer
) -> None:
    """Whether it was taken is not known; the id makes the second time harmless."""

    def slam(_id: str) -> None:
        raise ConnectionAbortedError

    with server:
        server.answers.append(Answer(before=slam))
        with pytest.raises(DeliveryFailed) as failure:
            await receiver.send(DELIVERY)
    assert (failure.value.reason, failure.value.retryable) == (Outcome.UNREACHABLE, True)


async def test_an_endless_answer_is_not_read(receiver: Receiver, server: WebhookServer) -> None:
    """The answer is read up to a bound, and shown up to a smaller one."""
    with server:
        server.otherwise = Answer(500, body=b"x" * (50 * ANSWER_BYTES_MAX))
        with pytest.raises(DeliveryFailed) as failure:
            await receiver.send(DELIVERY)
    assert len(str(failure.value)) < 500


async def test_control_characters_of_an_answer_are_not_shown(receiver: Receiver, server: WebhookServer) -> None:
    """What a receiver says ends up in terminals and logs."""
    with server:
        server.otherwise = Answer(400, body=b"\x1b[2J\r\nfine\x00")
        with pytest.raises(DeliveryFailed) as failure:
            await receiver.send(DELIVERY)
    assert str(failure.value).isprintable()


async def test_a_receiver_that_never_answers_is_left(receiver: Receiver, server: WebhookServer) -> None:
    """A try ends within its own bound, whatever the other side does."""
    hung = threading.Event()
    with server:
        server.otherwise = Answer(before=lambda _id: hung.wait(60))
        with pytest.raises(DeliveryFailed) as failure:
            await receiver.send(DELIVERY)
        hung.set()
    assert (failure.value.reason, failure.value.retryable) == (Outcome.TIMEOUT, True)


async def test_connections_are_kept(receiver: Receiver, server: WebhookServer) -> None:
    """The second page saves the handshakes of the first."""
    with server:
        for _ in range(5):
            await receiver.send(DELIVERY)
        assert server.connections == 1


async def test_many_deliveries_at_once_do_not_mix(receiver: Receiver, server: WebhookServer) -> None:
    """A receiver is used by many tasks."""
    with server:
        deliveries = [Delivery(f"id-{n}", "i", "ops", "firing", f'{{"n":{n}}}', 0.0, 0.0) for n in range(20)]
        await asyncio.gather(*(receiver.send(delivery) for delivery in deliveries))
    assert {(arrival.id, arrival.body["n"]) for arrival in server.arrivals} == {(f"id-{n}", n) for n in range(20)}


@pytest.mark.parametrize(
    "answer", [Answer(204), Answer(500), Answer(400), Answer(302)], ids=lambda answer: str(answer.status)
)
async def test_no_secret_is_shown(
    receiver: Receiver, server: WebhookServer, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the secret nor the path of the URL is in a repr, an error or a log, even if the other side says them."""
    caplog.set_level(logging.DEBUG)
    echo = f"{SECRET} {SECRET.removeprefix('whsec_')} {server.url}".encode()
    told = [repr(receiver), str(receiver), f"{receiver}"]
    with server:
        server.otherwise = Answer(answer.status, {"location": "/"}, echo if answer.status != 204 else b"")
        try:
            await receiver.send(DELIVERY)
        except DeliveryFailed as failure:
            told += [str(failure), repr(failure), repr(failure.__dict__)]
    told.append(caplog.text)
    for text in told:
        for hidden in (SECRET, SECRET.removeprefix("whsec_"), "nantucket-token-4711"):
            assert hidden not in text


def with_receipts(*receipts: object) -> Finding:
    """A finding that a collector brings from a gateway."""
    evidence = {"grad_norm": 2.5, "ripcord": {"receipts": list(receipts), "node": "n1"}}
    given = (FindingKind.NONFINITE, FindingState.FIRING, Severity.CRITICAL, "NaN")
    return Finding("f", 0.0, "nonfinite", *given, evidence=evidence)


def test_a_receipt_is_the_hmac_that_is_written_down(server: WebhookServer) -> None:
    """Who writes a gateway of their own gets the same text from the documentation's words."""
    raw = base64.b64decode(SECRET.removeprefix("whsec_"))
    mac = hmac.new(raw, b"nantucket receipt 1\0" + DELIVERY.id.encode(), hashlib.sha256).digest()
    expected = f"ops:{DELIVERY.id}:{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    assert webhook(server).receipt(DELIVERY.id) == expected


def test_a_receipt_is_believed_by_who_holds_the_secret_and_by_nobody_else(server: WebhookServer) -> None:
    """Two processes with one configuration trust each other; another secret, or another delivery, is no proof."""
    given, stranger = webhook(server).receipt(DELIVERY.id), Secret("whsec_" + base64.b64encode(b"x" * 32).decode())
    other = WebhookSettings("ops", Secret(server.url), stranger).build(CLOCK)
    finding, told = Receipts({"ops": webhook(server)}).taken_off(with_receipts(given))
    assert told.receipts == (Receipt("ops", DELIVERY.id),)
    assert told.invalid == 0
    assert finding.evidence == {"grad_norm": 2.5, "ripcord": {"node": "n1", "told": ["ops"]}}
    assert Receipts({"ops": other}).taken_off(with_receipts(given))[1].receipts == ()
    moved = given.replace(DELIVERY.id, "6c1b8a3e-0000-5000-8000-000000000002")
    assert Receipts({"ops": webhook(server)}).taken_off(with_receipts(moved))[1].invalid == 1


@pytest.mark.parametrize(
    "hostile",
    [
        "", ":", ":::", "ops", "ops:", f"ops:{DELIVERY.id}", f"ops:{DELIVERY.id}:", "nobody:x:y", "ops:\ud800:x",
        "ops:x:\ud800", "ops:ü:x", None, 1, True, ["ops"], {"ops": 1}, "x" * 100_000,
    ],
    ids=lambda value: repr(value)[-20:],
)  # fmt: skip
def test_what_is_no_receipt_proves_nothing(server: WebhookServer, hostile: object) -> None:
    """Whatever stands in its place, it is counted, and nothing is raised."""
    receipts = Receipts({"ops": webhook(server)})
    assert receipts.taken_off(with_receipts(hostile))[1] == Told((), 1)
    finding = replace(with_receipts(), evidence={"ripcord": {"receipts": hostile}})
    assert receipts.taken_off(finding)[1].receipts == ()
    finding = replace(with_receipts(), evidence={"ripcord": hostile})
    assert receipts.taken_off(finding) == (finding, Told())


def test_the_receipt_of_nobody_proves_nothing_and_is_no_forgery(server: WebhookServer) -> None:
    """A gateway gives it for what calls for no page, so that whoever reports need not ask again."""
    told = Receipts({"ops": webhook(server)}).taken_off(with_receipts(NO_PAGE))[1]
    assert told == Told()


def test_the_receipts_that_are_looked_at_are_bounded(server: WebhookServer) -> None:
    """A finding with a million receipts costs no more than one with sixty-four."""
    true = webhook(server).receipt(DELIVERY.id)
    told = Receipts({"ops": webhook(server)}).taken_off(with_receipts(*["x"] * RECEIPTS_MAX, true))[1]
    assert told == Told((), RECEIPTS_MAX)


def test_a_receipt_shows_no_secret(server: WebhookServer) -> None:
    """It passes through nodes that hold none."""
    receipt = webhook(server).receipt(DELIVERY.id)
    for hidden in (SECRET, SECRET.removeprefix("whsec_"), "nantucket-token-4711"):
        assert hidden not in receipt


def test_settings_show_no_secret() -> None:
    """Settings print, compare and do not give themselves away; a secret does not leave the process in a pickle."""
    settings = WebhookSettings("ops", Secret("https://hooks.example/T0K3N"), Secret(SECRET))
    assert "T0K3N" not in repr(settings)
    assert SECRET not in repr(settings)
    assert f"{settings.secret}" == "Secret('***')"
    assert settings == WebhookSettings("ops", Secret("https://hooks.example/T0K3N"), Secret(SECRET))
    with pytest.raises(TypeError):
        pickle.dumps(settings.secret)


SHORT = "whsec_" + base64.b64encode(b"short").decode()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({"name": ""}, "receivers", id="no name"),
        pytest.param({"name": "a b"}, "receivers", id="space in the name"),
        pytest.param({"url": Secret("ftp://hooks.example/x")}, "receivers.ops.url", id="scheme"),
        pytest.param({"url": Secret("hooks.example/x")}, "receivers.ops.url", id="no scheme"),
        pytest.param({"url": Secret("https:///x")}, "receivers.ops.url", id="no host"),
        pytest.param({"url": Secret("https://hooks.example:99999/")}, "receivers.ops.url", id="port"),
        pytest.param({"url": Secret("https://me:hunter2@hooks.example/")}, "receivers.ops.url", id="password"),
        pytest.param({"secret": Secret("hunter2-hunter2")}, "receivers.ops.secret", id="no prefix"),
        pytest.param({"secret": Secret("whsec_hunter2!")}, "receivers.ops.secret", id="not base64"),
        pytest.param({"secret": Secret(SHORT)}, "receivers.ops.secret", id="too short"),
        pytest.param({"tiers": frozenset()}, "receivers.ops.tiers", id="no tier"),
        pytest.param({"tiers": frozenset({Tier.LOG})}, "receivers.ops.tiers", id="log"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changes: dict[str, object], key: str) -> None:
    """The key, what was found and what is expected; a secret's value is never repeated."""
    given = {"name": "ops", "url": Secret("https://hooks.example/x"), "secret": Secret(SECRET)} | changes
    with pytest.raises(BadSetting, match=r"expected .* found ") as error:
        WebhookSettings(**given)  # type: ignore[arg-type]
    assert error.value.key == key
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
async def test_a_test_page_is_signed_and_new_each_time(
    server: WebhookServer, build: Callable[[WebhookServer], Receiver]
) -> None:
    """`nantucket alerts test` shows that a page would arrive."""
    with server:
        results = [await send_test_page([build(server)], "ops", CLOCK) for _ in range(2)]
    assert [(result.taken, result.status) for result in results] == [(True, 204), (True, 204)]
    assert [arrival.body["incident"]["title"] for arrival in server.arrivals] == ["Test page from Nantucket"] * 2
    assert len({arrival.id for arrival in server.arrivals}) == 2
    assert len({arrival.body["incident"]["id"] for arrival in server.arrivals}) == 2


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
async def test_a_test_page_that_is_not_taken_says_why(
    server: WebhookServer, build: Callable[[WebhookServer], Receiver]
) -> None:
    """The status and the reason, once, without trying again."""
    with server:
        server.otherwise = Answer(403, body=b"wrong key")
        result = await send_test_page([build(server)], "ops", CLOCK)
    assert (result.taken, result.status, len(server.arrivals)) == (False, 403, 1)
    assert "wrong key" in result.message


async def test_a_test_page_for_nobody_names_who_there_is(server: WebhookServer) -> None:
    """A name that is not configured is an error that lists the names that are."""
    with pytest.raises(UnknownReceiver, match="no receiver 'op': configured are ops"):
        await send_test_page([webhook(server)], "op", CLOCK)
