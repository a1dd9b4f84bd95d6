"""What a job does on a verdict: on all ranks at one step, once, only confirmed, and nothing unless it asked for it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import nantucket
from collectors.training import TrainingListener
from collectors.verdict_desk import VerdictDesk
from nantucket._heed import Heed, make_heed
from nantucket._say import Voice
from nantucket._verdict import Judge, Verdict
from telemetry_bus import FrameMaker, Topic, encode
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.verdict_feed import VerdictFeed
from telemetry_bus.verdicts import Action, key_text, signed, verdict_frame, verdict_key
from tests.sdk.recorder import Recorder

CLOCK = SystemClock()
JOB, ATTEMPT = "leviathan-7b", "123.0"
KEY = verdict_key(b"s" * 32, JOB)


def verdict(step: int = 7, attempt: str = ATTEMPT) -> dict[str, Any]:
    """A right verdict, as the collector says it."""
    made = signed(
        Secret(KEY), job=JOB, attempt=attempt, step=step, action=Action.STOP, nonce=f"n{step}", now=CLOCK.now()
    )
    return made.body()


class Rank:
    """One rank's side of verdicts, with what it told."""

    def __init__(self, wish: Any = "raise", **options: Any) -> None:
        self.told: list[dict[str, Any]] = []
        self.heed = Heed(wish, Judge(KEY, JOB, ATTEMPT), Voice(), self.told.append, **options)

    def hears(self, **changes: Any) -> Rank:
        """The collector says the verdict."""
        self.heed.heard({**verdict(), **changes}, CLOCK.now())
        return self

    def saw_nan(self, step: int = 7, *, skipped: bool = False) -> Rank:
        """It has logged a loss that is no number."""
        self.heed.saw({"step": step, "loss": "NaN", "skipped": skipped})
        return self


def test_a_rank_that_heard_and_saw_is_stopped_once() -> None:
    """The error says where it stops and where it began; a job that goes on nevertheless is left alone."""
    rank = Rank().hears().saw_nan()
    with pytest.raises(nantucket.Diverged, match="at step 9: the numbers are not finite since step 7") as caught:
        rank.heed.at(9)
    assert (caught.value.step, caught.value.bad_step) == (9, 7)
    rank.heed.at(10)
    assert rank.told == [{"outcome": "stopped", "step": 9, "bad_step": 7}]


@pytest.mark.parametrize(
    "rank",
    [
        pytest.param(lambda: Rank().hears(), id="not-confirmed"),
        pytest.param(lambda: Rank().saw_nan(), id="not-heard"),
        pytest.param(lambda: Rank().hears().saw_nan(6), id="bad-only-before"),
        pytest.param(lambda: Rank().hears().saw_nan(8, skipped=True), id="a-skipped-overflow"),
        pytest.param(lambda: Rank().hears(step=8).saw_nan(8), id="forged"),
        pytest.param(lambda: Rank(None).hears().saw_nan(), id="no-wish"),
    ],
)
def test_a_healthy_job_is_never_stopped(rank: Any) -> None:
    """Not by a verdict that nothing here confirms, nor by a bad number of which nobody has said a word."""
    stands = rank()
    for step in range(6, 12):
        stands.heed.at(step)
    assert stands.told == []


def test_a_shadow_says_what_it_would_have_done_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """The first weeks of trust."""
    rank = Rank("shadow").hears().saw_nan()
    with caplog.at_level(logging.WARNING, "nantucket"):
        rank.heed.at(9)
        rank.heed.at(10)
    assert caplog.messages == ["nantucket: would have stopped at step 9: not finite since step 7"]
    assert [told["outcome"] for told in rank.told] == ["shadow"]


def test_a_function_is_called_with_the_verdict_and_may_raise_what_it_likes() -> None:
    """The job's own way."""
    calls: list[Verdict] = []
    Rank(calls.append).hears().saw_nan().heed.at(9)
    assert [(call.action, call.step) for call in calls] == [("stop", 7)]

    def fail(_verdict: Verdict) -> None:
        raise KeyError("its own")

    with pytest.raises(KeyError):
        Rank(fail).hears().saw_nan().heed.at(9)


def test_a_checkpoint_goes_under_a_quarantine_name_and_over_nothing(tmp_path: Path) -> None:
    """The last good one is never touched, nor the quarantined one of an earlier stop."""
    (tmp_path / "quarantine-step-9").write_text("an earlier one")

    def save(path: str) -> None:
        Path(path).write_text("new")

    rank = Rank("checkpoint", checkpoint=save, quarantine=str(tmp_path)).hears().saw_nan()
    with pytest.raises(nantucket.Diverged, match="kept apart in") as caught:
        rank.heed.at(9)
    assert caught.value.checkpoint == str(tmp_path / "quarantine-step-9-2")
    assert (tmp_path / "quarantine-step-9").read_text() == "an earlier one"
    assert (tmp_path / "quarantine-step-9-2").read_text() == "new"


class Together:
    """An all-reduce of threads: the greatest of each number, of the same call on every rank."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks)
        self._said: list[Sequence[int]] = []
        self._lock = threading.Lock()

    def __call__(self, mine: Sequence[int]) -> Sequence[int]:
        with self._lock:
            self._said.append(mine)
        self._barrier.wait(10)
        greatest = tuple(map(max, *self._said))
        if self._barrier.wait(10) == 0:
            self._said.clear()
        self._barrier.wait(10)
        return greatest


def test_all_ranks_stop_at_one_step_though_one_alone_has_heard_and_another_has_seen() -> None:
    """Nobody waits in a collective for a rank that has gone."""
    together = Together(3)
    ranks = [Rank(agree=together) for _ in range(3)]
    ranks[2].saw_nan()
    stopped: dict[int, int] = {}

    def train(number: int) -> None:
        for step in range(5, 20):
            if number == 1 and step == 8:
                ranks[1].hears()
            if number == 2 and step == 10:
                ranks[2].hears()
            try:
                ranks[number].heed.at(step)
            except nantucket.Diverged:
                stopped[number] = step
                return

    threads = [threading.Thread(target=train, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert stopped == {0: 10, 1: 10, 2: 10}


@pytest.mark.parametrize(
    ("wish", "options", "said"),
    [
        ("stop", {}, "expected shadow, raise, checkpoint or a function"),
        ("raise", {"key": "nvk1.short"}, "needs NANTUCKET_VERDICT_KEY"),
        ("raise", {"key": None}, "needs NANTUCKET_VERDICT_KEY"),
        ("raise", {"world_size": 8}, "needs agree="),
        ("checkpoint", {}, "needs checkpoint="),
    ],
)
def test_what_is_missing_for_a_wish_is_said_once_and_never_raised(
    wish: str, options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A job does not fail to start because of its reporting."""
    given = {"key": key_text(KEY), "world_size": 1, **options}
    with caplog.at_level(logging.WARNING, "nantucket"):
        make_heed(wish, given["key"], JOB, ATTEMPT, given["world_size"], Voice(), lambda _: None, {})
    (message,) = caplog.messages
    assert said in message
    assert "short" not in message


def test_a_word_in_the_environment_makes_every_job_deaf() -> None:
    """The kill switch of whoever runs the machines."""
    heed = make_heed("raise", key_text(KEY), JOB, ATTEMPT, 1, Voice(), lambda _: None, {"NANTUCKET_VERDICTS": "Off"})
    heed.heard(verdict(), CLOCK.now())
    heed.saw({"step": 7})
    heed.at(9)
    assert heed.verdict is None


async def test_a_verdict_comes_over_the_wire_to_its_attempt_alone_and_what_was_done_comes_back(tmp_path: Path) -> None:
    """The real listener, the real SDK: from the feed to the training loop, and the answer as an event on the bus."""
    recorder, feed = Recorder(), VerdictFeed(CLOCK)
    desk = VerdictDesk(feed)
    listener = TrainingListener(recorder.publish, CLOCK, node="node-1", unix_path=tmp_path / "s", verdicts=desk)
    async with listener:
        url = f"unix://{tmp_path / 's'}"
        common: dict[str, Any] = {"url": url, "verdict_key": key_text(KEY), "on_divergence": "raise"}
        run = nantucket.init(JOB, 0, attempt=ATTEMPT, **common)
        other = nantucket.init(JOB, 0, attempt="124.0", **common)
        run.log(step=7, loss=float("nan"))
        other.log(step=7, loss=float("nan"))
        async with asyncio.timeout(20):
            while len(recorder.rows(Topic.TRAIN)) < 2:
                await asyncio.sleep(0.01)
            made = signed(Secret(KEY), job=JOB, attempt=ATTEMPT, step=7, action=Action.STOP, nonce="n", now=CLOCK.now())
            feed.hear(encode(verdict_frame(FrameMaker("alert"), made)))
            while run.verdict is None:
                await asyncio.sleep(0.01)
            assert other.verdict is None
            other.heed(8)
            with pytest.raises(nantucket.Diverged):
                run.heed(8)
            late = nantucket.init(JOB, 1, attempt=ATTEMPT, world_size=1, **common)
            while late.verdict is None:
                await asyncio.sleep(0.01)
            for each in (run, other, late):
                await asyncio.to_thread(each.finish)
            while not (told := [row for row in recorder.rows(Topic.EVENTS) if row["kind"] == "verdict"]):
                await asyncio.sleep(0.01)
    assert '"outcome":"stopped"' in told[0]["detail"].replace(" ", "")
    assert desk.passed_on == 2
