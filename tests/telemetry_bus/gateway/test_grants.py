"""One pace for the backlog of all: divided among those who send, and a bound on those who do not keep to it."""

from __future__ import annotations

import asyncio

import pytest

from telemetry_bus.gateway.grants import BURST_SECONDS, SENDING_SECONDS, Grants
from telemetry_bus.gateway.room import Room


def test_who_returns_alone_has_the_whole_pace() -> None:
    """A silent link is promised its share of all; once it sends alone it has everything."""
    grants = Grants(64e6)
    assert grants.shares(64, 0.0)[1] == 1e6
    grants.take("n1", 1_000, 0.0)
    assert grants.shares(64, 1.0)[0] == 64e6


def test_those_who_send_share_and_get_back_what_others_leave() -> None:
    """Shares add up to the pace; who is silent for a while, or gone, is not counted."""
    grants = Grants(60e6)
    for name in ("a", "b", "c"):
        grants.take(name, 1_000, 0.0)
    assert grants.shares(64, 0.1)[0] == 20e6
    grants.left("a")
    assert grants.shares(64, 0.2)[0] == 30e6
    grants.take("b", 1_000, SENDING_SECONDS + 0.1)
    assert grants.shares(64, SENDING_SECONDS + 0.2)[0] == 60e6


def test_a_stampede_is_held_to_the_pace() -> None:
    """A thousand nodes that send as fast as they can get through what was granted, and no more."""
    grants, taken = Grants(10e6), 0
    for tenth in range(100):
        for name in range(1_000):
            taken += 100_000 if grants.take(name, 100_000, tenth / 10) == 0.0 else 0
    assert 9e6 * 10 <= taken <= 10e6 * (10 + BURST_SECONDS)


def test_who_is_put_off_is_told_for_how_long() -> None:
    """After the seconds that were said there is room."""
    grants = Grants(1e6)
    while not (wait := grants.take("a", 500_000, 0.0)):
        pass
    assert 0 < wait <= 0.5
    assert grants.take("a", 500_000, wait + 1e-6) == 0.0


def test_a_frame_larger_than_the_burst_goes_through_in_the_end() -> None:
    """However small the pace: nothing is put off for ever."""
    grants = Grants(1_000.0)
    now = 0.0
    grants.take("a", 50_000, now)
    while wait := grants.take("a", 50_000, now):
        now += wait
    assert now == pytest.approx(50, rel=0.1)


async def test_room_is_given_in_the_order_in_which_it_was_asked_for() -> None:
    """A large one is not overtaken for ever by small ones."""
    room, order = Room(100), []

    async def ask(name: str, size: int) -> None:
        await room.wait_for(size)
        order.append(name)

    assert room.take(100)
    async with asyncio.TaskGroup() as tasks:
        for name, size in (("large", 90), ("small", 10), ("next", 20)):
            tasks.create_task(ask(name, size))
        await asyncio.sleep(0)
        assert not room.take(1)
        room.give_back(100)
        await asyncio.sleep(0)
        assert order == ["large", "small"]
        room.give_back(90)
    assert (order, room.used) == (["large", "small", "next"], 30)


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    """A cancelled turn passes to the next."""
    room = Room(10)
    assert room.take(10)
    first, second = asyncio.ensure_future(room.wait_for(10)), asyncio.ensure_future(room.wait_for(5))
    await asyncio.sleep(0)
    first.cancel()
    room.give_back(5)
    await asyncio.wait_for(second, 5)
    assert room.used == 10


async def test_what_is_larger_than_the_room_may_go_alone() -> None:
    """Nothing waits for ever."""
    room = Room(10)
    await room.wait_for(50)
    assert not room.take(1)
    room.give_back(50)
    assert room.take(1)
