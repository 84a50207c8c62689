"""From records to rows: what a change of an incident does to others that still wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from pipeline.alerts.clock import SteadyClock
from pipeline.alerts.index import Index
from pipeline.alerts.intake import Intake, Read
from pipeline.alerts.outbox import Book, StaleBookError
from pipeline.alerts.rows import Position, Rows, encode_key
from pipeline.alerts.settings import AlertSettings
from pipeline.metrics import Metrics
from tests.alerting import incident
from tests.pipeline.alerts.made import alerts, webhook

ROUTES = [
    {"receivers": ["ops"], "severity": "critical"},
    {"receivers": ["ops"], "group_by": ["stream"], "group_wait": "1h"},
]


def took(settings: AlertSettings, *batches: list[dict[str, Any]]) -> list[str]:
    """Ids of the changes that a receiver may have at once, in their order, after these were taken in."""
    index, clock = Index(), SteadyClock(lambda: 1_000_000, lambda: 0.0)
    index.show(0)

    async def write(rows: Rows) -> None:
        index.apply(0, rows.items())

    book: Any = SimpleNamespace(partition=0, index=index, position=Position({"incidents": (0, "t")}, 0), write=write)
    intake, offset = Intake(settings, "requests", clock, Metrics(CollectorRegistry())), 0

    async def take() -> None:
        nonlocal offset
        for batch in batches:
            records = [Read("incidents", offset + i, orjson.dumps(message)) for i, message in enumerate(batch)]
            offset += len(records)
            await intake.take(book, records)
            book.position = Position({"incidents": (offset, "t")}, offset)

    asyncio.run(take())
    found = []
    while (taken := index.take("ops", clock.now_ms())) is not None:
        found += [row.change.id for row in taken.rows]
        index.apply(0, [(encode_key(row.key), None) for row in taken.rows])
    return found


def test_what_is_urgent_takes_along_what_waits() -> None:
    """A change that may leave at once is not kept back by an earlier one of its incident that waits for longer."""
    settings = alerts(ROUTES, ops=webhook("http://x"))
    low, high = incident("i", 1) | {"severity": "low"}, incident("i", 2) | {"severity": "critical"}
    other = incident("j", 1) | {"severity": "low"}
    assert took(settings, [low, other]) == []
    assert took(settings, [low, other], [high]) == ["i/1", "i/2"]
    assert took(settings, [low, other, high]) == ["i/1", "i/2"]


def test_a_revoke_leaves_nobody_waiting() -> None:
    """Whoever writes while a commit is cancelled is told that nothing is known of it."""

    async def cancel() -> None:
        never: Any = asyncio.Event()

        async def begin() -> None:
            await never.wait()

        producer: Any = SimpleNamespace(begin_transaction=begin)
        book = Book(0, SimpleNamespace(), Index(), producer, Position({}, 0), lambda: None)  # type: ignore[arg-type]
        writing = asyncio.create_task(book.keep_writing())
        asked = asyncio.create_task(book.write({}))
        await asyncio.sleep(0.01)
        book.close()
        writing.cancel()
        await asyncio.wait_for(asked, 5)

    with pytest.raises(StaleBookError):
        asyncio.run(cancel())
