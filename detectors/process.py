"""The heart: a slice of events and the rows before it, to verdicts and the rows after it. Pure.

`process_one` in `tests/naive.py` tells the same story for one event; a property test says they agree bit for bit for
any slicing of any stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.contexts import Window, replay
from detectors.ensemble import sum_fields
from detectors.intake import Intake, take_in
from detectors.parts import Learned, Parts
from detectors.rows import NO_BUNDLE, NO_OFFSET, PartitionState, SessionRows, remember
from detectors.segments import follow_segments, segment_p_values
from detectors.warming_up import score_warming_up, without_bundle
from features.events import Events
from features.measures import measure
from features.sessions import Walk, log_gaps, walk_sessions
from models.runtime import F32

Segments = Sequence[str | None]
Counters = Sequence[Any]  # their state: (S, C) last values, and when that was

OK, WARMING_UP = "ok", "warming_up"


@dataclass(frozen=True)
class SessionEnds:
    """Verdicts on E sessions that ended, in the order they were seen to.

    Attributes
    ----------
    operation
        (E,) position in the walk.
    score, p_value, anomaly
        (E,) the largest surprise of the session's records and of its end.
    end_surprise
        (E,) surprise of the end alone.
    worst, worst_offset, last_offset
        (E,) largest record score, where it was, and the offset of the last record.
    confidence
        (E,) float64: as of records, at the session's last one.
    segment
        E names of the sessions' segments, or None.
    """

    operation: NDArray[np.intp]
    score: F32
    p_value: NDArray[np.float64]
    anomaly: NDArray[np.bool_]
    end_surprise: F32
    worst: F32
    worst_offset: NDArray[np.int64]
    last_offset: NDArray[np.int64]
    confidence: NDArray[np.float64]
    segment: list[str | None]


@dataclass(frozen=True)
class Verdicts:
    """One decision on each of n records that were released, in that order, and on each session that ended.

    Attributes
    ----------
    status
        "ok", or "warming_up" while no bundle serves: then scores come from what is learned online, NaN at first.
    measures
        (n, N) float32: what the model saw of the numbers.
    surprise
        (n, F + N) nats per field; score is their sum.
    score, p_value, anomaly
        (n,) float32, float64, bool.
    confidence
        (n,) float64 in [0, 1): how much a score says while warming up (`detectors.online.OnlineScores`); NaN under a
        bundle.
    unknown
        (F,) int64: how many tokens of each field the bundle does not know.
    rare
        (F,) int64: how many it knows to exist and no more.
    states
        (m, H): the state each operation was scored under, for explanations.
    intake
        How records became these events.
    behind_ms
        (n,) int64: how far each was behind the partition's newest event when it was released.
    """

    events: Events
    hashes: NDArray[np.uint64]
    measures: F32
    walk: Walk
    status: str
    surprise: F32
    score: F32
    p_value: NDArray[np.float64]
    anomaly: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    unknown: NDArray[np.int64]
    rare: NDArray[np.int64]
    states: F32
    ends: SessionEnds
    intake: Intake
    behind_ms: NDArray[np.int64]

    @property
    def latest_confidence(self) -> float:
        """That of the last record with one; 1 under a bundle, 0 before the first score."""
        known = self.confidence[~np.isnan(self.confidence)]
        return 1.0 if self.status == OK else float(known[-1]) if len(known) else 0.0

    @property
    def late(self) -> NDArray[np.bool_]:
        """(n,) events that came too late: scored, never an anomaly."""
        return self.walk.is_late


def process_batch(
    arrived: Events, rows: SessionRows, partition: PartitionState, parts: Parts, *, close_all: bool = False
) -> tuple[Verdicts, SessionRows, PartitionState]:
    """Score a slice before learning from it.

    Parameters
    ----------
    arrived
        Valid records of one partition in offset order, without duplicates; none at all is allowed, then only due
        sessions end.
    rows
        One row for each of `arrived.sessions`, in that order: those of the events, then those that may be due. Left
        untouched.
    close_all
        End every session there is: the input is over (files only).

    Returns
    -------
    verdicts, rows, partition
        Rows in the same order; those of ended sessions are not open.
    """
    learned = parts.learned
    rows = rebuild_stale(rows, parts)
    intake = take_in(arrived, rows, partition, parts, close_all=close_all)
    events = intake.ordered.events
    walk = walk_sessions(intake.ordered, rows.clocks, parts.rules, close_all=close_all)
    hashes = parts.encoder.hashes(events.tokens, len(events))
    measures, *counters = measure(events, walk, rows.counter_value, rows.counter_ms, parts.measures)
    ids = parts.ids(events, measures)
    surprise, end_surprise, states, hidden = _surprise(events, ids, measures, rows, walk, parts)
    online, learned_online = None, None
    if parts.learns_online:
        online, learned_online = score_warming_up(walk, hashes, measures, rows, partition, parts)
        surprise, hidden = online.surprise, online.hidden
    score = sum_fields(surprise)

    ended_segments, segment = follow_segments(walk, events.segments, rows.segment)
    after = _after(rows, intake, walk, hidden, counters, segment)
    m = len(walk.kind)
    worst, worst_offset, last_offset = np.empty(m, np.float32), np.empty(m, np.int64), np.empty(m, np.int64)
    remember(
        walk.kind, walk.row, walk.record, walk.first, events.offsets, events.time_ms, hashes, measures, score,
        rows.events.copy(), after.applied, after.worst, after.worst_offset, after.context_ms, after.context_tokens,
        after.context_numbers, worst, worst_offset, last_offset,
    )  # fmt: skip
    after.bundle[walk.row[walk.steps]] = NO_BUNDLE if learned is None else learned.number

    ended = walk.of_ends
    end_score = np.where(
        np.isnan(end_surprise[ended]), _known(worst[ended]), np.maximum(worst[ended], end_surprise[ended])
    )
    p_value, end_p_value = _p_values(score, events.segments, end_score, ended_segments, learned)
    confidence, end_confidence = np.full(len(score), np.nan), np.full(len(ended), np.nan)
    if online is not None:
        p_value, end_p_value = online.p_value, online.end_p_value[ended]
        confidence, end_confidence = online.confidence, online.end_confidence[ended]
    verdicts = Verdicts(
        events, hashes, measures, walk, WARMING_UP if learned is None else OK, surprise, score, p_value,
        (p_value <= parts.rate) & ~walk.is_late, confidence, *_unknown_and_rare(ids, parts), states,
        SessionEnds(
            ended, end_score, end_p_value, end_p_value <= parts.rate, end_surprise[ended],
            worst[ended], worst_offset[ended], last_offset[ended], end_confidence, ended_segments,
        ),
        intake, intake.ordered.seen_at + parts.rules.reorder_ms - events.time_ms,
    )  # fmt: skip
    watermark_ms = intake.ordered.watermark_ms
    return verdicts, after, partition.advance(arrived.next_offset, watermark_ms, len(arrived), learned_online)


def _after(
    rows: SessionRows, intake: Intake, walk: Walk, hidden: F32, counters: Counters, segment: NDArray[Any]
) -> SessionRows:  # fmt: skip
    """The rows, but for what `remember` writes."""
    clocks = walk.clocks
    after = replace(
        rows.copy(), hidden=hidden, events=clocks.events, first_ms=clocks.first_ms, last_ms=clocks.last_ms,
        held=intake.ordered.held, windows=intake.windows, counter_value=counters[0], counter_ms=counters[1],
        segment=segment,
    )  # fmt: skip
    for row in np.flatnonzero((after.events == 0) & after.holds_back).tolist():
        after.first_ms[row] = after.last_ms[row] = after.wait_until_ms(row)
    return after


def _surprise(
    events: Events, ids: NDArray[np.int32], measures: F32, rows: SessionRows, walk: Walk, parts: Parts
) -> tuple[F32, F32, F32, F32]:
    """Surprise of fields and ends, states scored under, states after; NaN and unchanged without a model."""
    n, m = len(ids), len(walk.kind)
    if parts.learned is None:
        nowhere = np.zeros((m, rows.hidden.shape[1]), np.float32)
        return np.full((n, len(parts.fields)), np.nan, np.float32), np.full(m, np.nan, np.float32), nowhere, rows.hidden
    scores = parts.learned.runtime.score_and_step(
        walk.kind, walk.row, walk.record, walk.first,
        ids, log_gaps(walk.gap_ms), rows.hidden, parts.among(events, ids), measures, parts.tails(events, measures, ids),
    )  # fmt: skip
    return scores.surprise, scores.end_surprise, scores.states, scores.hidden


def _known(worst: F32) -> F32:
    """Largest scores, NaN where no record had one."""
    return np.where(np.isfinite(worst), worst, np.float32(np.nan))


def _unknown_and_rare(ids: NDArray[np.int32], parts: Parts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(F,) each, of the token fields; 0 before a bundle serves."""
    tokens, none = ids[:, : parts.shape.fields], np.zeros(parts.shape.fields, np.int64)
    return (none, none) if parts.learned is None else parts.learned.vocabulary.count(tokens)


def _p_values(
    score: F32, segments: Segments | None, end_score: F32, ended_segments: Segments, learned: Learned | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if learned is None:
        return np.full(len(score), np.nan), np.full(len(end_score), np.nan)
    records = segment_p_values(score, segments, learned.records, learned.segment_records)
    return records, segment_p_values(end_score, ended_segments, learned.sessions, learned.segment_sessions)


def rebuild_stale(rows: SessionRows, parts: Parts) -> SessionRows:
    """Rows another bundle wrote, rebuilt by replaying their context under this one; the others as they are.

    A session longer than its context starts the replay from the learned start state; so does a fresh run over that
    window.
    """
    learned = parts.learned
    if learned is None:
        return without_bundle(rows)
    stale = np.flatnonzero((rows.events > 0) & (rows.bundle != learned.number))
    if len(stale) == 0:
        return rows
    windows = [Window.of_row(rows, int(row)) for row in stale]
    replayed = replay(windows, learned.runtime, rows.hidden.shape[1], parts)
    rebuilt = rows.copy()
    rebuilt.hidden[stale] = replayed.hidden
    rebuilt.worst[stale] = np.maximum.reduceat(replayed.score, replayed.starts)
    rebuilt.worst_offset[stale] = NO_OFFSET
    rebuilt.bundle[stale] = learned.number
    return rebuilt
