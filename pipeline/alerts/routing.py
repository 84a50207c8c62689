"""Which receivers a change goes to, with whom it shares a message, and when it may leave. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from detectors.severity import SEVERITIES
from pipeline.alerts.change import ANOMALY, Change
from pipeline.alerts.settings import AlertmanagerSettings, AlertSettings, PagerdutySettings, RouteSettings

ANOMALY_WAIT_MS = 60_000  # one anomaly alone is never a message: those of a stream within a minute are one
ALERTMANAGER_REPEAT_MS = 60_000  # its alerts expire after 5 minutes without word, unless it is told otherwise


@dataclass(frozen=True)
class Way:
    """How a change reaches one receiver.

    Changes with the same `group` may share a message; None: it is told alone. A message waits `wait_ms` from its first
    change on, and leaves not before `not_before_ms`, by the wall clock. `repeat_ms` is of incidents that stay open.
    """

    receiver: str
    group: str | None
    wait_ms: int
    not_before_ms: int
    repeat_ms: int | None


def ways_of(change: Change, alerts: AlertSettings, now_ms: int) -> list[Way]:
    """Ways of a change, one for each receiver: the first of its routes decides."""
    ways: dict[str, Way] = {}
    for route in _routes_of(change, alerts):
        for receiver in route.receivers:
            if receiver not in ways:
                ways[receiver] = _way(change, alerts, route, receiver, now_ms)
    return list(ways.values())


def quiet_until_ms(route: RouteSettings, now_ms: int) -> int:
    """When a message may leave: now, or when quiet hours end."""
    if (quiet := route.quiet_minutes) is None:
        return now_ms
    begin, end = quiet
    now = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(route.time_zone))
    minute = 60 * now.hour + now.minute
    is_quiet = begin <= minute < end if begin < end else minute >= begin or minute < end
    if not is_quiet:
        return now_ms
    # Midnight plus wall-clock minutes, not seconds from now: a night in which the clocks change ends at its hour.
    day = now.date() + timedelta(days=int(begin > end and minute >= begin))
    until = datetime(day.year, day.month, day.day, end // 60, end % 60, tzinfo=now.tzinfo)
    return max(now_ms, round(until.timestamp() * 1000))


def _routes_of(change: Change, alerts: AlertSettings) -> Iterator[RouteSettings]:
    for route in alerts.routes:
        if _matches(change, route):
            yield route
            if not route.goes_on:
                return


def _matches(change: Change, route: RouteSettings) -> bool:
    return (
        (not route.streams or not set(route.streams).isdisjoint(change.streams))
        and SEVERITIES.index(change.severity) >= SEVERITIES.index(route.severity)
        and all(change.labels.get(name) == value for name, value in route.labels.items())
    )


def _way(change: Change, alerts: AlertSettings, route: RouteSettings, name: str, now_ms: int) -> Way:
    receiver, is_anomaly = alerts.receivers[name], change.kind == ANOMALY
    repeat_ms = None if is_anomaly else route.repeat
    if isinstance(receiver, AlertmanagerSettings) and repeat_ms is not None:
        repeat_ms = min(repeat_ms, ALERTMANAGER_REPEAT_MS)
    return Way(
        receiver=name,
        group=_group(change, route.group_by, by_subject=isinstance(receiver, PagerdutySettings)),
        wait_ms=max(route.group_wait, ANOMALY_WAIT_MS if is_anomaly else 0),
        not_before_ms=quiet_until_ms(route, now_ms),
        repeat_ms=repeat_ms,
    )


def _group(change: Change, group_by: list[str] | None, *, by_subject: bool) -> str | None:
    """What changes of one message have in common. PagerDuty takes one incident in each request."""
    is_anomaly = change.kind == ANOMALY
    if group_by is None and not is_anomaly:
        return None
    common = {name: change.labels.get(name) for name in sorted(group_by or ())}
    if by_subject or is_anomaly:
        common["subject"] = change.subject
    return json.dumps(common, ensure_ascii=False)
