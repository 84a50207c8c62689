"""What a changelog says of one session, read with confluent-kafka: another client than the worker's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from zlib import crc32

from aiokafka.partitioner import murmur2
from confluent_kafka import KafkaException, Message, TopicPartition

from pipeline.clients import Clients
from pipeline.errors import TopicError
from pipeline.log_bounds import log_bounds

_READ_TIMEOUT_S = 30.0
Progress = Callable[[int, int], None]


def usual_partitions(name: str, partitions: int) -> list[int]:
    """Where clients place a session's records: first as Java's do (murmur2), then as librdkafka's do (CRC-32).

    >>> usual_partitions("s-1", 8)
    [7, 6]
    """
    key = name.encode()
    return list(dict.fromkeys([(int(murmur2(key)) & 0x7FFFFFFF) % partitions, crc32(key) % partitions]))


@dataclass(frozen=True)
class Written:
    """One record of a key. `value` is None for a tombstone; `time_ms` is its Kafka timestamp."""

    partition: int
    offset: int
    time_ms: int
    value: bytes | None


@dataclass(frozen=True)
class Trail:
    """What one partition holds of a key.

    Attributes
    ----------
    last
        What a recovery gives: the row, or a tombstone.
    older_values
        Values below `last` that compaction has not removed yet.
    tombstone
        The last tombstone, which `last` may have followed.
    """

    last: Written
    older_values: int = 0
    tombstone: Written | None = None

    def then(self, written: Written) -> Trail:
        """The trail with one record more."""
        older = self.older_values + (self.last.value is not None)
        return Trail(written, older, self.tombstone if written.value is not None else written)


class KeyReader:
    """Follows one key through partitions of a topic, read_committed.

    Parameters
    ----------
    partitions
        Which to read; the topic has them.
    """

    def __init__(self, clients: Clients, topic: str, key: bytes, partitions: Iterable[int]) -> None:
        self.topic, self.key = topic, key
        self.trails: dict[int, Trail] = {}
        self.ends: dict[int, int] = {}
        self._consumer = clients.confluent_consumer("offbeat-sessions", from_start=True)
        self._starts = {p: self._bounds(p)[0] for p in partitions}
        self._consumer.assign([TopicPartition(topic, p, low) for p, low in self._starts.items()])

    def read(self, progress: Progress = lambda _done, _total: None) -> None:
        """Read on to where the log ends now; `ends` and `trails` say how far that was and what was found.

        Raises
        ------
        TopicError
            Kafka refuses, or gives nothing for 30 s.
        """
        self.ends = {p: self._bounds(p)[1] for p in self._starts}
        total = sum(self.ends.values()) - sum(self._starts.values())
        last = time.monotonic()
        while (left := self._left()) > 0:
            messages = self._consumer.consume(10_000, timeout=0.2)
            for message in messages:
                self._take(message)
            progress(total - left, total)
            last = time.monotonic() if messages else last
            if time.monotonic() - last > _READ_TIMEOUT_S:
                message_ = f"topic {self.topic} gave no records for {_READ_TIMEOUT_S:.0f} s; is the broker well?"
                raise TopicError(message_)
        progress(total, total)

    @property
    def row(self) -> Written | None:
        """The saved row, where one is."""
        rows = [trail.last for trail in self.trails.values() if trail.last.value is not None]
        return max(rows, key=lambda written: written.time_ms, default=None)

    def _take(self, message: Message) -> None:
        if (error := message.error()) is not None:
            raise self._refused(KafkaException(error))
        if message.key() == self.key:
            p, value = message.partition(), message.value()
            written = Written(p, message.offset(), message.timestamp()[1], value)
            known = self.trails.get(p)
            self.trails[p] = (
                known.then(written) if known else Trail(written, tombstone=written if value is None else None)
            )

    def _left(self) -> int:
        """Offsets still to read. Positions count, not last records: transaction markers take offsets too."""
        positions = self._consumer.position([TopicPartition(self.topic, p) for p in self._starts])
        return sum(max(0, self.ends[tp.partition] - max(tp.offset, self._starts[tp.partition])) for tp in positions)

    def _bounds(self, partition: int) -> tuple[int, int]:
        """First offset and the one after the last."""
        try:
            return log_bounds(self._consumer, self.topic, partition)
        except KafkaException as error:
            raise self._refused(error) from None

    def _refused(self, error: KafkaException) -> TopicError:
        return TopicError(f"topic {self.topic} cannot be read: {error.args[0].str()}")

    def __enter__(self) -> KeyReader:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._consumer.close()
