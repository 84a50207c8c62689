"""What this worker holds of a source partition: the producer that fences, the rows, and how they are saved.

The checkpoint, taken between two slices after record X:

0. Copy the changed rows and the partition row as they stand after X (`pipeline/partition.py`).
1. Wait until the outputs of all records up to X are acknowledged.
2. Write the copies to the changelog.
3. Make X + 1 the group's offset. 2 and 3 are one Kafka transaction; with `exactly_once` the outputs are in it too.
4. Write the copies and the changelog position to RocksDB, in one batch.

A step that fails leaves nothing durable ahead of its offset.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer, TopicPartition

from detectors.kept import Kept
from detectors.online import OnlineState
from detectors.rows import PartitionState
from pipeline.cold_rows import PARTITION, Changes, ColdRows
from pipeline.context import StreamContext
from pipeline.drift import MAX_NAMED, Kind
from pipeline.errors import DamagedStateError, StaleStateError, StateError
from pipeline.failpoints import passed
from pipeline.kept_rows import PREFIX as KEPT
from pipeline.kept_rows import KeptRows, decode_kept
from pipeline.loading import Served
from pipeline.logs import get_logger
from pipeline.online_rows import PREFIX, OnlineRows, decode_online
from pipeline.outputs import Output, Place
from pipeline.partition_row import PartitionRow, decode_partition_row
from pipeline.recovery import Replay
from pipeline.store import RowStore, Snapshot

CHECKPOINT_TIMEOUT_S = 12.0  # within the transaction timeout of 15 s
_STOP_TIMEOUT_S = 2.0

T = TypeVar("T")

log = get_logger()


@dataclass(frozen=True)
class Finding:
    """Why a partition does not simply go on after record X, and where it goes on instead.

    Attributes
    ----------
    kind
        As in the drift message: topic_recreated, offset_reset, records_lost, sessions_lost.
    anew
        Whether all its sessions close first, because their input is over.
    amount
        Of sessions or records.
    topic_id
        The topic's now. The partition row keeps the old one until all sessions are closed, so that a crash meanwhile
        leads here again.
    """

    kind: Kind
    offset: int
    anew: bool
    amount: int
    detail: str
    topic_id: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Copies:
    """What one checkpoint saves.

    Attributes
    ----------
    sent
        Outputs on their way (at least once).
    outputs
        Outputs to be sent within the transaction (exactly once).
    committed
        The group's offset.
    online
        What was learned online.
    kept
        What detectors remember.
    """

    snapshot: Snapshot
    row: PartitionRow
    committed: int
    online: OnlineState | None = None
    sent: tuple[asyncio.Future[Any], ...] = ()
    outputs: tuple[Output, ...] = ()
    kept: Mapping[str, Kept] = field(default_factory=dict)

    @property
    def changes(self) -> dict[bytes, bytes | None]:
        """Rows by key, the partition row included."""
        return {**self.snapshot.rows, PARTITION: self.row.encode()}


class Holding:
    """Made for one opening; it may outlive rebalances that give the partition back, until its producer is fenced.

    Attributes
    ----------
    row, online, kept
        The partition row, what was learned online and what detectors remember, as last saved.
    findings
        Set by `open` where something has happened to the topic or the rows.
    damaged
        Set once rows on disk were found damaged: `release` deletes them, and the next opening reads the changelog.
    """

    def __init__(self, context: StreamContext, place: Place) -> None:
        self.context, self.place = context, place
        self.parts = context.make_parts(None)  # shape and rules; `serve` follows when it is known what was in force
        self.served: Served
        self.judged_to = 0  # a predecessor that crashed may have judged what lies before
        self.store: RowStore
        self.row: PartitionRow
        self.online: OnlineState | None = None
        self.kept: Mapping[str, Kept] = {}
        self._online_rows, self._kept_rows = OnlineRows({}), KeptRows({})
        self.findings: list[Finding] = []
        self.replayed = 0
        self.damaged = False
        self._producer: AIOKafkaProducer | None = None
        self._working: asyncio.Future[Any] | None = None
        self._cold: ColdRows | None = None

    @property
    def state(self) -> PartitionState:
        """What scoring begins with."""
        row = self.row
        return PartitionState(
            row.next_offset, row.watermark_ms, row.records, row.recent_ids, row.schema, self.online, row.rescoring,
            row.explaining, row.absolved, row.decided, row.keeper, self.kept,
        )  # fmt: skip

    @property
    def cold(self) -> ColdRows:
        """The opened RocksDB."""
        assert self._cold is not None, "open comes first"
        return self._cold

    # --- taking over ---------------------------------------------------------------------------------------------

    async def open(
        self, read_committed: Callable[[], Awaitable[int | None]], watch: Callable[[Replay], None], *, rebuild: bool
    ) -> None:
        """Take the partition over.

        The order matters: (1) fence the predecessor, so that nothing more can change; (2) restore the rows; (3) only
        now read the group's offset, with `read_committed`, and compare it.

        Raises
        ------
        StateError
            What was saved does not fit the config, the topic or the group's offset.
        """
        context, topic, p = self.context, self.place.topic, self.place.partition
        # (1) ends the predecessor's transaction and shuts it out
        self._producer = context.make_producer(f"{context.group}/{context.name}/{p}")
        await self._producer.start()
        passed("open/fenced")
        # (2)
        try:
            replay = await self._restore(watch, rebuild=rebuild)
        except DamagedStateError:
            self.damaged = True
            raise
        passed("open/restored")
        # (3)
        topic_id = await context.topic_ids.id_of(topic)
        low, high = await context.recovery.bounds_of(topic, p)
        lost = sorted(replay.damaged)
        is_new = self.cold.get(PARTITION) is None
        await self._compare(topic_id, low, high, await read_committed(), lost, rebuilt=rebuild)
        self.judged_to = 0 if is_new or self.row.complete else high
        self._load_online(rebuilt=rebuild)
        self._load_kept(rebuilt=rebuild)
        self.store.open_sessions = self.row.sessions
        passed("open/compared")

    async def _restore(self, watch: Callable[[Replay], None], *, rebuild: bool) -> Replay:
        context, rules = self.context, self.parts.rules
        cold = self._cold = await self._in_thread(lambda: ColdRows(self._folder, context.memory))
        self.store = RowStore(self.parts.shape, rules, context.capacity, cold)
        replay = await context.recovery.restore(
            cold, context.changelog, self.place.partition, self.store.format, rules.lead_ms, watch, rebuild=rebuild
        )
        self.replayed = replay.rows
        return replay

    def _load_online(self, *, rebuilt: bool) -> None:
        """What was learned online; rows of it that no longer count go with the next checkpoint."""
        saved = self.cold.beginning_with(PREFIX)
        self._online_rows = OnlineRows(saved)
        if not self.parts.learns_online:
            return
        try:
            self.online = decode_online(saved, self.parts.online, len(self.parts.number_fields))
        except DamagedStateError as error:
            if not rebuilt:
                raise
            log.warning("what was learned online begins anew", where=self._where, why=str(error)[:300])

    def _load_kept(self, *, rebuilt: bool) -> None:
        """What detectors remember; a row of one that there is not any more goes with the next checkpoint."""
        saved = self.cold.beginning_with(KEPT)
        self._kept_rows = KeptRows(saved)
        try:
            self.kept = decode_kept(saved)
        except DamagedStateError as error:
            if not rebuilt:
                raise
            log.warning("what detectors remembered begins anew", where=self._where, why=str(error)[:300])

    async def resume(self, read_committed: Callable[[], Awaitable[int | None]]) -> None:
        """Take up what was kept over a rebalance, if nobody has opened the partition meanwhile.

        Raises
        ------
        ProducerFenced
            Somebody has.
        StaleStateError
            The group's offset has moved, or the topic was made anew.
        """
        topic_id, committed = await self.context.topic_ids.id_of(self.place.topic), await read_committed()
        if (topic_id, committed) != (self.row.topic_id, self.row.next_offset):
            message = f"the kept rows of {self._where} stand at {self.row.next_offset}, the group at {committed}"
            raise StaleStateError(message)
        self.row = replace(self.row, complete=False)
        await self._save_row()  # fails where we were fenced

    def serve(self, served: Served) -> None:
        """Judge by this bundle from now on; the caller sees to it that the row says so."""
        self.served, self.parts = served, self.context.make_parts(served.learned)

    async def erase(self, names: Sequence[str]) -> None:
        """Leave nothing of deleted sessions in RocksDB's files."""
        await self._in_thread(lambda: self.cold.erase(names))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do what may take long; `release` waits for it, since a thread cannot be cancelled."""
        self._working = asyncio.ensure_future(asyncio.to_thread(work))
        return await asyncio.shield(self._working)

    @property
    def _folder(self) -> Path:
        return self.context.rows_of(self.place.partition)

    @property
    def _where(self) -> str:
        return f"{self.place.topic}/{self.place.partition}"

    async def _compare(
        self, topic_id: str, low: int, high: int, committed: int | None, lost: list[str], *, rebuilt: bool
    ) -> None:
        """Find out where to go on: what was saved, against topic and group."""
        context, saved = self.context, self.cold.get(PARTITION)
        if saved is None:
            start = self._start_anew(committed, low, high)
            self.serve(context.promotions.current(context.name))
            self.row = PartitionRow(
                next_offset=start, watermark_ms=-1, records=0, sessions=0, fingerprint=context.fingerprint,
                bundle=self.served.digest, runtime=self.served.runtime, topic_id=topic_id, epoch=0,
                controls=context.controls.end,
            )  # fmt: skip
            await self._save_row()  # so that "latest" is decided once
            return
        try:
            self.row = decode_partition_row(saved)
        except DamagedStateError:
            if not rebuilt:
                raise
            message = f"what is saved of {self._where} is damaged in the changelog too; begin anew with another `app`"
            raise StateError(message) from None
        self._refuse_other_section()
        self.serve(await context.promotions.in_force(context.name, self.row.bundle))
        self.row = replace(self.row, bundle=self.served.digest, runtime=self.served.runtime)
        if lost:
            self.row = replace(self.row, sessions=self.row.sessions - len(lost))
            self.store.forget(lost)
            detail = (
                f"the rows of {len(lost)} sessions of {self._where} are damaged in the changelog too; they begin anew"
            )
            self.findings.append(
                Finding(
                    "sessions_lost", self.row.next_offset, False, len(lost), detail, topic_id, tuple(lost[:MAX_NAMED])
                )
            )
        if (finding := self._find(topic_id, low, high, committed)) is not None:
            self.findings.append(finding)

    def _start_anew(self, committed: int | None, low: int, high: int) -> int:
        """Where to begin without rows. Row and offset are saved together: an offset without a row means a loss."""
        if committed is None:
            return high if self.context.starts_latest else low
        if self.context.accepts_reset:
            return min(max(committed, low), high)
        message = (
            f"the group's offset of {self._where} is {committed}, but its saved sessions are gone (was "
            f"{self.context.changelog} deleted?); go on there without them by `offbeat worker --accept-reset`, or "
            "begin anew with another `app`"
        )
        raise StateError(message)

    def _refuse_other_section(self) -> None:
        if self.row.fingerprint != self.context.fingerprint:
            message = (
                f"the section of stream {self.context.name} changed in a way its saved sessions cannot follow "
                "(session, time, fields, how they are read or masked, model or state.ttl); take the change back, or "
                "begin anew with another `app`"
            )
            raise StateError(message)

    def _find(self, topic_id: str, low: int, high: int, committed: int | None) -> Finding | None:
        """What happened to the topic or to the group's offset since the row was saved; None: nothing."""
        at, sessions, where = self.row.next_offset, self.row.sessions, self._where
        if topic_id != self.row.topic_id:
            detail = f"{where} was deleted and made anew; its {sessions} open sessions close, and it is read from {low}"
            return Finding("topic_recreated", low, True, sessions, detail, topic_id)
        moved = committed is not None and committed != at
        if (moved or at > high) and self.context.accepts_reset:
            start = min(max(at if committed is None else committed, low), high)
            detail = f"{where} was set from {at} to {start}; its {sessions} open sessions close"
            return Finding("offset_reset", start, True, sessions, detail, topic_id)
        if moved:
            message = (
                f"the group's offset of {where} is {committed}, but the saved sessions stand at {at}: somebody reset "
                f"it, and sessions cannot be rewound. Set it back to {at} (kafka-consumer-groups --reset-offsets), or "
                "close all sessions and go on from there by `offbeat worker --accept-reset`"
            )
            raise StateError(message)
        if at > high:
            message = (
                f"the saved sessions of {where} stand at offset {at}, but the topic ends at {high}: it has lost its "
                "end. Close all sessions and go on from there by `offbeat worker --accept-reset`"
            )
            raise StateError(message)
        if at < low:
            detail = f"{low - at} records of {where}, from offset {at} on, were deleted before they were read"
            return Finding("records_lost", low, False, low - at, detail, topic_id)
        return None

    # --- the checkpoint ------------------------------------------------------------------------------------------

    async def save(self, copies: Copies) -> None:
        """Steps 1 to 4."""
        context, producer, cold = self.context, self._producer, self.cold
        assert producer is not None, "open comes first"
        of_online = self._online_rows.changes(copies.online, self.parts.online)
        changes = {**copies.changes, **of_online, **self._kept_rows.changes(copies.kept)}
        async with asyncio.timeout(CHECKPOINT_TIMEOUT_S):
            await asyncio.gather(*copies.sent)  # 1
            passed("checkpoint/1")
            await producer.begin_transaction()
            sent = [await self._send_within(producer, output) for output in copies.outputs]
            position = await _write_changelog(producer, context.changelog, self.place.partition, changes)  # 2
            await asyncio.gather(*sent)
            passed("checkpoint/2")
            offsets = {TopicPartition(self.place.topic, self.place.partition): copies.committed}
            await producer.send_offsets_to_transaction(offsets, context.group)  # 3
            passed("checkpoint/3-offsets-sent")
            await producer.commit_transaction()
        passed("checkpoint/3")
        snapshot = copies.snapshot
        cold.write(changes, position, context.now_ms(), snapshot.timers, snapshot.void_timers)  # 4
        self.row, self.online, self.kept = copies.row, copies.online, copies.kept
        self._kept_rows.settle(copies.kept)
        self._online_rows.settle(copies.online, of_online)
        passed("checkpoint/4")

    async def _save_row(self) -> None:
        await self.save(Copies(Snapshot(), self.row, self.row.next_offset, online=self.online, kept=self.kept))

    async def _send_within(self, producer: AIOKafkaProducer, output: Output) -> asyncio.Future[Any]:
        topic = self.context.output_topic(output.topic)
        future: asyncio.Future[Any] = await producer.send(topic, output.value, key=output.key, headers=output.headers)
        return future

    # --- letting go ----------------------------------------------------------------------------------------------

    async def release(self) -> None:
        """Let go of everything: rows, RocksDB's lock, the producer. Never raises."""
        if self._producer is not None:
            await _stop(self._producer)
        if self._working is not None:
            await asyncio.wait([self._working])
            if self._cold is None and self._working.exception() is None:
                self._cold = self._working.result()  # opened after nobody waited for it any more
        try:
            if self._cold is not None:
                await asyncio.to_thread(self._cold.close)
            if self.damaged:
                await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        except Exception as error:  # what RocksDB could not flush (a full disk) is in the changelog
            log.warning("rows could not be closed", where=self._where, why=repr(error)[:300])


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stop a producer, which flushes and so may wait for ever, in bounded time."""
    stopping = asyncio.create_task(producer.stop())
    await asyncio.wait([stopping], timeout=_STOP_TIMEOUT_S)
    if not stopping.done():
        await end_task(stopping)
        hanging = asyncio.create_task(producer.client.close())  # what a cancelled stop leaves open
        await asyncio.wait([hanging], timeout=_STOP_TIMEOUT_S)


async def _write_changelog(producer: AIOKafkaProducer, topic: str, partition: int, changes: Changes) -> int:
    """Send rows in as few batches as they fit; returns the changelog offset after the last of them."""
    written: list[tuple[int, Any]] = []
    batch, count = producer.create_batch(), 0
    for key, value in changes.items():
        if batch.append(key=key, value=value, timestamp=None) is None:
            written.append((count, await producer.send_batch(batch, topic, partition=partition)))
            batch, count = producer.create_batch(), 0
            batch.append(key=key, value=value, timestamp=None)
        count += 1
    written.append((count, await producer.send_batch(batch, topic, partition=partition)))
    placed = await asyncio.gather(*(future for _, future in written))
    return max(int(at.offset) + count for (count, _), at in zip(written, placed, strict=True))


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait for it, without hearing how it ended."""
    if task is None or task.done():
        return
    task.cancel()
    await asyncio.wait([task], timeout=_STOP_TIMEOUT_S)
