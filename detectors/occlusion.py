"""What earlier events have to do with an anomaly: how much less strange it would be had one of them never been.

The session's last events, as its row keeps them, are replayed once with each left out, all variants of one anomaly as
rows of one batch. That is dear, so it has a budget of passes, one for a record, in thousands of offsets like the second
stage's (detectors/rescoring.py); a budget changes no verdict. Sessions have none, for which of them end first depends
on slices where they fall silent, and a message must not; so fewer of their events are left out.

References
----------
Zeiler and Fergus 2014, Visualizing and understanding convolutional networks (arXiv:1311.2901), section 4: occlusion.
Departure: an event is left out and not covered, for there is no such thing as an event of no meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from detectors.contexts import Replayed, Window, replay
from detectors.counterfactual import Change, best_replayed, changes_to_replay, known_tokens
from detectors.ensemble import Ensemble
from detectors.expectations import expected_after
from detectors.left_out import scores_without
from detectors.novelty import NEWS
from detectors.parts import Learned, Parts
from detectors.passes import Budget
from detectors.process import SessionEnds, Verdicts, as_adapted, p_values_of_scores
from detectors.profiles import Profiles
from detectors.rows import PartitionState, SessionRows
from detectors.segments import segment_p_values
from features.profiles import count_sessions, profile_hashes
from models.runtime import F32

LEFT_OUT = 32  # events, the last ones, by `offbeat replay`: a full context of 256 would take a second
OF_RECORD = 10  # of these, as an anomaly is judged: those it shows. The work grows with the square
OF_SESSION = 8
FULL, WINDOW, BUDGET, NONE = "full", "window", "budget", "none"
_AT_ONCE = 64  # records: some 3,500 variants' events
_CLOSE = 0.01  # of the score: what is explained is the score that was told


@dataclass(frozen=True)
class Earlier:
    """An event, counted back from what is explained (1: the one just before), and by how much the score falls."""

    back: int
    time_ms: int
    share: float

    def told(self) -> dict[str, int | float]:
        """As messages have it."""
        return {"back": self.back, "time_ms": self.time_ms, "share": self.share}


@dataclass(frozen=True)
class Worst:
    """A session's strangest record as its row keeps it, and its (F + N,) surprise."""

    event: Window
    surprise: F32


@dataclass(frozen=True)
class Occlusion:
    """What replays say of an anomaly.

    Attributes
    ----------
    outcome
        "full": what was replayed gives the score that was told. "window": older events than the row keeps count too, so
        shares are those of a session that began with what it keeps. "none": the strangest record is older than that.
    earlier
        Oldest first, OF_RECORD or OF_SESSION at most, LEFT_OUT in a replay; None with "none".
    worst
        Of a session the strangest record, where it is kept.
    change
        What would have been normal, where only a replay can tell: of sessions, and under an ensemble.
    before
        Of a record the session's events before it, as many as its row keeps.
    """

    outcome: str
    earlier: tuple[Earlier, ...] | None
    worst: Worst | None = None
    change: Change | None = None
    before: Window | None = None


NOT_REPLAYED = Occlusion(NONE, None)


@dataclass(frozen=True)
class Occluded:
    """Of a slice: records and session verdicts that had a pass, by their numbers, and how all of its anomalies fared.

    `without` is what is said of the others.
    """

    records: dict[int, Occlusion] = field(default_factory=dict)
    sessions: dict[int, Occlusion] = field(default_factory=dict)
    without: str = NONE
    outcomes: Counter[str] = field(default_factory=Counter)

    def of_record(self, number: int) -> Occlusion:
        """What is said of an anomalous record."""
        return self.records.get(number, Occlusion(self.without, None))

    def of_session(self, number: int) -> Occlusion:
        """What is said of an anomalous session."""
        return self.sessions.get(number, Occlusion(self.without, None))


def occlude(
    verdicts: Verdicts, rows: SessionRows, state: PartitionState, parts: Parts
) -> tuple[Occluded, PartitionState]:
    """Explain a slice's anomalies, records in their order and as long as there are passes.

    Parameters
    ----------
    rows
        Those before the slice.
    state
        After the slice.
    """
    found = int(verdicts.anomaly.sum() + verdicts.ends.anomaly.sum())
    if not found or parts.learned is None or not parts.explained:
        return Occluded(outcomes=Counter({NONE: found} if found else {})), state
    records, ends = np.flatnonzero(verdicts.anomaly), np.flatnonzero(verdicts.ends.anomaly)
    budget = Budget(*state.explaining).since(state.next_offset)
    records = budget.first(records, verdicts.events.offsets[records], parts.explained)
    occluded = Occluded(
        occlude_records(verdicts, records, rows, parts),
        {int(e): occlude_session(verdicts, int(e), rows, parts) for e in ends}, BUDGET,
    )  # fmt: skip
    occluded.outcomes.update(one.outcome for one in [*occluded.records.values(), *occluded.sessions.values()])
    if skipped := found - len(records) - len(ends):
        occluded.outcomes[BUDGET] = skipped
    return occluded, replace(state, explaining=budget.spent)


def occlude_records(
    verdicts: Verdicts, records: NDArray[np.intp], rows: SessionRows, parts: Parts, most: int = OF_RECORD
) -> dict[int, Occlusion]:  # fmt: skip
    """Explain records, by their numbers, whatever it costs; each as if it were the only one."""
    found, kept = dict[int, Occlusion](), parts.shape.context + 1
    for low in range(0, len(records), _AT_ONCE):
        numbers = records[low : low + _AT_ONCE].tolist()
        operations = verdicts.walk.of_events[numbers].tolist()
        windows = [Window.before(verdicts, operation, rows, itself=True).last(kept) for operation in operations]
        told = _leave_out(windows, parts, rows, most, is_end=False)
        for i, window, (score, earlier) in zip(numbers, windows, told, strict=True):
            found[i] = _of_record(verdicts, i, window, score, earlier, rows, parts)
    return found


def _of_record(
    verdicts: Verdicts, i: int, window: Window, score: float, earlier: tuple[Earlier, ...], rows: SessionRows,
    parts: Parts,
) -> Occlusion:  # fmt: skip
    learned, operation = _model(parts), int(verdicts.walk.of_events[i])
    outcome, before = _outcome(score, float(verdicts.score[i])), window.until(len(window.time_ms) - 2)
    changes = []
    if outcome == FULL and isinstance(learned.runtime, Ensemble) and not (verdicts.news[i] == NEWS).any():
        changes = changes_to_replay(window, len(window.time_ms) - 1, verdicts.states[operation], parts)
    if not changes:
        return Occlusion(outcome, earlier, before=before)
    replayed = _replay([changed for *_, changed in changes], parts, rows)
    scores = replayed.score[_last(replayed)]
    segments = verdicts.events.segments
    segment = [None if segments is None else segments[i]] * len(scores)
    calibrated = p_values_of_scores(scores, segment, learned, parts)
    p_values = as_adapted(calibrated, verdicts.calibrated[i], verdicts.p_value[i])
    change = best_replayed(changes, scores.tolist(), p_values.tolist(), parts.rate)
    return Occlusion(outcome, earlier, change=change, before=before)


def occlude_session(
    verdicts: Verdicts, e: int, rows: SessionRows, parts: Parts, most: int = OF_SESSION
) -> Occlusion:  # fmt: skip
    """Explain one session: its end, or its strangest record, whichever made its score."""
    ends = verdicts.ends
    window = Window.before(verdicts, int(ends.operation[e]), rows).last(parts.shape.context)
    if not len(window.time_ms):
        return NOT_REPLAYED
    told, end = float(ends.worst[e]), float(ends.end_surprise[e])
    replayed = _replay([window], parts, rows)
    at = int(np.argmax(replayed.score))
    is_kept = _outcome(float(replayed.score[at]), told) == FULL
    worst = Worst(window.until(at).last(1), replayed.surprise[at]) if is_kept else None
    if end >= told:
        ((score, earlier),) = _leave_out([window], parts, rows, most, is_end=True)
        return Occlusion(_outcome(score, end), earlier, worst, _gone_on(verdicts, e, parts))
    if not is_kept:
        return NOT_REPLAYED
    ((_, earlier),) = _leave_out([window.until(at)], parts, rows, most, is_end=False)
    change = _change_of_session(verdicts, e, window, at, replayed.states[at], rows, parts) if window.is_whole else None
    return Occlusion(FULL, earlier, worst, change)


def _leave_out(
    windows: Sequence[Window], parts: Parts, rows: SessionRows, most: int, *, is_end: bool
) -> list[tuple[float, tuple[Earlier, ...]]]:
    """The score of each window's last event, or of its end, and how much of it goes with each event before."""
    befores = [len(window.time_ms) - (not is_end) for window in windows]
    left_out = [
        range(max(0, before - most), before) if len(window.time_ms) > 1 else range(0)
        for window, before in zip(windows, befores, strict=True)
    ]
    model, width = _model(parts).runtime, rows.hidden.shape[1]
    told = list[tuple[float, tuple[Earlier, ...]]]()
    of_windows = scores_without(windows, left_out, model, width, parts, is_end=is_end)
    for window, before, events, found in zip(windows, befores, left_out, of_windows, strict=True):
        shares = (np.float32(found.score) - found.scores).tolist()
        times = window.time_ms[events.start : events.stop].tolist()
        back = (before - k for k in events)
        told.append((found.score, tuple(map(Earlier, back, times, shares))))
    return told


def _gone_on(verdicts: Verdicts, e: int, parts: Parts) -> Change | None:
    """Instead of a strange end the likeliest event, if nothing else was strange in the session."""
    state = verdicts.states[verdicts.ends.operation[e]]
    worst = np.array([verdicts.ends.worst[e]], np.float32)
    p = _session_p_values(verdicts, e, worst, verdicts.ends.detectors[e : e + 1, 1:], parts)[0]
    if not p > parts.rate:  # or there is none
        return None
    name = parts.fields[0]
    tokens = known_tokens(expected_after(parts, state)[name]) if parts.shape.fields else []
    return Change(name, tokens[0], float(p)) if tokens else None


def _change_of_session(
    verdicts: Verdicts, e: int, window: Window, at: int, state: F32, rows: SessionRows, parts: Parts
) -> Change | None:  # fmt: skip
    """A whole session with its strangest record as expected in one field."""
    changes = changes_to_replay(window, at, state, parts)
    if not changes:
        return None
    replayed = _replay([changed for *_, changed in changes], parts, rows)
    scores = np.fmax(np.maximum.reduceat(replayed.score, replayed.starts), replayed.end_surprise)
    others = np.empty((len(changes), 0), np.float32)
    if (profiles := _model(parts).profiles) is not None:
        changed_profiles = _profiles_of([changed for *_, changed in changes], parts)
        others = profiles.score(changed_profiles).without(_is_absorbed(verdicts.ends, e, changed_profiles)).columns
    p_values = _session_p_values(verdicts, e, scores, others, parts)
    return best_replayed(changes, scores.tolist(), p_values.tolist(), parts.rate)


def _is_absorbed(ends: SessionEnds, e: int, profiles: Profiles) -> NDArray[np.bool_]:
    """(S,) which of some profiles are the one of a session whose profile is absorbed."""
    if ends.absorbed is None or not ends.absorbed[e]:
        return np.zeros(len(profiles.keys), np.bool_)
    mine = profile_hashes(*ends.profiles.take(np.array([e]))[:2])
    same: NDArray[np.bool_] = profile_hashes(profiles.keys, profiles.counts) == mine
    return same


def _profiles_of(windows: Sequence[Window], parts: Parts) -> Profiles:
    """Profiles of whole sessions."""
    lengths = np.array([len(window.time_ms) for window in windows])
    session, tokens = np.repeat(np.arange(len(windows)), lengths), np.concatenate([w.hashes for w in windows])
    lasted_ms = np.array([int(window.time_ms.max() - window.time_ms[0]) for window in windows])
    counted = count_sessions(session.astype(np.int32), tokens, len(windows), parts.shape.profile)
    return Profiles(*counted, lengths, lasted_ms)


def _session_p_values(verdicts: Verdicts, e: int, scores: F32, others: F32, parts: Parts) -> NDArray[np.float64]:
    """Of a session with other (n,) surprises, and (n, D - 1) scores of the other detectors."""
    learned = _model(parts)
    if learned.combined is not None:
        scores = learned.combined.score(np.hstack([scores[:, None], others]))
    segments = [verdicts.ends.segment[e]] * len(scores)
    calibrated = segment_p_values(scores, segments, learned.sessions, learned.segment_sessions)
    return as_adapted(calibrated, verdicts.ends.calibrated[e], verdicts.ends.p_value[e])


def _replay(windows: Sequence[Window], parts: Parts, rows: SessionRows) -> Replayed:
    return replay(windows, _model(parts).runtime, rows.hidden.shape[1], parts)


def _last(replayed: Replayed) -> NDArray[np.intp]:
    return np.append(replayed.starts[1:], len(replayed.score)) - 1


def _outcome(replayed: float, told: float) -> str:
    return FULL if abs(replayed - told) <= _CLOSE * max(1.0, told) else WINDOW


def _model(parts: Parts) -> Learned:
    assert parts.learned is not None, "without a model nothing is replayed"
    return parts.learned
