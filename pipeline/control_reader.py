"""Brings controls to the partitions they are for, each from the first it has not applied yet.

A worker reads all of the controls topic, which has one partition and so one order. What a partition has applied stands
in its partition row; when it is opened, older controls that it missed are read again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.clients import Clients
from pipeline.controls import Control, parse_control
from pipeline.logs import get_logger

_POLL_MS = 500
_PAUSE_S = 1.0

log = get_logger()


class Follower(Protocol):
    """What controls are brought to."""

    def take_control(self, offset: int, control: Control) -> None:
        """Apply it soon; they come in the order of their offsets."""


class ControlReader:
    """Shared by a worker's partitions; started before the first is opened."""

    def __init__(self, clients: Clients, topic: str) -> None:
        self._clients, self._tp = clients, TopicPartition(topic, 0)
        self._followers: dict[Follower, tuple[str, int]] = {}  # the stream, and the next offset to bring
        self._behind = asyncio.Event()
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self.end = 0  # where the topic ended when this worker started: a new partition need not look further back

    async def start(self) -> None:
        """Connect and begin to follow the topic; again is nothing."""
        if self._consumer is not None:
            return
        consumer = self._clients.control_consumer()
        await consumer.start()
        consumer.assign([self._tp])
        self.end = (await consumer.end_offsets([self._tp]))[self._tp]
        consumer.seek(self._tp, self.end)
        self._consumer, self._task = consumer, asyncio.create_task(self._follow(consumer))

    async def stop(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._consumer is not None:
            await self._consumer.stop()
        self._consumer = self._task = None

    def follow(self, stream: str, offset: int, follower: Follower) -> None:
        """Bring a stream's controls from an offset on."""
        self._followers[follower] = (stream, offset)
        self._behind.set()

    def leave(self, follower: Follower) -> None:
        """No more of them."""
        self._followers.pop(follower, None)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                if self._behind.is_set():
                    self._behind.clear()
                    await self._go_back(consumer)
                found: dict[Any, list[Any]] = await consumer.getmany(self._tp, timeout_ms=_POLL_MS)
                for record in found.get(self._tp, []):
                    self._bring(record)
            except Exception as error:  # deletions wait until the broker is back; scoring does not
                log.warning("controls cannot be read", why=repr(error)[:300])
                await asyncio.sleep(_PAUSE_S)

    async def _go_back(self, consumer: AIOKafkaConsumer) -> None:
        """Read again what some follower has not been brought; each is brought every control once."""
        position = await consumer.position(self._tp)
        first = min([position, *(offset for _, offset in self._followers.values())])
        if first < position:
            low = (await consumer.beginning_offsets([self._tp]))[self._tp]
            consumer.seek(self._tp, max(first, low))

    def _bring(self, record: Any) -> None:
        control = parse_control(record.key, record.value)
        for follower, (stream, offset) in list(self._followers.items()):
            if record.offset < offset:
                continue
            self._followers[follower] = (stream, record.offset + 1)
            if control is not None and control.stream == stream:
                follower.take_control(record.offset, control)
