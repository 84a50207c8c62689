"""A configured field that no record of a history has is a mistake, and said before anything is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import orjson

from features.errors import RecordError
from features.events import Record
from features.field_search import LOOKED_AT, lacking, nearest
from features.paths import format_path, parse_path
from features.text_lines import LineReader
from pipeline.errors import ConfigError
from pipeline.stream_settings import StreamSettings


class FieldCheck:
    """Looks through a history, some records at a time, for fields that none of them has.

    Training is where this is refused: a worker that met such records would take its other streams down with it, so it
    says what it found (`detectors/schema_watch.py`) and goes on.
    """

    def __init__(self, stream: StreamSettings) -> None:
        by = [field for field in stream.session.fields if field != "@key"]
        names = [*stream.fields, *stream.session.end_when, *by]
        names += [field for field in (stream.time, stream.segment) if field is not None]
        self._read: Callable[[bytes], Any] = (
            LineReader(stream.pattern).read if stream.format == "text" else orjson.loads
        )
        self._absent = {parse_path(name) for name in names}
        self._is_masked = bool(stream.mask)
        self._first: list[Any] = []  # to tell what may have been meant

    def look(self, records: Iterable[Record]) -> None:
        """Take some records in; most often the first suffice, and the others are not read."""
        if not self._absent:
            return
        events = self._events(records)
        self._first += islice(events, LOOKED_AT - len(self._first))
        self._absent = lacking(self._absent, chain(self._first, events))

    def refuse_absent(self) -> None:
        """Once all have been taken in.

        Raises
        ------
        ConfigError
            With the field of the records that looks most like it; not where the stream is masked, for keys may be
            private.
        """
        if not self._first or not self._absent:  # that nothing can be read is said elsewhere
            return
        path = min(self._absent, key=format_path)
        near = None if self._is_masked else nearest(path, self._first)
        hint = "" if near is None else f"; did you mean {near}?"
        message = f"no record of the history has the field {format_path(path)}{hint}"
        raise ConfigError(message)

    def _events(self, records: Iterable[Record]) -> Iterator[Any]:
        for record in records:
            try:
                event = self._read(record.value or b"")
            except (RecordError, ValueError):
                continue
            if isinstance(event, dict):
                yield event
