"""Incidents from files: the verdicts that `offbeat score` wrote, through the same code as a worker's anomalies.

Verdicts of several streams are taken in the order of event time, as workers that keep up would tell them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace as with_

from detectors.incident_report import Report
from detectors.incident_state import IncidentState, Notice
from detectors.incidents import IncidentRules, advance_many, close_quiet
from pipeline.notices import By, notice_of, notice_of_rate

Json = Mapping[str, Any]


def notices(verdicts: Iterable[Json], rate: float, by: By = "app") -> Iterator[tuple[int, Notice]]:
    """Notices of one stream's anomalies, each with how far event time had come when it was told.

    Parameters
    ----------
    verdicts
        Lines of `offbeat score`, in their order.
    rate
        The stream's promise.
    """
    taken: Counter[tuple[str, int, str, str]] = Counter()
    since: dict[tuple[str, int], int] = {}
    now_ms = 0
    for verdict in verdicts:
        if verdict["type"] == "rate":
            place, now_ms = verdict["source"], max(now_ms, verdict["time_ms"])
            notice = notice_of_rate(verdict, rate=rate, topic=place["topic"], partition=place["partition"], by=by)
            yield now_ms, with_(notice, logged_ms=now_ms)
            continue
        if verdict.get("p_value") is None or verdict["status"] == "late":
            continue
        _, topic, partition, _, _ = verdict["id"].rsplit("/", 4)
        place = (topic, int(partition))
        now_ms = max(now_ms, verdict["time_ms"])
        since.setdefault(place, verdict["time_ms"])
        kind = (*place, verdict["type"], verdict["segment"] or "")
        taken[kind] += 1
        if verdict["anomaly"]:
            notice = notice_of(
                verdict, rate=rate, decisions=taken[kind], since_ms=since[place], topic=topic, partition=place[1], by=by
            )
            yield now_ms, with_(notice, logged_ms=now_ms)


def replay(streams: Iterable[Iterator[tuple[int, Notice]]], rules: IncidentRules) -> list[Report]:
    """All that workers would have told of incidents, to the end: what is open then is closed."""
    merged = (notice for _, notice in heapq.merge(*streams, key=lambda told: told[0]))
    advanced = advance_many(IncidentState(), merged, rules)
    last_ms = max((i.logged_ms for i in advanced.state.incidents.values()), default=0)
    return advanced.changes + close_quiet(advanced.state, last_ms + rules.quiet_ms, rules).changes
