"""The heart: a slice of events and the rows before it, to verdicts and the rows after it. Pure.

`process_one` in `tests/naive.py` tells the same story for one event; a property test says they agree bit for bit for
any slicing of any stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.absorbing import absorb
from detectors.contexts import Window, replay
from detectors.ensemble import sum_fields
from detectors.intake import Intake, take_in
from detectors.kept import Kept
from detectors.novelty import ABSORBED, NoveltyState, count_tokens, of_scores, with_news
from detectors.novelty import NAME as NOVELTY
from detectors.online import OnlineScores
from detectors.own_past import keep_own_past
from detectors.parts import Learned, Parts
from detectors.profiles import Profiles, ProfileScores
from detectors.promise_keeper import KeeperState, keep
from detectors.rows import NO_BUNDLE, NO_OFFSET, PartitionState, SessionRows, remember
from detectors.segments import follow_segments, segment_p_values
from detectors.tags import Tags, tag_walk
from detectors.warming_up import score_warming_up, without_bundle
from features.event_order import Ordered
from features.events import Events
from features.measures import measure
from features.profiles import FREE
from features.sessions import Walk, log_gaps, walk_sessions
from features.tokens import OOV
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
        (E,) the largest surprise of the session's records and of its end; with profiles, what all say together.
    calibrated
        (E,) float64: p-values before `p_value` was adapted, so that the promise is kept.
    end_surprise
        (E,) surprise of the end alone.
    worst, worst_offset, last_offset
        (E,) largest record score, where it was, and the offset of the last record.
    confidence
        (E,) float64: as of records, at the session's last one.
    segment
        E names of the sessions' segments, or None.
    profiles, by_profile
        The sessions' profiles, and how these compare with training's; None where the bundle has none.
    absorbed
        (E,) whether that says nothing any more, for such profiles have come often (detectors/profile_sightings.py);
        None where nothing is absorbed.
    """

    operation: NDArray[np.intp]
    score: F32
    p_value: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    anomaly: NDArray[np.bool_]
    end_surprise: F32
    worst: F32
    worst_offset: NDArray[np.int64]
    last_offset: NDArray[np.int64]
    confidence: NDArray[np.float64]
    segment: list[str | None]
    profiles: Profiles
    by_profile: ProfileScores | None = None
    absorbed: NDArray[np.bool_] | None = None

    def judged(self, p_value: NDArray[np.float64], calibrated: NDArray[np.float64], rate: float) -> SessionEnds:
        """The same with p-values, as told and as calibrated, and what is an anomaly by these."""
        return replace(self, p_value=p_value, calibrated=calibrated, anomaly=p_value <= rate)

    @property
    def largest(self) -> F32:
        """(E,) the largest surprise of the session's records and of its end; NaN where there is none."""
        known = _known(self.worst)
        return np.where(np.isnan(self.end_surprise), known, np.maximum(self.worst, self.end_surprise))

    @property
    def detectors(self) -> F32:
        """(E, D) what each detector says: surprise, and of the profile the distance and the strangest relation."""
        largest = self.largest[:, None]
        return largest if self.by_profile is None else np.hstack([largest, self.by_profile.columns])


@dataclass(frozen=True)
class Verdicts:
    """One decision on each of n records that were released, in that order, and on each session that ended.

    Attributes
    ----------
    status
        "ok", or "warming_up" while no bundle serves: then scores come from what is learned online, NaN at first.
    measures
        (n, N) float32: what the model saw of the numbers.
    ids
        (n, F + ...) int32: of the tokens, of the numbers' bins, and what else the model was given.
    surprise
        (n, F + N) nats per field; score is their sum.
    score, p_value, anomaly
        (n,) float32, float64, bool.
    calibrated
        (n,) float64: p-values before `p_value` was adapted, so that the promise is kept.
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
    news
        (n, F) int8: which tokens are news, or not known and no news any more (detectors/novelty.py).
    tags
        Where in a bad stretch of its session each operation lies (detectors/tags.py).
    """

    events: Events
    hashes: NDArray[np.uint64]
    measures: F32
    ids: NDArray[np.int32]
    walk: Walk
    status: str
    surprise: F32
    score: F32
    p_value: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    anomaly: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    unknown: NDArray[np.int64]
    rare: NDArray[np.int64]
    states: F32
    ends: SessionEnds
    intake: Intake
    behind_ms: NDArray[np.int64]
    news: NDArray[np.int8]
    tags: Tags

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
    arrived: Events, rows: SessionRows, partition: PartitionState, parts: Parts, *, close_all: bool = False,
    until_ms: int | None = None,
) -> tuple[Verdicts, SessionRows, PartitionState]:  # fmt: skip
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
    until_ms
        End sessions that are over before that, instead of those over by the watermark.

    Returns
    -------
    verdicts, rows, partition
        Rows in the same order; those of ended sessions are not open.
    """
    learned = parts.learned
    rows = rebuild_stale(rows, parts)
    intake = take_in(arrived, rows, partition, parts, close_all=close_all, until_ms=until_ms)
    events = intake.ordered.events
    walk = walk_sessions(intake.ordered, rows.clocks, parts.rules, close_all=close_all)
    hashes = parts.encoder.hashes(events.tokens, len(events))
    measures, *counters = measure(events, walk, rows.counter_value, rows.counter_ms, parts.measures)
    ids = parts.ids(events, measures)
    surprise, end_surprise, states, hidden = _surprise(events, ids, measures, rows, walk, parts)
    news, kept = _look_for_news(hashes, ids, partition, parts)
    surprise[:, : parts.shape.fields][news == ABSORBED] = 0.0
    online, learned_online = None, None
    if parts.learns_online:
        online, learned_online = score_warming_up(walk, hashes, measures, rows, partition, parts)
        surprise, hidden = online.surprise, online.hidden
    score = sum_fields(surprise)

    ended_segments, segment = follow_segments(walk, events.segments, rows.segment)
    after = _after(rows, intake, walk, hidden, counters, segment)
    m, ended = len(walk.kind), walk.of_ends
    profiles = _no_profiles(walk, parts)
    worst, worst_offset, last_offset = np.empty(m, np.float32), np.empty(m, np.int64), np.empty(m, np.int64)
    remember(
        walk.kind, walk.row, walk.record, walk.first, events.offsets, events.time_ms, hashes, measures, score,
        rows.events.copy(), after.applied, after.worst, after.worst_offset, after.context_ms, after.context_tokens,
        after.context_numbers, after.profile_keys, after.profile_counts,
        worst, worst_offset, last_offset, profiles.keys, profiles.counts,
    )  # fmt: skip
    after.bundle[walk.row[walk.steps]] = NO_BUNDLE if learned is None else learned.number

    profiles = profiles.take(walk.places_of_ends)
    ends = SessionEnds(
        ended, *_unjudged(len(ended)), end_surprise[ended], worst[ended], worst_offset[ended], last_offset[ended],
        np.full(len(ended), np.nan), ended_segments, profiles,
        None if learned is None or learned.profiles is None else learned.profiles.score(profiles),
    )  # fmt: skip
    ends, kept = absorb(Taken(events, walk, hashes, measures, intake.ordered), ends, rows, kept, parts)
    ends = replace(ends, score=score_sessions(ends, learned))
    judged, ends, keeper = _judge(score, news, ends, walk, events, online, partition, parts)
    tags, tag = tag_walk(walk, None if learned is None else judged.p_value, rows.tag, parts.rate)
    verdicts = Verdicts(
        events, hashes, measures, ids, walk, WARMING_UP if learned is None else OK, surprise, score, judged.p_value,
        judged.calibrated, (judged.p_value <= parts.rate) & ~walk.is_late, judged.confidence,
        *_unknown_and_rare(ids, parts), states, ends,
        intake, intake.ordered.seen_at + parts.rules.reorder_ms - events.time_ms, news, tags,
    )  # fmt: skip
    state = replace(partition, kept=kept).advance(
        arrived.next_offset, intake.ordered.watermark_ms, len(arrived), learned_online, keeper
    )
    return verdicts, replace(after, tag=tag), state


class Taken(NamedTuple):
    """A slice's events, in the order in which they count, and what was made of them."""

    events: Events
    walk: Walk
    hashes: NDArray[np.uint64]
    measures: F32
    ordered: Ordered


class _Judged(NamedTuple):
    """(n,) of records: p-values as told and as calibrated, and while warming up how much they say."""

    p_value: NDArray[np.float64]
    calibrated: NDArray[np.float64]
    confidence: NDArray[np.float64]


def _judge(
    score: F32, news: NDArray[np.int8], ends: SessionEnds, walk: Walk, events: Events, online: OnlineScores | None,
    partition: PartitionState, parts: Parts,
) -> tuple[_Judged, SessionEnds, KeeperState | None]:  # fmt: skip
    """Scores to p-values, by calibration and then as the thresholds that keep the promise have them; or by online rank.

    Returns
    -------
    judged, ends, keeper
        Of records; of sessions, with their p-values; and what the thresholds have learned.
    """
    if online is not None:
        at = ends.operation
        end_p_value, confidence = online.end_p_value[at], online.end_confidence[at]
        ends = replace(ends, confidence=confidence).judged(end_p_value, end_p_value, parts.rate)
        return _Judged(online.p_value, online.p_value, online.confidence), ends, None
    p_value, end_p_value = _p_values(score, events.segments, ends.score, ends.segment, parts.learned)
    p_value = of_scores(p_value, parts.news[1])
    keeping = keep(p_value, end_p_value, walk, ends.last_offset, events, partition, parts)
    told, calibrated = (with_news(values, news, parts.rate) for values in (keeping.p_value, p_value))
    ends = ends.judged(keeping.end_p_value, end_p_value, parts.rate)
    return _Judged(told, calibrated, np.full(len(score), np.nan)), ends, keeping.state


def _after(
    rows: SessionRows, intake: Intake, walk: Walk, hidden: F32, counters: Counters, segment: NDArray[Any]
) -> SessionRows:  # fmt: skip
    """The rows, but for what `remember` writes."""
    clocks = walk.clocks
    after = rows.copy(
        hidden=hidden, events=clocks.events, first_ms=clocks.first_ms, last_ms=clocks.last_ms,
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
        ids, log_gaps(walk.gap_ms), rows.hidden, parts.among(events, ids), measures,
        parts.tails(events, measures, ids), events.time_ms,
    )  # fmt: skip
    return scores.surprise, scores.end_surprise, scores.states, scores.hidden


def _no_profiles(walk: Walk, parts: Parts) -> Profiles:
    """Room for the profiles of the sessions that end, in the order of operations."""
    ends = np.sort(walk.of_ends)
    shape = (len(ends), parts.shape.profile)
    lasted_ms = walk.ended_last_ms[ends] - walk.ended_first_ms[ends]
    return Profiles(np.zeros(shape, np.uint64), np.zeros(shape, np.uint16), walk.ended_events[ends], lasted_ms)


def p_values_of_scores(scores: F32, segments: Segments | None, learned: Learned, parts: Parts) -> NDArray[np.float64]:
    """(n,) p-values of records without news."""
    p_values = segment_p_values(scores, segments, learned.records, learned.segment_records)
    return of_scores(p_values, parts.news[1])


def as_adapted(p_values: NDArray[np.float64], calibrated: float, told: float) -> NDArray[np.float64]:
    """(n,) p-values as the threshold makes them under which a calibrated one became what was told."""
    if not 0.0 < calibrated < 1.0:
        return p_values
    adapted: NDArray[np.float64] = p_values ** (math.log(told) / math.log(calibrated))
    return adapted


def _unjudged(count: int) -> tuple[F32, NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """No scores, p-values and anomalies yet."""
    nothing = np.full(count, np.nan)
    return nothing.astype(np.float32), nothing, nothing, np.zeros(count, np.bool_)


def score_sessions(ends: SessionEnds, learned: Learned | None) -> F32:
    """(E,) what all detectors say of a session together; where there is only its surprise, that."""
    return ends.largest if learned is None or learned.combined is None else learned.combined.score(ends.detectors)


def _look_for_news(
    hashes: NDArray[np.uint64], ids: NDArray[np.int32], partition: PartitionState, parts: Parts
) -> tuple[NDArray[np.int8], Mapping[str, Kept]]:
    """(n, F) which tokens are news (detectors/novelty.py), and what detectors remember after."""
    watched, _ = parts.news
    if parts.learned is None or not watched.any():
        return np.zeros(hashes.shape, np.int8), partition.kept
    state = partition.kept.get(NOVELTY)
    if not isinstance(state, NoveltyState) or state.bundle != parts.learned.number:
        state = NoveltyState.empty(parts.learned.number)
    news, state = count_tokens(state, hashes, ids[:, : parts.shape.fields] == OOV, watched)
    return news, {**partition.kept, NOVELTY: state}


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
    keep_own_past(rebuilt, rows, stale, learned.runtime)
    rebuilt.bundle[stale] = learned.number
    if learned.templates.templates:  # other templates are other tokens, and what was counted cannot be read again
        rebuilt.profile_keys[stale], rebuilt.profile_counts[stale] = FREE, 0
    return rebuilt
