"""Alertmanager's API v2: one alert for each incident.

An alert is known by its labels alone, and severity is one of them, so that Alertmanager can route by it. When it rises,
the alert with the lower one is resolved in the same request.
"""

from __future__ import annotations

from typing import Any

import orjson

from detectors.severity import SEVERITIES
from pipeline.alerts.change import ANOMALY, Change, Message
from pipeline.alerts.told import LIMIT, cut, named, summary_of
from pipeline.sessions import iso

PATH = "/api/v2/alerts"
_OVER = ("closed", "merged")
_VALUE_BYTES, _STREAMS_BYTES, _SUMMARY_BYTES = 60, 120, 300  # so MOST_CHANGES stay under 20 kB


def body_of(message: Message, now_ms: int) -> bytes:
    """The alerts of a message, under 20 kB; of a subject its last change decides.

    No end is given to an alert that goes on, so Alertmanager resolves it by its own clock if no word comes. None lies
    in the future either, whatever a stream's clocks say.
    """
    latest = {change.subject: change for change in message.changes}.values()
    alerts = [_alert(change, now_ms, is_test=message.is_test) for change in latest]
    if message.is_repeat or message.is_test:
        return orjson.dumps(alerts)
    former = [alert for change in latest if change.kind == "updated" for alert in _former(change, now_ms)]
    body = orjson.dumps([*former, *alerts])
    return body if len(body) < LIMIT else orjson.dumps(alerts)  # the former also end when no word of them comes


def _alert(change: Change, now_ms: int, *, is_test: bool) -> dict[str, Any]:
    is_over = change.kind in _OVER
    start_ms = min(_start_ms(change), now_ms)
    annotations = {
        "summary": cut(summary_of(change), _SUMMARY_BYTES), "streams": cut(", ".join(change.streams), _STREAMS_BYTES),
    }  # fmt: skip
    alert: dict[str, Any] = {
        "labels": _labels(change, change.severity, is_test=is_test), "annotations": annotations,
        "startsAt": iso(start_ms),
    }  # fmt: skip
    if is_over:
        alert["endsAt"] = iso(max(start_ms, min(change.at_ms, now_ms)))
    return alert


def _former(change: Change, now_ms: int) -> list[dict[str, Any]]:
    """The alerts that this incident may have been while its severity was lower, ended."""
    start, lower = iso(min(_start_ms(change), now_ms)), SEVERITIES[: SEVERITIES.index(change.severity)]
    return [
        {"labels": _labels(change, severity, is_test=False), "startsAt": start, "endsAt": iso(now_ms)}
        for severity in lower
    ]


def _start_ms(change: Change) -> int:
    return int(change.body.get("start_ms", change.at_ms))


def _labels(change: Change, severity: str, *, is_test: bool) -> dict[str, str]:
    """Labels that stay what they are while an incident lasts; `kind` does not."""
    name = "OffbeatAnomalies" if change.kind == ANOMALY else "OffbeatIncident"
    others = sorted((key, value) for key, value in change.labels.items() if key != "kind" and value)
    return {
        **{cut(key, 30): cut(value, _VALUE_BYTES) for key, value in others[:4]},
        "alertname": "OffbeatTest" if is_test else name, "incident": named(change.subject, 120), "severity": severity,
    }  # fmt: skip
