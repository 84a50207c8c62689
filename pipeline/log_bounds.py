"""First and last offset of a partition, asked for again while a topic made just now has no leader that knows of it."""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

_ANSWER_S, _PAUSE_S = 10.0, 0.1
_LEADER_S = 10.0
_NEWS_S = 2.0  # until the news of a partition has come round; whoever asks of one that was deleted waits as long
_PATIENCE_S = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: _NEWS_S,
    KafkaError.NOT_LEADER_FOR_PARTITION: _LEADER_S,
    KafkaError.LEADER_NOT_AVAILABLE: _LEADER_S,
    KafkaError._UNKNOWN_PARTITION: _NEWS_S,  # noqa: SLF001 (it is public; librdkafka's own codes are named so)
}


def log_bounds(consumer: Consumer, topic: str, partition: int, answer_s: float = _ANSWER_S) -> tuple[int, int]:
    """The first offset of a partition, and the one after its last record or marker.

    Parameters
    ----------
    answer_s
        Seconds that the broker has for one answer.

    Raises
    ------
    KafkaException
        The broker refuses, does not answer, or has no leader within 10 s, or no such partition within 2 s.
    """
    began = time.monotonic()
    while True:
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=answer_s)
        except KafkaException as error:
            if time.monotonic() - began >= _PATIENCE_S.get(error.args[0].code(), 0.0):
                raise
            time.sleep(_PAUSE_S)
        else:
            return int(low), int(high)
