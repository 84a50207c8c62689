"""PagerDuty's Events API v2: an incident is one alert, for its id is the key by which PagerDuty joins events."""

from __future__ import annotations

import orjson

from pipeline.alerts.change import Message
from pipeline.alerts.told import cut, named, summary_of, told
from pipeline.sessions import iso

_SEVERITIES = {"low": "info", "medium": "warning", "high": "error", "critical": "critical"}
_KEY_LENGTH, _SUMMARY_BYTES, _NAME_BYTES = 255, 1_000, 200  # the API takes 255 and 1,024 characters


def body_of(message: Message, routing_key: str) -> bytes:
    """The event, under 20 kB: what the last change of the message's one subject says."""
    change = message.changes[-1]
    assert all(other.subject == change.subject for other in message.changes), "routing groups these by subject"
    test = "Test, nothing is wrong: " if message.is_test else ""
    severity = "info" if message.is_test else _SEVERITIES[change.severity]
    stream = change.labels.get("stream", "")
    return orjson.dumps(
        {
            "routing_key": routing_key,
            "event_action": "resolve" if change.kind in {"closed", "merged"} else "trigger",
            "dedup_key": named(change.subject, _KEY_LENGTH),
            "payload": {
                "summary": cut(test + summary_of(change), _SUMMARY_BYTES),
                "source": cut(stream, _NAME_BYTES) or "offbeat",
                "severity": severity,
                "timestamp": iso(change.at_ms),
                "class": change.kind,
                "custom_details": told([change], limit=16_000)[0],
            },
        }
    )
