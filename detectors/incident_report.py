"""An incident in full, as it is told: what, where, since when, how bad, and where it probably began."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from detectors.incident_state import EXAMPLES, Example, Group, Incident, Key
from detectors.severity import SEVERITIES, severity_of_incident

SHOWN = 20  # names in a list
CAUSES = 10
CONTRIBUTORS = 5


class Contributor(msgspec.Struct, frozen=True):
    """A field, and its share in all that made the incident's anomalies strange."""

    stream: str
    field: str
    share: float


class Cause(msgspec.Struct, frozen=True):
    """Where an incident may have begun.

    `evidence` is in nats, beyond twice what the promise explains. `weight` is what causes are ranked by.
    """

    stream: str
    segment: str | None
    field: str | None
    since_ms: int
    evidence: float
    weight: float


class Report(msgspec.Struct, frozen=True):
    """One change of an incident, with all that is known of it then."""

    id: str
    change: str
    revision: int
    scope: str
    severity: str
    start_ms: int
    last_ms: int
    end_ms: int | None
    merged_into: str | None
    anomalies: int
    suppressed: int
    withheld: int
    streams: list[str]
    segments: list[str]
    sessions: int
    session_names: list[str]
    contributors: list[Contributor]
    causes: list[Cause]
    examples: list[Example]
    summary: str


def make_report(
    incident: Incident, groups: Sequence[Group], change: str, quiet_ms: int, together_ms: int,
    merged_into: str | None = None,
) -> Report:  # fmt: skip
    """What is told of an incident, whose groups are given in the order in which they joined."""
    names = list(dict.fromkeys(name for group in groups for name in group.sessions))
    severity = SEVERITIES[level_of(incident, groups, quiet_ms)]
    causes = likely_causes(groups, together_ms)
    anomalies, sessions = sum(g.notices for g in groups), max(len(names), *(g.sessions_seen for g in groups))
    return Report(
        id=incident.id, change=change, revision=incident.revision + 1, scope=incident.scope, severity=severity,
        start_ms=incident.start_ms, last_ms=incident.last_ms,
        end_ms=incident.last_ms if change == "closed" else None, merged_into=merged_into, anomalies=anomalies,
        suppressed=incident.suppressed, withheld=incident.withheld,
        streams=list(dict.fromkeys(g.stream for g in groups))[:SHOWN],
        segments=list(dict.fromkeys(g.segment for g in groups if g.segment is not None))[:SHOWN],
        sessions=sessions, session_names=names[:SHOWN], contributors=_contributors(groups), causes=causes[:CAUSES],
        examples=_examples(groups),
        summary=_sentence(causes, len(groups), anomalies, sessions, incident),
    )  # fmt: skip


def level_of(incident: Incident, groups: Iterable[Group], quiet_ms: int) -> int:
    """Severity as a number from 0, never less than was told.

    A level for evidence of twice what opens an incident, one for lasting as long as its end takes to be believed, one
    for more than one stream or segment.
    """
    groups = list(groups)
    level = SEVERITIES.index(
        severity_of_incident(
            is_strong=any(g.peak >= 2.0 for g in groups),
            is_long=incident.last_ms - incident.start_ms >= quiet_ms,
            is_wide=len(groups) > 1,
        )
    )
    return max(level, SEVERITIES.index(incident.severity))


def likely_causes(groups: Iterable[Group], together_ms: int) -> list[Cause]:
    """Groups of one incident, the likeliest first.

    A group's weight is its evidence for each false alarm that was due meanwhile, and one more, so that much traffic
    alone is no sign; it is halved for each `together` that the group began after the first.
    """
    groups = list(groups)
    first_ms = min(g.onset_ms for g in groups)
    causes = []
    for group in groups:
        evidence = max(0.0, group.excess)
        weight = evidence / (1 + group.expected) * 2.0 ** -((group.onset_ms - first_ms) / together_ms)
        field = max(group.fields, key=lambda f: (group.fields[f], f), default=None)
        causes.append(Cause(group.stream, group.segment, field, group.onset_ms, evidence, weight))
    return sorted(causes, key=lambda c: (-c.weight, c.since_ms, c.stream, c.segment or ""))


def _contributors(groups: Iterable[Group]) -> list[Contributor]:
    summed: defaultdict[tuple[str, str], float] = defaultdict(float)
    for group in groups:
        for field, share in group.fields.items():
            summed[group.stream, field] += share
    total = math.fsum(summed.values())
    first = sorted(summed.items(), key=lambda item: (-item[1], item[0]))[:CONTRIBUTORS]
    return [Contributor(stream, field, share / total) for (stream, field), share in first if total > 0]


def _examples(groups: Sequence[Group]) -> list[Example]:
    """The most surprising of each group, then the second of each, and so on."""
    ranked: list[tuple[int, float, int, Example]] = []
    seen: set[Key] = set()
    for group in groups:
        assert group.key not in seen, "an incident has a group once"
        seen.add(group.key)
        ranked.extend((place, -e.gain, e.time_ms, e) for place, e in enumerate(group.examples))
    ranked.sort(key=lambda r: (*r[:3], r[3].id))
    return [example for *_, example in ranked[:EXAMPLES]]


def _sentence(causes: Sequence[Cause], groups: int, anomalies: int, sessions: int, incident: Incident) -> str:
    cause = causes[0]
    where = cause.stream if cause.segment is None else f"{cause.segment} ({cause.stream})"
    others = "" if groups == 1 else f" and {groups - 1} more"
    what = "" if cause.field is None else f", most of all in {cause.field}"
    since = datetime.fromtimestamp(incident.start_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return (
        f"{where}{others} since {since} UTC: {_number(anomalies, 'anomaly', 'anomalies')} in "
        f"{_number(sessions, 'session', 'sessions')}{what}."
    )


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
