"""Slow, obvious versions of what the product does fast. They share the kernel and nothing else of the fast path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detectors.parts import Parts
from features.tokens import stable_hash


@dataclass(frozen=True)
class Event:
    """One valid record."""

    offset: int
    session: str
    time_ms: int
    tokens: tuple[str | None, ...]
    is_end: bool


@dataclass
class Row:
    """One session's state."""

    hidden: np.ndarray
    events: int = 0
    first_ms: int = 0
    last_ms: int = 0
    worst: float = -math.inf
    worst_offset: int = -1
    applied: int = -1
    context: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


@dataclass
class Partition:
    """One partition's state."""

    watermark_ms: int = -1
    rows: dict[str, Row] = field(default_factory=dict)
    none_due_before_ms: float = math.inf  # no open session's gap is over before that; spares looking at all of them


Verdict = dict[str, Any]


def process_one(event: Event, partition: Partition, parts: Parts) -> list[Verdict]:
    """All verdicts that one event brings: sessions its time ends, its own, its session's end."""
    verdicts = []
    partition.watermark_ms = max(partition.watermark_ms, event.time_ms)
    if partition.none_due_before_ms < partition.watermark_ms:
        for name, row in list(partition.rows.items()):
            if row.last_ms + parts.rules.gap_ms < partition.watermark_ms:
                verdicts.append(end_session(name, "gap", partition, parts))
        last = min((row.last_ms for row in partition.rows.values()), default=math.inf)
        partition.none_due_before_ms = last + parts.rules.gap_ms
    row = partition.rows.get(event.session)
    opens = row is None
    if row is None:
        row = partition.rows[event.session] = Row(np.zeros(parts.shape.hidden, np.float32), first_ms=event.time_ms)
    gap_ms = 0 if opens else max(0, event.time_ms - row.last_ms)
    score = math.nan
    if parts.learned is not None:
        ids = [
            words.index(text) + 2 if text in words else (1 if text is None else 0)
            for words, text in zip(parts.learned.vocabulary.tokens, event.tokens, strict=True)
        ]
        scores = parts.learned.model.score_and_step(
            np.array([0], np.int8), np.array([0], np.int32), np.array([0], np.int32), np.array([opens]),
            np.array([ids], np.int32), np.array([math.log1p(gap_ms / 1000.0)], np.float32), row.hidden[None],
        )  # fmt: skip
        row.hidden = scores.hidden[0]
        total = np.float32(0)
        for nats in scores.surprise[0]:
            total = np.float32(total + nats)
        score = total
        if total > row.worst:
            row.worst, row.worst_offset = total, event.offset
    row.events += 1
    row.last_ms = max(row.last_ms, event.time_ms)
    partition.none_due_before_ms = min(partition.none_due_before_ms, row.last_ms + parts.rules.gap_ms)
    row.applied = event.offset
    row.context = [*row.context, (event.time_ms, tuple(map(stable_hash, event.tokens)))][-parts.shape.context :]
    verdicts.append(
        {"kind": "record", "offset": event.offset, "session": event.session, **judge(score, parts, "records")}
    )
    if event.is_end:
        verdicts.append(end_session(event.session, "event", partition, parts))
    elif row.events >= parts.rules.max_events:
        verdicts.append(end_session(event.session, "limit", partition, parts))
    elif row.last_ms + parts.rules.gap_ms < partition.watermark_ms:  # so late that it is over as soon as it began
        verdicts.append(end_session(event.session, "gap", partition, parts))
    return verdicts


def end_session(name: str, how: str, partition: Partition, parts: Parts) -> Verdict:
    """Close a session and judge it by the largest surprise of its records and of its end."""
    row = partition.rows.pop(name)
    score = math.nan
    if parts.learned is not None:
        nothing = np.zeros(0, np.int32)
        scores = parts.learned.model.score_and_step(
            np.array([2], np.int8), np.array([0], np.int32), np.array([0], np.int32), np.zeros(0, np.bool_),
            nothing.reshape(0, parts.shape.fields), nothing.astype(np.float32), row.hidden[None],
        )  # fmt: skip
        score = max(row.worst, scores.end_surprise[0])
    return {
        "kind": "session", "offset": row.applied, "session": name, "ended": how, "events": row.events,
        "first_ms": row.first_ms, "last_ms": row.last_ms, "worst_offset": row.worst_offset,
        **judge(score, parts, "sessions"),
    }  # fmt: skip


def judge(score: float, parts: Parts, which: str) -> Verdict:
    """Score to p-value to anomaly, by counting."""
    if parts.learned is None:
        return {"score": None, "p_value": None, "anomaly": False}
    calibration = getattr(parts.learned, which)
    reach = calibration.reaching[calibration.levels == score]
    above = calibration.above[calibration.levels < score]
    counted = reach[0] if len(reach) else (above[-1] if len(above) else calibration.count)
    p_value = (1.0 + counted) / (1.0 + calibration.count)
    return {"score": float(score), "p_value": p_value, "anomaly": p_value <= parts.rate}
