"""The promise: how many false alarms are kept to, with thresholds that follow the stream and with those of calibration.

Three sorts of normal streams. Made-up scores that drift, five million records of them: calibration and thresholds are
the product's, there is no model, for the whole path would take hours. Hadoop's normal sessions, and server machines in
their healthy minutes: the whole path, `offbeat train` and `offbeat score`. What a threshold learns of the machines'
faults is shown beside.

A rate is kept if it lies within a factor of 1.5 of the promise (3 for one in 10,000), over the whole where 100 alarms
are due and over each tenth where 30 are. Where fewer are due, if its 95 % interval holds the promise; the interval
counts sessions, or, of records, takes an hour for what is independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.quality import hdfs, smd
from benchmarks.quality.trial import Event, Setup, attempts
from detectors.calibration import Calibration
from detectors.judging import interval
from detectors.promise_keeper import KeepingRules, Tally, Threshold, adapt, learn

RATES = (0.01, 0.001, 0.0001)
_OF_WHOLE, _OF_TENTH = 100.0, 30.0  # alarms due, from which on a rate is held to a factor
_HOUR, _MINUTES = 3_600, 60  # made-up records in an hour, one a second; a machine's, one a minute
_SESSION = 20  # made-up records
_SMALL: dict[str, Any] = {"model.hidden": 16, "model.max_epochs": 4}  # of smoke runs
_LENGTHS = (300, 3_000, 15_000)  # of long anomalies, in records
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One stream at one promise; `is_kept` says it of the whole, `tenths` of how many tenths, `recall` is of faults."""

    stream: str
    what: str
    promised: float
    adapts: bool
    decisions: int
    due: float
    kept: float
    low: float
    high: float
    is_kept: bool
    tenths: int
    worst_tenth: float
    recall: float | None = None


def run(records: int, screen: Console, *, smoke: bool = False) -> dict[str, Any]:
    """All streams; the labelled ones where their data is here."""
    rows: list[Row] = []
    machines = [_machines(core, smoke=smoke) for core in ("linear", "gru")]
    for row in chain(_made_up(records), _hadoop(smoke=smoke), *machines):
        rows.append(row)
        screen.print(_sentence(row))
    lost = list(long_anomalies(records // 10))
    for found in lost:
        screen.print(
            "  long anomalies of {length:,.0f} records at {promised:g}: {lost:+.1%} of recall lost".format(**found)
        )
    return {
        "benchmark": "promise", "records": records, "rows": [asdict(row) for row in rows], "long_anomalies": lost,
        "kept": sum(row.is_kept for row in rows if row.adapts), "of": sum(row.adapts for row in rows),
    }  # fmt: skip


def _sentence(row: Row) -> str:
    how = "adapted" if row.adapts else "calibrated"
    return (
        f"  {row.stream}, {row.what}, {how}: promised {row.promised:g}, {row.due:,.1f} due; kept {row.kept:.3g} "
        f"({row.low:.2g} to {row.high:.2g}), {'kept' if row.is_kept else 'MISSED'}; {row.tenths} of 10 tenths, "
        f"the worst {row.worst_tenth:.2f} times" + ("" if row.recall is None else f"; recall {row.recall:.3f}")
    )


def follow(p_values: Floats, rate: float, calibration: Calibration, decisions: int = 256, lag: int = 1) -> Floats:
    """P-values as a partition's thresholds adapt them, with so many decisions in a block of 256 records."""
    threshold, adapted, tallies = Threshold.begin(calibration, rate), np.empty_like(p_values), list[Tally]()
    in_time = np.zeros(decisions, np.bool_)
    for low in range(0, len(p_values), decisions):
        block = p_values[low : low + decisions]
        found = adapt(block, in_time[: len(block)], rate, threshold.nats, adapted[low : low + decisions])
        tallies.append(Tally().plus(found))
        if len(tallies) == lag:
            threshold = learn(threshold, tallies.pop(0), rate, KeepingRules().frozen)
    return adapted


def judge(stream: str, what: str, alarmed: Flags, rate: float, together: int, *, adapts: bool) -> Row:
    """Hold alarms on normal decisions, in their order, against a promise; `together` are taken for one in intervals."""
    factor = 3.0 if rate < 0.001 else 1.5
    low, high = between(alarmed, together)
    tenths = [_is_kept(tenth, rate, factor, _OF_TENTH, together) for tenth in np.array_split(alarmed, 10)]
    ratios = [float(tenth.mean()) / rate for tenth in np.array_split(alarmed, 10)]
    worst = max(ratios, key=lambda ratio: abs(math.log(max(ratio, 1e-3))))
    return Row(
        stream, what, rate, adapts, len(alarmed), rate * len(alarmed), float(alarmed.mean()), low, high,
        _is_kept(alarmed, rate, factor, _OF_WHOLE, together), sum(tenths), worst,
    )  # fmt: skip


def _is_kept(alarmed: Flags, rate: float, factor: float, enough: float, together: int) -> bool:
    kept = float(alarmed.mean())
    if rate * len(alarmed) >= enough:
        return rate / factor <= kept <= rate * factor
    low, high = between(alarmed, together)
    return low <= rate <= high


def between(alarmed: Flags, together: int) -> tuple[float, float]:
    """The 95 % interval of a share, where decisions that lie together tell less than as many apart.

    Counts are divided by how much more the blocks vary than independent decisions would (Rao and Scott 1992, "A simple
    method for the analysis of clustered binary data", Biometrics 48).
    """
    hits, count = int(alarmed.sum()), len(alarmed)
    blocks = np.add.reduceat(alarmed.astype(np.float64), np.arange(0, count, together))
    expected = count * max(hits / count * (1 - hits / count), 1e-12)
    sizes = np.diff(np.append(np.arange(0, count, together), count))
    effect = max(1.0, float(((blocks - hits / count * sizes) ** 2).sum()) / expected) if hits else 1.0
    return interval(round(hits / effect), max(1, round(count / effect)))


# --- made-up scores ----------------------------------------------------------------------------------------------


def scores(count: int, seed: int, drift: float) -> Floats:
    """(count,) of records, whose sessions are strange each to another degree; `drift` is how far they go at last.

    With a drift scores rise and fall with the day too, and spread out by a tenth.
    """
    rng = np.random.default_rng(seed)
    sessions = np.repeat(rng.normal(0.0, 0.5, math.ceil(count / _SESSION)), _SESSION)[:count]
    at = np.arange(count)
    rising = drift * at / count + 0.2 * drift * np.sin(2 * np.pi * at / (24 * _HOUR))
    found: Floats = rng.gumbel(size=count) * (1 + 0.1 * (drift > 0) * at / count) + sessions + rising
    return found


def _made_up(records: int) -> Iterator[Row]:
    held_back, live = scores(400_000, 1, 0.0), scores(records, 2, 1.0)
    for what, per, decisions, lag, hour in (
        ("records", 1, 256, 1, _HOUR),
        ("sessions", _SESSION, 256 // _SESSION, KeepingRules().lag, 1),
    ):
        calibration = Calibration.learn(_strangest(held_back, per).astype(np.float32))
        p_values = calibration.p_values(_strangest(live, per).astype(np.float32))
        for rate in RATES:
            for adapts in (False, True):
                judged = follow(p_values, rate, calibration, decisions, lag) if adapts else p_values
                yield judge("made-up drift", what, judged <= rate, rate, hour, adapts=adapts)


def _strangest(of_records: Floats, per: int) -> Floats:
    """Of sessions the largest score of their records."""
    whole = len(of_records) // per * per
    found: Floats = of_records[:whole].reshape(-1, per).max(1)
    return found


def long_anomalies(records: int) -> Iterator[dict[str, float]]:
    """Recall lost by adaptation where one record in a hundred lies in a long anomaly, little beyond the threshold."""
    calibration = Calibration.learn(scores(400_000, 1, 0.0).astype(np.float32))
    for rate in RATES:
        for length in _LENGTHS:
            static, adapted = [], []
            for seed in range(10, 14):
                rng = np.random.default_rng(seed)
                p_values = calibration.p_values(scores(max(records, 8 * length), seed, 0.0).astype(np.float32))
                strange = np.zeros(len(p_values), np.bool_)
                for begin in rng.integers(0, len(p_values) - length, max(1, len(p_values) // (100 * length))):
                    strange[begin : begin + length] = True
                p_values[strange] = np.exp(-rng.exponential(3.0, int(strange.sum())) + math.log(2 * rate))
                static.append((p_values[strange] <= rate).mean())
                adapted.append((follow(p_values, rate, calibration)[strange] <= rate).mean())
            yield {"promised": rate, "length": length, "lost": float(1 - np.mean(adapted) / np.mean(static))}


# --- the whole path ----------------------------------------------------------------------------------------------


def _variants(*, smoke: bool) -> list[Event]:
    rates = RATES[:1] if smoke else RATES
    return [{"promise.false_alarm_rate": rate, "promise.adapt": adapts} for rate in rates for adapts in (False, True)]


def _hadoop(*, smoke: bool) -> Iterator[Row]:
    """Normal sessions that no training saw."""
    if not hdfs.available():
        return
    training, testing = hdfs.read("train", 150 if smoke else None), hdfs.read("test", 200 if smoke else None)
    normal = [session for session in testing if not session["label"]]
    setup = Setup(changes=_SMALL if smoke else {}, smoke=smoke)
    variants = _variants(smoke=smoke)
    trials = attempts(setup, hdfs.SECTION, hdfs.events_of(training, 1), hdfs.events_of(normal, 2), variants)
    for variant, trial in zip(variants, trials, strict=True):
        adapts = variant["promise.adapt"]
        yield judge("Hadoop", "sessions", trial.sessions.anomaly, trial.promise, 1, adapts=adapts)


def _machines(core: str, *, smoke: bool) -> Iterator[Row]:
    """Healthy minutes of all machines, one machine after the other; forecasts of either core."""
    if not smd.available():
        return
    from evalkit.data import smd as read
    from evalkit.data import smd_machines

    variants = _variants(smoke=smoke)
    changes = (_SMALL if smoke else {}) | ({} if core == "linear" else {"model.numbers": "forecast"})
    setup = Setup(core, changes=changes, smoke=smoke)
    alarms: list[list[Flags]] = [[] for _ in variants]
    faults: list[list[Flags]] = [[] for _ in variants]
    for machine in smd_machines()[: 1 if smoke else None]:
        training, testing, labels = smd.few(*read(machine)) if smoke else read(machine)
        columns = [f"n{c:02}" for c in range(training.shape[1])]
        live = smd.events_of(testing, columns, len(training))
        trials = attempts(setup, smd.section(columns), smd.events_of(training, columns, 0), live, variants)
        for number, trial in enumerate(trials):
            alarmed = trial.records.anomaly[np.argsort(trial.records.line, kind="stable")]
            alarms[number].append(alarmed[labels == 0])
            faults[number].append(alarmed[labels > 0])
    for number, variant in enumerate(variants):
        rate, adapts = variant["promise.false_alarm_rate"], variant["promise.adapt"]
        row = judge(f"machines, {core}", "records", np.concatenate(alarms[number]), rate, _MINUTES, adapts=adapts)
        yield replace(row, recall=float(np.concatenate(faults[number]).mean()))
