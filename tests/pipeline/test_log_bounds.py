"""A partition's first and last offset, while its leader does not know of itself yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline import log_bounds as module
from pipeline.log_bounds import log_bounds
from tests.kafka import Stack


class Answering:
    """A consumer whose broker answers with these errors, one after the other, and then with bounds."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def get_watermark_offsets(self, at: TopicPartition, timeout: float) -> tuple[int, int]:
        """The next answer."""
        assert (at.topic, at.partition, timeout) == ("orders", 3, 10.0)
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0)))
        return 5, 9


def asked(consumer: Any) -> tuple[int, int]:
    """What is said of orders/3."""
    return log_bounds(consumer, "orders", 3)


def test_a_leader_is_waited_for() -> None:
    """A topic made just now is asked about again."""
    consumer = Answering(
        KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    )  # fmt: skip
    assert asked(consumer) == (5, 9)
    assert consumer.codes == []


def test_other_refusals_are_told_at_once() -> None:
    """Who may not read it will not be let in by asking again."""
    consumer = Answering(KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException):
        asked(consumer)
    assert len(consumer.codes) == 1


def test_a_partition_that_stays_without_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in the end, and so is one that is not there."""
    for code in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._UNKNOWN_PARTITION):
        monkeypatch.setitem(module._PATIENCE_S, code, 0.3)
        consumer = Answering(*[code] * 100)
        with pytest.raises(KafkaException):
            asked(consumer)
        assert 90 < len(consumer.codes) < 100


def test_topics_made_just_now(kafka_address: str, tmp_path: Path) -> None:
    """Their bounds are known at once: nothing, and then what was written."""
    consumer = Consumer({"bootstrap.servers": kafka_address, "group.id": "bounds", "log_level": 0})
    try:
        for n in range(5):
            stack = Stack(kafka_address, tmp_path, stream=f"bounds{n}")
            stack.create_source()
            assert [log_bounds(consumer, stack.source, p) for p in range(4)] == [(0, 0)] * 4
            stack.produce_to(stack.source, 2, [(b"key", b"1"), (b"key", b"2")])
            assert log_bounds(consumer, stack.source, 2) == (0, 2)
    finally:
        consumer.close()
