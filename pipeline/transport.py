"""Faust over slices: one Faust event for all that one fetch brought of a topic, partition by partition.

Faust hands over an event in 50 to 75 us and some turns of the event loop, whatever it holds. This is a thin subclass of
Faust's aiokafka driver. `tests/pipeline/test_transport.py` names each method we override and fails when an upgrade
changes one. What we change, and why:

- `getmany` yields one message a topic, with slices that are marked with the opening they were fetched for.
- Faust's offset bookkeeping counts single records and would commit past unprocessed ones, so it never sees a slice's:
  `_read_offset` ignores them, `ack` only releases the message, `_new_offset` has nothing to commit. Only our
  checkpoint commits.
- `perform_seek` opens partitions: Faust's recovery calls it after every assignment, before flow resumes and outside
  the rebalance callback, so heartbeats go on meanwhile.
- revoke and stop close partitions, after Faust has stopped the flow and before the group is left.
- the worker's consumer comes from our factory: static membership, our assignor, read_committed, no reset of offsets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import faust
from aiokafka import TopicPartition
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.tables.recovery import RebalanceAgain
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from pipeline.assignment import Assignment
from pipeline.assignor import OffbeatAssignor
from pipeline.clients import Clients
from pipeline.consuming import ConsumingThread
from pipeline.context import StreamContext
from pipeline.errors import StaleStateError
from pipeline.health import Health
from pipeline.partition import Partition, Slice
from pipeline.pulse import SESSION_TIMEOUT_S
from pipeline.recovery import Recovery
from pipeline.shares import Owned
from pipeline.standby import Standbys
from pipeline.watchdog import Stall

MAX_POLL_RECORDS = 2_000  # a slice at most: about 20 ms of scoring, so that the event loop breathes
_FETCH_WAIT_S = 0.2
_NO_ROOM_S = 0.005
_AFTER_A_FAULT_S = 0.2
_BEAT_S = 1.0
_WATCH_S = 10.0


class SliceApp(faust.App):
    """A Faust app whose listed topics come as slices.

    Parameters
    ----------
    contexts
        By source topic, what its partitions share.
    """

    def __init__(
        self, identity: str, *, contexts: dict[str, StreamContext], clients: Clients, recovery: Recovery, instance: str,
        standbys: Standbys, standby_replicas: int, health: Health, threads: Sequence[ConsumingThread],
        start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]], **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(identity, **options)
        self.contexts, self.clients, self.recovery, self.instance = contexts, clients, recovery, instance
        self.standbys, self.standby_replicas, self.health = standbys, standby_replicas, health
        self.start_clients, self.stop_clients, self.threads = start, stop, threads

    def _new_transport(self) -> Any:
        return SliceTransport(self.conf.broker_consumer, self)


class SliceThread(driver.AIOKafkaConsumerThread):
    """The consumer's thread: makes the consumer, and notes when heartbeats are answered."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        app = self.app
        return app.clients.group_consumer(
            group=app.conf.id, instance=app.instance, assignors=[self.consumer.assignor],
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
                assignment.pulse.felt(left)
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


def slices_of(
    records: Mapping[TP, Sequence[Any]], opened: Mapping[TP, Partition], fetched_at: float,
    highwater: Callable[[TP], int | None],
) -> dict[str, list[tuple[Partition, Slice]]]:  # fmt: skip
    """By topic, what was fetched for partitions that are open still; each counts as in transit from here on."""
    by_topic: dict[str, list[tuple[Partition, Slice]]] = {}
    for tp, batch in records.items():
        partition = opened.get(tp)
        if partition is not None and not partition.closed and batch:
            partition.in_transit += 1
            by_topic.setdefault(tp.topic, []).append((partition, Slice(list(batch), fetched_at, highwater(tp))))
    return by_topic


class SliceConsumer(driver.Consumer):
    """Hands out slices of opened partitions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = _ReadOffsets(frozenset(self.app.contexts))
        self._joined_at = time.monotonic()
        self._fetching = asyncio.Lock()  # held while a fetch is under way
        app = self.app
        self.assignor = OffbeatAssignor(Owned(app.instance), app.standby_replicas)
        self.assignment_of_slices = Assignment(
            app.contexts, app.standbys, app.start_clients, self._generation, self._committed, self._read_to_end,
            self._seek_slice,
        )  # fmt: skip

    async def on_start(self) -> None:
        """Start, and say from then on that the event loop turns."""
        await super().on_start()
        self.add_future(self._beat())
        self.add_future(self._watch())

    async def _beat(self) -> None:
        while not self.should_stop:
            self.app.health.beat()
            await asyncio.sleep(_BEAT_S)

    async def _watch(self) -> None:
        """Look from time to time whether partitions make progress, and whether their topics are still the same."""
        stall, slices = Stall(), self.assignment_of_slices
        while not self.should_stop:
            await asyncio.sleep(_WATCH_S)
            for tp, partition in list(slices.partitions.items()):
                at, end = await self._progress(tp, partition)
                stalled = stall.observe(partition.context.name, tp.partition, at, end)
                if stalled is not None:
                    slices.end_worker(stalled)
            for thread in self.app.threads:
                if (failure := thread.failure()) is not None:
                    slices.end_worker(failure)
            await self._compare_topics()

    async def _progress(self, tp: TP, partition: Partition) -> tuple[int, int | None]:
        """Up to where all is saved, and where committed records end; None if the broker does not say."""
        consumer, at = self._thread._consumer, TopicPartition(*tp)  # noqa: SLF001
        try:
            position = await self._thread.call_thread(consumer.position, at)
            end = (await self._thread.call_thread(consumer.end_offsets, [at]))[at]
        except Exception:  # whatever is wrong with broker or group shows elsewhere; here it is no answer
            return 0, None
        # What a partition has in hand may be stuck there; where it has nothing, markers and aborts have been read too.
        return (position if partition.is_at_rest else partition.saved_offset), end

    async def _compare_topics(self) -> None:
        """A topic made anew may already hold more than we have read of the old one: only its id tells."""
        slices, ids = self.assignment_of_slices, dict[str, str]()
        for topic, context in self.app.contexts.items():
            with suppress(Exception):  # deleted just now, or the broker is away: the next look tells
                ids[topic] = await context.topic_ids.id_of(topic)
        for tp, partition in list(slices.partitions.items()):
            if ids.get(tp.topic, partition.topic_id) != partition.topic_id:
                slices.fail(tp, StaleStateError(f"{tp.topic} was made anew"))

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

    async def _read_to_end(self, tp: TP) -> bool:
        is_copied = self.app.contexts[tp.topic].source_is_copied
        if is_copied is not None and not await is_copied():
            return False
        consumer = self._thread._consumer  # noqa: SLF001
        position: int = await self._thread.call_thread(consumer.position, TopicPartition(*tp))
        end: int = (await self.app.recovery.bounds_of(tp.topic, tp.partition))[1]
        return position >= end

    async def _seek_slice(self, tp: TP, offset: int, enter: Callable[[], None]) -> None:
        async with self._fetching:  # what is fetched after this lock is fetched for the new opening
            enter()
            await self.seek_wait({tp: offset})

    # --- Faust's side --------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Open the slice partitions of a new assignment."""
        generation = self.app.consumer_generation_id
        slices = self.assignment_of_slices
        slices.pulse.felt(self._joined_at)  # the join was answered, as a heartbeat is
        tps, standby = [tp for tp in self.assignment() if self._is_slice(tp)], self.assignor.standby
        self.assignor.owned = Owned(self.app.instance, frozenset(tps), standby, generation)
        await slices.open_all(tps, {TP(*tp) for tp in standby}, generation)

    async def _open_nothing(self) -> None:
        with suppress(RebalanceAgain):  # the next assignment sees to it
            await self.perform_seek()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Fetch, and yield one message for each topic that has records, with the slices of its partitions."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # outside the lock
        async with self._fetching:
            opened = dict(
                self.assignment_of_slices.partitions
            )  # before the fetch: one opened meanwhile gets none of it
            if not self.flow_active or self.should_stop:
                return
            wanted = {tp for tp, partition in opened.items() if partition.has_room} & self._get_active_partitions()
            if not wanted:
                await asyncio.sleep(_NO_ROOM_S)
                return
            try:
                wait_s = _FETCH_WAIT_S if len(wanted) == len(opened) else _NO_ROOM_S  # the others may have room soon
                records = await self._getmany(active_partitions=wanted, timeout=wait_s)
            except OffsetOutOfRangeError as error:  # cut by retention, or made anew: opening again finds out
                for tp in error.args[0]:
                    self.assignment_of_slices.fail(TP(*tp), error)
                await asyncio.sleep(_AFTER_A_FAULT_S)
                return
            except NoOffsetForPartitionError:  # of one that was assigned and not yet opened: opening seeks
                await asyncio.sleep(_AFTER_A_FAULT_S)
                return
        for slices in slices_of(records or {}, opened, time.monotonic(), self.highwater).values():
            if not self.flow_active:  # all partitions are about to be closed
                return
            first = slices[0][1].records[0]
            tp = TP(first.topic, first.partition)
            yield tp, ConsumerMessage(
                first.topic, first.partition, first.offset, first.timestamp / 1000, first.timestamp_type, [], None,
                slices, None, 0, 0, tp, generation_id=self.app.consumer_generation_id,
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

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Note what we are to open."""
        contexts = self.app.contexts
        self.app.health.assigned((contexts[tp.topic].name, tp.partition) for tp in assigned if self._is_slice(tp))
        await super().on_partitions_assigned(assigned, generation_id)
        if not assigned:  # Faust seeks nothing then, yet standbys may have come, and kept partitions gone
            self.add_future(self._open_nothing())

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop the flow, then checkpoint and close, holding on to the rows: most partitions come back."""
        self.app.health.revoked()
        await super().on_partitions_revoked(revoked)
        await self.assignment_of_slices.close_all(keep=True)
        self._joined_at = time.monotonic()  # only after this does the join leave

    async def on_stop(self) -> None:
        """Checkpoint and close before the thread leaves the group."""
        await self.assignment_of_slices.close_all(keep=False)
        await super().on_stop()
        await self.app.stop_clients()


class SliceTransport(driver.Transport):
    """The driver with our consumer."""

    Consumer = SliceConsumer
