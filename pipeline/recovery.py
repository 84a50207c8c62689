"""Bringing a partition's RocksDB in step with its changelog, and reading where topics begin and end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as At

from pipeline.clients import Clients
from pipeline.cold_rows import SESSION, ColdRows
from pipeline.errors import BrokerUnavailableError, DamagedStateError
from pipeline.logs import get_logger
from pipeline.row_format import RowFormat
from pipeline.topic_ids import TopicIds
from pipeline.topics import DELETE_RETENTION_MS

BATCH = 5_000  # rows in one write: 5 MB
_POLL_S = 0.2
_SILENCE_S = 30.0  # a broker that sends nothing for so long has failed us
_LOG_EVERY_S = 5.0
_REPLAYS = 4  # at a time; more would not be quicker

log = get_logger()


@dataclass
class Replay:
    """How far the replay of one partition's changelog is; written by its thread, read by others."""

    start: At
    changelog_id: str
    high: int
    format: RowFormat
    lead_ms: int
    rebuild: bool
    done: int = 0  # offsets passed; compaction and markers make them more than the rows
    rows: int = 0
    began: float = field(default_factory=time.monotonic)
    damaged: set[str] = field(default_factory=set)  # sessions whose row fails its check in the changelog too
    stopped: threading.Event = field(default_factory=threading.Event)

    def first_due_ms(self, row: bytes) -> int:
        """When a session can be due at the earliest."""
        return self.format.first_ms(row) + self.lead_ms

    @property
    def total(self) -> int:
        """Offsets to go when it began."""
        return self.high - int(self.start.offset)

    @property
    def rows_per_s(self) -> float:
        """On average so far."""
        return self.rows / max(1e-9, time.monotonic() - self.began)

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None while there is none yet."""
        elapsed = time.monotonic() - self.began
        return (self.total - self.done) * elapsed / self.done if self.done else None


class Recovery:
    """Shared by a worker's partitions; started before the first is opened.

    Parameters
    ----------
    clients
        Makes the consumers.
    topics
        Tells the changelogs' ids.
    now_ms
        The wall clock.
    """

    def __init__(self, clients: Clients, topics: TopicIds, now_ms: Callable[[], int]) -> None:
        self._clients, self._topics, self._now_ms = clients, topics, now_ms
        self._ends: AIOKafkaConsumer | None = None
        self._threads = ThreadPoolExecutor(_REPLAYS, "replay")  # of its own: a replay takes minutes

    async def start(self) -> None:
        """Connect; again is nothing."""
        if self._ends is None:
            ends = self._clients.end_offset_consumer()
            await ends.start()
            self._ends = ends

    async def stop(self) -> None:
        """Disconnect."""
        if self._ends is not None:
            await self._ends.stop()
            self._ends = None

    async def bounds_of(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset, and the one after the last, transactions under way included."""
        assert self._ends is not None, "start comes first"
        tp = TopicPartition(topic, partition)
        low = (await self._ends.beginning_offsets([tp]))[tp]
        return low, (await self._ends.end_offsets([tp]))[tp]

    async def restore(
        self, cold: ColdRows, changelog: str, partition: int, rows: RowFormat, lead_ms: int,
        watch: Callable[[Replay], None], *, rebuild: bool = False,
    ) -> Replay:  # fmt: skip
        """Replay what the database lacks.

        Call it after fencing: then the high watermark, read at read_uncommitted, is where the changelog ends, and a
        read_committed consumer gets there.

        Parameters
        ----------
        watch
            Is called about once a second.
        rebuild
            Take nothing from the database, and check every row; damaged ones are left out and named.
        """
        changelog_id = await self._topics.id_of(changelog)
        low, high = await self.bounds_of(changelog, partition)
        replay = Replay(At(changelog, partition, low), changelog_id, high, rows, lead_ms, rebuild)
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._replay, cold, replay)
        try:
            while not (await asyncio.wait([work], timeout=1.0))[0]:
                watch(replay)
            work.result()
        finally:  # a thread cannot be cancelled, and it must be done with the database before that is closed
            replay.stopped.set()
            if not work.done():
                await asyncio.wait([work])
        return replay

    def _replay(self, cold: ColdRows, replay: Replay) -> None:
        log_name, p, now_ms = replay.start.topic, replay.start.partition, self._now_ms()
        if replay.rebuild or not is_in_step(cold, replay.changelog_id, replay.start.offset, replay.high, now_ms):
            if cold.position:
                log.warning("rebuilding from the whole changelog", changelog=log_name, partition=p)
            cold.begin(replay.changelog_id)
        fresh = cold.position == 0
        replay.start.offset = max(cold.position, replay.start.offset)
        said = time.monotonic()
        for position, messages in read_changelog(self._clients, replay.start, replay.high, replay.stopped):
            changes: dict[bytes, bytes | None] = {m.key(): m.value() for m in messages}
            if replay.rebuild:
                _take_out_damaged(changes, replay.format.check, replay.damaged)
            # A database that began from nothing just now holds nothing whose tombstone it could have missed.
            cold.replay(changes, position, now_ms if fresh else None, replay.first_due_ms)
            replay.rows, replay.done = replay.rows + len(messages), position - replay.start.offset
            if time.monotonic() - said > _LOG_EVERY_S:
                said, left = time.monotonic(), replay.seconds_left
                log.info(
                    "recovering", changelog=log_name, partition=p, rows=replay.rows,
                    rows_per_s=round(replay.rows_per_s), seconds_left=None if left is None else round(left),
                )  # fmt: skip
        if not replay.stopped.is_set():
            cold.write({}, replay.high, self._now_ms())


def is_in_step(cold: ColdRows, changelog_id: str, low: int, high: int, now_ms: int) -> bool:
    """Whether a replay may begin where the database stands.

    One out of step for too long would miss the tombstones that compaction has dropped meanwhile, and bring ended
    sessions back; one that stands outside the log belongs to another log.
    """
    recent = now_ms - cold.in_step_ms <= DELETE_RETENTION_MS // 2
    return cold.changelog_id == changelog_id and low <= cold.position <= high and recent


def _take_out_damaged(changes: dict[bytes, bytes | None], check: Callable[[bytes], None], damaged: set[str]) -> None:
    """Leave out session rows that fail their check, and note whose latest row does."""
    for key, value in list(changes.items()):
        if key[:1] != SESSION:
            continue
        name = key[1:].decode()
        damaged.discard(name)
        try:
            if value is not None:
                check(value)
        except DamagedStateError:
            changes[key] = None
            damaged.add(name)


@dataclass
class Polled:
    """What one poll brought of a partition.

    Attributes
    ----------
    position
        Where it goes on. Commit markers take offsets too, so at the partition's end this is the end, not the offset
        after the last record.
    at_end
        Whether there was no more.
    """

    messages: list[Message] = field(default_factory=list)
    position: int = 0
    at_end: bool = False


def poll(consumer: Consumer) -> dict[tuple[str, int], Polled]:
    """One poll of changelogs, by topic and partition.

    Raises
    ------
    KafkaException
        The broker refuses.
    """
    found: dict[tuple[str, int], Polled] = defaultdict(Polled)
    for message in consumer.consume(BATCH, _POLL_S):
        of = found[message.topic(), message.partition()]
        if message.error() is None:
            of.messages.append(message)
            of.position, of.at_end = message.offset() + 1, False
        elif message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (the code's public name)
            of.position, of.at_end = message.offset(), True
        else:
            raise KafkaException(message.error())
    return found


def read_changelog(
    clients: Clients, start: At, high: int, stopped: threading.Event
) -> Iterator[tuple[int, list[Message]]]:
    """Records of one partition up to `high`, in batches, each with the position after it.

    librdkafka fetches in a thread of its own, so that reading and writing go on side by side.

    Raises
    ------
    KafkaException
        The broker refuses.
    BrokerUnavailableError
        It sends nothing for too long.
    """
    consumer: Consumer = clients.changelog_consumer()
    position, heard = start.offset, time.monotonic()
    try:
        consumer.assign([start])
        while position < high and not stopped.is_set():
            for polled in poll(consumer).values():
                position, heard = polled.position, time.monotonic()
                if polled.messages or position >= high:
                    yield position, polled.messages
            if time.monotonic() - heard > _SILENCE_S:
                message = f"no Kafka broker answers: nothing of {start.topic} came for {_SILENCE_S:.0f} s"
                raise BrokerUnavailableError(message)
    finally:
        consumer.close()
