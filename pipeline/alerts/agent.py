"""The Faust app of `offbeat alerts`: an agent that reads changes and requests, and hands them to the outbox.

A record counts as read once the outbox has what it leads to. What Faust commits is therefore never ahead of the outbox,
and what it reads again is passed over by the position that the outbox keeps.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.events import Event
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from pipeline.alerts.delivering import Delivering
from pipeline.alerts.intake import Intake, Read
from pipeline.alerts.outbox import Outbox, StaleBookError
from pipeline.clients import Clients
from pipeline.errors import OffbeatError
from pipeline.health import Health
from pipeline.logs import get_logger
from pipeline.pulse import SESSION_TIMEOUT_S
from pipeline.trace_export import trace_of

_MOST_AT_ONCE = 500  # records of one partition in one transaction
_MOST_WAITING = 1_000  # of one partition; then nothing more is read
_AGAIN_S = 0.5
_BEAT_S = 1.0

log = get_logger()


class Reading:
    """Records on their way from the agent to the outbox, partition by partition."""

    def __init__(self, outbox: Outbox, intake: Intake, fault: Callable[[BaseException], None]) -> None:
        self._outbox, self._intake, self._fault = outbox, intake, fault
        self._queues: dict[int, asyncio.Queue[Event]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def put(self, event: Event) -> None:
        """Take a record; waits while its partition has too many."""
        partition = event.message.partition
        if (queue := self._queues.get(partition)) is None:
            queue = self._queues[partition] = asyncio.Queue(_MOST_WAITING)
            self._tasks[partition] = asyncio.create_task(self._take(partition, queue))
        await queue.put(event)

    async def drop(self) -> None:
        """Forget what is not in the outbox: it is read again by whoever has the partition then."""
        tasks, self._tasks, queues, self._queues = self._tasks, {}, self._queues, {}
        for task in tasks.values():
            task.cancel()
        for queue in queues.values():
            while not queue.empty():  # who waits for room must not wait for ever
                queue.get_nowait()
        if tasks:
            await asyncio.wait(tasks.values())

    async def _take(self, partition: int, queue: asyncio.Queue[Event]) -> None:
        try:
            while True:
                events = [await queue.get()]
                while not queue.empty() and len(events) < _MOST_AT_ONCE:
                    events.append(queue.get_nowait())
                records = [
                    Read(e.message.topic, e.message.offset, e.value, trace_of(e.message.headers)) for e in events
                ]
                await self._write(partition, records)
                for event in events:
                    event.ack()
        except Exception as error:  # a fault of ours: nobody may believe that it goes on
            self._fault(error)

    async def _write(self, partition: int, records: list[Read]) -> None:
        while True:
            try:
                return await self._intake.take(await self._outbox.book(partition), records)
            except StaleBookError:  # opened anew, or not ours and about to be dropped
                await asyncio.sleep(_AGAIN_S)


class AlertsApp(faust.App):
    """A Faust app that tells when partitions come and go, and whose consumer comes from our factory."""

    def __init__(
        self, identity: str, *, clients: Clients, instance: str, outbox: Outbox, reading: Reading, health: Health,
        delivering: Delivering, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(identity, **options)
        self.clients, self.instance, self.outbox, self.reading, self.health = clients, instance, outbox, reading, health
        self.delivering = delivering
        self.fatal: OffbeatError | None = None

    def end(self, error: OffbeatError) -> None:
        """End the process in an orderly way; whoever runs the app raises the error afterwards."""
        if self.fatal is None:
            self.fatal = error
            os.kill(os.getpid(), signal.SIGTERM)

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        app = self.app
        return app.clients.group_consumer(
            # Ranges: partitions of the same number go to the same process, whatever topic they are of.
            group=app.conf.id, instance=app.instance, assignors=[RangePartitionAssignor],
            session_timeout_ms=int(SESSION_TIMEOUT_S * 1000), max_poll_records=_MOST_AT_ONCE, resets_to="earliest",
        )  # fmt: skip


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def on_start(self) -> None:
        """Start, and say from then on that the event loop turns."""
        await super().on_start()
        self.add_future(self._beat())

    async def _beat(self) -> None:
        while not self.should_stop:
            self.app.health.beat()
            await asyncio.sleep(_BEAT_S)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Open the outbox's partitions; what is read of them waits for that."""
        await self.app.delivering.resume()
        await self.app.outbox.assign({tp.partition for tp in assigned})
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop the flow, let deliveries under way end, and close."""
        await super().on_partitions_revoked(revoked)
        await self._let_go()

    async def on_stop(self) -> None:
        """The same, before the thread leaves the group."""
        await self._let_go()
        await self.app.delivering.stop()
        await super().on_stop()

    async def _let_go(self) -> None:
        await self.app.reading.drop()
        await self.app.delivering.pause()
        await self.app.outbox.revoke()


class _Transport(driver.Transport):
    Consumer = _Consumer


def add_agent(app: AlertsApp, topics: tuple[str, ...]) -> None:
    """Read topics into the outbox."""
    topic = app.topic(*topics, key_serializer="raw", value_serializer="raw")

    async def take(records: faust.Stream) -> None:
        async for event in records.noack().events():
            await app.reading.put(event)

    app.agent(topic, name="alerts")(take)
