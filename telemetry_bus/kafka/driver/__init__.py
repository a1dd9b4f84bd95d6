"""The one door to librdkafka (confluent-kafka): what is behind it raises our errors and takes our words.

Everything here blocks, or is called from threads of its own: whoever uses it keeps it off the event loop.
"""

from telemetry_bus.kafka.driver.admin import Administrator, NewTopic, TopicConfig
from telemetry_bus.kafka.driver.consumer import END, START, Consumer, Fetched, Spot
from telemetry_bus.kafka.driver.faults import Faults
from telemetry_bus.kafka.driver.producer import Producer, ProducerFailed

__all__ = [
    "END",
    "START",
    "Administrator",
    "Consumer",
    "Faults",
    "Fetched",
    "NewTopic",
    "Producer",
    "ProducerFailed",
    "Spot",
    "TopicConfig",
]
