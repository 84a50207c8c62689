"""Messages of the drift topic: what changed that is not about one record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import orjson

from pipeline.outputs import Output, Place, event_headers, message_id

Kind = Literal[
    "topic_recreated", "records_lost", "offset_reset", "sessions_lost",
    "field_missing", "field_type", "field_unknown_values",
    "input_drift", "unknown_drift", "surprise_drift", "calibration_drift", "concept_drift",
]  # fmt: skip
Phase = Literal["began", "ended"]
MAX_NAMED = 100  # sessions named in a message, so that it stays far below what Kafka takes
_UNITS: dict[Kind, str] = {
    "topic_recreated": "sessions", "records_lost": "records", "offset_reset": "sessions", "sessions_lost": "sessions",
    "field_missing": "records", "field_type": "records", "field_unknown_values": "records",
    "input_drift": "records", "unknown_drift": "records", "surprise_drift": "records", "calibration_drift": "records",
    "concept_drift": "labels",
}  # fmt: skip


def drift_output(
    kind: Kind, *, stream: str, place: Place, offset: int, amount: int, detail: str, now_ms: int,
    since_ms: int | None = None, sessions: Sequence[str] = (), field: str | None = None, phase: Phase | None = None,
    statistic: str | None = None, value: float | None = None, usual: float | None = None, limit: float | None = None,
    p_value: float | None = None, action: str | None = None,
) -> Output:  # fmt: skip
    """Say that a partition's source or state changed. Pure: the same arguments give the same message.

    Parameters
    ----------
    offset
        Where in `place` it was seen: for `topic_recreated` and `offset_reset` where reading goes on, for
        `records_lost` the first offset still there, for `sessions_lost` X + 1, for a field the last record looked at.
    amount
        Lost records for `records_lost`; for a field those affected since it began; else sessions: those that were
        closed, or that start anew.
    detail
        One sentence for people.
    since_ms
        Since when it has been so, where that is known.
    sessions
        Names of lost sessions; the first `MAX_NAMED` are written.
    field, phase
        Of what is about a field: its path, and whether it began or ended.
    statistic, value, usual, limit, p_value, action
        Of a changed distribution: as `detectors.drift_events.DriftEvent` has them.
    """
    identity = message_id(stream, place, offset, kind if field is None else f"{kind}/{field}")
    body = {
        "type": kind,
        "id": identity,
        "stream": stream,
        "detail": detail,
        "source": {"topic": place.topic, "partition": place.partition, "offset": offset},
        "since_ms": since_ms,
        "amount": amount,
        "amount_unit": _UNITS[kind],
        "sessions": list(sessions[:MAX_NAMED]),
        "field": field,
        "phase": phase,
        "statistic": statistic,
        "value": value,
        "usual": usual,
        "limit": limit,
        "p_value": p_value,
        "action": action,
        "detected_ms": now_ms,
    }
    key = f"{stream}/{place.topic}/{place.partition}".encode()  # one partition's drift stays in order
    return Output("drift", key, orjson.dumps(body), event_headers(stream, identity, "drift", now_ms))
