"""``nantucket bus init``: makes the topics of every cluster that the bus names."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from app.output import console, print_json
from app.settings import KafkaSettings, Settings
from telemetry_bus.bus import SEPARATOR
from telemetry_bus.errors import UnknownBus

if TYPE_CHECKING:
    from telemetry_bus.kafka import TopicReport


async def bus_init(settings: Settings, *, as_json: bool) -> int:
    """Make what is missing and say of each topic what became of it. The embedded log needs none of it, and says so."""
    for url in (one.strip() for one in settings.bus_url.split(SEPARATOR)):
        if url.startswith("file:"):
            _tell(url, None, as_json=as_json)
        elif url.startswith("kafka:"):
            await _init(url, settings.kafka, as_json=as_json)
        else:
            raise UnknownBus(url)
    return 0


async def _init(url: str, kafka: KafkaSettings, *, as_json: bool) -> None:
    from telemetry_bus.kafka import create_topics  # noqa: PLC0415  the client is loaded where it is needed

    reports = await create_topics(url, kafka.options, partitions=kafka.partitions, replication=kafka.replication)
    for report in reports:
        _tell(url, report, as_json=as_json)


def _tell(url: str, report: "TopicReport | None", *, as_json: bool) -> None:
    """One topic, or None for a bus that needs none made."""
    if as_json:
        of_topic = {"topic": None, "partitions": None, "made": False} if report is None else asdict(report)
        print_json({"bus": url, **of_topic})
        return
    said = f"{url}: the embedded log makes itself what it needs; there is nothing to do"
    if report is not None:
        count = "1 partition" if report.partitions == 1 else f"{report.partitions} partitions"
        said = f"{report.topic}: {'made' if report.made else 'was there'}, {count}"
    console(as_json=False).print(said, markup=False)
