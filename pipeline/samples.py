"""Exports of metrics in files and topics, as the samples that a worker would bring to the internal topic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

from features.events import Record
from features.otlp import samples_of
from pipeline.stream_settings import StreamSettings

R = TypeVar("R", bound=Record)


def events_of(stream: StreamSettings, records: Iterable[R]) -> Iterator[R]:
    """Records of one stream, which are dataclasses, one for each event.

    An export becomes its samples. Each gets an offset of its own, for an id names one event: its record's, or the next
    that is free in the partition. So samples that were written back from an internal topic keep theirs.
    """
    if stream.format != "otlp_metrics":
        yield from records
        return
    free: dict[object, int] = {}
    for record in records:
        place = getattr(record, "place", None)
        for value in [None] if record.value is None else samples_of(record.value):
            offset = max(record.offset, free.get(place, 0))
            free[place] = offset + 1
            yield cast("R", replace(cast("Any", record), value=value, offset=offset))
