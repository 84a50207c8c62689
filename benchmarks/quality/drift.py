"""How soon drift is told, and how often in vain, beside river's detectors alone.

Made-up streams of 12,000 records a day with a daily cycle: by night other tokens, higher numbers and more surprise
than by day. Trained on four days, watched for four weeks. In some there is a change after eight days, at once or over
two days; in others there is none: only the cycle, an outage of two hours, or three sessions unlike all others.

river's detectors are fed each record with their own settings: the number as it is (ADWIN's cut to [0, 1]), of tokens
and p-values minus the logarithm, as training had them. KSWIN, which is slow, sees every 16th record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from river import drift

from detectors.input_watch import InputWatch, UsualInputs
from detectors.intervals import GROUPS
from detectors.score_watch import CAP, ScoreWatch, UsualScores
from features.events import Events
from features.tokens import OOV, RARE

DAY_MS = 86_400_000
START_MS = 1_700_006_400_000 // DAY_MS * DAY_MS
TRAINED, WATCHED, CHANGED = 4.0, 28.0, 8.0  # days; the last after training
SESSIONS = 300
THINNED = 16
Floats = NDArray[np.float64]


class Records(NamedTuple):
    """Days since `START_MS`, token ids, numbers, p-values and sessions."""

    days: Floats
    ids: NDArray[np.int32]
    number: Floats
    p_value: Floats
    session: NDArray[np.int32]

    @property
    def since(self) -> Floats:
        """Days since the change."""
        return self.days - TRAINED - CHANGED

    def where(self, chosen: NDArray[np.bool_], **changed: Any) -> Records:
        """The same with some records changed."""
        return self._replace(**{
            name: np.where(chosen, value, getattr(self, name)).astype(getattr(self, name).dtype)
            for name, value in changed.items()
        })  # fmt: skip


class Scenario(NamedTuple):
    """Which column shows it, whether it is drift, and what becomes of the records."""

    column: str
    is_drift: bool
    change: Callable[[Records], Records]


def _gradually(r: Records) -> Floats:
    return np.clip(r.since / 2, 0, 1)


def _level(r: Records) -> Records:
    return r.where(r.since > 0, number=r.number + 0.8)


def _slow_level(r: Records) -> Records:
    return r._replace(number=r.number + 0.8 * _gradually(r))


def _spread(r: Records) -> Records:
    return r.where(r.since > 0, number=1.7 * r.number)


def _missing(r: Records) -> Records:
    return r.where((r.since > 0) & (r.session % 3 == 0), number=np.nan)


def _tokens(r: Records) -> Records:
    return r.where((r.since > 0) & (r.session % 3 == 0), ids=RARE + 2)


def _slow_tokens(r: Records) -> Records:
    return r.where(r.session / SESSIONS < 0.4 * _gradually(r), ids=RARE + 2)


def _new_token(r: Records) -> Records:
    return r.where((r.since > 0) & (r.session % 5 == 0), ids=OOV)


def _surprise(r: Records) -> Records:
    return r.where(r.since > 0, p_value=r.p_value**1.6)


def _slow_surprise(r: Records) -> Records:
    return r._replace(p_value=r.p_value ** (1 + 0.6 * _gradually(r)))


def _outage(r: Records) -> Records:
    return r.where((r.since >= 0.1) & (r.since < 0.1 + 2 / 24), ids=OOV, number=9.0, p_value=1e-6)


def _odd_sessions(r: Records) -> Records:
    return r.where((r.since > 0) & (r.session < 3), ids=OOV, number=50.0, p_value=1e-6)


def _nothing(r: Records) -> Records:
    return r


COLUMNS = {"number": "number", "tokens": "ids", "surprise": "p_value"}
SCENARIOS = {
    "number: level + 0.8": Scenario("number", True, _level),
    "number: level + 0.8 over 2 days": Scenario("number", True, _slow_level),
    "number: spread x 1.7": Scenario("number", True, _spread),
    "number: missing in a third": Scenario("number", True, _missing),
    "tokens: one in a third more": Scenario("ids", True, _tokens),
    "tokens: one in 0.4 more, over 2 days": Scenario("ids", True, _slow_tokens),
    "tokens: a new one in a fifth": Scenario("ids", True, _new_token),
    "surprise: p to the power of 1.6": Scenario("p_value", True, _surprise),
    "surprise: the same over 2 days": Scenario("p_value", True, _slow_surprise),
} | {
    f"{name}: {what}": Scenario(column, False, change)
    for what, change in (("cycle only", _nothing), ("an outage of 2 h", _outage), ("3 odd sessions", _odd_sessions))
    for name, column in COLUMNS.items()
}  # fmt: skip


class Told(NamedTuple):
    """When drift was told, in days since the change; without a change all of it is in vain."""

    days: Floats
    is_drift: bool

    @property
    def delay_h(self) -> float | None:
        """Hours until it was first told; None: it never was, or there was nothing to tell."""
        after = self.days[self.days > 0]
        return float(after[0]) * 24 if self.is_drift and len(after) else None

    @property
    def false_alarms(self) -> int:
        """What was told before the change, or without one."""
        return int((self.days <= 0).sum() if self.is_drift else len(self.days))


def run(
    screen: Console, seeds: tuple[int, ...] = (1, 2, 3), per_day: int = 12_000, days: float = WATCHED
) -> dict[str, Any]:
    """Each scenario on each seed, by us and by river's detectors; means of delays, sums of false alarms."""
    found: dict[tuple[str, str], list[Told]] = {}
    cost_us: list[float] = []
    for seed in seeds:
        history, later = _records(seed, 0.0, TRAINED, per_day), _records(seed + 1_000, TRAINED, days, per_day)
        watches = _trained(history)
        for name, scenario in SCENARIOS.items():
            changed = scenario.change(later)
            began = time.process_time()
            found.setdefault((name, "offbeat"), []).append(_offbeat(*watches, changed, scenario))
            cost_us.append(1e6 * (time.process_time() - began) / len(later.days))
            for method, told in _river(_series(history, changed, scenario.column), changed, scenario.is_drift).items():
                found.setdefault((name, method), []).append(told)
        screen.print(f"  seed {seed}: {len(later.days):,} records a scenario")
    rows = [_row(name, scenario, found) for name, scenario in SCENARIOS.items()]
    screen.print(f"  {'':40}" + "".join(f"{method:>24}" for method in METHODS))
    for row in rows:
        screen.print(f"  {row['scenario']:40}" + "".join(f"{_shown(row, method):>24}" for method in METHODS))
    return {
        "benchmark": "drift", "records": int(per_day * days), "seeds": len(seeds), "rows": rows,
        "us_per_record": float(np.median(cost_us)),
    }  # fmt: skip


METHODS = ("offbeat", "ADWIN", "PageHinkley", "KSWIN")


def _row(name: str, scenario: Scenario, found: dict[tuple[str, str], list[Told]]) -> dict[str, Any]:
    row: dict[str, Any] = {"scenario": name, "is_drift": scenario.is_drift}
    for method in METHODS:
        told = found[name, method]
        delays = [t.delay_h for t in told if t.delay_h is not None]
        row |= {
            f"{method}_found": len(delays), f"{method}_delay_h": float(np.mean(delays)) if delays else None,
            f"{method}_false": sum(t.false_alarms for t in told),
        }  # fmt: skip
    return row


def _shown(row: dict[str, Any], method: str) -> str:
    delay = row[f"{method}_delay_h"]
    return f"{'' if delay is None else f'{delay:.1f} h, '}{row[f'{method}_false']} in vain"


def _records(seed: int, first_day: float, days: float, per_day: int) -> Records:
    random, n = np.random.default_rng(seed), int(days * per_day)
    at = np.sort(random.uniform(first_day, first_day + days, n))
    phase = np.sin(2 * np.pi * at)
    shares = np.cumsum(np.stack([0.5 + 0.3 * phase, 0.3 - 0.2 * phase, 0.2 - 0.1 * phase], axis=1), axis=1)
    ids = np.minimum((random.random((n, 1)) > shares).sum(axis=1), 2) + RARE
    p_value = random.uniform(1e-9, 1, n) ** (1 + 0.5 * phase)
    session = random.integers(0, SESSIONS, n, dtype=np.int32)
    return Records(at, ids.astype(np.int32), random.normal(1.5 * phase, 1), p_value, session)


def _given(r: Records) -> tuple[Events, NDArray[np.int32]]:
    """As the watch of inputs takes them."""
    n = len(r.days)
    events = Events(
        np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int64), _time_ms(r), r.session,
        [f"session-{i}" for i in range(SESSIONS)], [[None] * n], np.zeros(n, np.bool_), [], 0, n,
        numbers=r.number[:, None],
    )  # fmt: skip
    return events, r.ids[:, None]


def _time_ms(r: Records) -> NDArray[np.int64]:
    return START_MS + np.round(DAY_MS * r.days).astype(np.int64)


def _group(r: Records) -> NDArray[np.int64]:
    return r.session.astype(np.int64) % GROUPS


def _trained(history: Records) -> tuple[InputWatch, ScoreWatch]:
    """Both watches, with what they learned as a bundle brings it."""
    events, ids = _given(history)
    inputs = InputWatch(("token",), ("number",)).learn([(events, ids, np.zeros(len(ids), np.bool_))])
    scores = ScoreWatch().learn([history.p_value], [_time_ms(history)], [_group(history)])
    return (
        InputWatch(("token",), ("number",), UsualInputs.from_json(inputs.to_json())),
        ScoreWatch(UsualScores.from_json(scores.to_json())),
    )


def _offbeat(inputs: InputWatch, scores: ScoreWatch, r: Records, scenario: Scenario) -> Told:
    if scenario.column == "p_value":
        _, events = scores.update_many(None, r.p_value, _time_ms(r), _group(r), np.arange(len(r.days)))
    else:
        _, events = inputs.update_many(None, *_given(r))
    return Told(np.array([r.since[event.offset] for event in events if event.has_begun]), scenario.is_drift)


def _series(history: Records, r: Records, column: str) -> Floats:
    """What river's detectors are given of it: one number a record; NaN is given as 0, for they take none."""
    if column == "number":
        return np.nan_to_num(r.number)
    if column == "p_value":
        return np.minimum(-np.log(r.p_value), CAP)
    known, counts = np.unique(history.ids, return_counts=True)
    nats = np.full(int(max(r.ids.max(), known.max())) + 1, CAP)
    nats[known] = -np.log(counts / counts.sum())
    return nats[r.ids]


def _river(series: Floats, r: Records, is_drift: bool) -> dict[str, Told]:
    low, high = np.quantile(series[: len(series) // 8], [0.001, 0.999])
    cut = np.clip((series - low) / max(1e-9, high - low), 0, 1)
    given = {
        "ADWIN": (drift.ADWIN(), cut, 1),  # type: ignore[no-untyped-call]
        "PageHinkley": (drift.PageHinkley(), series, 1),
        "KSWIN": (drift.KSWIN(seed=1), series, THINNED),
    }  # fmt: skip
    found = {}
    for method, (detector, values, step) in given.items():
        at = []
        for i, value in enumerate(values[::step].tolist()):
            detector.update(value)
            if detector.drift_detected:
                at.append(i * step)
        found[method] = Told(r.since[np.array(at, np.int64)], is_drift)
    return found


if __name__ == "__main__":
    print(run(Console(stderr=True)))
