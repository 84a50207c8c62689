"""Reading topics and offsets whole, with confluent-kafka: another implementation of the protocol than the worker's."""

from __future__ import annotations

import time
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

_QUIET = {"log_level": 0}


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
        for p in sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions):
            tp = TopicPartition(topic, p, 0)
            end = _end_of(consumer, tp)
            consumer.assign([tp])
            # Positions, not last records: transaction markers take offsets too.
            while end > 0 and consumer.position([tp])[0].offset < end:
                found += [m for m in consumer.consume(10_000, 0.2) if m.error() is None]
    finally:
        consumer.close()
    return found


def _end_of(consumer: Consumer, tp: TopicPartition) -> int:
    """The offset after the last record; of a topic made just now the leader may not know of itself yet."""
    for _ in range(50):
        try:
            return int(consumer.get_watermark_offsets(tp, timeout=10)[1])
        except KafkaException as error:
            if not error.args[0].retriable() and error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION:
                raise
        time.sleep(0.1)
    message = f"{tp.topic} has no leader"
    raise TimeoutError(message)


def committed_offsets(address: str, group: str, topic: str, partitions: int) -> dict[int, int]:
    """The group's offset of each partition; absent where there is none yet."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": group, **_QUIET})
    try:
        wanted = [TopicPartition(topic, p) for p in range(partitions)]
        return {tp.partition: tp.offset for tp in consumer.committed(wanted, timeout=10) if tp.offset >= 0}
    except KafkaException:  # the broker is still making its offsets topic
        return {}
    finally:
        consumer.close()
