"""Faust over slices: one Faust event for all records that one fetch brought for one partition.

Faust hands over a record in 50 to 75 us; a slice costs the same and holds thousands. This is a thin subclass of
Faust's aiokafka driver. `tests/pipeline/test_transport.py` names each method we override and fails when an upgrade
changes one. What we change, and why:

- `getmany` yields one message a slice, marked with the opening of the partition it was fetched for.
- Faust's offset bookkeeping counts single records and would commit past unprocessed ones, so it never sees a slice's:
  `_read_offset` ignores them, `ack` only releases the message, `_new_offset` has nothing to commit. Only our
  checkpoint commits.
- `perform_seek` opens partitions: Faust's recovery calls it after every assignment, before flow resumes and outside
  the rebalance callback, so heartbeats go on meanwhile.
- revoke and stop close partitions, after Faust has stopped the flow and before the group is left.
- the worker's consumer comes from our factory: static membership, read_committed, no reset of offsets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import faust
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from pipeline.assignment import Assignment
from pipeline.clients import Clients
from pipeline.partition import Slice, StreamContext
from pipeline.recovery import Recovery

SESSION_TIMEOUT_S = 10.0  # a dead worker's partitions go to others after that; heartbeats come eight times as often
MAX_POLL_RECORDS = 4_000  # a slice at most: about 20 ms of scoring, so that the event loop breathes
_FETCH_WAIT_S = 0.2


class SliceApp(faust.App):
    """A Faust app whose listed topics come as slices.

    Parameters
    ----------
    contexts
        By source topic, what its partitions share.
    """

    def __init__(
        self, identity: str, *, contexts: dict[str, StreamContext], clients: Clients, recovery: Recovery, instance: str,
        start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]], **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(identity, **options)
        self.contexts, self.clients, self.recovery, self.instance = contexts, clients, recovery, instance
        self.start_clients, self.stop_clients = start, stop

    def _new_transport(self) -> Any:
        return SliceTransport(self.conf.broker_consumer, self)


class SliceThread(driver.AIOKafkaConsumerThread):
    """The consumer's thread: makes the consumer, and notes when heartbeats are answered."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        app = self.app
        return app.clients.group_consumer(
            group=app.conf.id, instance=app.instance, assignors=[RoundRobinPartitionAssignor],
            session_timeout_ms=int(SESSION_TIMEOUT_S * 1000), max_poll_records=MAX_POLL_RECORDS,
        )  # fmt: skip

    async def on_start(self) -> None:
        """Start, then listen to the coordinator's heartbeats."""
        await super().on_start()
        coordinator, assignment = self._consumer._coordinator, self.consumer.assignment_of_slices  # noqa: SLF001
        heartbeat = coordinator._do_heartbeat  # noqa: SLF001 (the only way to learn of heartbeats)

        async def noted_heartbeat() -> bool:
            left = time.monotonic()
            answered: bool = await heartbeat()
            if answered:
                assignment.heartbeat_at = max(assignment.heartbeat_at, left)
            return answered

        coordinator._do_heartbeat = noted_heartbeat  # noqa: SLF001


class _ReadOffsets(dict[TP, int | None]):
    """Faust drops what lies below a read offset, and sets it late: never for slices."""

    def __init__(self, slice_topics: frozenset[str]) -> None:
        super().__init__()
        self._slice_topics = slice_topics

    def __missing__(self, tp: TP) -> None:
        return None

    def __setitem__(self, tp: TP, offset: int | None) -> None:
        if tp.topic not in self._slice_topics:
            super().__setitem__(tp, offset)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for tp, offset in dict(*args, **kwargs).items():
            self[tp] = offset


class SliceConsumer(driver.Consumer):
    """Hands out slices of opened partitions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = _ReadOffsets(frozenset(self.app.contexts))
        self._fetching = asyncio.Lock()  # held while a fetch is under way
        self.assignment_of_slices = Assignment(
            self.app.contexts, self.app.start_clients, self._generation, self._committed, self._seek_slice
        )

    def _new_consumer_thread(self) -> SliceThread:
        return SliceThread(self, loop=self.loop, beacon=self.beacon)

    def _is_slice(self, tp: TP) -> bool:
        return tp.topic in self.app.contexts

    # --- what the assignment asks of us --------------------------------------------------------------------------

    def _generation(self) -> int | None:
        generation: int = self.app.consumer_generation_id
        coordinator = self._thread._consumer._coordinator  # noqa: SLF001
        return generation if generation == coordinator.generation else None

    async def _committed(self, tp: TP) -> int | None:
        consumer = self._thread._consumer  # noqa: SLF001
        found: int | None = await self._thread.call_thread(consumer.committed, TopicPartition(*tp))
        return found

    async def _seek_slice(self, tp: TP, offset: int, enter: Callable[[], None]) -> None:
        async with self._fetching:  # what is fetched after this lock is fetched for the new opening
            enter()
            await self.seek_wait({tp: offset})

    # --- Faust's side --------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Open the slice partitions of a new assignment."""
        generation = self.app.consumer_generation_id
        slices = self.assignment_of_slices
        slices.heartbeat_at = max(slices.heartbeat_at, time.monotonic())  # the join was answered, as a heartbeat is
        await slices.open_all([tp for tp in self.assignment() if self._is_slice(tp)], generation)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Fetch, and yield one message for each partition that has records."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # outside the lock
        async with self._fetching:
            opened = dict(
                self.assignment_of_slices.partitions
            )  # before the fetch: one opened meanwhile gets none of it
            if not self.flow_active or self.should_stop:
                return
            records, _ = await self._wait_next_records(_FETCH_WAIT_S)
        fetched_at = time.monotonic()
        for tp, batch in (records or {}).items():
            partition = opened.get(tp)
            if partition is None or partition.closed or not batch or not self.flow_active:
                continue
            first = batch[0]
            slice_ = Slice(list(batch), fetched_at, self.highwater(tp))
            yield tp, ConsumerMessage(
                first.topic, first.partition, first.offset, first.timestamp / 1000, first.timestamp_type, [], None,
                (partition, slice_), None, 0, 0, tp, generation_id=self.app.consumer_generation_id,
            )  # fmt: skip

    def ack(self, message: ConsumerMessage) -> bool:
        """Release the message; committing is the checkpoint's."""
        fresh = not message.acked
        message.acked = True
        self._unacked_messages.discard(message)
        return fresh

    def _new_offset(self, tp: TP) -> int | None:
        return None

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's check compares commits with acks of single records; it has nothing to say of slices."""

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop the flow, then checkpoint and close."""
        await super().on_partitions_revoked(revoked)
        await self.assignment_of_slices.close_all()

    async def on_stop(self) -> None:
        """Checkpoint and close before the thread leaves the group."""
        await self.assignment_of_slices.close_all()
        await super().on_stop()
        await self.app.stop_clients()


class SliceTransport(driver.Transport):
    """The driver with our consumer."""

    Consumer = SliceConsumer
