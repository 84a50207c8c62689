"""The demo's incidents: what was told of each, and which of them told of a fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Place = tuple[str, str | None]  # a stream, and a service where the incident says which


@dataclass(frozen=True)
class Told:
    """One message about an incident as the demo read it.

    Attributes
    ----------
    causes
        Since when each place went wrong, the likeliest first.
    sessions
        Those it names; not always all.
    examples
        Ids of anomalies, the most telling first.
    """

    id: str
    revision: int
    change: str
    severity: str
    start_ms: int
    last_ms: int
    merged_into: str | None
    causes: Mapping[Place, int]
    field: str | None
    anomalies: int
    session_count: int
    sessions: frozenset[str]
    examples: tuple[str, ...]
    read_ms: int

    @classmethod
    def of(cls, message: Mapping[str, Any], read_ms: int) -> Told:
        """As it stands on the topic of incidents."""
        causes, examples = message["causes"], message["examples"]
        return cls(
            message["id"], message["revision"], message["type"], message["severity"], message["start_ms"],
            message["last_ms"], message["merged_into"],
            {(cause["stream"], cause["segment"]): cause["since_ms"] for cause in causes}, causes[0]["field"],
            message["anomalies"], message["sessions"],
            frozenset(message["session_names"]) | {example["session"] for example in examples},
            tuple(example["id"] for example in examples), read_ms,
        )  # fmt: skip


class Incidents:
    """All that was told of incidents, read in the topic's order."""

    def __init__(self) -> None:
        self._told: dict[str, list[Told]] = {}

    def read(self, told: Told) -> bool:
        """Take a message in; False if it came before, as deliveries may repeat."""
        before = self._told.setdefault(told.id, [])
        if before and told.revision <= before[-1].revision:
            return False
        before.append(told)
        return True

    def last(self) -> list[Told]:
        """What was told last of each, by when they began; those that became part of another are left out."""
        last = [told[-1] for told in self._told.values() if told[-1].change != "merged"]
        return sorted(last, key=lambda told: (told.start_ms, told.id))

    @property
    def settled(self) -> bool:
        """Whether none is open."""
        return all(told.change == "closed" for told in self.last())

    def first_of(self, wrong_from_ms: Mapping[str, int], places: Iterable[Place]) -> Told | None:
        """The first message that tells of a fault; None where no incident does.

        It must name one of the fault's places, and a session of it that went wrong before the latest anomaly told of
        and was not named before, for something else. The incident may have been open because of that.
        """
        places, due = set(places), list[Told]()
        for messages in self._told.values():
            named = {
                session for told in messages for session in told.sessions & wrong_from_ms.keys()
                if told.last_ms < wrong_from_ms[session]
            }  # fmt: skip
            wrong = wrong_from_ms.keys() - named
            due += [told for told in messages if told.sessions & wrong and told.causes.keys() & places]
        return min(due, key=lambda told: told.read_ms, default=None)

    def part_of(self, name: str) -> str:
        """The incident that this one is part of by now: mostly itself."""
        into = self._told[name][-1].merged_into
        return name if into is None else self.part_of(into)

    def sessions_of(self, name: str) -> frozenset[str]:
        """The sessions that any of an incident's messages names."""
        return frozenset[str]().union(*(told.sessions for told in self._told[name]))
