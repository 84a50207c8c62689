"""All open partitions of this worker: opened on assignment, closed on revoke, opened again after a failure."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from aiokafka.errors import ProducerFenced
from faust.tables.recovery import RebalanceAgain
from faust.types import TP

from pipeline.errors import OffbeatError, StateError
from pipeline.logs import get_logger
from pipeline.outputs import Place
from pipeline.partition import OPEN_TIMEOUT_S, Partition, StreamContext

_TRIES = 6  # of opening a partition, or of getting past one offset, before the worker ends with a sentence
_CANCEL_TIMEOUT_S = 3.0
_STOPPING_S = 60.0
# A successor fences a partition once. Fenced that often in that time, two workers take it from each other in turn.
_FENCED, _FENCED_WITHIN_S = 4, 30.0

log = get_logger()


class Assignment:
    """Partitions by topic and number.

    Parameters
    ----------
    contexts
        What partitions of each topic share.
    current_generation
        The group's generation, if this worker is in it.
    read_committed
        The group's offset of a partition.
    seek
        Lets the consumer read on from an offset, with no fetch under way.
    """

    def __init__(
        self, contexts: dict[str, StreamContext], start: Callable[[], Awaitable[None]],
        current_generation: Callable[[], int | None], read_committed: Callable[[TP], Awaitable[int | None]],
        seek: Callable[[TP, int, Callable[[], None]], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.partitions: dict[TP, Partition] = {}
        self.fatal: OffbeatError | None = None
        self.heartbeat_at = time.monotonic()  # when the last heartbeat that was answered had left
        self._contexts, self._start = contexts, start
        self._current_generation, self._read_committed, self._seek = current_generation, read_committed, seek
        self._openers: set[asyncio.Task[None]] = set()
        self._closing: dict[TP, asyncio.Task[None]] = {}
        self._fenced: dict[TP, deque[float]] = {}
        self._stuck: dict[TP, tuple[int, int]] = {}  # offset at which openings failed, and how often in a row

    async def open_all(self, tps: Iterable[TP], generation: int) -> None:
        """Open what was assigned; returns when all of it is open, or given up.

        Raises
        ------
        RebalanceAgain
            The group has moved on meanwhile; Faust calls again.
        """
        await self._start()
        openers = [self._spawn(self._keep_opening(tp, generation)) for tp in tps if tp not in self.partitions]
        if openers:
            await asyncio.wait(openers)  # Faust waits 90 s and cancels this, which must not cancel the openers
        if self.fatal is not None:
            await asyncio.sleep(_STOPPING_S)  # until Faust, which is being stopped, cancels this
        if self._current_generation() != generation:
            raise RebalanceAgain

    async def close_all(self, *, save: bool = True) -> None:
        """Checkpoint and close every partition; bounded in time."""
        for opener in list(self._openers):
            opener.cancel()
        if self._openers:
            await asyncio.wait(list(self._openers), timeout=_CANCEL_TIMEOUT_S)
        partitions, self.partitions = self.partitions, {}
        await asyncio.gather(*(self._close(tp, partition, save=save) for tp, partition in partitions.items()))
        for tp, partition in partitions.items():
            if partition.fenced and self._is_duel(tp):
                self._end_worker(_duel(partition))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._openers.add(task)
        task.add_done_callback(self._openers.discard)
        return task

    async def _open(self, tp: TP, generation: int) -> None:
        partition = Partition(self._contexts[tp.topic], Place(tp.topic, tp.partition), generation, self._failed)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                if tp in self._closing:
                    await asyncio.shield(self._closing[tp])
                await partition.open(lambda: self._read_committed(tp))

            def enter() -> None:
                if self._current_generation() != generation:
                    raise RebalanceAgain
                self.partitions[tp] = partition

            await self._seek(tp, partition.state.next_offset, enter)
        except BaseException:
            await self._close(tp, partition, save=False)
            raise
        partition.start()

    async def _keep_opening(self, tp: TP, generation: int, since: float | None = None) -> None:
        """Open, again after failures, while the group says the partition is ours; `since`: when it failed before."""
        last: Exception | None = None
        for _ in range(_TRIES):
            # Opening fences. Only a heartbeat that left after the failure shows that the group still counts on us.
            while since is not None and self.heartbeat_at <= since:
                await asyncio.sleep(0.1)
            if self._current_generation() != generation:
                return
            try:
                return await self._open(tp, generation)
            except RebalanceAgain:
                return
            except Exception as error:
                if isinstance(error, OffbeatError) and not error.retriable:
                    return self._end_worker(error)
                since, last = time.monotonic(), error
                log.warning("partition cannot be opened", topic=tp.topic, partition=tp.partition, why=repr(error)[:300])
        message = f"partition {tp.partition} of {tp.topic} cannot be opened ({last!r}); is the broker well?"
        self._end_worker(OffbeatError(message))

    async def _close(self, tp: TP, partition: Partition, *, save: bool) -> None:
        """Close in a task of its own, which the next opening awaits: half a close would keep RocksDB's lock."""
        before = self._closing.get(tp)

        async def close() -> None:
            if before is not None:
                await asyncio.wait([before])
            await partition.close(save=save)

        task = self._closing[tp] = asyncio.create_task(close())
        await asyncio.shield(task)

    def _failed(self, partition: Partition, error: BaseException) -> None:
        """Throw a partition out of memory; open it again unless that cannot help."""
        tp = TP(partition.place.topic, partition.place.partition)
        if self.partitions.get(tp) is not partition:
            return
        del self.partitions[tp]
        name = partition.context.name
        partition.context.metrics.failures.labels(name).inc()
        log.warning("partition failed", stream=name, partition=tp.partition, why=repr(error)[:300])
        self._spawn(self._recover(tp, partition, self._reason_to_end(tp, partition, error)))

    async def _recover(self, tp: TP, partition: Partition, reason: OffbeatError | None) -> None:
        since = time.monotonic()
        await self._close(tp, partition, save=False)
        if reason is not None:
            self._end_worker(reason)
        else:
            await self._keep_opening(tp, partition.generation, since)

    def _reason_to_end(self, tp: TP, partition: Partition, error: BaseException) -> OffbeatError | None:
        """What opening again cannot help: saved state that does not fit, a duel, or no progress time after time."""
        if isinstance(error, OffbeatError) and not error.retriable:
            return error
        if isinstance(error, ProducerFenced):
            return _duel(partition) if self._is_duel(tp) else None
        at, times = self._stuck.get(tp, (-1, 0))
        times = times + 1 if at == partition.opened_at else 1
        self._stuck[tp] = (partition.opened_at, times)
        if times < _TRIES:
            return None
        message = (
            f"partition {tp.partition} of {tp.topic} failed {times} times without getting past offset "
            f"{partition.opened_at} ({error!r}); the log tells more"
        )
        return OffbeatError(message)

    def _is_duel(self, tp: TP) -> bool:
        times = self._fenced.setdefault(tp, deque(maxlen=_FENCED))
        times.append(time.monotonic())
        return len(times) == _FENCED and times[-1] - times[0] < _FENCED_WITHIN_S

    def _end_worker(self, error: OffbeatError) -> None:
        """End the process in an orderly way; `run_worker` raises the error afterwards."""
        if self.fatal is None:
            self.fatal = error
            os.kill(os.getpid(), signal.SIGTERM)


def _duel(partition: Partition) -> StateError:
    message = (
        f"another worker keeps taking partition {partition.place.partition} of {partition.place.topic}: two workers of "
        f"app {partition.context.group} have the same instance name; set `instance` in one of them"
    )
    return StateError(message)
