"""From what is read to rows of the outbox: each record once, whatever is killed and read again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import orjson
from msgspec import structs

from pipeline.alerts.change import Change, change_of
from pipeline.alerts.clock import SteadyClock
from pipeline.alerts.outbox import Book
from pipeline.alerts.requests import Enable, Redeliver, parse_request
from pipeline.alerts.routing import ways_of
from pipeline.alerts.rows import Disabled, Pending, Position, Rows, Sealed, encode, encode_key
from pipeline.alerts.settings import AlertSettings
from pipeline.logs import get_logger
from pipeline.metrics import Metrics

_LARGEST_BODY, _LARGEST_PART = 200_000, 10_000  # bytes; brokers take records of 1 MB

log = get_logger()


@dataclass(frozen=True)
class Read:
    """A record of an input."""

    topic: str
    offset: int
    value: bytes | None
    trace: str = ""


class Intake:
    """Routes records.

    Parameters
    ----------
    requests
        Name of the topic of requests; the others hold changes.
    """

    def __init__(self, alerts: AlertSettings, requests: str, clock: SteadyClock, metrics: Metrics) -> None:
        self._alerts, self._requests, self._clock, self._metrics = alerts, requests, clock, metrics
        self._labels = alerts.labels

    async def take(self, book: Book, records: Iterable[Read]) -> None:
        """Write what records of one partition lead to, and how far that was.

        Raises
        ------
        StaleBookError
            It may not be written; a later opening of the partition knows.
        """
        batch = _Batch(book)
        for record in records:
            at, topic_id = (
                book.position.next[record.topic] if record.topic not in batch.next else batch.next[record.topic]
            )
            if record.offset < at:
                continue
            batch.next[record.topic] = (record.offset + 1, topic_id)
            if record.topic == self._requests:
                self._take_request(batch, record)
            else:
                self._take_change(batch, record)
        if batch.next:
            position = Position(book.position.next | batch.next, batch.seq)
            await book.write(batch.rows | dict([encode(position)]))

    def _take_change(self, batch: _Batch, record: Read) -> None:
        if record.value is None:
            return
        try:
            change = lean(change_of(orjson.loads(record.value), self._labels))
            ways = ways_of(change, self._alerts, self._clock.wall_ms())
        except (ValueError, KeyError, TypeError) as error:
            self._metrics.alert_changes.labels("unreadable").inc()
            log.warning(
                "message passed over: alerts cannot read it",
                topic=record.topic,
                offset=record.offset,
                why=repr(error)[:200],
            )
            return
        self._metrics.alert_changes.labels("routed" if ways else "unrouted").inc()
        now_ms, wall_ms = self._clock.now_ms(), self._clock.wall_ms()
        for way in ways:
            ready_ms = now_ms + max(way.wait_ms, way.not_before_ms - wall_ms)
            batch.add(way.receiver, change, record, way.group, ready_ms, now_ms, way.repeat_ms)

    def _take_request(self, batch: _Batch, record: Read) -> None:
        match parse_request(record.value):
            case Enable(receiver):
                batch.rows[encode_key((Disabled.KIND, receiver))] = None
                log.info("receiver is enabled", receiver=receiver, partition=batch.book.partition)
            case Redeliver(receiver, message, changes):
                now_ms = self._clock.now_ms()
                for change in changes:
                    batch.add(receiver, change, record, None, now_ms, now_ms, None)
                if [change.id for change in changes] != [message]:
                    of = tuple((change.subject, change.id) for change in changes)
                    batch.rows |= [encode(Sealed(receiver, message, of, 0, now_ms))]
            case None:
                log.warning("request passed over: it is not known here", topic=record.topic, offset=record.offset)


class _Batch:
    """Rows on their way."""

    def __init__(self, book: Book) -> None:
        self.book, self.seq = book, book.position.seq
        self.rows: Rows = {}
        self._added: list[Pending] = []
        self.next: dict[str, tuple[int, str]] = {}

    def add(
        self, receiver: str, change: Change, record: Read, group: str | None, ready_ms: int, now_ms: int,
        repeat_ms: int | None,
    ) -> None:  # fmt: skip
        """Add a change, unless it waits already."""
        row = Pending(
            receiver, change, self.seq, group, ready_ms, now_ms, repeat_ms, record.topic, record.offset, record.trace
        )
        key, value = encode(row)
        if key in self.rows or self.book.index.has(self.book.partition, receiver, change.subject, change.id):
            return
        self.rows[key] = value
        self.seq += 1
        self._hasten(row)

    def _hasten(self, row: Pending) -> None:
        """Let what the receiver has not got of the subject yet leave with this, if that waits longer: order stays."""
        earlier = {p.key: p for p in self.book.index.later_than(self.book.partition, row)}
        earlier |= {p.key: p for p in self._added if _is_held_back(p, row)}
        sooner = {key: structs.replace(waiting, ready_ms=row.ready_ms) for key, waiting in earlier.items()}
        self.rows |= dict(map(encode, sooner.values()))
        self._added = [sooner.get(p.key, p) for p in self._added]
        self._added.append(row)


def _is_held_back(waiting: Pending, row: Pending) -> bool:
    """Whether a change waits longer than a later one of the same subject."""
    return (
        waiting.receiver == row.receiver
        and waiting.change.subject == row.change.subject
        and waiting.ready_ms > row.ready_ms
    )


def lean(change: Change) -> Change:
    """A change without the largest parts of its body, where it is so large that a row of it might not fit a record.

    No message tells more than 20 kB of it, and the topic has it whole.
    """
    if len(orjson.dumps(change.body)) <= _LARGEST_BODY:
        return change
    return replace(change, body={k: v for k, v in change.body.items() if len(orjson.dumps(v)) <= _LARGEST_PART})
