"""Whether a bundle that nobody has looked at may serve: judged on the end of the history, which taught it nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.ensemble import Ensemble
from detectors.parts import Parts
from detectors.process import Verdicts, process_batch
from detectors.rows import PartitionState, SessionRows
from features.events import Events
from features.sessions import END_INPUT, number_sessions
from features.tokens import TokenEncoder

LEAST_SESSIONS = 20  # held back, healthy and ended; fewer say nothing
_BY_CHANCE = 0.001  # that so many false alarms come though the promise is kept


@dataclass
class Checked:
    """Why the bundle may not serve, in sentences (none: it may), and what was found."""

    refusals: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def hold(self, what: bool, otherwise: str) -> None:
        """Refuse for that reason unless it holds."""
        if not what:
            self.refusals.append(otherwise)


@dataclass(frozen=True)
class _Later:
    """One partition's verdicts, and which count: (n,) records and (E,) ends of healthy sessions held back.

    `taught` are the records that were trained on, `ends_taught` how many sessions ended among them.
    """

    verdicts: Verdicts
    records: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    taught: NDArray[np.bool_]
    ends_taught: int


def check_first(history: Sequence[Events], cuts: Sequence[int], parts: Parts, validation_loss: float | None) -> Checked:
    """Judge a bundle by records that it was not trained on.

    Parameters
    ----------
    history
        All events of each partition, read as a worker with the bundle reads them.
    cuts
        Of each partition the offset from which on nothing was trained on. Sessions that begin there count, but for
        those in which the online detectors find an anomaly: they are not known to be healthy.
    parts
        With the bundle.
    validation_loss
        The best of its training; None where it has none, as that of forecasts has.
    """
    checked = Checked()
    if validation_loss is not None:
        checked.hold(math.isfinite(validation_loss), f"its validation loss is {validation_loss}")
    later = [_judge(events, cut, parts) for events, cut in zip(history, cuts, strict=True) if len(events)]
    sessions = sum(int(part.ends.sum()) for part in later)
    checked.figures["sessions"] = sessions
    few = f"only {sessions} healthy sessions began and ended after those it learned from, of {LEAST_SESSIONS} wanted"
    checked.hold(sessions >= LEAST_SESSIONS, few)
    if checked.refusals:
        return checked
    if validation_loss is not None and (parts.shape.fields or not parts.model.values):
        model, baseline = _nats(_by_first_core(history, cuts, parts) or later, parts)
        checked.figures |= {"nats": model, "nats_by_frequency": baseline}
        worse = f"it predicts no better than frequencies do ({model:.3f} against {baseline:.3f} nats a record)"
        checked.hold(model < baseline, worse)
    for what, alarms, count in (
        ("records", sum(int(p.verdicts.anomaly[p.records].sum()) for p in later), sum(map(_records, later))),
        ("sessions", sum(int(p.verdicts.ends.anomaly[p.ends].sum()) for p in later), sessions),
    ):
        most = most_by_chance(count, parts.rate)
        checked.figures[f"alarms_of_{what}"] = alarms
        many = f"{alarms} of {count} healthy {what} that it never saw alarmed"
        checked.hold(alarms <= most, f"{many}, and the promise of {parts.rate:g} allows {most}")
    return checked


def _records(part: _Later) -> int:
    return int(part.records.sum())


def most_by_chance(count: int, rate: float) -> int:
    """The most false alarms in so many that a kept promise explains: more come in one of 1,000 cases (binomial).

    >>> most_by_chance(1_000, 0.001), most_by_chance(20, 0.001)
    (5, 1)
    """
    log_p, total, most = count * math.log1p(-rate), 0.0, -1
    while total < 1.0 - _BY_CHANCE and most < count:
        most += 1
        total += math.exp(log_p)
        log_p += math.log(max(1, count - most) / (most + 1)) + math.log(rate) - math.log1p(-rate)
    return most


def _judge(events: Events, cut: int, parts: Parts) -> _Later:
    verdicts, online = (_verdicts(events, with_) for with_ in (parts, _without_bundle(parts)))
    walk, offsets = verdicts.walk, verdicts.events.offsets
    numbers, begins = number_sessions(walk)
    counts = np.append(offsets[begins] >= cut, False)  # the last: late records of no session
    of_records = numbers[walk.of_events]
    counts[of_records[online.anomaly]] = False
    ends = verdicts.ends.operation
    ended = counts[numbers[ends]] & (walk.kind[ends] != END_INPUT)
    ends_taught = int((verdicts.ends.last_offset < cut).sum())
    return _Later(verdicts, counts[of_records] & ~walk.is_late, ended, offsets < cut, ends_taught)


def _verdicts(events: Events, parts: Parts) -> Verdicts:
    rows = SessionRows.empty(len(events.sessions), parts.shape)
    return process_batch(events, rows, PartitionState(0), parts, close_all=True)[0]


def _without_bundle(parts: Parts) -> Parts:
    return replace(parts, learned=None, encoder=TokenEncoder(parts.shape.fields, None))


def _by_first_core(history: Sequence[Events], cuts: Sequence[int], parts: Parts) -> list[_Later]:
    """What the first core of an ensemble says alone, in nats, which a whole one does not; of a single core nothing."""
    learned = parts.learned
    if learned is None or not isinstance(learned.runtime, Ensemble):
        return []
    first = learned.runtime.members[0]
    shape = replace(parts.shape, hidden=first.width)
    alone = replace(parts, ensemble=(), learned=replace(learned, model=first.runtime), shape=shape)
    return [_judge(events, cut, alone) for events, cut in zip(history, cuts, strict=True) if len(events)]


def _nats(later: Sequence[_Later], parts: Parts) -> tuple[float, float]:
    """Mean surprise of the records held back, under the model and under each field's frequencies in what taught it.

    Of tokens; without any, of the bins of numbers. Instead of a record the session might have ended.
    """
    columns = slice(0, parts.shape.fields or len(parts.fields) - parts.measures.gaps)
    ids = [parts.ids(p.verdicts.events, p.verdicts.measures)[:, columns] for p in later]
    model = np.concatenate([p.verdicts.surprise[p.records, columns] for p in later]).astype(np.float64)
    taught = np.concatenate([of[p.taught] for of, p in zip(ids, later, strict=True)])
    held_back = np.concatenate([of[p.records] for of, p in zip(ids, later, strict=True)])
    baseline, ends = 0.0, sum(p.ends_taught for p in later)
    for known, came in zip(taught.T, held_back.T, strict=True):
        counts = np.bincount(known, minlength=int(came.max()) + 1) + 0.5
        baseline += float(np.mean(-np.log(counts[came] / (counts.sum() + ends))))
        ends = 0
    return float(model.sum(axis=1).mean()), baseline
