"""The bus on a Kafka-protocol cluster: Apache Kafka, Redpanda, WarpStream, AutoMQ.

Partitions are assigned by hand. There is no consumer group, nothing that rebalances, and no topic but our own.
"""

from telemetry_bus.kafka.bus import KafkaBus
from telemetry_bus.kafka.create import TopicReport, create_topics
from telemetry_bus.kafka_options import KafkaOptions

__all__ = ["KafkaBus", "KafkaOptions", "TopicReport", "create_topics"]
