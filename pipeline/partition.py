"""One source partition of this worker: opened, scored slice by slice, checkpointed, closed.

A new object is made for every opening, so a slice that was fetched for an older one is never scored.

The checkpoint, taken between two slices after record X:

0. Copy the changed rows and the partition row as they stand after X.
1. Wait until the outputs of all records up to X are acknowledged.
2. Write the copies to the changelog.
3. Make X + 1 the group's offset. 2 and 3 are one Kafka transaction.
4. Write the copies and the changelog position to RocksDB, in one batch.

Scoring goes on during 1 to 4, at most one checkpoint ahead. A step that fails leaves nothing durable ahead of its
offset; the partition is thrown out of memory and opened again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerFenced

from detectors.parts import Parts
from detectors.rows import PartitionState
from features.decode import Decoder, Events
from pipeline.cold_rows import PARTITION, ColdRows
from pipeline.errors import StateError
from pipeline.failpoints import passed
from pipeline.logs import get_logger
from pipeline.metrics import Metrics
from pipeline.outputs import Emitter, Output, Place
from pipeline.recovery import Clock, Recovery
from pipeline.slices import process_slice
from pipeline.store import RowStore

OPEN_TIMEOUT_S = 600.0  # replaying a long changelog takes minutes
CHECKPOINT_TIMEOUT_S = 12.0  # within the transaction timeout of 15 s
CLOSE_TIMEOUT_S = 5.0  # a revoke waits that long for a last checkpoint
STOP_TIMEOUT_S = 2.0
_QUEUED_SLICES = 2
_ROW_FORMAT = 1

log = get_logger()


@dataclass(frozen=True)
class StreamContext:
    """What all partitions of a stream share."""

    name: str
    group: str
    fingerprint: str
    changelog: str
    starts_latest: bool
    capacity: int
    checkpoint_interval_s: float
    folder: Path
    decoder: Decoder
    make_parts: Callable[[], Parts]
    sample: float
    make_producer: Callable[[str], AIOKafkaProducer]
    recovery: Recovery
    send: Callable[[Output], Awaitable[asyncio.Future[Any]]]  # the future is done when the broker has it
    metrics: Metrics
    monotonic: Clock = time.monotonic
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Slice:
    """Records one fetch brought for one partition, and when."""

    records: Sequence[Any]
    fetched_at: float
    highwater: int | None


class Partition:
    """Rows, store, transactional producer and checkpoints of one opening of a source partition."""

    def __init__(
        self,
        context: StreamContext,
        place: Place,
        generation: int,
        on_failure: Callable[[Partition, BaseException], None],
    ) -> None:
        self.context, self.place, self.generation = context, place, generation
        self.slices: asyncio.Queue[Slice] = asyncio.Queue(maxsize=_QUEUED_SLICES)
        self.closed = False
        self.opened_at = 0  # next offset when it was opened
        self.fenced = False  # somebody else took the partition over, as closing it has shown
        self.state = PartitionState(0)
        self._on_failure = on_failure
        self._parts = context.make_parts()
        self._emitter = Emitter(self._parts, place, context.sample)
        self._opening: asyncio.Task[ColdRows] | None = None
        self._cold: ColdRows | None = None
        self._store: RowStore | None = None
        self._producer: AIOKafkaProducer | None = None
        self._sent: list[asyncio.Future[Any]] = []
        self._scoring = False  # between two slices all outputs of `state` have been handed over; within one not
        self._due = 0.0
        self._uncovered_since: float | None = None  # since when records wait for a checkpoint to begin
        self._covering_since: float | None = None  # likewise those of the checkpoint under way
        self._inflight: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # --- opening -------------------------------------------------------------------------------------------------

    async def open(self, read_committed: Callable[[], Awaitable[int | None]]) -> None:
        """Take the partition over; afterwards `state.next_offset` is where to read on.

        The order matters: (1) fence the predecessor, so that nothing more can change; (2) restore the rows; (3) only
        now read the group's offset, with `read_committed`, and compare it.
        """
        context, topic, p = self.context, self.place.topic, self.place.partition
        began = context.monotonic()
        # (1) ends the predecessor's transaction and shuts it out
        self._producer = context.make_producer(f"{context.group}/{context.name}/{p}")
        await self._producer.start()
        passed("open/fenced")
        # (2)
        self._opening = asyncio.create_task(asyncio.to_thread(ColdRows, context.folder / f"{context.name}-{p}"))
        self._cold = await asyncio.shield(self._opening)  # a thread cannot be cancelled: `close` waits for it
        restored = await context.recovery.restore(self._cold, TopicPartition(context.changelog, p), context.now_ms)
        self._store = RowStore(self._parts.shape, self._parts.rules.gap_ms, context.capacity, self._cold)
        passed("open/restored")
        sessions = self._store.arm_saved()
        source = TopicPartition(topic, p)
        saved = self._cold.get(PARTITION)
        if saved is None:
            self._refuse_lost_state(await read_committed())
            self.state = PartitionState(await context.recovery.start_of(source, latest=context.starts_latest))
            await self._transact(self._copies({}), [], self.state.next_offset)  # so that "latest" is decided once
        else:
            self.state = await self._resume(saved, source, await read_committed())  # (3)
        passed("open/compared")
        self.opened_at = self.state.next_offset
        self._due = context.monotonic() + context.checkpoint_interval_s
        context.metrics.restored.labels(context.name).inc(restored)
        log.info(
            "partition opened", stream=context.name, partition=p, next_offset=self.state.next_offset,
            open_sessions=sessions, changelog_rows=restored, seconds=round(context.monotonic() - began, 3),
        )  # fmt: skip

    def _refuse_lost_state(self, committed: int | None) -> None:
        """Row and offset are written in one transaction, so an offset without a row means that rows were lost."""
        if committed is not None:
            message = (
                f"the group's offset of {self.place.topic}/{self.place.partition} is {committed}, but its saved "
                f"sessions are gone (was {self.context.changelog} deleted?); begin anew with another `app`"
            )
            raise StateError(message)

    async def _resume(self, saved: bytes, source: TopicPartition, committed: int | None) -> PartitionState:
        """The partition row as state, checked against config, group and source."""
        row = orjson.loads(saved)
        if row["format"] != _ROW_FORMAT:
            message = (
                f"a saved partition row has format {row['format']}, this version reads {_ROW_FORMAT}: upgrade offbeat"
            )
            raise StateError(message)
        where = f"{self.place.topic}/{self.place.partition}"
        if row["fingerprint"] != self.context.fingerprint:
            message = (
                f"the section of stream {self.context.name} changed in a way its saved sessions cannot follow "
                "(session, time, tokens or model); take the change back, or begin anew with another `app`"
            )
            raise StateError(message)
        state = PartitionState(row["next_offset"], row["watermark_ms"], row["records"])
        if committed is not None and committed != state.next_offset:
            message = (
                f"the group's offset of {where} is {committed}, but the saved sessions stand at {state.next_offset}: "
                "somebody reset it, and sessions cannot be rewound. Set it back to "
                f"{state.next_offset} (kafka-consumer-groups --reset-offsets), or begin anew with another `app`"
            )
            raise StateError(message)
        low, high = await self.context.recovery.bounds_of(source)
        if state.next_offset > high:
            message = (
                f"the saved sessions of {where} stand at offset {state.next_offset}, but the topic ends at {high}: it "
                "was deleted and made anew. Begin anew with another `app`"
            )
            raise StateError(message)
        if state.next_offset < low:
            log.error("records lost to retention", topic=where, first=state.next_offset, count=low - state.next_offset)
            state = PartitionState(low, state.watermark_ms, state.records)
        return state

    def start(self) -> None:
        """Begin to score what arrives in `slices`."""
        labels = (self.context.name, str(self.place.partition))
        self.context.metrics.checkpoint_age.labels(*labels).set_function(self.uncovered_s)
        self._task = asyncio.create_task(self._run())

    # --- scoring -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self.closed:
                slice_ = await self._next_slice()
                if slice_ is not None:
                    self._scoring = True
                    await self._score(slice_)
                    self._scoring = False
                if self._is_due():
                    await self.checkpoint()
                self._observe()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever it was, rows in memory can no longer be trusted
            self._on_failure(self, error)

    async def _next_slice(self) -> Slice | None:
        """The next slice, or None when a checkpoint is due before one comes."""
        if self._uncovered_since is None:
            return await self.slices.get()
        try:
            return await asyncio.wait_for(self.slices.get(), max(0.0, self._due - self.context.monotonic()))
        except TimeoutError:
            return None

    def _is_due(self) -> bool:
        store, capacity = self._opened_store(), self.context.capacity
        return self._uncovered_since is not None and (
            self.context.monotonic() >= self._due or store.changed * 2 >= capacity
        )

    async def _score(self, slice_: Slice) -> None:
        context, records = self.context, slice_.records
        events = context.decoder.decode(records, check_key=True)
        assert events.next_offset is not None, "a slice has records"
        if records[0].offset < self.state.next_offset:
            message = f"slice at {records[0].offset} lies before {self.state.next_offset}"
            raise RuntimeError(message)
        for reject in events.rejects:
            await self._send(self._emitter.dead_letter(reject, records[reject.index], context.now_ms()))
            context.metrics.dead_letters.labels(context.name, reject.error.reason).inc()
        context.metrics.records.labels(context.name).inc(len(records))
        context.metrics.tombstones.labels(context.name).inc(events.tombstones)
        more_due = False
        for piece in events.pieces(max(1, context.capacity // 2)):
            more_due = await self._score_piece(piece)
        while more_due:  # sessions beyond the first few
            more_due = await self._score_piece(events.nothing())
        context.metrics.latency.labels(context.name).observe(context.monotonic() - slice_.fetched_at)
        if slice_.highwater is not None:
            lag = max(0, slice_.highwater - self.state.next_offset)
            context.metrics.lag.labels(context.name, str(self.place.partition)).set(lag)

    async def _score_piece(self, events: Events) -> bool:
        """Score events and end some due sessions; True while more may be due."""
        store, limit = self._opened_store(), max(1, self.context.capacity // 4)
        while (done := process_slice(store, events, self.state, self._parts, limit=limit)) is None:
            await self.checkpoint()  # only settled rows can make room
            await self._settled()
        self.state = done.state
        if self._uncovered_since is None:
            self._uncovered_since = self.context.monotonic()
        verdicts, metrics, name = done.verdicts, self.context.metrics, self.context.name
        for output in self._emitter.outputs(verdicts, done.names, done.rows, self.context.now_ms()):
            await self._send(output)
        for kind, anomaly in (("record", verdicts.anomaly), ("session", verdicts.ends.anomaly)):
            alarms = int(anomaly.sum())
            metrics.verdicts.labels(name, kind, "true").inc(alarms)
            metrics.verdicts.labels(name, kind, "false").inc(len(anomaly) - alarms)
        return done.more_due

    async def _send(self, output: Output) -> None:
        self._sent.append(await self.context.send(output))

    def uncovered_s(self) -> float:
        """For how long the oldest record taken in has waited for its checkpoint; 0 when none does."""
        waiting = [since for since in (self._covering_since, self._uncovered_since) if since is not None]
        return self.context.monotonic() - min(waiting) if waiting else 0.0

    def _observe(self) -> None:
        store, labels = self._opened_store(), (self.context.name, str(self.place.partition))
        self.context.metrics.sessions.labels(*labels).set(store.open_sessions)
        self.context.metrics.hot.labels(*labels).set(len(store))

    # --- the checkpoint ------------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Step 0 here; steps 1 to 4 in a task of their own, after the one before has ended."""
        await self._settled()
        store = self._opened_store()
        copies = self._copies(store.snapshot())
        passed("checkpoint/0")
        sent, self._sent = self._sent, []
        self._covering_since, self._uncovered_since = self._uncovered_since, None
        self._due = self.context.monotonic() + self.context.checkpoint_interval_s
        self._inflight = asyncio.create_task(self._finish_checkpoint(copies, sent, self.state.next_offset))
        self._inflight.add_done_callback(self._report_failure)

    def _copies(self, changes: dict[bytes, bytes | None]) -> dict[bytes, bytes | None]:
        learned = self._parts.learned
        row = {
            "format": _ROW_FORMAT,
            "next_offset": self.state.next_offset,
            "watermark_ms": self.state.watermark_ms,
            "records": self.state.records,
            "fingerprint": self.context.fingerprint,
            "bundle": None if learned is None else learned.digest,
            "runtime": "kernel",
        }
        return {**changes, PARTITION: orjson.dumps(row)}

    async def _finish_checkpoint(
        self, copies: dict[bytes, bytes | None], sent: list[asyncio.Future[Any]], next_offset: int
    ) -> None:
        began = self.context.monotonic()
        await self._transact(copies, sent, next_offset)
        self._opened_store().settle()
        self._covering_since = None
        self.context.metrics.checkpoints.labels(self.context.name).observe(self.context.monotonic() - began)

    async def _transact(
        self, copies: dict[bytes, bytes | None], sent: list[asyncio.Future[Any]], next_offset: int
    ) -> None:
        context, producer, cold, p = self.context, self._producer, self._cold, self.place.partition
        assert producer is not None
        assert cold is not None
        async with asyncio.timeout(CHECKPOINT_TIMEOUT_S):
            await asyncio.gather(*sent)  # 1
            passed("checkpoint/1")
            await producer.begin_transaction()
            position = await _write_changelog(producer, context.changelog, p, copies)  # 2
            passed("checkpoint/2")
            offsets = {TopicPartition(self.place.topic, p): next_offset}
            await producer.send_offsets_to_transaction(offsets, context.group)  # 3
            passed("checkpoint/3-offsets-sent")
            await producer.commit_transaction()
        passed("checkpoint/3")
        cold.write(copies, position, context.now_ms())  # 4
        passed("checkpoint/4")

    async def _settled(self) -> None:
        """Wait for the checkpoint under way, if there is one; its failure is raised here too."""
        if (inflight := self._inflight) is not None:
            await asyncio.wait([inflight])  # unlike awaiting the task itself, being cancelled here leaves it running
            inflight.result()
            self._inflight = None

    def _report_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(self, error)

    # --- closing -------------------------------------------------------------------------------------------------

    async def close(self, *, save: bool) -> None:
        """Take a last checkpoint if `save`, then let go of everything: rows, RocksDB's lock, the producer."""
        if self.closed:
            return
        self.closed = True
        passed("close/begun")
        if self._scoring and self._task is not None:  # a slice cut short would be covered without its outputs
            await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)
        await _end(self._task)
        saved = False
        try:
            if save and self._store is not None and not self._scoring:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.checkpoint()
                    await self._settled()
                saved = True
                passed("close/saved")
        except Exception as error:  # what was not saved is done again by whoever opens next
            self.fenced = isinstance(error, ProducerFenced)
            name, p = self.context.name, self.place.partition
            log.warning("last checkpoint failed", stream=name, partition=p, why=repr(error))
        await _end(self._inflight)
        if self._producer is not None:
            stopping = asyncio.create_task(self._producer.stop())  # it flushes, and may wait for ever
            await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
            await _end(stopping)
        await self._close_rows()
        self.context.metrics.forget(self.context.name, self.place.partition)
        log.info(
            "partition closed", stream=self.context.name, partition=self.place.partition, saved=saved,
            next_offset=self.state.next_offset,
        )  # fmt: skip

    async def _close_rows(self) -> None:
        if self._cold is None and self._opening is not None:
            await asyncio.wait([self._opening])
            self._cold = None if self._opening.exception() is not None else self._opening.result()
        try:
            if self._cold is not None:
                self._cold.close()
        except Exception as error:  # what RocksDB could not flush (a full disk) is in the changelog
            name, p = self.context.name, self.place.partition
            log.warning("rows could not be closed", stream=name, partition=p, why=repr(error))

    def _opened_store(self) -> RowStore:
        assert self._store is not None, "open comes first"
        return self._store


async def _write_changelog(
    producer: AIOKafkaProducer, topic: str, partition: int, copies: dict[bytes, bytes | None]
) -> int:
    """Send copies in as few batches as they fit; returns the changelog offset after the last of them."""
    written: list[tuple[int, Any]] = []
    batch, count = producer.create_batch(), 0
    for key, value in copies.items():
        if batch.append(key=key, value=value, timestamp=None) is None:
            written.append((count, await producer.send_batch(batch, topic, partition=partition)))
            batch, count = producer.create_batch(), 0
            batch.append(key=key, value=value, timestamp=None)
        count += 1
    written.append((count, await producer.send_batch(batch, topic, partition=partition)))
    placed = await asyncio.gather(*(future for _, future in written))
    return max(int(at.offset) + count for (count, _), at in zip(written, placed, strict=True))


async def _end(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait for it, without hearing how it ended."""
    if task is None or task.done():
        return
    task.cancel()
    await asyncio.wait([task], timeout=STOP_TIMEOUT_S)
