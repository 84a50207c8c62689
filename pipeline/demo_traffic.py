"""What the demo sends to its Kafka and reads from there while the streams flow."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from pipeline.clients import Clients
from pipeline.demo_child import Child
from pipeline.demo_incidents import Incidents, Told
from pipeline.demo_screen import Screen, why_here
from pipeline.demo_truth import Alarm, Tally
from pipeline.errors import OffbeatError
from pipeline.log_bounds import log_bounds
from pipeline.storefront_records import Record

_READY_S = 90.0  # of the worker; 4 s on two quiet cores, longer when numba has to compile
_DRAIN_S = 90.0  # it keeps up on two quiet cores
_CLOSING_S = 3.0  # for the last incidents to close; those that do not are shown as they are
_LOOK_MS = 250


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Sender:
    """Sends records, keyed by session; one that Kafka refuses ends the demo, for its figures would be wrong.

    Parameters
    ----------
    topics
        Of each stream.
    """

    def __init__(self, clients: Clients, topics: Mapping[str, str]) -> None:
        self._producer, self._topics = clients.confluent_producer(), topics
        self._refused: str | None = None

    def send(self, stream: str, record: Record) -> None:
        """Hand a record over; it leaves soon."""
        while True:
            try:
                self._producer.produce(
                    self._topics[stream], record.value, record.key, timestamp=record.ts_ms, on_delivery=self._delivered
                )
                break
            except BufferError:  # full speed is more than the broker takes at once
                self._producer.poll(0.05)
        self._producer.poll(0)

    def flush(self) -> None:
        """Return when Kafka has all of them."""
        if self._producer.flush(30) or self._refused is not None:
            message = (
                f"the demo's Kafka did not take all events: {self._refused or 'no answer for 30 s'}; start it again"
            )
            raise OffbeatError(message)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._refused = str(error)


class Watcher:
    """Reads anomalies and incidents while the streams flow, and keeps the screen up to date.

    Parameters
    ----------
    anomalies, incidents
        Their topics.
    """

    def __init__(
        self, consumer: Consumer, anomalies: str, incidents: str, tallies: Mapping[str, Tally], screen: Screen,
        start_ms: int, worker: Child, metrics: str,
    ) -> None:  # fmt: skip
        self._consumer, self._told_on, self._tallies, self._screen = consumer, incidents, tallies, screen
        self._start_ms, self._worker, self._metrics = start_ms, worker, metrics
        self.incidents = Incidents()
        self._look_ms = 0
        self._parts = [
            TopicPartition(topic, p)
            for topic in (anomalies, incidents)
            for p in sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        ]
        consumer.assign([TopicPartition(part.topic, part.partition, OFFSET_BEGINNING) for part in self._parts])

    def watch(self, wait_s: float) -> None:
        """Read what has come, waiting that long for a first message."""
        message = self._consumer.poll(wait_s)
        while message is not None:
            if message.error() is not None:
                raise KafkaException(message.error())
            read = self._read_incident if message.topic() == self._told_on else self._read
            read(orjson.loads(message.value()), now_ms())
            message = self._consumer.poll(0)
        if (now := now_ms()) >= self._look_ms:
            self._look_ms = now + _LOOK_MS
            self._worker.check()
            tallies = self._tallies.values()
            self._screen.status(
                (now - self._start_ms) / 1000,
                sum(tally.sent for tally in tallies),
                scored_records(self._metrics),
                sorted(ms for tally in tallies for ms in tally.latencies_ms()),
            )

    def read_to_end(self) -> None:
        """Read all that the topics hold now."""
        ends = {
            (part.topic, part.partition): log_bounds(self._consumer, part.topic, part.partition)[1]
            for part in self._parts
        }
        while any(max(at.offset, 0) < ends[at.topic, at.partition] for at in self._consumer.position(self._parts)):
            self.watch(0.05)

    def _read(self, anomaly: dict[str, Any], now: int) -> None:
        alarm = Alarm(
            anomaly["id"], anomaly["type"], anomaly["session"], anomaly["time_ms"], now, why_here(anomaly)
        )  # fmt: skip
        if self._tallies[anomaly["stream"]].read(alarm):
            self._screen.alarm(alarm.session)

    def _read_incident(self, message: dict[str, Any], now: int) -> None:
        told = Told.of(message, now)
        if self.incidents.read(told) and told.change == "opened":
            why = next((t.alarms[name].why for name in told.examples for t in self._tallies.values()
                        if name in t.alarms), None)  # fmt: skip
            self._screen.incident((now - self._start_ms) / 1000, told, why)


def scored_records(metrics: str) -> int | None:
    """Return how many records the worker has taken in, by its /metrics; None while that does not answer."""
    try:
        with urllib.request.urlopen(metrics, timeout=0.5) as page:  # noqa: S310 (our own http address)
            lines = page.read().decode().splitlines()
    except OSError:
        return None
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("offbeat_records_total{")))


def await_worker(group: Consumer, topics: Sequence[str], worker: Child) -> None:
    """Return when the worker has decided, for each partition, where it begins: all that is sent from now on is its."""
    deadline = time.monotonic() + _READY_S
    while any(at.offset < 0 for at in _committed(group, topics)):
        worker.check()
        if time.monotonic() > deadline:
            message = f"the demo's worker was not ready in {_READY_S:.0f} s; is the machine busy? Start the demo again"
            raise OffbeatError(message)
        time.sleep(0.05)


def drain(group: Consumer, topics: Sequence[str], watcher: Watcher) -> None:
    """Return when the group has taken in all that the topics hold, and what it made of that is read."""
    ends = {(at.topic, at.partition): log_bounds(group, at.topic, at.partition)[1] for at in _committed(group, topics)}
    deadline = time.monotonic() + _DRAIN_S
    # A checkpoint commits an offset after the outputs before it are in Kafka.
    while left := sum(max(0, ends[at.topic, at.partition] - at.offset) for at in _committed(group, topics)):
        if time.monotonic() > deadline:
            message = (
                f"the worker is {left:,} records behind {_DRAIN_S:.0f} s after the stream's end; is the machine busy?"
            )
            raise OffbeatError(message)
        watcher.watch(0.05)
    watcher.read_to_end()


def settle(watcher: Watcher) -> None:
    """Return when no incident is open any more, or after a while."""
    deadline = time.monotonic() + _CLOSING_S
    while not watcher.incidents.settled and time.monotonic() < deadline:
        watcher.watch(0.05)


def _committed(group: Consumer, topics: Sequence[str]) -> Sequence[TopicPartition]:
    parts = [
        TopicPartition(topic, partition)
        for topic in topics
        for partition in group.list_topics(topic, timeout=10).topics[topic].partitions
    ]
    committed: Sequence[TopicPartition] = group.committed(parts, timeout=10)
    return committed
