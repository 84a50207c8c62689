"""`offbeat backtest`: a file scored by the same code as the worker, and its verdicts held against labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.alert_budget import DAY_MS
from detectors.judging import delays, overlapping
from detectors.parts import Learned
from pipeline.errors import UsageError
from pipeline.judgement import Backtest, Held, KeptBudget, judge
from pipeline.labels import Labels, Range
from pipeline.score import verdicts_of, written
from pipeline.serving import saved_name
from pipeline.settings import Settings
from pipeline.verdict_columns import Verdicts, gather, positions_of

_WHY = {
    "sessions": "no session of it has one of these names; write them as its records do",
    "lines": "it has no such lines; they count from 1",
    "ranges": "none of its records lies in one; compare the times, which are UTC where they name no zone",
}


@dataclass(frozen=True)
class Result:
    """What was measured, and what it was measured on, for a plot."""

    backtest: Backtest
    records: Held | None
    sessions: Held | None


def run_backtest(
    settings: Settings, name: str, learned: Learned, source: Path, labels: Labels, output: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:  # fmt: skip
    """Score a file, into another if one is given, and judge the verdicts.

    Raises
    ------
    UsageError
        The labels are about other records than the file's, or of lines where verdicts are about windows.
    """
    stream = settings.stream(name)
    if labels.kind == "lines" and stream.window.size is not None:
        message = f"verdicts of stream {name} are about windows, so lines have none; label start,end instead"
        raise UsageError(message)
    labels = _as_saved(settings, name, labels)
    verdicts = verdicts_of(settings, name, learned, source, progress)
    records, sessions = gather(verdicts if output is None else written(verdicts, output))
    left_over = count_unused(labels, records)
    if left_over == len(labels) > 0:
        message = f"none of the {len(labels):,} labels fits {source}: {_WHY[labels.kind]}"
        raise UsageError(message)
    held = hold_records(records, labels), hold_sessions(sessions, records, labels)
    rate = stream.promise.rate(learned.volume)
    judged = [None if h is None else judge(h, rate) for h in held]
    about = {"stream": name, "model": learned.digest, "labels": labels.kind, "unused_labels": left_over}
    budget = keep_budget(stream.promise.alert_budget, (records, sessions), held)
    told = about | {"records": judged[0], "sessions": judged[1], "budget": budget}
    return Result(Backtest.model_validate(told), *held)


def keep_budget(budget: float | None, verdicts: Sequence[Verdicts], held: Sequence[Held | None]) -> KeptBudget | None:
    """Alarms a day from the first record to the last, beside the budget; None without one or with no time between."""
    times = verdicts[0].first_ms[verdicts[0].first_ms > 0]
    if budget is None or not len(times) or times.min() == times.max():
        return None
    days = int(times.max() - times.min()) / DAY_MS
    wrong = sum(int((h.alarmed & h.known & ~h.anomalous).sum()) for h in held if h is not None)
    alarms = sum(int(of_kind.anomaly.sum()) for of_kind in verdicts)
    return KeptBudget(promised=budget, alarms=alarms / days, false_alarms=wrong / days)


def _as_saved(settings: Settings, name: str, labels: Labels) -> Labels:
    """The labels with sessions called as verdicts call them: masked, where the stream masks them."""
    return replace(
        labels,
        sessions={saved_name(settings, name, session): label for session, label in labels.sessions.items()},
        ranges=[
            r if r.session is None else replace(r, session=saved_name(settings, name, r.session)) for r in labels.ranges
        ],
    )


def hold_records(records: Verdicts, labels: Labels) -> Held | None:
    """Records beside their labels; None where the labels are of sessions."""
    if labels.kind == "sessions":
        return None
    if labels.kind == "ranges":
        return _hold_ranges(records, labels.ranges)
    anomalous, known = _told([labels.lines.get(line, False) for line in records.line.tolist()])
    return Held(anomalous, known, records.score, records.anomaly)


def hold_sessions(sessions: Verdicts, records: Verdicts, labels: Labels) -> Held | None:
    """Sessions beside their labels; None where none ended.

    By ranges a session is anomalous that shares a moment with one, by lines one that has an anomalous line. A label of
    a name is about all sessions of that name together: they count once, with their highest score.
    """
    if not len(sessions):
        return None
    if labels.kind == "sessions":
        return _hold_names(sessions, labels.sessions)
    if labels.kind == "ranges":
        return _hold_ranges(sessions, labels.ranges)
    wrong = [i for i, line in enumerate(records.line.tolist()) if labels.lines.get(line)]
    moments = [Range(int(records.first_ms[i]), int(records.first_ms[i]), records.session[i]) for i in wrong]
    anomalous = _in_ranges(sessions, [moment for moment in moments if moment.session is not None])
    return Held(anomalous, _all_known(sessions), sessions.score, sessions.anomaly)


def count_unused(labels: Labels, records: Verdicts) -> int:
    """How many labels are about sessions or lines that no record has, or ranges in which none lies."""
    if labels.kind == "sessions":
        return len(labels.sessions.keys() - set(records.session))
    if labels.kind == "lines":
        return len(labels.lines.keys() - set(records.line.tolist()))
    return int(np.isnan(_found_after(records, labels.ranges, range(len(records)))).sum())


def _hold_ranges(verdicts: Verdicts, ranges: Sequence[Range]) -> Held:
    found_after = _found_after(verdicts, ranges, np.flatnonzero(verdicts.anomaly))
    return Held(_in_ranges(verdicts, ranges), _all_known(verdicts), verdicts.score, verdicts.anomaly, found_after)


def _hold_names(sessions: Verdicts, labels: dict[str, bool | None]) -> Held:
    names, at = np.unique(np.array(sessions.session, object).astype(str), return_inverse=True)
    score = np.full(len(names), -np.inf)
    np.maximum.at(score, at, np.where(np.isnan(sessions.score), -np.inf, sessions.score))
    alarmed = np.zeros(len(names), np.bool_)
    np.logical_or.at(alarmed, at, sessions.anomaly)
    anomalous, known = _told([labels.get(name, False) for name in names.tolist()])
    return Held(anomalous, known, np.where(np.isinf(score), np.nan, score), alarmed)


def _told(said: list[bool | None]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What is anomalous, and what is known."""
    return np.array([label is True for label in said], np.bool_), np.array([s is not None for s in said], np.bool_)


def _all_known(verdicts: Verdicts) -> NDArray[np.bool_]:
    return np.ones(len(verdicts), np.bool_)


def _in_ranges(verdicts: Verdicts, ranges: Sequence[Range]) -> NDArray[np.bool_]:
    """Whether each shares a moment with a range of its session, or of all."""
    found = np.zeros(len(verdicts), np.bool_)
    for session, which in positions_of([range_.session for range_ in ranges]).items():
        at, of = verdicts.of(session), [ranges[i] for i in which]
        begin, end = [r.begin_ms for r in of], [r.end_ms for r in of]
        found[at] |= overlapping(verdicts.first_ms[at], verdicts.last_ms[at], begin, end)
    return found


def _found_after(
    verdicts: Verdicts, ranges: Sequence[Range], chosen: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each range how long after its begin the first of the chosen verdicts came; a session's at its last event."""
    is_chosen = np.zeros(len(verdicts), np.bool_)
    is_chosen[chosen] = True
    found = np.full(len(ranges), np.nan)
    for session, which in positions_of([range_.session for range_ in ranges]).items():
        at, of = verdicts.of(session), [ranges[i] for i in which]
        at = at[is_chosen[at]]
        begin, end = [r.begin_ms for r in of], [r.end_ms for r in of]
        found[which] = delays(begin, end, verdicts.first_ms[at], verdicts.last_ms[at])
    return found
