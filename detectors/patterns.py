"""Patterns: what was strange about an anomaly as a stable name, so that a label of one is a label of its like.

A name is 64 bits of a hash over the stream, the segment, and

- of a record: each field that made more than half of the score, or the one that made most; of a token what came and
  what the event before had there; of a number whether it was above or below what it last was, and how strange that
  was in doublings of nats;
- of a session that should not have ended: what its last event had in the first field;
- of another session: which tokens of the first field its last events had, in whatever order.

All of that outlives bundles, for tokens are named by their hashes. It is no finer than this: a label of one anomaly
speaks for each that would be told in the same words.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.contexts import Window
from detectors.parts import Parts
from detectors.rows import SessionRows

if TYPE_CHECKING:
    from detectors.process import SessionEnds, Verdicts

_MOST = 0.5  # of a score


def pattern_of_record(verdicts: Verdicts, i: int, rows: SessionRows, parts: Parts) -> int:
    """Of event `i` of the slice; `rows` are those before it. The same however the stream was sliced."""
    window = Window.before(verdicts, int(verdicts.walk.of_events[i]), rows).last(1)
    surprise, fields = verdicts.surprise[i], parts.shape.fields
    loudest = np.flatnonzero(surprise > _MOST * float(verdicts.score[i]))
    if not len(loudest):
        loudest = np.array([int(np.argmax(surprise))])
    told: list[Any] = []
    for f in loudest.tolist():
        if f < fields:
            before = int(window.hashes[0, f]) if len(window.time_ms) else None
            told.append([parts.fields[f], int(verdicts.hashes[i, f]), before])
            continue
        came = float(verdicts.measures[i, f - fields])
        last = float(window.measures[0, f - fields]) if len(window.time_ms) else math.nan
        told.append([parts.fields[f], _direction(came, last), math.frexp(max(float(surprise[f]), 1.0))[1]])
    segments = verdicts.events.segments
    return _name([parts.stream, "record", None if segments is None else segments[i], told])


def pattern_of_session(verdicts: Verdicts, e: int, rows: SessionRows, parts: Parts) -> int:
    """Of the session verdict number `e` of the slice."""
    return pattern_of_end(verdicts.ends, e, Window.before(verdicts, int(verdicts.ends.operation[e]), rows), parts)


def pattern_of_end(ends: SessionEnds, e: int, window: Window, parts: Parts) -> int:
    """The same of a session whose events before its end are known."""
    window = window.last(parts.shape.context)
    tokens = [int(h) for h in window.hashes[:, 0]] if parts.shape.fields else []
    is_end = bool(ends.end_surprise[e] >= ends.worst[e])
    told = ["end", tokens[-1:]] if is_end else ["worst", sorted(set(tokens))]
    return _name([parts.stream, "session", ends.segment[e], told])


def _direction(came: float, last: float) -> str:
    if math.isnan(came):
        return "missing"
    return "there" if math.isnan(last) else "above" if came > last else "below" if came < last else "same"


def _name(told: list[Any]) -> int:
    """64 bits; never 0."""
    return max(1, int.from_bytes(blake2b(repr(told).encode(), digest_size=8).digest(), "little"))


def hex_of(pattern: int) -> str:
    """As messages have it.

    >>> hex_of(255)
    '00000000000000ff'
    """
    return f"{pattern:016x}"
