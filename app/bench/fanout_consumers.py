"""The peer of ``bench fanout``: consumers that each read the topic from the broker themselves, in one process."""

import argparse
import json
import sys
import threading
import time

from confluent_kafka import OFFSET_END, Consumer, TopicPartition

POLL_SECONDS = 0.2
ASSIGN_SECONDS = 30.0


def consumer(bootstrap: str, topic: str) -> Consumer:
    """One consumer of every partition of ``topic``, from now on; no group, nothing to commit."""
    made = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    partitions = made.list_topics(topic, ASSIGN_SECONDS).topics[topic].partitions
    made.assign([TopicPartition(topic, at, OFFSET_END) for at in partitions])
    return made


def read(made: Consumer, begun: threading.Barrier, stopped: threading.Event, counts: list[int]) -> None:
    """Read until stopped; note how many messages and bytes came."""
    messages = received = 0
    made.poll(POLL_SECONDS)
    begun.wait()
    while not stopped.is_set():
        message = made.poll(POLL_SECONDS)
        if message is not None and message.error() is None:
            messages += 1
            received += len(message.value() or b"")
    counts += [messages, received]
    made.close()


def main() -> None:
    """Read the arguments and the topic, and say what came."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--consumers", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    begun, stopped = threading.Barrier(given.consumers + 1), threading.Event()
    counts: list[list[int]] = [[] for _ in range(given.consumers)]
    made = [consumer(given.bootstrap, given.topic) for _ in range(given.consumers)]
    threads = [
        threading.Thread(target=read, args=(one, begun, stopped, own)) for one, own in zip(made, counts, strict=True)
    ]
    for thread in threads:
        thread.start()
    begun.wait()
    print(json.dumps({"measuring": True}), flush=True)
    time.sleep(given.seconds)
    stopped.set()
    print(json.dumps({"measured": True}), flush=True)
    for thread in threads:
        thread.join()
    messages, received = (sum(column) for column in zip(*counts, strict=True))
    print(json.dumps({"messages": messages, "received_bytes": received}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
