"""Single series of the Numenta Anomaly Benchmark, five of its categories, by its standard profile.

One stream holds all series, each by its name. The model learns of each the part in which the rules count no alarm (its
first 15 %, 750 values at most) and then judges it from its start. All those parts are moved in time, by whole days, to
end together, for a history is split by time. `official` is the score as the leaderboard has it: with the one threshold,
of all, that does best on the labels, so it is what could be reached. `calibrated` takes the product's own alarms.

What does best on these files may do so by chance. `run_halves` takes every second series, by name, lets each of some
detectors score those, and gives the score that the best of them has on the others; and the other way round.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.outcome import Outcome, mean_of
from benchmarks.quality.trial import DATA, Event, Measures, Setup, Trial, attempt

SECTION: dict[str, Any] = {
    "kind": "metrics", "topic": "nab", "time": "ts", "numbers": {"name": "series", "value": "value"},
    "session": {"by": "series", "gap": "7d", "max_events": 1_000_000}, "season": ["hour"],
    "promise": {"false_alarm_rate": 0.001},
}  # fmt: skip
# Cores that take each number by itself; a value that lasts is told of once in half a day.
_ALONE: dict[str, dict[str, Any]] = {
    "linear": {"numbers": ["value"]}, "seasonal": {"numbers": ["value"], "model": {"refractory": "12h"}},
}  # fmt: skip
# Of which `run_halves` chooses.
DETECTORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear", {}),
    *(("seasonal", {"model.refractory": period}) for period in ("0s", "3h", "6h", "12h", "24h")),
)
PROBATION, MOST_PROBATION = 0.15, 750
_END_MS, _DAY_MS = 1_700_000_000_000, 86_400_000
_SMOKE_SERIES, _SMOKE_ROWS = 6, 900


class Series(NamedTuple):
    """One file: values with times as they came, and moved ones; windows by the former."""

    times: list[str]
    time_ms: list[int]
    values: NDArray[np.float64]
    windows: list[tuple[str, str]]

    @property
    def probation(self) -> int:
        """How many values are learned."""
        return min(int(PROBATION * len(self.times)), MOST_PROBATION)


def available() -> bool:
    """Whether the labelled data is here."""
    return (DATA / "nab" / "meta" / "combined_windows.json").exists()


def run(setup: Setup) -> Outcome:
    """Train, score, judge each category and all together."""
    corpus, rows, whole = _corpus(setup)
    trial = _attempt(setup, corpus, rows)
    scores = _by_series(trial, corpus)
    parts = {
        category: judge({name: corpus[name] for name in corpus if _category(name) == category}, scores)
        for category in sorted({_category(name) for name in corpus})
        if any(corpus[name].windows for name in corpus if _category(name) == category)
    }
    return Outcome(
        "quality-nab", setup.core, judge(corpus, scores), trial.cost, parts, trial.warnings,
        whole=whole,
    )  # fmt: skip


def run_halves(setup: Setup) -> Outcome:
    """Choose a detector on half of the series and score it on the other, both ways, whatever core is asked for."""
    corpus, rows, _ = _corpus(setup)
    halves = [{name: corpus[name] for name in list(corpus)[k::2]} for k in (0, 1)]
    scores, costs, warnings = [], [], []
    for core, changes in DETECTORS:
        trial = _attempt(replace(setup, core=core, changes=changes), corpus, rows)
        found = _by_series(trial, corpus)
        scores.append([judge(half, found)["official"] for half in halves])
        costs.append(trial.cost)
        warnings += trial.warnings
    parts: dict[str, Measures] = {
        " ".join([core, *(f"{key}={value}" for key, value in changes.items())]): {"first": of[0], "second": of[1]}
        for (core, changes), of in zip(DETECTORS, scores, strict=True)
    }
    chosen = [int(np.argmax([of[k] for of in scores])) for k in (0, 1)]
    on_others = [scores[chosen[k]][1 - k] for k in (0, 1)]
    return Outcome(
        "quality-nab-halves", setup.core, {"official": float(np.mean(on_others)), "lower": min(on_others)},
        mean_of(costs), parts, warnings, whole=len(corpus) == len(_read()) and not setup.smoke,
    )  # fmt: skip


def judge(corpus: dict[str, Series], found: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]) -> Measures:
    """Scores by the standard profile: 0 for no alarm at all, 100 for each window hit at its begin."""
    from evalkit.nab import nab_file, nab_score

    scored = [nab_file(s.times, found[name][0], s.windows) for name, s in corpus.items()]
    alarmed = [nab_file(s.times, found[name][1].astype(float), s.windows) for name, s in corpus.items()]
    after = [found[name][1][s.probation :] for name, s in corpus.items()]
    return {
        "official": nab_score(scored)["score"], "calibrated": nab_score(alarmed, threshold=0.5)["score"],
        "alarmed": float(np.concatenate(after).mean()),
    }  # fmt: skip


def _corpus(setup: Setup) -> tuple[dict[str, Series], int, bool]:
    """The series asked for, by name and in that order, how much of each is played, and whether that is all of all."""
    corpus = {name: _series(*found) for name, found in sorted(_read().items())}
    categories = sorted({_category(name) for name in corpus})
    chosen = setup.parts(categories)
    corpus = {name: series for name, series in corpus.items() if _category(name) in chosen}
    if setup.smoke:
        return {name: corpus[name] for name in list(corpus)[-_SMOKE_SERIES:]}, _SMOKE_ROWS, False
    return corpus, max(len(series.times) for series in corpus.values()), chosen == categories


def _attempt(setup: Setup, corpus: dict[str, Series], rows: int) -> Trial:
    """Train on what may be learned of each series, and score all of them."""
    return attempt(setup, SECTION | _ALONE.get(setup.core, {}), _events(corpus, None), _events(corpus, rows))


def _read() -> dict[str, tuple[list[str], NDArray[np.float64], list[tuple[str, str]]]]:
    from evalkit.data import nab_corpus

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the kit leaves a file open
        corpus: dict[str, Any] = nab_corpus()
    return corpus


def _series(times: list[str], values: NDArray[np.float64], windows: list[tuple[str, str]]) -> Series:
    at_ms = [int(datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp() * 1_000) for time in times]
    series = Series(times, at_ms, values, windows)
    days = (_END_MS - at_ms[series.probation - 1]) // _DAY_MS
    return series._replace(time_ms=[t + days * _DAY_MS for t in at_ms])


def _category(name: str) -> str:
    return name.partition("/")[0]


def _events(corpus: dict[str, Series], rows: int | None) -> Iterator[Event]:
    """The series one after the other; those to learn end where probation does. Each is a partition of its own."""
    for number, (name, series) in enumerate(corpus.items()):
        values = series.values[: series.probation if rows is None else rows].tolist()
        for time_ms, value in zip(series.time_ms, values, strict=False):
            yield {"ts": time_ms, "series": name, "value": value, "_partition": number}


def _by_series(trial: Trial, corpus: dict[str, Series]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Scores and alarms of each value; those without a score have the least, those not played none."""
    found = {}
    for name, series in corpus.items():
        at = trial.records.of(name)
        scores, alarmed = np.zeros(len(series.times)), np.zeros(len(series.times), np.bool_)
        scores[: len(at)], alarmed[: len(at)] = np.nan_to_num(trial.records.score[at]), trial.records.anomaly[at]
        found[name] = (scores, alarmed)
    return found
