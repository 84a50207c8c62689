"""Brings the records of a topic that is not keyed by its sessions to an internal topic that is.

A batch of copies and the offset after their originals are committed together or not at all
(`pipeline/consuming.py`), so that each record is copied once whatever is killed. A step that fails is undone, and
reading goes on from what was committed.

It runs in a thread of its own beside the worker's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaException,
    Message,
    Producer,
)
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient

from features.decode import Decoder
from features.otlp import samples_of
from pipeline.clients import Clients
from pipeline.consuming import CALL_S, ConsumingThread, StartOverError, committed_ends, kept_offsets
from pipeline.drift import Kind, drift_output
from pipeline.errors import RepartitionError, StalledError
from pipeline.health import Health
from pipeline.log_bounds import log_bounds
from pipeline.logs import get_logger
from pipeline.metrics import Metrics
from pipeline.origins import with_origin
from pipeline.outputs import Output, Place
from pipeline.topic_ids import TopicIds
from pipeline.watchdog import Stall

_BATCH = 2_000  # records of a transaction
_WAIT_S = 0.1  # for that many: what a record waits at most before its transaction begins
_LOOK_S = 10.0
_PURGE_S = 600.0
_COPIED_LOOKS, _COPIED_LOOK_S = 10, 0.2

log = get_logger()


@dataclass(frozen=True)
class Route:
    """One stream's way from its topic to its internal topic.

    Attributes
    ----------
    group
        Consumer group of the repartitioners; `scored_by` that of the workers, who read the internal topic.
    decoder
        Reads a record's session and nothing else.
    of_exports
        Records are exports of metrics; each of their samples is copied.
    """

    stream: str
    source: str
    target: str
    group: str
    scored_by: str
    starts_latest: bool
    decoder: Decoder
    drift_topic: str
    of_exports: bool = False


@dataclass(frozen=True)
class _Original:
    """What is to be copied, as `features.events.Record`. Its session does not depend on its time: that is left out."""

    message: Message
    value: bytes | None
    timestamp: int = 0

    @property
    def offset(self) -> int:
        return int(self.message.offset())

    @property
    def key(self) -> bytes | None:
        found: bytes | None = self.message.key()
        return found


def _originals(route: Route, messages: Iterable[Message]) -> Iterator[_Original]:
    """What is to be copied: each record, or each sample of an export."""
    for message in messages:
        value = message.value()
        for part in samples_of(value) if route.of_exports and value is not None else [value]:
            yield _Original(message, part)


def _sessions_of(decoder: Decoder, originals: Sequence[_Original]) -> list[bytes | None]:
    """The names of their sessions; None where none can be read, or nothing is there."""
    events, found = decoder.decode(originals, check_key=False), list[bytes | None]([None] * len(originals))
    for index, session in zip(events.index.tolist(), events.session.tolist(), strict=True):
        found[index] = events.sessions[session].encode()
    return found


class Repartitioner(ConsumingThread):
    """Copies what this worker is assigned of one stream's source.

    Parameters
    ----------
    instance
        The worker's name: static member of the group, and part of the transactional id, so that a worker that is
        started again ends its predecessor's transaction.
    """

    def __init__(
        self, route: Route, clients: Clients, instance: str, topic_ids: TopicIds, metrics: Metrics, health: Health, *,
        clock: Callable[[], float] = time.monotonic, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        super().__init__(f"repartition {route.stream}", route.source, route.group, instance, clients, clock)
        self.route, self._topic_ids = route, topic_ids
        self._metrics, self._health, self._now_ms = metrics, health, now_ms
        self._found: list[Output] = []  # what has happened to the source, to be said with the next transaction
        self._is_begun = True  # whether the positions of the last assignment are committed
        self._topic_id = ""
        # Kafka deletes a group's offsets of a topic with the topic. Under the internal topic's name they outlive the
        # source; under its own, tools that watch groups find them.
        self._kept_under = (route.source, route.target)
        self._looked_at = self._purged_at = clock()
        self._purgeable: dict[int, int] = {}
        self._stall = Stall(clock)

    def _begins(self) -> None:
        self._health.repartitioning(self.route.stream, is_copying=False)

    def _stands(self) -> None:
        self._health.repartitioning(self.route.stream, is_copying=False)

    def _starts_over(self, why: str) -> None:
        log.warning("repartitioning starts over", stream=self.route.stream, why=why)

    def _stuck(self, still_s: float) -> StalledError:
        message = (
            f"repartitioning of stream {self.route.stream} has stood still for {still_s:.0f} s; the worker ends so "
            "that its supervisor starts it anew"
        )
        return StalledError(message)

    def _in_vain(self, why: str) -> RepartitionError:
        message = (
            f"stream {self.route.stream} cannot be repartitioned from {self.route.source} to {self.route.target}: "
            f"{why}; is the broker well, and may the worker read, write and commit there?"
        )
        return RepartitionError(message)

    def _at_fault(self, error: Exception) -> RepartitionError:
        log.exception("repartitioning failed", stream=self.route.stream)
        return RepartitionError(f"stream {self.route.stream} cannot be repartitioned: {error!r}")

    # --- for the worker around it --------------------------------------------------------------------------------

    async def source_is_copied(self) -> bool:
        """Whether all that the source holds now has been copied, by whichever worker; waits a moment for it."""
        try:
            return await asyncio.to_thread(self._source_is_copied)
        except (KafkaException, TimeoutError):  # no answer is none
            return False

    def _source_is_copied(self) -> bool:
        source = self.route.source
        partitions = [At(source, p) for p in self._admin.list_topics(source, timeout=CALL_S).topics[source].partitions]
        ends = committed_ends(self._admin, partitions)
        for _ in range(_COPIED_LOOKS):
            at = committed(self._admin, self.route.group, partitions)
            if all(at.get(p, 0) >= end for p, end in ends.items()):
                return True
            time.sleep(_COPIED_LOOK_S)
        return False

    # --- the thread ----------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[tuple[Consumer, Producer]]:
        self._topic_id = self._topic_ids.ask(self.route.source)
        with super()._open() as clients:
            yield clients

    def _turn(self, consumer: Consumer, producer: Producer) -> None:
        """One batch, or a short wait in vain."""
        messages = self._read(consumer, _BATCH, _WAIT_S)
        if messages is None:
            return
        after = {m.partition(): m.offset() + 1 for m in messages} if messages else self._passed(consumer)
        if not self._is_begun:
            after = self._positions | after
        if after:
            self._commit(consumer, producer, messages, after)
        self._look()

    def _passed(self, consumer: Consumer) -> dict[int, int]:
        """Where reading got to without finding records: markers and aborted records take offsets, too."""
        asked = [At(self.route.source, p) for p in self._positions]
        found = consumer.position(asked) if asked else []
        return {tp.partition: tp.offset for tp in found if tp.offset > self._positions[tp.partition]}

    def _commit(
        self, consumer: Consumer, producer: Producer, messages: Sequence[Message], after: dict[int, int]
    ) -> None:
        """One transaction: the copies, and `after`, where reading goes on."""

        def fill() -> None:
            for output in self._found:
                self._send(producer, self.route.drift_topic, output.value, output.key, output.headers)
            originals = list(_originals(self.route, messages))
            for original, session in zip(originals, _sessions_of(self.route.decoder, originals), strict=True):
                self._copy(producer, original, session)

        offsets = [At(topic, p, at, self._topic_id) for p, at in after.items() for topic in self._kept_under]
        if not self._transact(consumer, producer, after, offsets, fill):
            return
        self._found.clear()
        self._is_begun = True
        if messages:
            self._failing_since = None
        self._metrics.repartitioned.labels(self.route.stream).inc(len(messages))

    def _copy(self, producer: Producer, original: _Original, session: bytes | None) -> None:
        """A record with its session as key. One without goes as it came, for whoever reads on to say what is wrong."""
        message, (kind, time_ms) = original.message, original.message.timestamp()
        headers = with_origin(message.headers(), self.route.source, message.partition(), message.offset())
        self._send(
            producer, self.route.target, original.value, original.key if session is None else session, headers,
            partition=message.partition() if session is None else -1,
            timestamp=0 if kind == TIMESTAMP_NOT_AVAILABLE else max(0, time_ms),
        )  # fmt: skip

    # --- assignment ----------------------------------------------------------------------------------------------

    def _take_over(self, consumer: Consumer, partitions: list[At]) -> None:
        kept = self._kept(consumer, [tp.partition for tp in partitions])
        is_lost = any(tp.offset < 0 for tp in kept) and self._is_lost(consumer)
        for tp in kept:
            self._positions[tp.partition] = self._start_of(consumer, tp, is_lost=is_lost)
        self._is_begun = not self._positions
        self._health.repartitioning(self.route.stream, is_copying=True)
        log.info("repartitioning", stream=self.route.stream, positions=dict(self._positions))

    def _forget(self) -> None:
        for p in self._positions:
            with suppress(KeyError):
                self._metrics.repartition_lag.remove(self.route.stream, str(p))
            self._stall.forget(self.route.stream, p)
        self._positions, self._purgeable, self._is_begun = {}, {}, True
        self._found.clear()

    def _kept(self, consumer: Consumer, partitions: Iterable[int]) -> list[At]:
        """The group's offsets of source partitions, as kept under the internal topic's name."""
        return kept_offsets(consumer, [At(self.route.target, p) for p in partitions])

    def _is_lost(self, consumer: Consumer) -> bool:
        """Whether copies were made and yet no offset is left of any partition; at a first start some may lack."""
        target = self.route.target
        partitions = list(consumer.list_topics(target, timeout=CALL_S).topics[target].partitions)
        if any(tp.offset >= 0 for tp in self._kept(consumer, partitions)):
            return False
        return any(log_bounds(consumer, target, p, CALL_S)[1] > 0 for p in partitions)

    def _start_of(self, consumer: Consumer, committed: At, *, is_lost: bool) -> int:
        """Where to read a partition on. What happened to the topic meanwhile is said, never passed over."""
        route, at, p = self.route, committed.offset, committed.partition
        low, high = log_bounds(consumer, route.source, p, CALL_S)
        if at < 0 and is_lost:
            detail = (
                f"the offsets of group {route.group} are gone; {route.source}/{p} is read from its beginning, and "
                "records that were copied before may be copied again"
            )
            self._say("offset_reset", p, low, 0, detail)
            return int(low)
        if at < 0:  # nobody has read it yet
            return int(high if route.starts_latest else low)
        if committed.metadata and committed.metadata != self._topic_id:
            self._say("topic_recreated", p, low, 0, f"{route.source} was made anew; it is read from its beginning")
            return int(low)
        if at < low:
            detail = f"retention removed {low - at:,} records of {route.source}/{p} before they were repartitioned"
            self._say("records_lost", p, low, low - at, detail)
            return int(low)
        if at > high:
            detail = f"{route.source}/{p} ends at {high}, but {at} was read: the topic has lost its end"
            self._say("records_lost", p, high, 0, detail)
            return int(high)
        return int(at)

    def _say(self, kind: Kind, partition: int, offset: int, amount: int, detail: str) -> None:
        stream = self.route.stream
        log.error("stream changed", stream=stream, what=kind, detail=detail, sessions=[])
        self._metrics.changes.labels(stream, kind).inc()
        if kind == "records_lost":
            self._metrics.lost_records.labels(stream).inc(amount)
        place = Place(self.route.source, partition)
        self._found.append(
            drift_output(
                kind, stream=stream, place=place, offset=offset, amount=amount, detail=detail, now_ms=self._now_ms()
            )
        )

    # --- from time to time ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Say how far behind we are, see whether we get on and the topic is the same, and delete what was scored."""
        now = self._clock()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        ends = committed_ends(self._admin, [At(self.route.source, p) for p in self._positions])
        for p, at in self._positions.items():
            high = ends[p]
            self._metrics.repartition_lag.labels(self.route.stream, str(p)).set(max(0, high - at))
            self._failure = self._stall.observe(self.route.stream, p, at, high) or self._failure
        if self._topic_ids.ask(self.route.source) != self._topic_id:
            message = "the source was made anew"
            raise StartOverError(message)
        if now - self._purged_at >= _PURGE_S:
            self._purged_at = now
            self._purge()

    def _purge(self) -> None:
        """Delete what was scored before the last time; each internal partition is looked after by one worker."""
        route = self.route
        old = [At(route.target, p, at) for p, at in self._purgeable.items()]
        try:
            for future in self._admin.delete_records(old, request_timeout=CALL_S).values() if old else ():
                future.result(CALL_S)
            self._purgeable = committed(self._admin, route.scored_by, [At(route.target, p) for p in self._positions])
        except (KafkaException, TimeoutError) as error:
            log.warning("scored records cannot be deleted", topic=self.route.target, why=str(error)[:300])


def committed(admin: AdminClient, group: str, partitions: Sequence[At]) -> dict[int, int]:
    """A group's offsets of one topic's partitions, where there are any."""
    if not partitions:
        return {}
    asked = ConsumerGroupTopicPartitions(group, list(partitions))
    found = admin.list_consumer_group_offsets([asked], require_stable=True, request_timeout=CALL_S)
    return {tp.partition: tp.offset for tp in found[group].result(CALL_S).topic_partitions if tp.offset >= 0}
