"""Hadoop block sessions against their labels, at three promises.

The model learns the 5,583 normal training sessions and judges a quarter of the test sessions, in which the normal ones
are thinned: each stands for as many as the whole data set has. Sessions carry no usable times, so starts are made up by
a seed, and events lie one second apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.outcome import Outcome
from benchmarks.quality.trial import DATA, START_MS, Event, Measures, Setup, attempt
from detectors.judging import interval, precision_recall

SECTION: dict[str, Any] = {
    "topic": "hdfs.events", "start": "earliest", "time": "ts", "tokens": ["event"],
    "model": {"order": "loose"},  # the nodes that hold a block write about it at the same time
    "session": {"by": "block", "gap": "60s"}, "promise": {"false_alarm_rate": 0.001},
}  # fmt: skip
PROMISES = (0.0005, 0.001, 0.002)
_ALL_ANOMALIES = 16_838  # of the whole data set, of which a quarter is here; `f1 of all` lets each stand for four
_FAULTS = ("dropped", "doubled", "inserted", "replaced", "truncated")
_MOST_BROKEN = 500  # sessions of each fault
_SECONDS_PER_SESSION = 3  # about ten sessions are open at once


def available() -> bool:
    """Whether the labelled data is here."""
    return (DATA / "hdfs" / "sessions.csv.gz").exists()


def run(setup: Setup) -> Outcome:
    """Train, score, judge."""
    setup.parts([])
    training, testing = (read("train", 150), read("test", 100)) if setup.smoke else (read("train"), read("test"))
    broken = broken_sessions([row["events"] for row in testing if row["label"] == 0], _MOST_BROKEN)
    trial = attempt(setup, SECTION, events_of(training, 1), events_of([*testing, *broken], 2))
    alarmed = trial.sessions.p_value <= trial.promise
    assert (alarmed == trial.sessions.anomaly).all(), "a promise is a level of p-values, so one training serves several"
    p_value = {name: p for name, p in zip(trial.sessions.session, trial.sessions.p_value, strict=True)}
    score = {name: s for name, s in zip(trial.sessions.session, trial.sessions.score, strict=True)}
    names, labels = [row["block_id"] for row in testing], [row["label"] for row in testing]
    measures = judge([p_value[n] for n in names], [score[n] for n in names], labels)
    again = dict(zip(trial.sessions.session, trial.sessions.rescored, strict=True))
    measures |= judge_broken({row["block_id"]: p_value[row["block_id"]] <= trial.promise for row in broken})
    if not np.isnan(trial.sessions.rescored).all():
        measures |= judge_confirmed(np.array([again[n] for n in names]) <= trial.promise, labels)
    return Outcome("quality-hdfs", setup.core, measures, trial.cost, warnings=trial.warnings, whole=not setup.smoke)


def judge(p_values: Sequence[float], scores: Sequence[float], labels: Sequence[int]) -> Measures:
    """Each measure at each promise."""
    from evalkit.data import hdfs_test_weights
    from evalkit.sessions import session_metrics

    weights = hdfs_test_weights(labels)
    normal = np.asarray(labels) == 0
    found: Measures = {}
    for promise in PROMISES:
        alarmed = np.asarray(p_values) <= promise
        judged = session_metrics(alarmed, labels, weights)
        low, high = interval(int((alarmed & normal).sum()), int(normal.sum()))
        found |= {f"{name}@{promise:g}": judged[name] for name in ("f1", "precision", "recall")}
        all_of_both = np.where(normal, weights, _ALL_ANOMALIES / max(1, (~normal).sum()))
        found |= {f"f1 of all@{promise:g}": session_metrics(alarmed, labels, all_of_both)["f1"]}
        found |= {f"kept@{promise:g}": judged["fpr"], f"kept low@{promise:g}": low, f"kept high@{promise:g}": high}
    curve = precision_recall(scores, labels, weights)
    return found | {"auc_pr": float("nan") if curve is None else curve.area}


def broken_sessions(normal: Sequence[Sequence[int]], most: int) -> list[dict[str, Any]]:
    """Normal sessions with one event wrong: left out, twice, put in, another in its place, or the last of them.

    What comes of it may be a session that is normal, too: an event of a kind that may come twice, say.
    """
    rng, kinds = random.Random(4), sorted({event for session in normal for event in session})
    several, broken = [session for session in normal if len(session) > 1], []
    for fault in _FAULTS:
        for number, session in enumerate(rng.sample(several, min(most, len(several)))):
            events, at = list(session), rng.randrange(len(session))
            if fault == "dropped":
                del events[at]
            elif fault == "doubled":
                events.insert(at, events[at])
            elif fault == "inserted":
                events.insert(at, rng.choice(kinds))
            elif fault == "replaced":
                events[at] = rng.choice([kind for kind in kinds if kind != events[at]])
            else:
                events = events[: max(1, at)]
            broken.append({"block_id": f"{fault}-{number}", "events": events})
    return broken


def judge_broken(alarmed: dict[str, bool]) -> Measures:
    """Recall of each fault, and of all."""
    of = {fault: [found for name, found in alarmed.items() if name.startswith(fault)] for fault in _FAULTS}
    found = {f"recall, {fault}": float(np.mean(hits)) for fault, hits in of.items()}
    return found | {"recall, one event": float(np.mean(list(alarmed.values())))}


def judge_confirmed(confirmed: NDArray[np.bool_], labels: Sequence[int]) -> Measures:
    """Measures of what a second stage confirmed of the anomalies."""
    from evalkit.data import hdfs_test_weights
    from evalkit.sessions import session_metrics

    judged = session_metrics(confirmed, labels, hdfs_test_weights(labels))
    names = {"f1": "f1", "precision": "precision", "recall": "recall", "kept": "fpr"}
    return {f"{name}, confirmed": judged[of] for name, of in names.items()}


def read(split: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Sessions of `train` or `test`; or a seeded sample, for the first rows of the file are not like the others."""
    from evalkit.data import hdfs_sessions

    rows = [row for row in hdfs_sessions() if row["split"] == split]
    return rows if limit is None else random.Random(1).sample(rows, limit)


def events_of(sessions: Sequence[dict[str, Any]], seed: int) -> Iterator[Event]:
    """The events of all sessions, in the order of made-up times."""
    rng = random.Random(seed)
    span_ms = 1_000 * _SECONDS_PER_SESSION * len(sessions)
    events = []
    for row in sessions:
        start = START_MS + rng.randrange(span_ms)
        events += [(start + 1_000 * i, row["block_id"], f"E{e}") for i, e in enumerate(row["events"])]
    events.sort(key=lambda event: event[0])
    for ts, block, event in events:
        yield {"ts": ts, "block": block, "event": event}
