"""All open partitions of this worker: opened on assignment, closed on revoke, opened again after a failure."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from aiokafka.errors import KafkaError, ProducerFenced
from faust.tables.recovery import RebalanceAgain
from faust.types import TP

from pipeline.context import StreamContext
from pipeline.errors import DamagedStateError, OffbeatError, StateError
from pipeline.holding import Holding
from pipeline.logs import get_logger
from pipeline.outputs import Place
from pipeline.partition import Partition, Worker
from pipeline.pulse import Pulse
from pipeline.standby import Standbys

_TRIES = 6  # of opening a partition, or of getting past one offset, before the worker ends with a sentence
_CANCEL_TIMEOUT_S = 3.0
_CONNECT_AGAIN_S = 1.0
_OPEN_TIMEOUT_S = 1_800.0  # replaying a long changelog takes minutes
_CLOSING_TIMEOUT_S = 10.0
_STOPPING_S = 60.0
_STUCK_WITHIN_S = 600.0  # hiccups further apart have nothing to do with each other
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
    read_to_end
        Whether everything the source holds has been fetched.
    seek
        Lets the consumer read on from an offset, with no fetch under way.
    """

    def __init__(
        self, contexts: dict[str, StreamContext], standbys: Standbys, start: Callable[[], Awaitable[None]],
        current_generation: Callable[[], int | None], read_committed: Callable[[TP], Awaitable[int | None]],
        read_to_end: Callable[[TP], Awaitable[bool]], seek: Callable[[TP, int, Callable[[], None]], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.partitions: dict[TP, Partition] = {}
        self.fatal: OffbeatError | None = None
        self.pulse = Pulse()
        self._contexts, self._standbys, self._start = contexts, standbys, start
        self._current_generation, self._read_committed = current_generation, read_committed
        self._read_to_end, self._seek = read_to_end, seek
        self._is_revoked = False  # until the next assignment nothing is opened
        self._kept: dict[TP, Holding] = {}  # of partitions that were revoked and may come back
        self._openers: set[asyncio.Task[None]] = set()
        self._closing: dict[TP, asyncio.Task[None]] = {}
        self._fenced: dict[TP, deque[float]] = {}
        self._stuck: dict[TP, tuple[int, int, float]] = {}  # where openings failed, how often in a row, when last

    async def open_all(self, tps: Iterable[TP], standbys: Iterable[TP], generation: int) -> None:
        """Open what was assigned and follow the standbys; returns when all is open, or given up.

        Raises
        ------
        RebalanceAgain
            The group has moved on meanwhile; Faust calls again.
        """
        await self._connect(generation)
        self._is_revoked, tps = False, list(tps)
        for tp in [tp for tp in self._kept if tp not in tps]:
            await self._drop_kept(tp)
        await self._standbys.follow({tp for tp in standbys if tp not in tps})
        openers = [self._spawn(self._keep_opening(tp, generation)) for tp in tps if tp not in self.partitions]
        if openers:
            await asyncio.wait(openers)  # Faust waits 90 s and cancels this, which must not cancel the openers
        if self.fatal is not None:
            await asyncio.sleep(_STOPPING_S)  # until Faust, which is being stopped, cancels this
        # Revoked, the worker is of the old generation until it joins the next: Faust must not let records flow now.
        if self._is_revoked or self._current_generation() != generation:
            raise RebalanceAgain

    async def close_all(self, *, keep: bool) -> None:
        """Checkpoint and close every partition, bounded in time; with `keep`, hold on to what may come back."""
        self._is_revoked = True
        for opener in list(self._openers):
            opener.cancel()
        if self._openers:
            await asyncio.wait(list(self._openers), timeout=_CANCEL_TIMEOUT_S)
        partitions, self.partitions = self.partitions, {}
        await asyncio.gather(*(self._close(tp, p, save=True, keep=keep) for tp, p in partitions.items()))
        if not keep:
            if self._closing:  # a revoke may be under way, and keep what it closes
                await asyncio.wait(self._closing.values(), timeout=_CLOSING_TIMEOUT_S)
            await asyncio.gather(*(self._drop_kept(tp) for tp in list(self._kept)))
            await self._standbys.stop()
        for tp, partition in partitions.items():
            if partition.fenced and self._is_duel(tp):
                self.end_worker(_duel(partition))

    async def _connect(self, generation: int) -> None:
        """Start the clients that all partitions share, however long the broker is away."""
        while True:
            try:
                return await self._start()
            except KafkaError as error:
                log.warning("clients cannot connect", why=repr(error)[:300])
            await asyncio.sleep(_CONNECT_AGAIN_S)
            if self._current_generation() != generation:
                raise RebalanceAgain

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._openers.add(task)
        task.add_done_callback(self._openers.discard)
        return task

    async def _open(self, tp: TP, generation: int, *, rebuild: bool) -> None:
        worker = Worker(self.pulse, lambda: self._read_committed(tp), lambda: self._read_to_end(tp), self._failed)
        partition = Partition(self._contexts[tp.topic], Place(tp.topic, tp.partition), generation, worker)
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                if tp in self._closing:
                    await asyncio.shield(self._closing[tp])
                await self._standbys.release(tp)
                await partition.open(self._kept.pop(tp, None), rebuild=rebuild)

            def enter() -> None:
                if self._current_generation() != generation:
                    raise RebalanceAgain
                self.partitions[tp] = partition

            await self._seek(tp, partition.opened_at, enter)
        except BaseException:
            await self._close(tp, partition, save=False)
            raise
        partition.start()

    async def _keep_opening(
        self, tp: TP, generation: int, since: float | None = None, *, rebuild: bool = False
    ) -> None:
        """Open, again after failures, while the group says the partition is ours; `since`: when it failed before."""
        last: Exception | None = None
        for _ in range(_TRIES):
            # Opening fences. Only a heartbeat that left after the failure shows that the group still counts on us.
            while since is not None and self.pulse.at <= since:
                await asyncio.sleep(0.1)
            if self._is_revoked or self._current_generation() != generation:
                return
            try:
                return await self._open(tp, generation, rebuild=rebuild)
            except RebalanceAgain:
                return
            except Exception as error:
                if isinstance(error, OffbeatError) and not error.retriable:
                    return self.end_worker(error)
                since, last = time.monotonic(), error
                rebuild |= isinstance(error, DamagedStateError)
                log.warning("partition cannot be opened", topic=tp.topic, partition=tp.partition, why=repr(error)[:300])
        message = f"partition {tp.partition} of {tp.topic} cannot be opened ({last!r}); is the broker well?"
        self.end_worker(OffbeatError(message))

    def _close(self, tp: TP, partition: Partition, *, save: bool, keep: bool = False) -> asyncio.Future[None]:
        """Close in a task of its own, which the next opening awaits: half a close would keep RocksDB's lock.

        No coroutine: the task is there once this returns, also where whoever waits for it is cancelled at once.
        """

        async def close() -> None:
            holding = await partition.close(save=save, keep=keep)
            if holding is not None:
                self._kept[tp] = holding

        return self._after_closing(tp, close)

    def _drop_kept(self, tp: TP) -> asyncio.Future[None]:
        return self._after_closing(tp, self._kept.pop(tp).release)

    def _after_closing(self, tp: TP, work: Callable[[], Awaitable[None]]) -> asyncio.Future[None]:
        before = self._closing.get(tp)

        async def in_turn() -> None:
            if before is not None:
                await asyncio.wait([before])
            await work()

        task = self._closing[tp] = asyncio.create_task(in_turn())
        return asyncio.shield(task)

    def _failed(self, partition: Partition, error: BaseException) -> None:
        """Throw a partition out of memory; open it again unless that cannot help."""
        tp = TP(partition.place.topic, partition.place.partition)
        if self.partitions.get(tp) is not partition:
            return
        del self.partitions[tp]
        name = partition.context.name
        partition.context.metrics.failures.labels(name).inc()
        log.warning("partition failed", stream=name, partition=tp.partition, why=repr(error)[:300])
        if isinstance(error, DamagedStateError):
            partition.context.metrics.rebuilds.labels(name).inc()
        self._spawn(self._recover(tp, partition, error, self._close(tp, partition, save=False)))

    async def _recover(
        self, tp: TP, partition: Partition, error: BaseException, closing: asyncio.Future[None]
    ) -> None:  # fmt: skip
        since, reason = time.monotonic(), self._reason_to_end(tp, partition, error)
        await closing
        if reason is not None:
            self.end_worker(reason)
        else:
            rebuild = isinstance(error, DamagedStateError)
            await self._keep_opening(tp, partition.generation, since, rebuild=rebuild)

    def fail(self, tp: TP, error: BaseException) -> None:
        """What lies outside of a partition has gone wrong for it: its records cannot be fetched, say."""
        if (partition := self.partitions.get(tp)) is not None:
            self._failed(partition, error)

    def _reason_to_end(self, tp: TP, partition: Partition, error: BaseException) -> OffbeatError | None:
        """What opening again cannot help: saved state that does not fit, a duel, or no progress time after time."""
        if isinstance(error, OffbeatError) and not error.retriable:
            return error
        if isinstance(error, ProducerFenced):
            return _duel(partition) if self._is_duel(tp) else None
        at, times, since = self._stuck.get(tp, (-1, 0, 0.0))
        repeated = at == partition.opened_at and time.monotonic() - since < _STUCK_WITHIN_S
        times = times + 1 if repeated else 1
        self._stuck[tp] = (partition.opened_at, times, time.monotonic())
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

    def end_worker(self, error: OffbeatError) -> None:
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
