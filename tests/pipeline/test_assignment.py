"""What an assignment holds is let go of, whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.tables.recovery import RebalanceAgain
from faust.types import TP

from pipeline.assignment import Assignment
from pipeline.metrics import Metrics
from pipeline.outputs import Place


class _Opening:
    """As much of a partition as failing and closing ask for; the true one would need a broker."""

    def __init__(self) -> None:
        self.context: Any = SimpleNamespace(name="orders", group="app", metrics=Metrics())
        self.place = Place("shop", 0)
        self.generation, self.opened_at, self.fenced, self.released = 1, 0, False, False

    async def close(self, *, save: bool, keep: bool = False) -> None:
        await asyncio.sleep(0)
        self.released = True


class _LongOpening(Assignment):
    """Opens nothing before it is cancelled, as where a changelog is long."""

    async def _open(self, tp: TP, generation: int, *, rebuild: bool) -> None:
        await asyncio.Event().wait()


def an_assignment(kind: type[Assignment] = Assignment) -> Assignment:
    """An assignment of generation 1, which stays the worker's own until it has joined the next."""

    async def nothing(*_: Any) -> None:
        return None

    standbys: Any = SimpleNamespace(stop=nothing, follow=nothing)
    return kind({}, standbys, nothing, lambda: 1, nothing, nothing, nothing)  # type: ignore[arg-type]


def test_a_revoke_in_the_moment_of_a_failure_leaves_nothing_locked() -> None:
    """A woken worker finds a checkpoint timed out and the group gone at once: the next opening needs RocksDB's lock."""

    async def fail_and_revoke() -> _Opening:
        assignment = an_assignment()
        opening: Any = _Opening()
        assignment.partitions[TP("shop", 0)] = opening
        assignment.fail(TP("shop", 0), TimeoutError())
        await assignment.close_all(keep=False)
        return opening  # type: ignore[no-any-return]

    assert asyncio.run(fail_and_revoke()).released


def test_a_revoke_ends_an_opening_without_success() -> None:
    """Faust lets records flow after an opening that succeeds: in mid-rebalance a partition then stood still."""

    async def open_and_revoke() -> None:
        assignment = an_assignment(_LongOpening)
        opening = asyncio.create_task(assignment.open_all([TP("shop", 0)], [], 1))
        await asyncio.sleep(0.01)
        await assignment.close_all(keep=True)
        await opening

    with pytest.raises(RebalanceAgain):
        asyncio.run(open_and_revoke())
