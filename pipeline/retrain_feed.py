"""What trainers read: jobs, and whatever asks for them, each topic whole and by hand, without a group.

Topics that other versions or other settings do not have are looked for now and then; until they are there they say
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError
from pipeline.log_bounds import log_bounds

_LOOK_S = 10.0
_CALL_S = 10.0
_READ_S = 30.0
_AT_ONCE = 1_000

Take = Callable[[Message], None]


class Feed:
    """Follows topics from their beginnings, in the order in which they are given to `Take`.

    Parameters
    ----------
    takers
        By topic, what is given each of its records.
    """

    def __init__(
        self, clients: Clients, takers: Mapping[str, Take], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._takers, self._clock = dict(takers), clock
        self._consumer: Consumer = clients.feed_consumer()
        self._ends: dict[tuple[str, int], bool] = {}  # whether what it held when it was found has been read
        self._looked_at: float | None = None

    def read(self, timeout_s: float) -> bool:
        """Take what has come; says whether all topics have been read to their ends."""
        if self._looked_at is None or self._clock() - self._looked_at > _LOOK_S:
            self._find()
        for message in self._consumer.consume(_AT_ONCE, timeout=timeout_s) if self._ends else []:
            place = (message.topic(), message.partition())
            error = message.error()
            if error is None:
                self._takers[message.topic()](message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (the code's public name)
                self._ends[place] = True
        return bool(self._ends) and all(self._ends.values())

    def read_to_the_end(self) -> None:
        """Take all that the topics hold.

        Raises
        ------
        BrokerUnavailableError
            That does not come to an end.
        """
        until = self._clock() + _READ_S
        while not self.read(0.1):
            if self._clock() > until:
                names = ", ".join(self._takers)
                message = f"topic {names} could not be read to its end within {_READ_S:.0f} s; is the broker well?"
                raise BrokerUnavailableError(message)

    def records_since(self, topic: str, moment_ms: int) -> int:
        """How many records a topic holds since a Kafka timestamp; markers of transactions count, too."""
        found = self._consumer.list_topics(topic, timeout=_CALL_S).topics[topic]
        if found.error is not None:
            return 0
        count = 0
        for partition in found.partitions:
            place = TopicPartition(topic, partition, moment_ms)
            low, high = log_bounds(self._consumer, topic, partition, _CALL_S)
            first = self._consumer.offsets_for_times([place], timeout=_CALL_S)[0].offset
            count += high - max(low, first) if first >= 0 else 0
        return count

    def partitions_of(self, topic: str) -> int:
        """How many partitions a topic has; 0 where it is not there."""
        return sum(name == topic for name, _ in self._ends)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _find(self) -> None:
        """Follow what is there now."""
        try:
            there = self._consumer.list_topics(timeout=_CALL_S).topics
        except KafkaException:  # asked again later
            return
        self._looked_at = self._clock()
        known = [(name, p) for name in self._takers if name in there for p in there[name].partitions]
        new = [place for place in known if place not in self._ends]
        if new:
            self._ends |= dict.fromkeys(new, False)
            self._consumer.incremental_assign([TopicPartition(name, p, 0) for name, p in new])
