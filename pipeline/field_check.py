"""A configured field that no record of a history has is a mistake, and said before anything is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import orjson

from features.errors import RecordError
from features.events import Record
from features.field_search import lacking, nearest
from features.paths import format_path, parse_path
from features.text_lines import LineReader
from pipeline.errors import ConfigError
from pipeline.stream_settings import StreamSettings


def check_fields(partitions: Iterable[Iterable[Record]], stream: StreamSettings) -> None:
    """Refuse a field that no record has; all are searched for one that is rare, most often a few suffice.

    Training is where this is refused: a worker that met such records would take its other streams down with it, so it
    says what it found (`detectors/schema_watch.py`) and goes on.

    Raises
    ------
    ConfigError
        With the field of the records that looks most like it; not where the stream is masked, for keys may be private.
    """
    by = [field for field in stream.session.fields if field != "@key"]
    names = [*stream.fields, *stream.session.end_when, *by]
    names += [field for field in (stream.time, stream.segment) if field is not None]
    read: Callable[[bytes], Any] = LineReader(stream.pattern).read if stream.format == "text" else orjson.loads

    def events() -> Iterator[Any]:
        for record in chain.from_iterable(partitions):
            try:
                event = read(record.value or b"")
            except (RecordError, ValueError):
                continue
            if isinstance(event, dict):
                yield event

    if next(events(), None) is None:  # that nothing can be read is said elsewhere
        return
    absent = lacking({parse_path(name) for name in names}, events())
    if absent:
        path = min(absent, key=format_path)
        near = None if stream.mask else nearest(path, events())
        hint = "" if near is None else f"; did you mean {near}?"
        message = f"no record of the history has the field {format_path(path)}{hint}"
        raise ConfigError(message)
