"""Standbys: RocksDBs kept in step with the changelogs of partitions that other workers score.

A worker that takes such a partition over replays only what came last. All of it happens in one thread with one
consumer, apart from scoring.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as At
from faust.types import TP

from pipeline.clients import Clients
from pipeline.cold_rows import ColdRows
from pipeline.context import StreamContext
from pipeline.errors import DamagedStateError
from pipeline.log_bounds import log_bounds
from pipeline.logs import get_logger
from pipeline.recovery import Polled, is_in_step, poll
from pipeline.row_format import RowFormat

_POLL_S = 0.2
_PAUSE_S = 1.0
_RELEASE_TIMEOUT_S = 10.0

log = get_logger()


class _Standby:
    """One followed partition."""

    def __init__(self, context: StreamContext, partition: int) -> None:
        parts = context.make_parts(None)
        self.context, self.partition = context, partition
        self._rows, self._lead_ms = RowFormat(parts.shape), parts.rules.lead_ms
        self.cold = ColdRows(context.rows_of(partition), context.memory)

    def write(self, polled: Polled) -> None:
        changes: dict[bytes, bytes | None] = {m.key(): m.value() for m in polled.messages}
        in_step_ms = self.context.now_ms() if polled.at_end else None
        self.cold.replay(changes, polled.position, in_step_ms, self._first_due_ms)

    def start(self, low: int, high: int) -> int:
        """Where to read on; a database that cannot follow from where it stands begins from nothing."""
        changelog_id = self.context.topic_ids.ask(self.context.changelog)
        if not is_in_step(self.cold, changelog_id, low, high, self.context.now_ms()):
            self.cold.begin(changelog_id)
        return max(self.cold.position, low)

    def _first_due_ms(self, row: bytes) -> int:
        return self._rows.first_ms(row) + self._lead_ms


class Standbys:
    """The standbys of a worker.

    Parameters
    ----------
    contexts
        By source topic.
    """

    def __init__(self, contexts: dict[str, StreamContext], clients: Clients) -> None:
        self._contexts, self._clients = contexts, clients
        self._wanted: frozenset[TP] = frozenset()
        self._open: dict[TP, _Standby] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def followed(self) -> frozenset[TP]:
        """Partitions whose RocksDB is open here and follows."""
        return frozenset(self._open)

    async def follow(self, tps: set[TP]) -> None:
        """Follow these and no others."""
        for tp in self._wanted - tps:
            await self.release(tp)
        self._wanted = frozenset(tps)
        if self._wanted and self._thread is None:
            self._stopped = False
            self._thread = threading.Thread(target=self._run, name="standbys", daemon=True)
            self._thread.start()

    async def release(self, tp: TP) -> None:
        """Follow it no more; returns when its RocksDB is closed and can be opened by others."""
        await asyncio.to_thread(self._release, frozenset({tp}))

    async def stop(self) -> None:
        """Follow none any more."""
        self._stopped = True
        await asyncio.to_thread(self._release, self._wanted)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _RELEASE_TIMEOUT_S)
            self._thread = None

    def _release(self, tps: frozenset[TP]) -> None:
        with self._changed:
            self._wanted -= tps
            self._changed.wait_for(lambda: not tps & self._open.keys(), _RELEASE_TIMEOUT_S)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            consumer = self._clients.changelog_consumer()
            try:
                while not self._stopped:
                    self._match(consumer)
                    self._advance(consumer)
            except Exception as error:  # the broker is away, or a changelog is: try again, from what is saved
                log.warning("standbys cannot follow", why=repr(error)[:300])
                time.sleep(_PAUSE_S)
            finally:
                for tp in list(self._open):
                    self._close(tp)
                consumer.close()

    def _match(self, consumer: Consumer) -> None:
        """Open and close what has come and gone, and have the consumer read that."""
        wanted = self._wanted
        gone, new = self._open.keys() - wanted, wanted - self._open.keys()
        if not gone and not new:
            return
        positions = {(at.topic, at.partition): at.offset for at in consumer.position(consumer.assignment())}
        for tp in gone:
            self._close(tp)
        for tp in new:
            with self._changed:
                if tp in self._wanted:  # it may have been released just now
                    self._open[tp] = self._open_one(tp)
        consumer.assign([self._start(consumer, tp, positions) for tp in self._open])
        log.info("standbys", partitions=sorted(f"{tp.topic}/{tp.partition}" for tp in self._open))

    def _open_one(self, tp: TP) -> _Standby:
        try:
            return _Standby(self._contexts[tp.topic], tp.partition)
        except DamagedStateError as error:
            self._begin_from_nothing(tp, error)
            return _Standby(self._contexts[tp.topic], tp.partition)

    def _begin_from_nothing(self, tp: TP, error: DamagedStateError) -> None:
        log.warning("standby begins from nothing", topic=tp.topic, partition=tp.partition, why=str(error)[:300])
        shutil.rmtree(self._contexts[tp.topic].rows_of(tp.partition), ignore_errors=True)

    def _start(self, consumer: Consumer, tp: TP, positions: dict[tuple[str, int], int]) -> At:
        """Where to read on: a new one may have to begin from nothing."""
        standby = self._open[tp]
        at = At(standby.context.changelog, tp.partition)
        if positions.get((at.topic, at.partition), -1) < 0:
            at.offset = standby.start(*log_bounds(consumer, at.topic, at.partition))
        else:
            at.offset = positions[at.topic, at.partition]
        return at

    def _advance(self, consumer: Consumer) -> None:
        if not self._open:
            time.sleep(_POLL_S)
            return
        found = poll(consumer)
        for tp, standby in list(self._open.items()):
            polled = found.get((standby.context.changelog, tp.partition))
            if polled is not None:
                self._write(tp, standby, polled)

    def _write(self, tp: TP, standby: _Standby, polled: Polled) -> None:
        try:
            standby.write(polled)
        except DamagedStateError as error:
            self._close(tp)
            self._begin_from_nothing(tp, error)
            raise

    def _close(self, tp: TP) -> None:
        try:
            self._open[tp].cold.close()
        except Exception as error:  # what RocksDB could not flush (a full disk) is in the changelog
            log.warning("rows could not be closed", topic=tp.topic, partition=tp.partition, why=repr(error)[:300])
        with self._changed:
            del self._open[tp]
            self._changed.notify_all()
