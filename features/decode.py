"""Bytes to columns: only the configured fields, typed; what cannot be scored is set aside with its reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.errors import (
    BadTimeError,
    KeyMismatchError,
    MissingSessionError,
    NotJsonError,
    RecordError,
    WrongTypeError,
)
from features.event_time import MAX_TIME_MS, parse_time_ms

MAX_SESSION_CHARACTERS = 1_024
MAX_TOKEN_CHARACTERS = 1_024  # a longer text is no category, and would not fit into a message about it


class Record(Protocol):
    """What we read of a Kafka record; aiokafka's, confluent's wrapped one and a line of a file all fit."""

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102


@dataclass(frozen=True)
class Reject:
    """A record that cannot be scored: its position in the slice, and why."""

    index: int
    error: RecordError


@dataclass(frozen=True)
class Events:
    """The valid records of one partition, in offset order, as columns.

    Attributes
    ----------
    index
        (n,) int32: each event's position among the records given.
    offsets, time_ms
        (n,) int64.
    session
        (n,) int32: position of the event's session in `sessions`.
    sessions
        Distinct session names in order of first appearance.
    tokens
        One list of n texts (or None where the field is absent) for each token field.
    ends
        (n,) bool: the event matches `end_when`.
    rejects
        Records set aside.
    tombstones
        How many records had no value.
    next_offset
        The offset after the last record given, valid or not; None if none was given.
    """

    index: NDArray[np.int32]
    offsets: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    session: NDArray[np.int32]
    sessions: list[str]
    tokens: list[list[str | None]]
    ends: NDArray[np.bool_]
    rejects: list[Reject]
    tombstones: int
    next_offset: int | None

    def __len__(self) -> int:
        return len(self.offsets)

    def pieces(self, max_sessions: int) -> Iterator[Events]:
        """Cut into runs of events with at most `max_sessions` distinct sessions each, with the rejects among them."""
        if len(self.sessions) <= max_sessions:
            yield self
            return
        low, seen = 0, set[int]()
        rejects, tombstones = deque(self.rejects), self.tombstones
        for i, number in enumerate(self.session.tolist()):
            if number not in seen and len(seen) == max_sessions:
                before = []
                while rejects and rejects[0].index < self.index[i]:
                    before.append(rejects.popleft())
                yield self._piece(low, i, before, tombstones)
                low, seen, tombstones = i, set(), 0
            seen.add(number)
        yield self._piece(low, len(self), list(rejects), tombstones)

    def _piece(self, low: int, high: int, rejects: list[Reject], tombstones: int) -> Events:
        part = slice(low, high)
        numbers: dict[int, int] = {}
        session = [numbers.setdefault(s, len(numbers)) for s in self.session[part].tolist()]
        return Events(
            self.index[part], self.offsets[part], self.time_ms[part], np.array(session, np.int32),
            [self.sessions[s] for s in numbers], [column[part] for column in self.tokens], self.ends[part],
            rejects, tombstones, self.next_offset if high == len(self) else int(self.offsets[high]),
        )  # fmt: skip


class Decoder:
    """Reads records as one stream's config describes them.

    Parameters
    ----------
    session
        Dotted path of the session field, or "@key".
    time
        Dotted path of the time field, or None for the record's timestamp.
    tokens
        Dotted paths of the token fields.
    end_when
        Field values that mark a session's last event; empty for none.

    Raises
    ------
    ValueError
        One path lies inside another (`user` and `user.id`).
    """

    def __init__(
        self, session: str, time: str | None, tokens: Iterable[str], end_when: Mapping[str, str | bool | int | float]
    ) -> None:
        self.token_fields = tuple(tokens)
        self._by_key = session == "@key"
        self._end_when = dict(end_when)
        roles: dict[str, set[type]] = {}
        for field in self._end_when:
            roles.setdefault(field, {str, int, float, bool})
        for field, kinds in (
            *((f, {str}) for f in self.token_fields),
            *(((session, {str, int}),) if not self._by_key else ()),
            *(((time, {str, int, float}),) if time is not None else ()),
        ):
            roles[field] = roles.get(field, kinds) & kinds
        self._decode = msgspec.json.Decoder(_struct({tuple(f.split(".")): kinds for f, kinds in roles.items()})).decode
        self._session = None if self._by_key else _getter(session)
        self._time = None if time is None else _getter(time)
        self._tokens = [_getter(f) for f in self.token_fields]
        self._ends = [(_getter(f), value) for f, value in self._end_when.items()]

    def decode(self, records: Iterable[Record], *, check_key: bool) -> Events:
        """Decode records of one partition, in order.

        Parameters
        ----------
        records
            In offset order.
        check_key
            Refuse records whose key is not their session. False for files, which may carry no keys.
        """
        kept: list[int] = []
        offsets: list[int] = []
        times: list[int] = []
        session: list[int] = []
        numbers: dict[str, int] = {}
        rows: list[tuple[str | None, ...]] = []
        ends: list[bool] = []
        rejects: list[Reject] = []
        tombstones = 0
        next_offset = None
        for index, record in enumerate(records):
            next_offset = record.offset + 1
            if record.value is None:
                tombstones += 1
                continue
            try:
                event = self._parse(record.value)
                name = self._name(record, event, check_key=check_key)
                row = self._row(event)
                moment = None if self._time is None else self._time(event)
                times.append(_kafka_time(record.timestamp) if moment is None else parse_time_ms(moment))
            except RecordError as error:
                rejects.append(Reject(index, error))
                continue
            kept.append(index)
            offsets.append(record.offset)
            session.append(numbers.setdefault(name, len(numbers)))
            rows.append(row)
            ends.append(bool(self._ends) and all(_same(get(event), value) for get, value in self._ends))
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in self._tokens]
        return Events(
            np.array(kept, np.int32), np.array(offsets, np.int64), np.array(times, np.int64),
            np.array(session, np.int32), list(numbers), columns, np.array(ends, np.bool_), rejects, tombstones,
            next_offset,
        )  # fmt: skip

    def _parse(self, value: bytes) -> Any:
        try:
            return self._decode(value)
        except msgspec.ValidationError as error:
            raise WrongTypeError(_plain(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NotJsonError(_plain(error)) from None

    def _row(self, event: Any) -> tuple[str | None, ...]:
        row = tuple([get(event) for get in self._tokens])
        for field, text in zip(self.token_fields, row, strict=True):
            if text is not None and len(text) > MAX_TOKEN_CHARACTERS:
                message = f"the token field {field} has {len(text)} characters; {MAX_TOKEN_CHARACTERS} are allowed"
                raise WrongTypeError(message)
        return row

    def _name(self, record: Record, event: Any, *, check_key: bool) -> str:
        if self._session is None:
            return _name_from_key(record.key)
        found = self._session(event)
        name = "" if found is None else str(found)
        if not name:
            message = "the session field is absent or empty"
            raise MissingSessionError(message)
        if len(name) > MAX_SESSION_CHARACTERS:
            message = f"the session has {len(name)} characters; {MAX_SESSION_CHARACTERS} are allowed"
            raise WrongTypeError(message)
        if check_key and record.key != name.encode():
            key = "absent" if record.key is None else repr(record.key[:60].decode("utf-8", "replace"))
            message = f"the session is {name[:60]!r} but the record's key is {key}; produce with the session as key"
            raise KeyMismatchError(message)
        return name


def _kafka_time(timestamp: int) -> int:
    """The record's own timestamp; producers may leave it out (-1) or give another unit than Kafka's."""
    if not 0 <= timestamp <= MAX_TIME_MS:
        message = f"Kafka's timestamp of the record, {timestamp}, is no time in milliseconds between 1970 and 9999"
        raise BadTimeError(message)
    return timestamp


def _name_from_key(key: bytes | None) -> str:
    if not key:
        message = "the session is the record's key, and the record has none"
        raise MissingSessionError(message)
    try:
        name = key.decode()
    except UnicodeDecodeError:
        message = "the record's key is no UTF-8"
        raise WrongTypeError(message) from None
    if len(name) > MAX_SESSION_CHARACTERS:
        message = f"the key has {len(name)} characters; {MAX_SESSION_CHARACTERS} are allowed"
        raise WrongTypeError(message)
    return name


def _same(found: object, wanted: object) -> bool:
    """Equal, and both or neither a truth value: JSON's true is not 1."""
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _plain(error: Exception) -> str:
    """The decoder's own sentence, with the JSON path in words a user knows."""
    return str(error).replace("`$.", "`").replace("`", "'").replace(" - at '$'", "") or type(error).__name__


def _struct(paths: Mapping[tuple[str, ...], set[type]]) -> type[msgspec.Struct]:
    """Build a struct type that reads just these paths; everything else in the JSON is skipped."""
    children: dict[str, dict[tuple[str, ...], set[type]]] = {}
    for path, kinds in paths.items():
        children.setdefault(path[0], {})[path[1:]] = kinds
    fields = []
    for name, below in children.items():
        if () in below and len(below) > 1:
            message = f"the field {name} is used as a value and, in another place, as an object"
            raise ValueError(message)
        kind = _union(below[()]) if () in below else _struct(below) | None
        fields.append((_attribute(name), kind, None))
    rename = {_attribute(name): name for name in children}
    return msgspec.defstruct("Event", fields, rename=rename, kw_only=True, gc=False)


def _union(kinds: set[type]) -> Any:
    if kinds == {str, int, float, bool}:
        return Any  # compared only, so any value will do
    union: Any = None
    for kind in sorted(kinds, key=lambda k: k.__name__):
        union = kind if union is None else union | kind
    return union | None


def _attribute(name: str) -> str:
    """A Python attribute name for any JSON field name."""
    return "f_" + name.encode().hex()


def _getter(path: str) -> Callable[[Any], Any]:
    names = [_attribute(part) for part in path.split(".")]
    if len(names) == 1:
        return attrgetter(names[0])

    def walk(event: Any) -> Any:
        for name in names:
            if event is None:
                return None
            event = getattr(event, name)
        return event

    return walk
