"""What would have been normal: the smallest change that would have kept an anomaly from being one, one field of it.

A record's fields are predicted side by side from what came before, so what another value in one field would have scored
follows from what the model said of that field anyway. Where scores are no sums of that, as of an ensemble or of a whole
session, the changed events are replayed instead.

References
----------
Wachter, Mittelstadt, Russell 2017, Counterfactual explanations without opening the black box (arXiv:1711.00399): the
nearest change with another outcome. Here only changes of one field count, of any size, for tokens have no distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.contexts import Window
from detectors.ensemble import Ensemble, sum_fields
from detectors.expectations import END, expected_after
from detectors.novelty import NEWS
from detectors.parts import Learned, Parts
from detectors.process import Verdicts, as_adapted, p_values_of_scores
from features.numbers import LOW, Binning
from features.tokens import MISSING, OOV, RARE, RESERVED, stable_hash
from models.autoregression import CAP, SPAN
from models.forecast import ForecastRuntime
from models.linear import LinearRuntime
from models.runtime import F32
from models.seasonal import SeasonalRuntime

Band = tuple[float, float]
PValues = Callable[[Sequence[float]], list[float]]  # of scores
_WEIGHT = 2.0 / (SPAN + 1.0)  # of a new residual in a forecast's running mean
_WITHIN = 0.99  # of that: rows keep float32, so at the very edge either may be
_SECTIONS, _ROUNDS = 64, 5  # of a search for the largest residual that would still be normal: 2^30 parts


@dataclass(frozen=True)
class Change:
    """A field, what it should have held (None: nothing at all; a number: from where to where), and the p-value then."""

    field: str
    value: str | Band | None
    p_value: float

    def told(self) -> dict[str, Any]:
        """As messages have it."""
        value: Any = self.value
        if isinstance(value, tuple):
            value = {"low": value[0], "high": value[1]}
        return {"field": self.field, "value": value, "p_value": self.p_value}


@dataclass(frozen=True)
class _Found:
    change: Change
    least: float  # score, were the field as usual as it can be


def change_of_record(
    verdicts: Verdicts, operation: int, names: list[str | None], ids: NDArray[np.int32], heads: Sequence[F32],
    parts: Parts,
) -> Change | None:  # fmt: skip
    """The change of one field that would have made a record as usual as any can, if it would have been no anomaly then.

    Parameters
    ----------
    names
        What each number of the record is called.
    ids
        (F,) of its tokens.
    heads
        What `detectors.expectations.heads_of` says of the state before the record.

    Returns
    -------
    change
        None where no single field would have done; and of ensembles and single series, whose scores are no sums.
    """
    learned, record = parts.learned, int(verdicts.walk.record[operation])
    if learned is None or isinstance(learned.runtime, Ensemble | SeasonalRuntime):
        return None
    segments = verdicts.events.segments
    segment = None if segments is None else segments[record]

    def p_values(scores: Sequence[float]) -> list[float]:
        calibrated = p_values_of_scores(np.array(scores, np.float32), [segment] * len(scores), learned, parts)
        adapted: list[float] = as_adapted(calibrated, verdicts.calibrated[record], verdicts.p_value[record]).tolist()
        return adapted

    surprise, state = verdicts.surprise[record], verdicts.states[operation]
    news = np.flatnonzero(verdicts.news[record] == NEWS)
    if len(news) > 1:  # changing one leaves the other
        return None
    found = [one for f, one in _tokens(surprise, heads, ids, learned, parts, p_values) if set(news.tolist()) <= {f}]
    if len(news):
        return min(found, key=lambda one: one.least).change if found else None
    measures = verdicts.measures[record]
    if isinstance(learned.runtime, LinearRuntime | ForecastRuntime):
        found += _forecasts(surprise, state, measures, learned.runtime, parts, p_values)
    else:
        found += _bins(surprise, heads, measures, names, learned, parts, p_values)
    return min(found, key=lambda one: one.least).change if found else None


def _tokens(
    surprise: F32, heads: Sequence[F32], ids: NDArray[np.int32], learned: Learned, parts: Parts, p_values: PValues
) -> Iterator[tuple[int, _Found]]:
    """The likeliest other token of each field, by the field's number."""
    fields, vocabulary = parts.shape.fields, learned.vocabulary
    likeliest, changed = list[tuple[int, int]](), list[F32]()
    for f, head in enumerate(heads[:fields]):
        others = _without_named(surprise, f, parts)
        if others is None or vocabulary.bucket_count(f):
            continue
        log_p = head[: vocabulary.sizes[f]].copy()  # what lies beyond is the session's end
        log_p[[OOV, ids[f]]] = -np.inf
        if vocabulary.rare is not None:
            log_p[RARE] = -np.inf
        best = int(np.argmax(log_p))
        if not np.isfinite(log_p[best]):
            continue
        others[f] = -log_p[best]
        likeliest.append((f, best))
        changed.append(others)
    if not changed:
        return
    scores: list[float] = sum_fields(np.array(changed)).tolist()
    for (f, best), score, p in zip(likeliest, scores, p_values(scores), strict=True):
        if p > parts.rate:
            value = None if best == MISSING else vocabulary.text(f, best)
            yield f, _Found(Change(parts.fields[f], value, p), score)


def _without_named(surprise: F32, field: int, parts: Parts) -> F32 | None:
    """A copy in which the numbers that a token of the field names are as usual; None if nobody can tell what that is.

    The surprise of those in a line, and of gaps, is less its mean, so as usual is 0 (`Parts.among`).
    """
    rules, others = parts.measures, surprise.copy()
    first = len(parts.number_fields) - rules.parameters - rules.gaps
    for column, by in enumerate(rules.named_by):
        if by != field:
            continue
        if column < first or parts.model.values:
            return None
        others[parts.shape.fields + column] = 0.0
    return others


def _bins(
    surprise: F32, heads: Sequence[F32], measures: F32, names: list[str | None], learned: Learned, parts: Parts,
    p_values: PValues,
) -> Iterator[_Found]:  # fmt: skip
    """Of each number the values around its likeliest bin with which the record would have been normal."""
    fields = parts.shape.fields
    heads = heads[fields:]
    first = len(heads) - parts.measures.parameters - parts.measures.gaps
    for column, log_p in enumerate(heads):
        binning = learned.numbers.of(column, names[column])
        is_gap = parts.measures.gaps and column == len(heads) - 1
        if binning is None or len(binning.edges) == 0 or (is_gap and np.isnan(measures[column])):
            continue
        nats = _nats_of_bins(log_p, binning, is_among=column >= first, least=LOW if is_gap else MISSING)
        scores = _scores_with(surprise, fields + column, nats)
        passes = p_values(scores)
        best = int(np.argmin(scores))
        low = high = best
        if passes[best] <= parts.rate:
            continue
        while low > 0 and passes[low - 1] > parts.rate:
            low -= 1
        while high + 1 < len(passes) and passes[high + 1] > parts.rate:
            high += 1
        band = (float(binning.edges[low]), float(binning.edges[high + 1]))
        yield _Found(Change(parts.fields[fields + column], band, min(passes[low : high + 1])), scores[best])


def _nats_of_bins(log_p: F32, binning: Binning, *, is_among: bool, least: int) -> F32:
    """(K,) surprise of each bin between the tails, as the model would have it."""
    own = log_p[LOW + 1 : binning.size - 1]
    if not is_among:
        return -own
    known = log_p[least : binning.size].astype(np.float64)
    total = float(np.logaddexp.reduce(known))
    usual = float(np.sum(np.exp(known - total) * (total - known)))
    return (total - own - usual).astype(np.float32)


def _scores_with(surprise: F32, field: int, nats: F32) -> list[float]:
    """Scores, had one field had another surprise."""
    others = np.repeat(surprise[None], len(nats), 0)
    others[:, field] = nats
    return list(map(float, sum_fields(others).tolist()))


def _forecasts(
    surprise: F32, state: F32, measures: F32, runtime: LinearRuntime | ForecastRuntime, parts: Parts, p_values: PValues
) -> Iterator[_Found]:
    """Of each number that was forecast how far from that it might have been.

    Its share is the root of a running mean of squares, of which this record's is one part.
    """
    if isinstance(runtime, LinearRuntime):
        forecasts, spreads, share = state, runtime.model.spread, 1.0 / runtime.model.channels
    else:
        forecasts, spreads = state[runtime.spec.hidden :], runtime.values.spread
        share = runtime.values.unit / runtime.values.channels
    for column, (forecast, spread, came) in enumerate(
        zip(forecasts.tolist(), spreads.tolist(), measures.astype(np.float64).tolist(), strict=True)
    ):
        off = abs(came - forecast) / spread
        if not np.isfinite(off):
            continue
        field, off = parts.shape.fields + column, min(off, CAP)
        rest = max((float(surprise[field]) / share) ** 2 - _WEIGHT * off * off, 0.0)

        def scores(distances: ArrayLike, *, rest: float = rest, field: int = field) -> list[float]:
            levels = share * np.sqrt(rest + _WEIGHT * np.square(distances))
            return _scores_with(surprise, field, levels.astype(np.float32))

        (least,) = scores([0.0])
        if p_values([least])[0] <= parts.rate:
            continue
        near, far = 0.0, off
        for _ in range(_ROUNDS):
            between = np.linspace(near, far, _SECTIONS + 1)
            passing = int(np.sum(np.array(p_values(scores(between[1:]))) > parts.rate))  # p-values never rise
            near, far = float(between[passing]), float(between[min(passing + 1, _SECTIONS)])
        near *= _WITHIN
        band = (forecast - near * spread, forecast + near * spread)
        yield _Found(Change(parts.fields[field], band, p_values(scores([near]))[0]), least)


def changes_to_replay(window: Window, at: int, state: F32, parts: Parts) -> list[tuple[str, str | Band | None, Window]]:
    """A window with event `at` as expected in one field, field by field; of a number one window for each end of it.

    Parameters
    ----------
    state
        What heads read of that event.
    """
    fields, found = parts.shape.fields, list[tuple[str, str | Band | None, Window]]()
    columns = parts.names_of(window.hashes[at : at + 1]) or [None] * len(parts.number_fields)
    names = [None if column is None else column[0] for column in columns]
    expected = expected_after(parts, state, names)
    hashed = [parts.learned is not None and parts.learned.vocabulary.bucket_count(f) > 0 for f in range(fields)]
    for f, field in enumerate(parts.fields):
        if f >= fields:
            for where in expected.get(field, [])[:1]:
                band = (where["low"], where["high"])
                found += [(field, band, _changed(window, at, measure=(f - fields, end))) for end in band]
            continue
        tokens = [] if hashed[f] else known_tokens(expected[field])
        others = [token for token in tokens if stable_hash(token) != int(window.hashes[at, f])]
        found += [(field, token, _changed(window, at, token=(f, token))) for token in others[:1]]
    return found


def known_tokens(expected: list[dict[str, Any]]) -> list[str | None]:
    """Of what is expected in a field what a record can hold; None: nothing at all."""
    tokens = [None if one["token"] == RESERVED[MISSING] else one["token"] for one in expected]
    return [token for token in tokens if token != END and token not in RESERVED]


def _changed(
    window: Window, at: int, token: tuple[int, str | None] | None = None, measure: tuple[int, float] | None = None
) -> Window:  # fmt: skip
    hashes, measures = window.hashes.copy(), window.measures.copy()
    if token is not None:
        hashes[at, token[0]] = stable_hash(token[1])
    if measure is not None:
        measures[at, measure[0]] = measure[1]
    return Window(window.time_ms, hashes, measures, window.is_whole)


def best_replayed(
    changes: list[tuple[str, str | Band | None, Window]], scores: list[float], p_values: list[float], rate: float
) -> Change | None:
    """Of changes that were replayed the one with the lowest score; of a number its worse end counts."""
    worst: dict[str, tuple[float, float, str | Band | None]] = {}
    for (field, value, _), score, p in zip(changes, scores, p_values, strict=True):
        if field not in worst or score > worst[field][0]:
            worst[field] = (score, p, value)
    normal = {field: found for field, found in worst.items() if found[1] > rate}
    if not normal:
        return None
    field = min(normal, key=lambda name: normal[name][0])
    _, p, value = normal[field]
    return Change(field, value, p)
