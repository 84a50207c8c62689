"""A worker with one thing broken on purpose, to show that a storm finds it: `mutants.py NAME worker -c CONFIG`.

Each mutant patches one function before the command line runs; the product itself knows nothing of it. Two conditions,
set by the environment, hold for any of them and for the worker that is whole (`none`):

- FAIL_SIGNAL=STOP: at its FAIL_POINT the worker stops (SIGSTOP) instead of dying, and goes on when it is woken.
- SLOW_OUTPUTS=SECONDS: outputs leave that much later, as on a slow network.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

from aiokafka import TopicPartition

import pipeline.failpoints


def stop_at_the_fail_point() -> None:
    """Stop at the fail point once, for a zombie that was caught between two steps.

    It says so in the log, for whoever is to wake it.
    """
    points = pipeline.failpoints

    def passed(point: str) -> None:
        if point == points._name:
            points._left -= 1
            if points._left == 0:
                os.write(2, b'{"event": "stopped"}\n')
                os.kill(os.getpid(), signal.SIGSTOP)

    points.passed = passed


if os.environ.get("FAIL_SIGNAL") == "STOP":
    stop_at_the_fail_point()  # before anybody imports the function itself

from pipeline import clients, holding, partition  # noqa: E402


def slow_outputs(seconds: float) -> None:
    """Let the outputs' producer wait before it sends."""
    whole = clients.Clients.output_producer

    def output_producer(self: Any) -> Any:
        producer = whole(self)
        producer._message_accumulator._linger_time = seconds
        return producer

    clients.Clients.output_producer = output_producer  # type: ignore[method-assign]


# --- the mutants -------------------------------------------------------------------------------------------------


def unfenced() -> None:
    """Every opening has a transactional id of its own, so that nobody is shut out."""
    whole = clients.Clients.transactional_producer
    clients.Clients.transactional_producer = lambda self, name: whole(self, f"{name}/{uuid4()}")  # type: ignore[method-assign]


def rocksdb_first() -> None:
    """Step 4 before steps 1 to 3: RocksDB holds what the changelog may never hold."""
    whole = holding.Holding.save

    async def save(self: Any, copies: Any) -> None:
        timers, void_timers = copies.snapshot.timers, copies.snapshot.void_timers
        self.cold.write(copies.changes, self.cold.position, self.context.now_ms(), timers, void_timers)
        self.cold._db.flush()  # what is not flushed does not survive
        await whole(self, copies)

    holding.Holding.save = save  # type: ignore[method-assign]


def outputs_not_awaited() -> None:
    """Step 1 left out: a record is covered before its verdict is safe."""
    whole = holding.Holding.save

    async def save(self: Any, copies: Any) -> None:
        await whole(self, replace(copies, sent=()))

    holding.Holding.save = save  # type: ignore[method-assign]


def offsets_first() -> None:
    """The group's offset moves in a transaction of its own, before the changelog's."""
    whole = holding.Holding.save

    async def save(self: Any, copies: Any) -> None:
        await self._producer.begin_transaction()
        offsets = {TopicPartition(self.place.topic, self.place.partition): copies.committed}
        await self._producer.send_offsets_to_transaction(offsets, self.context.group)
        await self._producer.commit_transaction()
        await whole(self, copies)

    holding.Holding.save = save  # type: ignore[method-assign]


def rows_saved_late() -> None:
    """Step 0 after the next slice: the rows saved with X have taken in what comes after X."""
    whole = partition.Partition.checkpoint

    async def checkpoint(self: Any) -> None:
        state, sent = self.state, list(self._sent)
        try:
            await self._score(await asyncio.wait_for(self.slices.get(), 0.5))
        except TimeoutError:
            await whole(self)
            return
        after, self.state = self.state, state
        later, self._sent = self._sent[len(sent) :], sent
        await whole(self)
        self.state, self._sent = after, later

    partition.Partition.checkpoint = checkpoint  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "unfenced": unfenced, "rocksdb-first": rocksdb_first, "outputs-not-awaited": outputs_not_awaited,
    "offsets-first": offsets_first, "rows-saved-late": rows_saved_late,
}  # fmt: skip


def main() -> None:
    """Break what the first argument names, and go on as `offbeat`."""
    name = sys.argv.pop(1)
    if delay := os.environ.get("SLOW_OUTPUTS"):
        slow_outputs(float(delay))
    if name != "none":
        MUTANTS[name]()
    from pipeline.cli import main as offbeat

    offbeat()


if __name__ == "__main__":
    main()
