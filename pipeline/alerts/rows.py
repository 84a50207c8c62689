"""The rows of the outbox: what is to be told, to whom, and how far that is. Keys and values as they stand on its topic.

A key is a JSON list that begins with the kind of row. The value is JSON, and none is a tombstone: there is nothing more
to do. Rows of later versions of Offbeat may have more fields; those of kinds that are not known here are passed over.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from pipeline.alerts.change import Change

Key = tuple[str, ...]
Change_ = tuple[str, str]  # a change by its subject and its id


class Pending(msgspec.Struct, frozen=True):
    """A change that a receiver has not got yet.

    Attributes
    ----------
    seq
        Counts the pending rows of a partition: a receiver gets a subject's changes in this order.
    group
        Changes of one group may leave as one message; None: a message of its own.
    ready_ms
        Not before then, by our clock.
    taken_ms
        When it was taken in.
    repeat_ms
        How long after its delivery it is told again, should nothing change; None: never.
    topic, offset
        Where it was read.
    trace
        The `traceparent` that its message said, if any.
    """

    KIND: ClassVar[str] = "pending"
    receiver: str
    change: Change
    seq: int
    group: str | None
    ready_ms: int
    taken_ms: int
    repeat_ms: int | None
    topic: str
    offset: int
    trace: str = ""

    @property
    def key(self) -> Key:
        """What names the row."""
        return (self.KIND, self.receiver, self.change.subject, self.change.id)


class Sealed(msgspec.Struct, frozen=True):
    """A message that has been tried, or is about to be: which changes it tells under its id will never change.

    `attempts` counts those that have failed, and the next one is at `due_ms`.
    """

    KIND: ClassVar[str] = "message"
    receiver: str
    id: str
    changes: tuple[Change_, ...]
    attempts: int
    due_ms: int

    @property
    def key(self) -> Key:
        """What names the row."""
        return (self.KIND, self.receiver, self.id)


class Open(msgspec.Struct, frozen=True):
    """The last that a receiver got of an open incident; it is told again every `every_ms`, next at `next_ms`."""

    KIND: ClassVar[str] = "open"
    receiver: str
    change: Change
    every_ms: int
    next_ms: int
    told: int = 0

    @property
    def key(self) -> Key:
        """What names the row."""
        return (self.KIND, self.receiver, self.change.subject)


class Disabled(msgspec.Struct, frozen=True):
    """A receiver that wants no message ever again: what is for it goes to the dead letters."""

    KIND: ClassVar[str] = "disabled"
    receiver: str
    since_ms: int
    detail: str

    @property
    def key(self) -> Key:
        """What names the row."""
        return (self.KIND, self.receiver)


class Position(msgspec.Struct, frozen=True):
    """How far a partition of the inputs has been taken in.

    Attributes
    ----------
    next
        By topic, the offset to go on from, and the topic's id: one made anew counts from 0 again.
    seq
        Of the next pending row.
    """

    KIND: ClassVar[str] = "position"
    next: dict[str, tuple[int, str]]
    seq: int

    @property
    def key(self) -> Key:
        """What names the row."""
        return (self.KIND,)


Row = Pending | Sealed | Open | Disabled | Position
Rows = dict[bytes, bytes | None]  # as they go to the topic; None is a tombstone
KINDS: dict[str, type[Row]] = {kind.KIND: kind for kind in (Pending, Sealed, Open, Disabled, Position)}
_KEY = msgspec.json.Decoder(Key)
_VALUES = {name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()}


def encode_key(key: Key) -> bytes:
    """A key as bytes."""
    return msgspec.json.encode(key)


def encode(row: Row) -> tuple[bytes, bytes]:
    """Key and value of a row."""
    return encode_key(row.key), msgspec.json.encode(row)


def decode_key(key: bytes | None) -> Key | None:
    """A key from the topic; None: it is none of ours."""
    try:
        parts = _KEY.decode(key or b"")
    except msgspec.DecodeError:
        return None
    return parts if parts and parts[0] in KINDS else None


def decode(kind: str, value: bytes) -> Row | None:
    """A value from the topic; None: it cannot be read."""
    try:
        row: Row = _VALUES[kind].decode(value)
    except msgspec.DecodeError:
        return None
    return row
