"""History to train from: a file, or a range of a topic."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from heapq import merge
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from features.decode import Decoder
from features.event_time import parse_time_ms
from features.events import Events, Record
from pipeline.clients import Clients
from pipeline.errors import TopicError, UsageError
from pipeline.field_check import FieldCheck
from pipeline.log_bounds import log_bounds
from pipeline.samples import events_of
from pipeline.score import read_lines
from pipeline.stream_settings import StreamSettings
from pipeline.units import parse_duration_ms

READ_TIMEOUT_S = 30.0
_AT_ONCE = 20_000  # records of a partition decoded at once
_SHARED = 100_000  # texts kept once for all events: of more, most are names that come once


@dataclass(frozen=True)
class History:
    """Events by partition, and how many records were set aside, by reason; `places` says which partition each is."""

    events: list[Events]
    rejected: dict[str, int]
    places: tuple[Any, ...] = ()

    @property
    def records(self) -> int:
        """Valid records."""
        return sum(len(e) for e in self.events)


def parse_moment_ms(text: str, now_ms: int) -> int:
    """Read `--since` and `--until`: a time, or a duration before now."""
    try:
        return max(0, now_ms - parse_duration_ms(text))
    except ValueError:
        pass
    try:
        return parse_time_ms(text)
    except ValueError:
        message = f"{text!r} is no time: write 2026-01-31T12:00:00Z, an epoch, or a duration before now such as 7d"
        raise UsageError(message) from None


def from_file(path: Path, stream: StreamSettings, decoder: Decoder, progress: Callable[[int], None]) -> History:
    """Read a JSON-lines file; each `_partition` on its own."""
    reader = _Reader(stream, decoder, check_key=False)
    for line in events_of(stream, read_lines(path, stream.topic, progress)):
        reader.add(line.place, line)
    return reader.finish()


class _Reader:
    """Decodes records as they come, some of a partition at a time: columns take a tenth of what records take."""

    def __init__(self, stream: StreamSettings, decoder: Decoder, *, check_key: bool) -> None:
        self._decoder, self._check_key = decoder, check_key
        self._fields = FieldCheck(stream)
        self._waiting: dict[object, list[Record]] = {}
        self._pieces: dict[object, list[Events]] = {}
        self._known: dict[str | None, str | None] = {}

    def add(self, place: object, record: Record) -> None:
        """Take in the next record of a partition."""
        waiting = self._waiting.setdefault(place, [])
        waiting.append(record)
        if len(waiting) == _AT_ONCE:
            self._decode(place)

    def finish(self, order: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> History:
        """All that was taken in, the partitions in the order given; without one, in that of their first records.

        Raises
        ------
        ConfigError
            A field of the stream is in no record.
        """
        for place in [place for place, records in self._waiting.items() if records]:
            self._decode(place)
        self._fields.refuse_absent()
        events, rejected = [], dict[str, int]()
        places = tuple(order(self._pieces))
        for place in places:
            events.append(Events.concatenate(self._pieces.pop(place)))
            for reject in events[-1].rejects:
                rejected[reject.error.reason] = rejected.get(reject.error.reason, 0) + 1
        return History(events, rejected, places)

    def _decode(self, place: object) -> None:
        records, self._waiting[place] = self._waiting[place], []
        self._fields.look(records)
        events = self._decoder.decode(records, check_key=self._check_key)
        tokens = [list(map(self._shared, column)) for column in events.tokens]
        self._pieces.setdefault(place, []).append(replace(events, tokens=tokens))

    def _shared(self, text: str | None) -> str | None:
        """The same text, in one object for all events that have it, as far as it is likely to come again."""
        known = self._known
        return known.setdefault(text, text) if len(known) < _SHARED else known.get(text, text)


@dataclass(frozen=True)
class _Record:
    """A confluent message as `features.events.Record`."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def from_topic(
    clients: Clients, stream: StreamSettings, decoder: Decoder, since_ms: int | None, until_ms: int | None,
    progress: Callable[[int, int], None],
) -> History:  # fmt: skip
    """Read what the topic holds now, by the records' Kafka timestamps.

    A repartitioned stream is read from its source, which alone has history before the first worker ran. A session may
    lie in several of its partitions, so they are brought together by timestamp, each in its own order.

    Parameters
    ----------
    progress
        Called with records read and records in the range.
    """
    consumer = clients.confluent_consumer("offbeat-train", from_start=True)
    try:
        reader = _Reader(stream, decoder, check_key=not stream.is_repartitioned)
        if not stream.is_repartitioned:
            _read(consumer, stream.topic, since_ms, until_ms, reader.add, progress)
            return reader.finish(sorted)
        records = defaultdict[int, list[_Record]](list)
        _read(consumer, stream.topic, since_ms, until_ms, lambda p, record: records[p].append(record), progress)
        in_time = merge(*(records[p] for p in sorted(records)), key=lambda record: record.timestamp)
        numbered = (replace(record, offset=offset) for offset, record in enumerate(in_time))
        for record in events_of(stream, numbered):
            reader.add(None, record)
        return reader.finish()
    except KafkaException as error:
        message = f"topic {stream.topic} cannot be read: {error.args[0].str()}"
        raise TopicError(message) from None
    finally:
        consumer.close()


def _read(
    consumer: Consumer, topic: str, since_ms: int | None, until_ms: int | None, add: Callable[[int, _Record], None],
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    found = consumer.list_topics(topic, timeout=10).topics[topic]
    if found.error is not None:
        message = f"topic {topic} does not exist; create it and produce to it, or correct the stream's `topic`"
        raise TopicError(message)
    ranges = {p: _range(consumer, TopicPartition(topic, p), since_ms, until_ms) for p in sorted(found.partitions)}
    unfinished = {p for p, (low, high) in ranges.items() if low < high}
    total, count = sum(max(0, high - low) for low, high in ranges.values()), 0
    consumer.assign([TopicPartition(topic, p, ranges[p][0]) for p in unfinished])
    last = time.monotonic()
    while unfinished:
        messages = consumer.consume(10_000, timeout=1.0)
        for message in messages:
            if message.error() is None:
                p = message.partition()
                if message.offset() < ranges[p][1]:
                    add(p, _Record(message.offset(), message.timestamp()[1], message.key(), message.value()))
                    count += 1
        # Positions, not last offsets: transaction markers take offsets and are no records.
        unfinished -= {tp.partition for tp in consumer.position(_parts(topic, unfinished)) if _passed(tp, ranges)}
        progress(count, total)
        last = time.monotonic() if messages else last
        if time.monotonic() - last > READ_TIMEOUT_S:
            message_ = f"topic {topic} gave no records for {READ_TIMEOUT_S:.0f} s; is the broker well?"
            raise TopicError(message_)


def _parts(topic: str, partitions: Iterable[int]) -> list[TopicPartition]:
    return [TopicPartition(topic, p) for p in partitions]


def _passed(at: TopicPartition, ranges: dict[int, tuple[int, int]]) -> bool:
    return bool(at.offset >= ranges[at.partition][1])


def _range(consumer: Consumer, tp: TopicPartition, since_ms: int | None, until_ms: int | None) -> tuple[int, int]:
    """First offset and the one after the last, of records with timestamps in [since, until)."""
    low, high = log_bounds(consumer, tp.topic, tp.partition)

    def at(moment_ms: int | None, default: int) -> int:
        if moment_ms is None:
            return default
        found = consumer.offsets_for_times([TopicPartition(tp.topic, tp.partition, moment_ms)], timeout=10)[0]
        return high if found.offset < 0 else int(found.offset)

    return at(since_ms, low), at(until_ms, high)
