"""Bytes to columns: only the configured fields, typed; what cannot be scored is set aside with its reason.

A slice is read column by column, for that is several times quicker than record by record; a record's verdict does not
depend on the others in the slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.duplicates import NO_ID
from features.errors import (
    BadTimeError,
    KeyMismatchError,
    MissingSessionError,
    RecordError,
    WrongTypeError,
)
from features.event_time import MAX_TIME_MS, parse_time_ms, parse_times_ms
from features.events import Events, Record, Reject
from features.json_fields import ANY, JsonFields, Kinds
from features.masking import NO_MASK, Masker
from features.messages import ReadMessages, as_they_came
from features.number_columns import NUMBER, read_numbers
from features.otlp import sample_parser
from features.paths import Path, format_path, parse_path
from features.session_names import join_name, name_masker
from features.text_fields import TextFields
from features.text_lines import LineReader
from features.tokens import stable_hash

MAX_SESSION_CHARACTERS = 1_024
MAX_TOKEN_CHARACTERS = 1_024  # a longer text is no category, and would not fit into a message about it
_PLAUSIBLE_MS = 946_684_800_000  # 2000: an older timestamp is in another unit than Kafka's, and no yardstick
_TOKEN: Kinds = frozenset({str, int, bool})
_SESSION: Kinds = frozenset({str, int})
_MESSAGE: Kinds = frozenset({str})
_TIME: Kinds = frozenset({str, int, float})
_TEXT_OR_NOTHING = {str, type(None)}


class _Parsed(NamedTuple):
    """Records that could be parsed, as columns: position among the records given, the record, its JSON or line."""

    places: list[int]
    records: list[Record]
    events: list[Any]

    def only(self, kept: Sequence[int]) -> _Parsed:
        """Some of them."""
        return _Parsed([self.places[i] for i in kept], [self.records[i] for i in kept], [self.events[i] for i in kept])


class Decoder:
    """Reads records as one stream's config describes them.

    Parameters
    ----------
    session
        Path of the session field, or "@key"; or paths of several fields, whose values together name the session.
    time
        Path of the time field, or None for the record's timestamp.
    tokens
        Paths of the token fields: text; whole numbers and truth values count as the text JSON has for them.
    end_when
        Field values that mark a session's last event; empty for none.
    message
        Path of a field of free text, which becomes one more token field, after the others; None for none.
    read_messages
        What becomes of its texts, and the number columns that follow those of fields; absent, they stay as they are.
    text
        Reads records that are text; absent, they are JSON objects.
    event_id
        Path of a field that names each event, for finding duplicates; None for none.
    max_ahead_ms
        A time field further ahead of the record's own timestamp, where it has one, is not believed, and that taken
        instead; None: each is.
    of_exports
        The objects are samples made by `features.otlp`; what it could not flatten is refused for its own reason.
    masker
        Masks sessions, tokens and messages before anything else sees them; with any rule, nothing of a record that is
        set aside is kept but the reason.
    segment
        Path of the field that names an event's segment, read as a token is; an empty text names none.
    numbers
        Paths of the number fields of wide records; see `features.number_columns.read_numbers` for what they may hold.
    named
        For records of one sample each, instead of `numbers`: the path of the number's name, which must be one of the
        token fields, and that of its value, which becomes the only number column.

    Raises
    ------
    ValueError
        A path is none, lies inside another (`user` and `user.id`), or is none of the pattern's groups.
    """

    def __init__(
        self, session: str | Sequence[str], time: str | None, tokens: Iterable[str],
        end_when: Mapping[str, str | bool | int | float], message: str | None = None, *,
        read_messages: Callable[[Sequence[str | None]], ReadMessages] | None = None,
        text: LineReader | None = None, event_id: str | None = None, max_ahead_ms: int | None = None,
        masker: Masker = NO_MASK, numbers: Sequence[str] = (), named: tuple[str, str] | None = None,
        of_exports: bool = False, segment: str | None = None,
    ) -> None:  # fmt: skip
        kinds: dict[Path, Kinds] = {}

        def field(path: str, of: Kinds) -> Path:
            parsed = parse_path(path)
            kinds[parsed] = kinds.get(parsed, of) & of
            return parsed

        ends = [(field(path, ANY), value) for path, value in end_when.items()]
        columns = [(path, field(path, _TOKEN)) for path in tokens]
        part = None if segment is None else field(segment, _TOKEN)
        measures = [(path, field(path, NUMBER)) for path in _number_paths(numbers, named, kinds)]
        said = None if message is None else field(message, _MESSAGE)
        named_by = [session] if isinstance(session, str) else list(session)
        by = None if session == "@key" else [field(path, _SESSION) for path in named_by]
        at = None if time is None else field(time, _TIME)
        identity = None if event_id is None else field(event_id, _SESSION)
        counted = {path for _, path in measures}
        fields = JsonFields(kinds, counted) if text is None else TextFields(text, kinds)
        self._parse = sample_parser(fields.parse) if of_exports else fields.parse
        self._parse_all = _one_by_one if of_exports else fields.parse_all
        self._session = None if by is None else [(path, fields.column(path)) for path in by]
        self._time = None if at is None else fields.column(at)
        self._max_ahead_ms = max_ahead_ms
        self._id = None if identity is None else fields.column(identity)
        self._mask_id = None if event_id is None else masker.of(event_id)
        self._tokens = [(name, fields.column(path)) for name, path in columns]
        self._numbers = [(name, fields.column(path)) for name, path in measures]
        self._segment = None if part is None or segment is None else (segment, fields.column(part))
        self._mask_segment = None if segment is None else masker.of(segment)
        self._message = None if said is None else fields.column(said)
        self._is_masked = bool(masker)
        self._mask_session = name_masker(masker, named_by)
        self._mask_tokens = [masker.of(name) for name, _ in columns]
        self._mask_message = None if message is None else masker.of(message)
        self._read_messages = as_they_came() if read_messages is None else read_messages
        self._ends = [(fields.column(path), value) for path, value in ends]

    def decode(self, records: Iterable[Record], *, check_key: bool) -> Events:
        """Decode records of one partition.

        Parameters
        ----------
        records
            In offset order.
        check_key
            Refuse records whose key is not their session. False for files, which may carry no keys.
        """
        records = list(records)
        parsed, rejects = self._parsed(records)
        tombstones = len(records) - len(parsed.places) - len(rejects)
        next_offset = records[-1].offset + 1 if records else None
        try:
            events = self._columns(parsed, check_key=check_key)
        except RecordError:
            bad = self._bad(parsed, check_key=check_key)
            rejects = sorted([*rejects, *bad.values()], key=lambda reject: reject.index)
            good = parsed.only([i for i, index in enumerate(parsed.places) if index not in bad])
            events = self._columns(good, check_key=check_key)
        events = replace(events, rejects=rejects, tombstones=tombstones, next_offset=next_offset)
        # Only now, so that each record is masked once, and its message counted once.
        events = self._masked(events) if self._is_masked else events
        if events.segments is not None:  # an empty one is none
            events = replace(events, segments=[segment or None for segment in events.segments])
        if events.messages is None:
            return events
        texts, numbers = self._read_messages(events.messages)
        return replace(events, tokens=[*events.tokens, texts], numbers=np.hstack([events.numbers, numbers]))

    def _parsed(self, records: list[Record]) -> tuple[_Parsed, list[Reject]]:
        """Records with their JSON or their line's fields, and those that have none."""
        index = [i for i, record in enumerate(records) if record.value is not None]
        records = [records[i] for i in index]
        values: list[Any] = [record.value for record in records]
        found = self._parse_all(values)
        if found is not None:
            return _Parsed(index, records, found), []
        events: dict[int, Any] = {}
        rejects: list[Reject] = []
        for i, value in enumerate(values):
            try:
                events[i] = self._parse(value)
            except RecordError as error:
                rejects.append(Reject(index[i], error, offset=records[i].offset))
        return _Parsed([index[i] for i in events], [records[i] for i in events], list(events.values())), rejects

    def _bad(self, parsed: _Parsed, *, check_key: bool) -> dict[int, Reject]:
        """Which records cannot be read and why, by halves: a slice with one bad record costs twice a good one."""
        try:
            self._columns(parsed, check_key=check_key)
        except RecordError as error:
            n = len(parsed.places)
            if n == 1:
                return {parsed.places[0]: Reject(parsed.places[0], error, offset=parsed.records[0].offset)}
            halves = (parsed.only(range(n // 2)), parsed.only(range(n // 2, n)))
            return self._bad(halves[0], check_key=check_key) | self._bad(halves[1], check_key=check_key)
        return {}

    def _columns(self, parsed: _Parsed, *, check_key: bool) -> Events:
        """Columns of records, as they came; raises what is wrong with one of them."""
        index, records, events = parsed
        # First, for JSON with a number beyond all floats was let through as it came, and its kinds are checked here.
        numbers, infinite = read_numbers([(name, read(events)) for name, read in self._numbers], len(events))
        session, sessions = self._sessions(records, events, check_key=check_key)
        tokens = [_texts(name, read(events)) for name, read in self._tokens]
        segments = None if self._segment is None else _texts(self._segment[0], self._segment[1](events))
        messages = None if self._message is None else self._message(events)
        times, without_time = self._times(records, events)
        times, ahead = self._believable(times, records)
        return Events(
            np.array(index, np.int32), np.array([record.offset for record in records], np.int64),
            times, session, sessions, tokens, self._is_end(events), [], 0, None, messages,
            numbers, infinite, None if self._id is None else self._ids(self._id(events)), without_time, ahead,
            segments=segments,
        )  # fmt: skip

    def _masked(self, events: Events) -> Events:
        """Nothing of the records but what the rules leave."""
        session, sessions = _renumbered(events.session, _masked(events.sessions, self._mask_session))
        return replace(
            events,
            session=session,
            sessions=sessions,
            tokens=[_masked(column, way) for column, way in zip(events.tokens, self._mask_tokens, strict=True)],
            messages=None if events.messages is None else _masked(events.messages, self._mask_message),
            segments=None if events.segments is None else _masked(events.segments, self._mask_segment),
            rejects=[
                Reject(r.index, type(r.error)(r.error.in_general, r.error.at), is_private=True, offset=r.offset)
                for r in events.rejects
            ],
        )

    def _sessions(
        self, records: list[Record], events: list[Any], *, check_key: bool
    ) -> tuple[NDArray[np.int32], list[str]]:
        """Number of each record's session, and their names."""
        if self._session is None:
            names = [_name_from_key(record.key) for record in records]
        else:
            columns = [_names(path, read(events)) for path, read in self._session]
            names = columns[0] if len(columns) == 1 else _joined(columns)
        sessions = list(dict.fromkeys(names))
        number = {name: i for i, name in enumerate(sessions)}
        session = list(map(number.__getitem__, names))
        for name in sessions:
            if len(name) > MAX_SESSION_CHARACTERS:
                message = f"the session has {len(name)} characters; {MAX_SESSION_CHARACTERS} are allowed"
                raise WrongTypeError(message)
        if check_key and self._session is not None:
            encoded = [name.encode() for name in sessions]
            keys = list(map(encoded.__getitem__, session))
            if keys != [record.key for record in records]:
                wrong = next(i for i, key in enumerate(keys) if records[i].key != key)
                raise _mismatch(records[wrong], names[wrong])
        return np.array(session, np.int32), sessions

    def _ids(self, found: list[Any]) -> NDArray[np.uint64]:
        """(n,) hashes of event ids; they outlive the record, so of masked ones the mask's."""
        return np.array([NO_ID if i is None else stable_hash(str(i)) for i in _masked(found, self._mask_id)], np.uint64)

    def _times(self, records: list[Record], events: list[Any]) -> tuple[NDArray[np.int64], int]:
        """(n,) event times, and how many had to be taken from Kafka's timestamp."""
        if self._time is None:
            return np.array([_kafka_time(record.timestamp) for record in records], np.int64), 0
        found = self._time(events)
        if None not in found:
            return parse_times_ms(found), 0
        times = [
            _kafka_time(record.timestamp) if value is None else parse_time_ms(value)
            for record, value in zip(records, found, strict=True)
        ]
        return np.array(times, np.int64), found.count(None)

    def _believable(self, times: NDArray[np.int64], records: list[Record]) -> tuple[NDArray[np.int64], int]:
        """The times without those too far ahead, and how many were."""
        if self._time is None or self._max_ahead_ms is None:
            return times, 0
        stamps = np.array([record.timestamp for record in records], np.int64)
        ahead = (stamps > _PLAUSIBLE_MS) & (stamps <= MAX_TIME_MS) & (times > stamps + self._max_ahead_ms)
        return np.where(ahead, stamps, times), int(ahead.sum())

    def _is_end(self, events: list[Any]) -> NDArray[np.bool_]:
        """(n,) whether all fields of `end_when` match."""
        is_end = np.full(len(events), bool(self._ends))
        for read, wanted in self._ends:
            is_end &= np.array([_same(found, wanted) for found in read(events)], np.bool_)
        return is_end


def _number_paths(numbers: Sequence[str], named: tuple[str, str] | None, tokens: Mapping[Path, Kinds]) -> Sequence[str]:
    """Which fields become number columns."""
    if named is None:
        return numbers
    name, value = named
    assert not numbers, "numbers are fields of a record, or named by one of them"
    assert parse_path(name) in tokens, "what names numbers is a token"
    return (value,)


def _masked(column: list[Any], way: Callable[[Any], Any] | None) -> list[Any]:
    """Texts masked, each distinct one once."""
    if way is None:
        return column
    known = {text: way(text) for text in set(column)}
    return [known[text] for text in column]


def _renumbered(session: NDArray[np.int32], names: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Sessions that share a name once it is masked are one."""
    numbers: dict[str, int] = {}
    number = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32)
    return number[session], list(numbers)


def _one_by_one(_: list[Any]) -> None:
    """Nothing is read all at once."""


def _names(path: Path, found: list[Any]) -> list[str]:
    names = found if set(map(type, found)) <= {str} else ["" if name is None else str(name) for name in found]
    if "" in names:
        message = f"the session field {format_path(path)} is absent or empty"
        raise MissingSessionError(message)
    return names


def _joined(columns: list[list[str]]) -> list[str]:
    """Names made of several values, each distinct one once."""
    tuples = list(zip(*columns, strict=True))
    known = {values: join_name(values) for values in set(tuples)}
    return [known[values] for values in tuples]


def _name_from_key(key: bytes | None) -> str:
    if not key:
        message = "the session is the record's key, and the record has none"
        raise MissingSessionError(message)
    try:
        return key.decode()
    except UnicodeDecodeError:
        message = "the record's key is no UTF-8"
        raise WrongTypeError(message) from None


def _mismatch(record: Record, name: str) -> KeyMismatchError:
    key = "absent" if record.key is None else repr(record.key[:60].decode("utf-8", "replace"))
    message = (
        f"the session is {name[:60]!r} but the record's key is {key}; produce with the session as key, or write "
        "session.repartition: true"
    )
    return KeyMismatchError(message)


def _texts(field: str, found: list[Any]) -> list[str | None]:
    """A column of tokens."""
    texts = found if set(map(type, found)) <= _TEXT_OR_NOTHING else list(map(_text, found))
    longest = max((len(text) for text in set(texts) if text is not None), default=0)
    if longest > MAX_TOKEN_CHARACTERS:
        message = f"the token field {field} has {longest} characters; {MAX_TOKEN_CHARACTERS} are allowed"
        raise WrongTypeError(message, ".".join(map(str, parse_path(field))))
    return texts


def _text(value: str | int | bool | None) -> str | None:
    """Whole numbers and truth values as JSON writes them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


def _kafka_time(timestamp: int) -> int:
    """The record's own timestamp; producers may leave it out (-1) or give another unit than Kafka's."""
    if not 0 <= timestamp <= MAX_TIME_MS:
        message = f"Kafka's timestamp of the record, {timestamp}, is no time in milliseconds between 1970 and 9999"
        raise BadTimeError(message)
    return timestamp


def _same(found: object, wanted: object) -> bool:
    """Equal, and both or neither a truth value: JSON's true is not 1."""
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
