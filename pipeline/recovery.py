"""Bringing a partition's RocksDB in step with its changelog, and reading a source's bounds."""

from __future__ import annotations

from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.clients import Clients
from pipeline.cold_rows import ColdRows
from pipeline.logs import get_logger
from pipeline.topics import DELETE_RETENTION_MS

Clock = Callable[[], float]
_POLL_MS = 200

log = get_logger()


class Recovery:
    """Shared by a worker's partitions; started before the first is opened.

    Parameters
    ----------
    clients
        Makes the consumers.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._ends: AIOKafkaConsumer | None = None

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

    async def restore(self, cold: ColdRows, changelog: TopicPartition, now_ms: Callable[[], int]) -> int:
        """Replay what the database lacks; returns how many rows that were.

        Call it after fencing: then the high watermark, read at read_uncommitted, is where the changelog ends. Commit
        markers take offsets too, so the consumer's position decides, not the last row.

        A database out of step for too long would miss the tombstones that compaction has dropped meanwhile, and bring
        ended sessions back; one that stands outside the log belongs to another log. Both are rebuilt from all of it.
        """
        low, high = await self.bounds_of(changelog)
        stale = now_ms() - cold.in_step_ms > DELETE_RETENTION_MS // 2
        if cold.position and (stale or not low <= cold.position <= high):
            log.warning("rebuilding from the whole changelog", changelog=changelog.topic, partition=changelog.partition)
            cold.clear()
        position, rows = max(cold.position, low), 0
        if position >= high:
            return 0
        consumer = self._clients.changelog_consumer()
        await consumer.start()
        try:
            consumer.assign([changelog])
            consumer.seek(changelog, position)
            while (position := await consumer.position(changelog)) < high:
                records = (await consumer.getmany(changelog, timeout_ms=_POLL_MS)).get(changelog, [])
                if records:
                    cold.write({r.key: r.value for r in records}, records[-1].offset + 1, now_ms())
                    rows += len(records)
        finally:
            await consumer.stop()
        cold.write({}, position, now_ms())
        return rows

    async def bounds_of(self, tp: TopicPartition) -> tuple[int, int]:
        """First offset, and the one after the last."""
        assert self._ends is not None, "start comes first"
        low = (await self._ends.beginning_offsets([tp]))[tp]
        return low, (await self._ends.end_offsets([tp]))[tp]

    async def start_of(self, source: TopicPartition, *, latest: bool) -> int:
        """Where to begin a partition nobody has read yet."""
        low, high = await self.bounds_of(source)
        return high if latest else low
