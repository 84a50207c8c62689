"""What the incident stage remembers: groups of anomalies, open incidents, mutes, ids it has seen. Plain data, bounded.

Everything is immutable but the dictionaries of `IncidentState`, which `detectors.incidents` copies before it writes; so
what has changed between two states is what is not the same object any more, and only that is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

import msgspec

VERSION = 1  # of saved rows

MOST_GROUPS = 512  # of a feed partition; the one silent for longest makes room
MOST_OPEN = 32  # incidents; time alone keeps them under `quiet` / `together` + 1, but where clocks run apart
MOST_SESSIONS = 256  # remembered of a group
MOST_SOURCES = 512  # partitions and kinds of decision that feed a group
MOST_FIELDS = 16  # of a group
MOST_MUTES = 1_000
EXAMPLES = 5
SUPPRESSED_SHOWN = 20  # suppressed anomalies that can be looked at, for each mute or window
LONGEST_NAME = 120  # characters kept of a session's, segment's or field's name
_IDS_A_ROW, _ID_ROWS = 1_024, 16  # ids remembered: at 1,000 anomalies a second those of the last 16 s
_ID_BYTES = 8


class Notice(msgspec.Struct, frozen=True, tag_field="what", tag="anomaly", omit_defaults=True):
    """One anomaly, as little of it as the incident stage needs.

    Attributes
    ----------
    scope
        Incidents do not reach beyond it: empty for all streams of an app, or a segment's name.
    rate
        The promise: an anomaly's p-value is at most that.
    decisions
        How many decisions of its kind and segment its partition had taken, this one included. What lies between two
        notices, times the promise, is how many false alarms were due.
    since_ms
        Event time from which these decisions are counted.
    topic, partition, offset
        Where its record lies. A topic that was made anew has another name here, for its decisions count from 0.
    top
        Fields that contributed most, and their shares.
    observed
        What came in fields of tokens, for mutes.
    logged_ms
        When the log took it: the record's timestamp.
    """

    id: str
    stream: str
    session: str
    type: Literal["record", "session", "rate"]
    time_ms: int
    p_value: float
    rate: float
    decisions: int
    since_ms: int
    topic: str
    partition: int
    offset: int
    scope: str = ""
    segment: str | None = None
    score: float = 0.0
    top: tuple[tuple[str, float], ...] = ()
    observed: dict[str, str] = {}
    logged_ms: int = 0


class Mute(msgspec.Struct, frozen=True, tag_field="what", tag="mute", omit_defaults=True):
    """Anomalies that shall count for nothing for a time. What is None matches everything."""

    id: str
    until_ms: int
    reason: str
    by: str
    issued_ms: int
    stream: str | None = None
    segment: str | None = None
    session: str | None = None
    field: str | None = None
    value: str | None = None

    def matches(self, notice: Notice) -> bool:
        """Whether it is in force at the notice's event time, and about it."""
        return (
            notice.time_ms < self.until_ms
            and self.stream in {None, notice.stream}
            and self.segment in {None, notice.segment}
            and self.session in {None, notice.session}
            and (self.field is None or self._is_observed(notice))
        )

    def _is_observed(self, notice: Notice) -> bool:
        assert self.field is not None, "asked for only then"
        return self.field in notice.observed and self.value in {None, notice.observed[self.field]}


class Maintenance(msgspec.Struct, frozen=True):
    """A span of event time in which anomalies are expected; of all streams and segments, or of those named."""

    from_ms: int
    until_ms: int
    streams: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()

    def matches(self, notice: Notice) -> bool:
        """Whether the notice lies in it."""
        return (
            self.from_ms <= notice.time_ms < self.until_ms
            and (not self.streams or notice.stream in self.streams)
            and (not self.segments or notice.segment in self.segments)
        )

    @property
    def id(self) -> str:
        """Its name where suppressed anomalies are counted."""
        return f"maintenance/{self.from_ms}"


class Example(msgspec.Struct, frozen=True):
    """An anomaly to look at."""

    id: str
    stream: str
    session: str
    time_ms: int
    gain: float


class Source(msgspec.Struct, frozen=True):
    """How far one partition's decisions of one kind were counted.

    `decisions` and `time_ms` are those of its last notice; `count` over `span_ms` is how many it takes a millisecond,
    the last minutes counting most.
    """

    decisions: int
    time_ms: int
    rate: float
    count: float
    span_ms: float


class Group(msgspec.Struct, frozen=True):
    """Anomalies of one stream and segment, and the evidence that more is wrong there than the promise explains.

    Attributes
    ----------
    evidence
        Cumulative sum, in nats, at least 0 and at most a few times what opens an incident.
    threshold
        What opened, or would have opened, an incident at the last notice.
    due, counted_since_ms, clock_ms
        False alarms that were due, forgotten over a day; since when; the largest event time.
    sources
        By topic, partition and kind of decision.
    onset_id, onset_ms, onset_session
        The first notice since the sum was last at 0: where it began. Empty while there is none.
    notices, excess, expected, peak
        Since then: how many; evidence without an upper bound; false alarms due; the largest evidence over its
        threshold.
    sessions, sessions_seen
        Notices of each session since then, the last few sessions; and how many sessions there were.
    fields
        Summed shares of fields since then.
    examples
        The most surprising notices since then, of different sessions where there are any.
    incident
        Id of the open incident that it belongs to; empty for none.
    """

    scope: str
    stream: str
    segment: str | None
    clock_ms: int
    counted_since_ms: int
    evidence: float = 0.0
    threshold: float = 0.0
    due: float = 0.0
    sources: dict[str, Source] = {}
    onset_id: str = ""
    onset_ms: int = 0
    onset_session: str = ""
    notices: int = 0
    excess: float = 0.0
    expected: float = 0.0
    peak: float = 0.0
    sessions: dict[str, int] = {}
    sessions_seen: int = 0
    fields: dict[str, float] = {}
    examples: tuple[Example, ...] = ()
    incident: str = ""

    @property
    def key(self) -> Key:
        """Its place in the state."""
        return self.scope, self.stream, self.segment


Key = tuple[str, str, str | None]


class Incident(msgspec.Struct, frozen=True):
    """An open incident; what happened in it stands in its groups.

    Attributes
    ----------
    start_ms, last_ms, logged_ms
        Event time of its first anomaly and of the last that showed it to go on, and when the log took that.
    groups
        In the order in which they joined.
    severity, anomalies, extent
        As last told, `extent` being its groups; `told_ms` is when, by the log.
    withheld
        Updates that were not told, for one had been told shortly before.
    suppressed
        Anomalies of its groups that mutes or maintenance kept from counting.
    """

    id: str
    scope: str
    start_ms: int
    last_ms: int
    logged_ms: int
    groups: tuple[Key, ...]
    revision: int = 1
    severity: str = "low"
    anomalies: int = 0
    extent: int = 0
    told_ms: int = 0
    withheld: int = 0
    suppressed: int = 0


class Suppressed(msgspec.Struct, frozen=True):
    """What one mute or maintenance window kept from counting: how many, when, and the last of them."""

    count: int
    first_ms: int
    last_ms: int
    last: tuple[Example, ...] = ()


class Counts(msgspec.Struct, frozen=True):
    """What there was no room for: groups that were forgotten, incidents closed early, mutes refused."""

    forgotten_groups: int = 0
    pushed_out: int = 0
    refused_mutes: int = 0


@dataclass(frozen=True)
class Seen:
    """The last ids, as 8 bytes of their hash each, in rows that are written one after the other.

    `rows` maps a row's number, counted on without end, to its ids; there are at most `_ID_ROWS`.
    """

    rows: dict[int, bytes] = field(default_factory=dict)
    members: set[bytes] = field(default_factory=set)

    def copy(self) -> Seen:
        """One that may be written to."""
        return Seen(dict(self.rows), set(self.members))

    def add(self, identity: str) -> bool:
        """Remember an id in place; False if it was there."""
        digest = blake2b(identity.encode(), digest_size=_ID_BYTES).digest()
        if digest in self.members:
            return False
        number = max(self.rows, default=0)
        if len(self.rows.get(number, b"")) >= _IDS_A_ROW * _ID_BYTES:
            number += 1
            self.members.difference_update(_digests(self.rows.pop(number - _ID_ROWS, b"")))
        self.rows[number] = self.rows.get(number, b"") + digest
        self.members.add(digest)
        return True


def _digests(row: bytes) -> Iterator[bytes]:
    return (row[at : at + _ID_BYTES] for at in range(0, len(row), _ID_BYTES))


@dataclass(frozen=True)
class IncidentState:
    """All that is remembered of one feed partition."""

    groups: dict[Key, Group] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    mutes: dict[str, Mute] = field(default_factory=dict)
    suppressed: dict[str, Suppressed] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)
    counts: Counts = field(default_factory=Counts)

    def copy(self) -> IncidentState:
        """One whose dictionaries may be written to; what they hold is shared."""
        return IncidentState(
            dict(self.groups), dict(self.incidents), dict(self.mutes), dict(self.suppressed), self.seen.copy(),
            self.counts,
        )  # fmt: skip


_KINDS: dict[str, Any] = {
    "group": Group, "incident": Incident, "mute": Mute, "suppressed": Suppressed, "ids": tuple[int, bytes],
    "counts": Counts,
}  # fmt: skip
_encode = msgspec.msgpack.Encoder().encode
_decoders = {kind: msgspec.msgpack.Decoder(of).decode for kind, of in _KINDS.items()}


class UnknownVersionError(ValueError):
    """A newer release wrote the row."""


def _items(state: IncidentState) -> dict[tuple[str, Any], Any]:
    """Every row's kind and name, and what it holds."""
    found: dict[tuple[str, Any], Any] = {("group", key): group for key, group in state.groups.items()}
    found |= {("incident", name): incident for name, incident in state.incidents.items()}
    found |= {("mute", name): mute for name, mute in state.mutes.items()}
    found |= {("suppressed", name): suppressed for name, suppressed in state.suppressed.items()}
    found |= {("ids", number): ids for number, ids in state.seen.rows.items()}
    return found | {("counts", ""): state.counts}


def _row_key(kind: str, name: Any) -> bytes:
    return _encode_json([kind, name % _ID_ROWS if kind == "ids" else name])


_encode_json = msgspec.json.Encoder().encode


def changed_rows(before: IncidentState, after: IncidentState) -> dict[bytes, bytes | None]:
    """What to save after `before` has become `after`: rows by key, None for one to be deleted."""
    old, new = _items(before), _items(after)
    rows: dict[bytes, bytes | None] = {_row_key(*name): None for name in old if name not in new}
    for (kind, name), content in new.items():
        if old.get((kind, name)) is not content:
            row = (name, content) if kind == "ids" else content
            rows[_row_key(kind, name)] = bytes([VERSION]) + _encode(row)
    return rows


def read_rows(rows: Mapping[bytes, bytes]) -> IncidentState:
    """The state that was saved.

    Raises
    ------
    UnknownVersionError
        A newer release wrote a row.
    """
    state = IncidentState()
    for key, value in sorted(rows.items()):
        kind, name = msgspec.json.decode(key)
        if value[0] != VERSION:
            message = f"saved incidents have format {value[0]}, this version reads {VERSION}: upgrade offbeat"
            raise UnknownVersionError(message)
        content = _decoders[kind](value[1:])
        if kind == "ids":
            state.seen.rows[content[0]] = content[1]
            state.seen.members.update(_digests(content[1]))
        elif kind == "counts":
            state = replace(state, counts=content)
        elif kind == "group":
            state.groups[content.key] = content
        else:
            getattr(state, {"incident": "incidents", "mute": "mutes", "suppressed": "suppressed"}[kind])[name] = content
    return state
