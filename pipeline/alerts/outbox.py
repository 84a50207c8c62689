"""The outbox: rows in a compacted topic, a transaction for each change of them, and their index beside it.

What was read of the inputs and what is to be told are saved together, and so are what a receiver got and that it is
over. A partition's transactional id is its own: whoever opens the partition shuts out who had it before, then reads
its rows, and only then takes in or delivers anything. Whatever goes wrong with a transaction, nobody can say for sure
what became of it, so the partition is opened anew.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer
from confluent_kafka import IsolationLevel
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.alerts.clock import SteadyClock
from pipeline.alerts.index import Index
from pipeline.alerts.rows import Position, Row, Rows, encode
from pipeline.clients import Clients
from pipeline.consuming import offsets_of
from pipeline.errors import AlertError
from pipeline.health import Health
from pipeline.logs import get_logger
from pipeline.outputs import Output
from pipeline.recovery import read_changelog
from pipeline.topic_ids import TopicIds

STREAM = "alerts"  # in the place of a stream, for /ready
_COMMIT_S = 12.0  # within the transaction timeout of 15 s
_MOST_WRITES = 500  # of one transaction
_AGAIN_S = 2.0  # more than a heartbeat: a process that lost the partition without knowing learns of it first
_STOP_S = 3.0
_LONGEST_WAIT_MS = 2 * 86_400_000  # nothing waits for longer, but where a clock was wrong when its row was written
_POSITION = (Position.KIND,)

log = get_logger()


class StaleBookError(Exception):
    """The partition is not open any more, or was opened anew: what was to be written is not."""


@dataclass(frozen=True)
class OutboxTopics:
    """The outbox, what is read, the dead letters, and how transactional ids begin."""

    outbox: str
    inputs: tuple[str, ...]
    dead_letters: str
    group: str
    starts_latest: frozenset[str]  # of the inputs, those that begin at their end


@dataclass(frozen=True)
class _Write:
    rows: Rows
    letters: Sequence[Output]
    done: asyncio.Future[None]


@dataclass
class Book:
    """One opening of a partition of the outbox: whatever is written through it, in order, in few transactions."""

    partition: int
    topics: OutboxTopics
    index: Index
    producer: AIOKafkaProducer
    position: Position
    changed: Callable[[], None]
    is_stale: bool = False
    _writes: list[_Write] = field(default_factory=list)
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, rows: Iterable[Row] | Rows, letters: Sequence[Output] = ()) -> None:
        """Write rows and dead letters, all or nothing; once it returns they are there, and in the index.

        Raises
        ------
        StaleBookError
            They may be there or not; a later opening knows.
        """
        if self.is_stale:
            raise StaleBookError
        encoded = dict(rows) if isinstance(rows, Mapping) else dict(map(encode, rows))
        write = _Write(encoded, letters, asyncio.get_running_loop().create_future())
        self._writes.append(write)
        self._wanted.set()
        await write.done

    async def keep_writing(self) -> Exception:
        """Commit what is wanted, all of it that has gathered at once, until that fails; returns why."""
        while True:
            await self._wanted.wait()
            writes, self._writes = self._writes[:_MOST_WRITES], self._writes[_MOST_WRITES:]
            if not self._writes:
                self._wanted.clear()
            try:
                async with asyncio.timeout(_COMMIT_S):
                    await self._commit(writes)
                for write in writes:
                    self._take(self.index.apply(self.partition, write.rows.items()))
            except Exception as error:  # whatever it is: what became of the transaction is not known
                self.close(writes)
                return error
            except asyncio.CancelledError:  # whoever waits for these must not wait for ever
                self.close(writes)
                raise
            for write in writes:
                if not write.done.done():
                    write.done.set_result(None)
            self.changed()

    def close(self, writes: Iterable[_Write] = ()) -> None:
        """Take no more, and say of what waits that it was not written."""
        self.is_stale = True
        for write in [*writes, *self._writes]:
            if not write.done.done():
                write.done.set_exception(StaleBookError())
                write.done.exception()  # who asked may be gone
        self._writes = []

    def _take(self, others: Mapping[tuple[str, ...], Row]) -> None:
        position = others.get(_POSITION)
        if isinstance(position, Position):
            self.position = position

    async def _commit(self, writes: Sequence[_Write]) -> None:
        await self.producer.begin_transaction()
        sent = []
        for write in writes:
            for key, value in write.rows.items():
                sent.append(await self.producer.send(self.topics.outbox, value, key=key, partition=self.partition))
            for letter in write.letters:
                sent.append(
                    await self.producer.send(
                        self.topics.dead_letters, letter.value, key=letter.key, headers=letter.headers
                    )
                )
        await asyncio.gather(*sent)
        await self.producer.commit_transaction()


class Outbox:
    """The partitions that this process holds, each opened, and opened anew where something failed.

    Parameters
    ----------
    changed
        Is called when something may be due that was not before.
    fault
        Is given what opening anew cannot help: the index cannot be written, say.
    """

    def __init__(
        self, topics: OutboxTopics, clients: Clients, index: Index, health: Health, clock: SteadyClock,
        changed: Callable[[], None], fault: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self.topics, self.index = topics, index
        self._clients, self._health, self._clock, self._changed = clients, health, clock, changed
        self._fault = fault
        self._topic_ids = TopicIds(clients)
        self._admin: AdminClient = clients.unchecked_admin()
        self._books: dict[int, Book] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._opened = asyncio.Condition()

    # --- what is assigned ----------------------------------------------------------------------------------------

    async def assign(self, partitions: Iterable[int]) -> None:
        """Hold these partitions from now on, and no others; they open beside the caller."""
        wanted = set(partitions)
        self._health.assigned((STREAM, p) for p in wanted)
        await self._let_go(set(self._tasks) - wanted)
        for partition in sorted(wanted - set(self._tasks)):
            task = self._tasks[partition] = asyncio.create_task(self._hold(partition))
            task.add_done_callback(self._ended)

    async def revoke(self) -> None:
        """Hold none, until the next assignment."""
        self._health.revoked()
        await self._let_go(set(self._tasks))

    async def book(self, partition: int) -> Book:
        """The open book of a partition; waits while it is being opened.

        Raises
        ------
        StaleBookError
            The partition is not ours.
        """
        while True:
            if (book := self.book_now(partition)) is not None:
                return book
            if partition not in self._tasks:
                raise StaleBookError
            async with self._opened:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._opened.wait(), 1.0)

    def book_now(self, partition: int) -> Book | None:
        """The same, None where it is not open now."""
        book = self._books.get(partition)
        return None if book is None or book.is_stale else book

    @property
    def books(self) -> list[Book]:
        """All that are open."""
        return [book for book in self._books.values() if not book.is_stale]

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault(error)

    async def _let_go(self, partitions: set[int]) -> None:
        tasks = [self._tasks.pop(p) for p in partitions]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- one partition -------------------------------------------------------------------------------------------

    async def _hold(self, partition: int) -> None:
        """Open a partition, write to it until that fails, and again."""
        while True:
            producer = self._clients.transactional_producer(f"{self.topics.group}/{partition}")
            try:
                why: Exception = await self._open_and_write(partition, producer)
                if isinstance(why, sqlite3.Error):
                    raise why
            except sqlite3.Error as error:
                message = (
                    f"the index of alerts cannot be used ({error}); it lies in data_dir and is made anew at each "
                    "start: see to its disk, then start alerts again"
                )
                raise AlertError(message) from error
            except Exception as error:  # the broker is away, most often
                why = error
            finally:
                self._health.closed(STREAM, partition)
                if (book := self._books.pop(partition, None)) is not None:
                    book.close()
                self.index.forget(partition)
                await _stop(producer)
            self._admin = self._clients.unchecked_admin()  # the old one asks by leaders' epochs before an outage
            log.warning("outbox is opened anew", topic=self.topics.outbox, partition=partition, why=repr(why)[:300])
            await asyncio.sleep(_AGAIN_S)

    async def _open_and_write(self, partition: int, producer: AIOKafkaProducer) -> Exception:
        self._health.recovering(STREAM, partition, 0, 0)
        await producer.start()  # shuts out who had it before, and ends their transaction
        known = await self._restore(partition)
        position = await self._checked(partition, known)
        book = Book(partition, self.topics, self.index, producer, position, self._changed)
        writing = asyncio.create_task(book.keep_writing())
        try:
            if position != known:
                await book.write([position])
            self._books[partition] = book
            self.index.show(partition)
            self._health.opened(STREAM, partition)
            log.info("outbox opened", topic=self.topics.outbox, partition=partition, position=position.next)
            async with self._opened:
                self._opened.notify_all()
            self._changed()
            return await asyncio.shield(writing)
        finally:
            book.close()
            writing.cancel()
            await asyncio.wait([writing])

    async def _restore(self, partition: int) -> Position:
        """Read the partition's rows into the index."""
        topic, loop = self.topics.outbox, asyncio.get_running_loop()
        low = await self._offset(topic, partition, OffsetSpec.earliest())
        high = await self._offset(topic, partition, OffsetSpec.latest())
        stopped, position, rows = threading.Event(), Position({}, 0), 0
        latest_ms = self._clock.now_ms() + _LONGEST_WAIT_MS
        batches = read_changelog(self._clients, At(topic, partition, low), high, stopped)
        work: asyncio.Future[Any] | None = None
        try:
            while True:
                work = loop.run_in_executor(None, next, batches, None)
                found = await asyncio.shield(work)
                if found is None:
                    return position
                others = self.index.apply(partition, ((m.key(), m.value()) for m in found[1]), latest_ms)
                if isinstance(row := others.get(_POSITION), Position):
                    position = row
                rows += len(found[1])
                self._health.recovering(STREAM, partition, rows, max(rows, high - low))
        finally:  # a thread cannot be cancelled, and it must be done with its consumer
            stopped.set()
            if work is not None and not work.done():
                await asyncio.wait([work])
            batches.close()  # type: ignore[attr-defined] # it is a generator

    async def _checked(self, partition: int, known: Position) -> Position:
        """Where reading goes on: topics may be new here, made anew, or cut by retention."""
        places = dict[str, tuple[int, str]]()
        for topic in self.topics.inputs:
            topic_id = await self._topic_ids.id_of(topic)
            low = await self._offset(topic, partition, OffsetSpec.earliest())
            high = await self._offset(topic, partition, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)
            at, id_then = known.next.get(topic, (high if topic in self.topics.starts_latest else low, topic_id))
            if id_then != topic_id or at > high:
                log.warning(
                    "alerts read a topic from its start, for it was made anew", topic=topic, partition=partition
                )
                at = low
            elif at < low:
                log.error(
                    "changes are gone that nobody was told of", topic=topic, partition=partition, offsets=low - at
                )
                at = low
            places[topic] = (at, topic_id)
        return Position(places, known.seq)

    async def _offset(
        self, topic: str, partition: int, spec: OffsetSpec, isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED
    ) -> int:
        found = await asyncio.to_thread(offsets_of, self._admin, [At(topic, partition)], spec, isolation)
        return found[partition]


async def _stop(producer: AIOKafkaProducer) -> None:
    """Disconnect, bounded in time."""
    await asyncio.wait([asyncio.ensure_future(producer.stop())], timeout=_STOP_S)
