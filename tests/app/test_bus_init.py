"""`nantucket bus init` as a person and as a script see it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from tests.app.commands import in_this_process, nantucket

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService


def test_the_embedded_log_needs_no_topics_and_says_so(tmp_path: Path) -> None:
    """The command may stand in a script that does not know which bus it is, and makes no log."""
    done = in_this_process("bus", "init", "--state", tmp_path)
    assert done.status == 0
    assert len(done.lines) == 1
    assert "nothing to do" in done.lines[0]
    rows = in_this_process("bus", "init", "--state", tmp_path, "--json").rows
    assert [row["topic"] for row in rows] == [None]
    assert list(tmp_path.iterdir()) == []


async def test_a_cluster_gets_its_topics_and_the_second_time_is_told_that_they_are_there(kafka: KafkaService) -> None:
    """Words for people, a JSON line a topic for scripts; it may run with every deployment."""
    url = f"kafka://{kafka.bootstrap}/command"
    first = await nantucket("bus", "init", "--bus", url, "--partitions", "2", "--json")
    assert (first.status, first.error) == (0, "")
    assert {row["topic"]: (row["partitions"], row["made"]) for row in first.rows}["command.telemetry.gpu"] == (2, True)
    second = await asyncio.to_thread(in_this_process, "bus", "init", "--bus", url)
    assert second.status == 0
    assert "command.telemetry.gpu: was there, 2 partitions" in second.lines


async def test_topics_that_do_not_fit_are_status_1_and_a_wrong_setting_is_status_2(kafka: KafkaService) -> None:
    """The message says which topic, what was found and what was expected."""
    url = kafka.url(partitions=1)
    other = await nantucket("bus", "init", "--bus", url, "--partitions", "4")
    assert other.status == 1
    assert "has 1 partitions, expected 4" in other.error
    wrong = await nantucket("bus", "init", "--bus", url, "--partitions", "many")
    assert wrong.status == 2
    assert "kafka.partitions" in wrong.error


async def test_a_role_whose_topics_are_missing_is_told_the_command_that_makes_them(kafka: KafkaService) -> None:
    """`tail` ends with status 1; the sentence names `nantucket bus init`."""
    done = await nantucket("tail", "--bus", f"kafka://{kafka.bootstrap}/not-made")
    assert done.status == 1
    assert "nantucket bus init" in done.error
