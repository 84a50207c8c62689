"""Reading what a topic holds now, once, for commands: all of it, or a range of one partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

from pipeline.clients import Clients
from pipeline.errors import TopicError
from pipeline.log_bounds import log_bounds

_QUIET_S = 30.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TopicRecord:
    """A message as `features.events.Record`, and the partition it lies in."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def bounds(clients: Clients, topic: str, partition: int) -> tuple[int, int] | None:
    """First offset and the one after the last; None where there is no such partition.

    Raises
    ------
    TopicError
        Kafka refuses.
    """
    with closing(clients.confluent_consumer("offbeat-read", from_start=True)) as consumer:
        try:
            found = consumer.list_topics(topic, timeout=10).topics[topic]
            if found.error is not None or partition not in found.partitions:
                return None
            return log_bounds(consumer, topic, partition)
        except KafkaException as error:
            raise _refused(topic, error) from None


def read_range(
    clients: Clients, topic: str, partition: int, low: int, high: int, progress: Progress
) -> Iterator[TopicRecord]:
    """Records of a partition from offset `low` to before `high`, as far as there are some."""
    with closing(clients.confluent_consumer("offbeat-read", from_start=True)) as consumer:
        yield from _read(consumer, topic, {partition: (low, high)}, progress)


def read_all(clients: Clients, topic: str, progress: Progress) -> Iterator[TopicRecord]:
    """All that a topic holds, partition by partition as it comes; nothing where there is no such topic."""
    with closing(clients.confluent_consumer("offbeat-read", from_start=True)) as consumer:
        try:
            found = consumer.list_topics(topic, timeout=10).topics[topic]
            if found.error is not None:
                return
            ranges = {p: log_bounds(consumer, topic, p) for p in found.partitions}
        except KafkaException as error:
            raise _refused(topic, error) from None
        yield from _read(consumer, topic, ranges, progress)


def as_json(record: TopicRecord) -> dict[str, Any] | None:
    """A record's value, or None: what others wrote into our topics is passed over."""
    try:
        value = orjson.loads(record.value or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read(
    consumer: Consumer, topic: str, ranges: dict[int, tuple[int, int]], progress: Progress
) -> Iterator[TopicRecord]:
    left = {p for p, (low, high) in ranges.items() if low < high}
    total, count = sum(max(0, high - low) for low, high in ranges.values()), 0
    consumer.assign([TopicPartition(topic, p, ranges[p][0]) for p in left])
    last = time.monotonic()
    while left:
        messages = consumer.consume(10_000, timeout=0.5)
        for message in messages:
            if (error := message.error()) is not None:
                raise _refused(topic, KafkaException(error))
            p = message.partition()
            if message.offset() < ranges[p][1]:
                count += 1
                yield TopicRecord(p, message.offset(), message.timestamp()[1], message.key(), message.value())
        # Positions, not last offsets: transaction markers take offsets and are no records.
        at = consumer.position([TopicPartition(topic, p) for p in left])
        left -= {tp.partition for tp in at if tp.offset >= ranges[tp.partition][1]}
        progress(count, total)
        last = time.monotonic() if messages else last
        if time.monotonic() - last > _QUIET_S:
            message_ = f"topic {topic} gave no records for {_QUIET_S:.0f} s; is the broker well?"
            raise TopicError(message_)


def _refused(topic: str, error: KafkaException) -> TopicError:
    return TopicError(f"topic {topic} cannot be read: {error.args[0].str()}")
