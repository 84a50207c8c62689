"""What must hold after a storm. Each check returns sentences on what does not; none means that all is well."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.oracle import Expected, canonical
from tests.chaos.rows import read_partition, read_session, session_rows

_FEW = 5  # sentences of one kind: more would say nothing new
_CLOCK_KEYS = {"detected_ms"}  # the worker's clock: the only part of a message that may differ between deliveries


@dataclass
class OffsetWatch:
    """The group's offsets as they are seen, one look after the other."""

    highest: dict[int, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def see(self, committed: Mapping[int, int]) -> None:
        """Compare a look with those before it."""
        for p, offset in committed.items():
            if offset < self.highest.get(p, 0):
                self.complaints.append(f"the group's offset of partition {p} fell from {self.highest[p]} to {offset}")
            self.highest[p] = max(offset, self.highest.get(p, 0))


def check_committed(committed: Mapping[int, int], expected: list[Expected]) -> list[str]:
    """The group's offset of every partition is X + 1."""
    return [
        f"the group's offset of partition {p} is {committed.get(p)}, not {e.partition['next_offset']}"
        for p, e in enumerate(expected)
        if committed.get(p) != e.partition["next_offset"]
    ]


def check_rows(where: str, saved: Mapping[bytes, bytes], expected: Expected) -> list[str]:
    """Session rows and partition row equal the oracle's bit for bit; no session too many, none too few."""
    wrong = []
    try:
        partition = read_partition(saved)
    except (KeyError, ValueError) as error:
        partition = {"unreadable": repr(error)}
    if partition != expected.partition:
        wrong.append(f"{where}: the partition row says {partition}, not {expected.partition}")
    found = session_rows(saved)
    for name in found.keys() ^ expected.sessions.keys():
        wrong.append(f"{where}: session {name} is {'over, but has a row' if name in found else 'open, but has no row'}")
    for name in found.keys() & expected.sessions.keys():
        try:
            row = read_session(found[name])
        except ValueError as error:
            wrong.append(f"{where}: the row of session {name} is damaged: {error}")
            continue
        wanted = expected.sessions[name]
        columns = [column for column in wanted if row[column] != wanted[column]]
        if columns:
            column = columns[0]
            wrong.append(
                f"{where}: the row of session {name} differs in {', '.join(columns)}: "
                f"{column} is {row[column]!r}, not {wanted[column]!r}"
            )
    return _few(wrong)


@dataclass(frozen=True)
class Outputs:
    """What the checks of messages found: sentences, and how many messages and ids there were."""

    complaints: list[str]
    messages: int
    ids: int

    @property
    def doubled(self) -> float:
        """Share of messages that came again."""
        return (self.messages - self.ids) / self.ids if self.ids else 0.0


def check_messages(values: Iterable[bytes], expected: Mapping[str, str], *, once: bool) -> Outputs:
    """Decisions and dead letters: each expected id is there, none other, with one content that is the expected one.

    Parameters
    ----------
    values
        The topics' messages at read_committed, in any order.
    expected
        Contents by id. A message may tell more, but the same at each delivery.
    once
        Each id has exactly one message.
    """
    seen: Counter[str] = Counter()
    contents: dict[str, int] = {}
    wrong = []
    for value in values:
        message = {name: part for name, part in json.loads(value).items() if name not in _CLOCK_KEYS}
        identity = message["id"]
        seen[identity] += 1
        content = canonical(message)
        if contents.setdefault(identity, hash(content)) != hash(content):
            wrong.append(f"{identity} has two contents, one of them {content}")
        if seen[identity] > 1:
            continue
        wanted = expected.get(identity)
        if wanted is None:
            wrong.append(f"{identity} is a message on nothing: {content}")
        elif content != wanted and canonical({k: message.get(k) for k in json.loads(wanted)}) != wanted:
            wrong.append(f"{identity} says {content}, not {wanted}")
    wrong += [f"{identity} is missing" for identity in expected if identity not in seen]
    if once:
        wrong += [f"{identity} came {count} times" for identity, count in seen.items() if count > 1]
    return Outputs(_few(wrong), seen.total(), len(seen))


def check_anomalies(values: Iterable[bytes], expected: set[str], *, once: bool) -> Outputs:
    """Anomalies: exactly those decided are told, each with one content."""
    found = [json.loads(value) for value in values]
    contents: dict[str, dict[str, Any]] = {}
    wrong = []
    for message in found:
        kept = {name: part for name, part in message.items() if name not in _CLOCK_KEYS}
        if contents.setdefault(message["id"], kept) != kept:
            wrong.append(f"anomaly {message['id']} has two contents, one of them {kept}")
    wrong += [f"anomaly {i} is missing" for i in expected - contents.keys()]
    wrong += [f"anomaly {i} was not decided" for i in contents.keys() - expected]
    if once and len(found) > len(contents):
        wrong.append(f"{len(found) - len(contents)} anomalies came again")
    return Outputs(_few(wrong), len(found), len(contents))


def _few(complaints: list[str]) -> list[str]:
    more = len(complaints) - _FEW
    return complaints if more <= 0 else [*complaints[:_FEW], f"... and {more:,} more like these"]
