"""What alerts are about: a change of an incident or an anomaly, the message that tells of it, and what came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from detectors.severity import SEVERITIES

Kind = Literal["opened", "updated", "merged", "closed", "anomaly"]
ANOMALY: Kind = "anomaly"
LABELS = ("kind", "segment", "stream")  # those that every change may have; the config adds others to streams


@dataclass(frozen=True)
class Change:
    """One change, as routes and receivers see it.

    `id` is unique: of an incident's change INCIDENT/REVISION, of an anomaly its own. Changes of one `subject` (the
    incident's id; of anomalies STREAM/anomalies) reach a receiver in order. `at_ms` is event time. `body` is the
    message as it stood on the topic.
    """

    id: str
    subject: str
    kind: Kind
    streams: tuple[str, ...]
    severity: str
    labels: Mapping[str, str]
    at_ms: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """What goes out once. `id` stays the same over retries and restarts; a repeat has one of its own."""

    id: str
    receiver: str
    changes: tuple[Change, ...]
    is_test: bool = False
    is_repeat: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt, with one sentence of detail that holds no secret.

    delivered: the receiver has it. retry: later, this message alone. throttled: the whole receiver rests. rejected: the
    receiver will never take this message. gone: the receiver wants no message ever again. `retry_after_ms` is the rest
    that it asked for.
    """

    kind: Literal["delivered", "retry", "throttled", "rejected", "gone"]
    detail: str
    retry_after_ms: int | None = None
    status: int | None = None


def change_of(body: Mapping[str, Any], stream_labels: Mapping[str, Mapping[str, str]]) -> Change:
    """The change that a message of the incidents or the anomalies topic tells.

    Parameters
    ----------
    body
        The message, decoded.
    stream_labels
        Labels that the config gives streams (`alerts.labels`).

    Raises
    ------
    KeyError, TypeError, ValueError
        It is no such message.
    """
    return _of_incident(body, stream_labels) if "revision" in body else _of_anomaly(body, stream_labels)


def _of_incident(body: Mapping[str, Any], stream_labels: Mapping[str, Mapping[str, str]]) -> Change:
    """Its labels are those of the stream and the segment where it was first seen: these stay what they are."""
    name, kind = str(body["id"]), body["type"]
    if kind not in get_args(Kind) or kind == ANOMALY or body["severity"] not in SEVERITIES:
        message = f"{kind!r}, {body['severity']!r} is no change of an incident"
        raise ValueError(message)
    streams, segments = tuple(map(str, body["streams"])), [str(segment) for segment in body["segments"]]
    stream = name.split("/", 1)[0]
    labels = {**stream_labels.get(stream, {}), "stream": stream, "kind": kind}
    if segments:
        labels["segment"] = segments[0]
    return Change(
        f"{name}/{body['revision']}", name, kind, streams, str(body["severity"]), labels, int(body["last_ms"]), body
    )


def _of_anomaly(body: Mapping[str, Any], stream_labels: Mapping[str, Mapping[str, str]]) -> Change:
    stream, segment = str(body["stream"]), body.get("segment")
    labels = {**stream_labels.get(stream, {}), "stream": stream, "kind": ANOMALY}
    if segment is not None:
        labels["segment"] = str(segment)
    severity = body.get("severity", "low")  # anomalies of rates have none
    if severity not in SEVERITIES:
        message = f"{severity!r} is no severity of an anomaly"
        raise ValueError(message)
    return Change(
        str(body["id"]), f"{stream}/anomalies", ANOMALY, (stream,), severity, labels, int(body["time_ms"]), body
    )
