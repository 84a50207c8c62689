"""Reading topics and offsets whole, with confluent-kafka: another implementation of the protocol than the worker's."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from pipeline.log_bounds import log_bounds

_QUIET = {"log_level": 0}
_LOOK_S = 0.05
_ANSWER_S = 60.0  # for one answer of a broker that is busy


def new_producer(address: str, **settings: Any) -> Producer:
    """An idempotent one, which keeps the order: others send what was refused at first again after what came later."""
    return Producer({"bootstrap.servers": address, "enable.idempotence": True, **_QUIET, **settings})


def read_topic(address: str, topic: str) -> list[Message]:
    """Everything the topic holds now, read_committed, partition by partition in offset order."""
    consumer = Consumer(
        {
            "bootstrap.servers": address, "group.id": f"read-{uuid4().hex}", "enable.auto.commit": False,
            "isolation.level": "read_committed", "auto.offset.reset": "earliest", **_QUIET,
        }
    )  # fmt: skip
    found: list[Message] = []
    try:
        partitions = [
            TopicPartition(topic, p, 0) for p in consumer.list_topics(topic, timeout=_ANSWER_S).topics[topic].partitions
        ]
        ends = {tp.partition: log_bounds(consumer, topic, tp.partition, _ANSWER_S)[1] for tp in partitions}
        filled = [tp for tp in partitions if ends[tp.partition] > 0]
        # All at once: a new assignment waits until the fetch of the one before has timed out.
        consumer.assign(filled)
        # Positions, not last records: transaction markers take offsets too.
        while any(tp.offset < ends[tp.partition] for tp in consumer.position(filled)):
            found += [m for m in consumer.consume(10_000, _LOOK_S) if m.error() is None]
    finally:
        consumer.close()
    return sorted(found, key=lambda m: m.partition() or 0)  # within a partition they came in order


def committed_offsets(address: str, group: str, topic: str, partitions: int) -> dict[int, int]:
    """The group's offset of each partition; absent where there is none yet."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": group, **_QUIET})
    try:
        wanted = [TopicPartition(topic, p) for p in range(partitions)]
        return {tp.partition: tp.offset for tp in consumer.committed(wanted, timeout=_ANSWER_S) if tp.offset >= 0}
    except KafkaException:  # the broker is still making its offsets topic
        return {}
    finally:
        consumer.close()
