"""Brings the records of a topic that is not keyed by its sessions to an internal topic that is.

Consume, transform, produce in transactions: a batch of copies and the offset after their originals are committed
together or not at all, so that each record is copied once whatever is killed. The group's generation is checked with
each commit (KIP-447), so a worker that has lost a partition without knowing commits nothing of it. A step that fails is
undone, and reading goes on from what was committed.

It runs in a thread of its own beside the worker's event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
)
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient, OffsetSpec

from features.decode import Decoder
from features.otlp import samples_of
from pipeline.clients import Clients
from pipeline.drift import Kind, drift_output
from pipeline.errors import OffbeatError, RepartitionError, StalledError
from pipeline.health import Health
from pipeline.logs import get_logger
from pipeline.metrics import Metrics
from pipeline.origins import with_origin
from pipeline.outputs import Output, Place
from pipeline.pulse import SESSION_TIMEOUT_S
from pipeline.topic_ids import TopicIds
from pipeline.watchdog import STUCK_S, Stall

_BATCH = 2_000  # records of a transaction
_WAIT_S = 0.1  # for that many: what a record waits at most before its transaction begins
_CALL_S = 30.0  # for one answer of the broker
_CONNECT_AGAIN_S = 1.0
_AGAIN_S = 0.1
_PATIENCE_S = 60.0  # with what fails again and again although a broker answers
_APART_S = 30.0  # failures further apart have nothing to do with each other
_LOOK_S = 10.0
_PURGE_S = 600.0
_JOIN_S = 10.0
_COPIED_LOOKS, _COPIED_LOOK_S = 10, 0.2
_NO_ANSWER = {
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError._TIMED_OUT_QUEUE, KafkaError.REQUEST_TIMED_OUT, KafkaError.COORDINATOR_NOT_AVAILABLE,  # noqa: SLF001
}  # fmt: skip

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


class _OtherTopicError(Exception):
    """The source was deleted and made anew while it was read."""


class Repartitioner:
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
        self.route = route
        self._clients, self._instance, self._topic_ids = clients, instance, topic_ids
        self._metrics, self._health, self._clock, self._now_ms = metrics, health, clock, now_ms
        self._admin = clients.unchecked_admin()
        self._positions: dict[int, int] = {}  # by source partition, where reading goes on
        self._found: list[Output] = []  # what has happened to the source, to be said with the next transaction
        self._assignments = 0
        self._is_begun = True  # whether the positions of the last assignment are committed
        self._topic_id = ""
        # Kafka deletes a group's offsets of a topic with the topic. Under the internal topic's name they outlive the
        # source; under its own, tools that watch groups find them.
        self._kept_under = (route.source, route.target)
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._failure: OffbeatError | None = None
        self._turned_at = clock()
        self._asked_at = self._awake_since = clock()
        self._looked_at = self._purged_at = clock()
        self._purgeable: dict[int, int] = {}
        self._stall = Stall(clock)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=f"repartition {route.stream}", daemon=True
        )

    # --- for the worker around it --------------------------------------------------------------------------------

    def start(self) -> None:
        """Copy from now on; again is nothing."""
        if self._thread.ident is not None:
            return
        self._turned_at = self._clock()
        self._health.repartitioning(self.route.stream, is_copying=False)
        self._thread.start()

    def stop(self) -> None:
        """Finish the transaction under way, bounded in time."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def failure(self) -> OffbeatError | None:
        """Why the worker must end, if it must: what failed, or that the thread has not turned for too long.

        To be asked every few seconds: after a longer pause the process did not run, and the thread gets its time anew.
        """
        now = self._clock()
        if now - self._asked_at > STUCK_S / 4:
            self._awake_since = now
        self._asked_at = now
        still_s = min(now - self._turned_at, now - self._awake_since)
        if self._failure is None and self._thread.is_alive() and still_s >= STUCK_S:
            message = (
                f"repartitioning of stream {self.route.stream} has stood still for {still_s:.0f} s; the worker ends so "
                "that its supervisor starts it anew"
            )
            return StalledError(message)
        return self._failure

    async def source_is_copied(self) -> bool:
        """Whether all that the source holds now has been copied, by whichever worker; waits a moment for it."""
        try:
            return await asyncio.to_thread(self._source_is_copied)
        except (KafkaException, TimeoutError):  # no answer is none
            return False

    def _source_is_copied(self) -> bool:
        source = self.route.source
        partitions = [At(source, p) for p in self._admin.list_topics(source, timeout=_CALL_S).topics[source].partitions]
        ends = committed_ends(self._admin, partitions)
        for _ in range(_COPIED_LOOKS):
            at = committed(self._admin, self.route.group, partitions)
            if all(at.get(p, 0) >= end for p, end in ends.items()):
                return True
            time.sleep(_COPIED_LOOK_S)
        return False

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._open() as (consumer, producer):
                    while not self._stopped.is_set() and self._failure is None:
                        self._turn(consumer, producer)
            except KafkaException as error:
                self._failed(error.args[0].str(), is_outage=error.args[0].code() in _NO_ANSWER)
            except TimeoutError:
                self._failed("the broker does not answer", is_outage=True)
            except _OtherTopicError:
                self._failed("the source was made anew", is_outage=False)
            except Exception as error:  # a fault of ours: nobody may believe that copying goes on
                self._failure = RepartitionError(f"stream {self.route.stream} cannot be repartitioned: {error!r}")
                log.exception("repartitioning failed", stream=self.route.stream)
            self._health.repartitioning(self.route.stream, is_copying=False)
            if self._failure is not None:
                return
            self._stopped.wait(_CONNECT_AGAIN_S)

    def _failed(self, why: str, *, is_outage: bool) -> None:
        """Take note; what is no outage and does not pass ends the worker."""
        log.warning("repartitioning starts over", stream=self.route.stream, why=why[:300])
        self._turned_at = now = self._clock()
        if is_outage:
            return
        if self._failing_since is None or now - self._failed_at >= _APART_S:
            self._failing_since = now
        self._failed_at = now
        if now - self._failing_since >= _PATIENCE_S:
            message = (
                f"stream {self.route.stream} cannot be repartitioned from {self.route.source} to {self.route.target}: "
                f"{why}; is the broker well, and may the worker read, write and commit there?"
            )
            self._failure = RepartitionError(message)

    @contextmanager
    def _open(self) -> Iterator[tuple[Consumer, Producer]]:
        """New clients, in the group; the producer has ended what a predecessor of this name left open."""
        route = self.route
        producer = self._clients.repartition_producer(f"{route.group}/{self._instance}")
        producer.init_transactions(_CALL_S)
        self._topic_id = self._topic_ids.ask(route.source)
        consumer = self._clients.repartition_consumer(route.group, self._instance, int(SESSION_TIMEOUT_S * 1000))
        try:
            consumer.subscribe([route.source], on_assign=self._assigned, on_revoke=self._revoked)
            yield consumer, producer
        finally:
            with suppress(KafkaException, RuntimeError):
                consumer.close()
            self._forget()

    def _turn(self, consumer: Consumer, producer: Producer) -> None:
        """One batch, or a short wait in vain."""
        self._turned_at, assignments = self._clock(), self._assignments
        messages = consumer.consume(_BATCH, _WAIT_S)
        if self._assignments != assignments:
            # What came together with an assignment may belong to the one before: librdkafka's batches do not tell.
            self._rewind(consumer)
            return
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
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
        producer.begin_transaction()
        try:
            for output in self._found:
                self._send(producer, self.route.drift_topic, output.value, output.key, output.headers)
            originals = list(_originals(self.route, messages))
            for original, session in zip(originals, _sessions_of(self.route.decoder, originals), strict=True):
                self._copy(producer, original, session)
            offsets = [At(topic, p, at, self._topic_id) for p, at in after.items() for topic in self._kept_under]
            producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), _CALL_S)
            producer.commit_transaction(_CALL_S)
        except KafkaException as error:
            if not error.args[0].txn_requires_abort():
                raise
            self._failed(error.args[0].str(), is_outage=error.args[0].code() in _NO_ANSWER)
            producer.abort_transaction(_CALL_S)
            self._rewind(consumer)
            self._stopped.wait(_AGAIN_S)
            return
        self._positions |= after
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

    def _send(
        self, producer: Producer, topic: str, value: bytes | None, key: bytes | None,
        headers: list[tuple[str, bytes]], partition: int = -1, timestamp: int = 0,
    ) -> None:  # fmt: skip
        while True:
            try:
                # Whether it arrived, the commit tells.
                producer.produce(topic, value, key=key, headers=headers, partition=partition, timestamp=timestamp)
                return
            except BufferError:  # the broker is slower than we are
                self._turned_at = self._clock()
                producer.poll(0.1)

    def _rewind(self, consumer: Consumer) -> None:
        """Read on from where the last transaction ended, and drop what was fetched ahead."""
        consumer.assign([At(self.route.source, p, at) for p, at in self._positions.items()])

    # --- assignment ----------------------------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: list[At]) -> None:
        self._forget()
        # Waits for transactions under way, also those of dead workers: their offsets may yet be committed.
        kept = self._kept(consumer, [tp.partition for tp in partitions])
        is_lost = any(tp.offset < 0 for tp in kept) and self._is_lost(consumer)
        for tp in kept:
            self._positions[tp.partition] = self._start_of(consumer, tp, is_lost=is_lost)
        self._assignments += 1
        self._is_begun = not self._positions
        self._rewind(consumer)
        self._health.repartitioning(self.route.stream, is_copying=True)
        log.info("repartitioning", stream=self.route.stream, positions=dict(self._positions))

    def _revoked(self, _consumer: Consumer, _partitions: list[At]) -> None:
        self._assignments += 1
        self._forget()

    def _forget(self) -> None:
        for p in self._positions:
            with suppress(KeyError):
                self._metrics.repartition_lag.remove(self.route.stream, str(p))
            self._stall.forget(self.route.stream, p)
        self._positions, self._purgeable, self._is_begun = {}, {}, True
        self._found.clear()

    def _kept(self, consumer: Consumer, partitions: Iterable[int]) -> list[At]:
        """The group's offsets of source partitions, as kept under the internal topic's name."""
        asked = [At(self.route.target, p) for p in partitions]
        kept = consumer.committed(asked, timeout=_CALL_S) if asked else []
        for tp in kept:
            if tp.error is not None:
                raise KafkaException(tp.error)
        return kept

    def _is_lost(self, consumer: Consumer) -> bool:
        """Whether copies were made and yet no offset is left of any partition; at a first start some may lack."""
        target = self.route.target
        partitions = list(consumer.list_topics(target, timeout=_CALL_S).topics[target].partitions)
        if any(tp.offset >= 0 for tp in self._kept(consumer, partitions)):
            return False
        return any(consumer.get_watermark_offsets(At(target, p), timeout=_CALL_S)[1] > 0 for p in partitions)

    def _start_of(self, consumer: Consumer, committed: At, *, is_lost: bool) -> int:
        """Where to read a partition on. What happened to the topic meanwhile is said, never passed over."""
        route, at, p = self.route, committed.offset, committed.partition
        low, high = consumer.get_watermark_offsets(At(route.source, p), timeout=_CALL_S)
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
            raise _OtherTopicError
        if now - self._purged_at >= _PURGE_S:
            self._purged_at = now
            self._purge()

    def _purge(self) -> None:
        """Delete what was scored before the last time; each internal partition is looked after by one worker."""
        route = self.route
        old = [At(route.target, p, at) for p, at in self._purgeable.items()]
        try:
            for future in self._admin.delete_records(old, request_timeout=_CALL_S).values() if old else ():
                future.result(_CALL_S)
            self._purgeable = committed(self._admin, route.scored_by, [At(route.target, p) for p in self._positions])
        except (KafkaException, TimeoutError) as error:
            log.warning("scored records cannot be deleted", topic=self.route.target, why=str(error)[:300])


def committed_ends(admin: AdminClient, partitions: Sequence[At]) -> dict[int, int]:
    """Where one topic's partitions end for a read_committed reader."""
    asked = admin.list_offsets(
        {tp: OffsetSpec.latest() for tp in partitions}, isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=_CALL_S,
    ) if partitions else {}  # fmt: skip
    return {tp.partition: future.result(_CALL_S).offset for tp, future in asked.items()}


def committed(admin: AdminClient, group: str, partitions: Sequence[At]) -> dict[int, int]:
    """A group's offsets of one topic's partitions, where there are any."""
    if not partitions:
        return {}
    asked = ConsumerGroupTopicPartitions(group, list(partitions))
    found = admin.list_consumer_group_offsets([asked], require_stable=True, request_timeout=_CALL_S)
    return {tp.partition: tp.offset for tp in found[group].result(_CALL_S).topic_partitions if tp.offset >= 0}
