"""Why: what was expected, what came, which field counted how much, and what the session did before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.contexts import Window
from detectors.ensemble import Ensemble
from detectors.parts import Learned, Parts
from detectors.process import Verdicts
from detectors.rows import SessionRows
from features.events import Events
from features.sessions import ENDED
from features.time_gaps import GAP
from features.tokens import RESERVED, Vocabulary
from models.forecast import ForecastRuntime
from models.linear import LinearRuntime

TOP = 3  # expected tokens shown per field
SHOWN = 10  # last events shown; fewer where the config keeps a shorter context
SHOWN_CHARACTERS = 1_024  # of a log line
END = "<end>"


def explain_record(verdicts: Verdicts, operation: int, rows: SessionRows, parts: Parts) -> dict[str, Any]:
    """Explain the step `operation` of the walk. `rows` are those before the slice. Work: one head, SHOWN lookups."""
    record = int(verdicts.walk.record[operation])
    came = observed(verdicts, record, parts)
    expected = _expected(parts, verdicts.states[operation], _names(verdicts.events, record, parts))
    if GAP in expected and came[GAP] is None:
        expected[GAP] = []  # a session's first event has none
    return {
        "observed": came,
        "expected": expected,
        "contributions": {
            field: float(nats) for field, nats in zip(parts.fields, verdicts.surprise[record], strict=True)
        },
        "unit": parts.unit,
        "context": _context(verdicts, operation, rows, parts),
    }


def explain_end(verdicts: Verdicts, end: int, rows: SessionRows, parts: Parts) -> dict[str, Any]:
    """Explain the session verdict number `end` of the slice: its worst record, and whether it should have ended."""
    operation = int(verdicts.ends.operation[end])
    worst, offset = float(verdicts.ends.worst[end]), int(verdicts.ends.worst_offset[end])
    end_surprise = float(verdicts.ends.end_surprise[end])
    return {
        "observed": {"end": ENDED[int(verdicts.walk.kind[operation])]},
        "expected": _expected(parts, verdicts.states[operation]),
        "contributions": {
            "worst_record": worst if math.isfinite(worst) else None,
            "end": end_surprise if math.isfinite(end_surprise) else None,
        },
        "unit": parts.unit,
        "worst_offset": offset if offset >= 0 else None,
        "context": _context(verdicts, operation, rows, parts),
    }


def observed(verdicts: Verdicts, record: int, parts: Parts) -> dict[str, str | float | None]:
    """What came; of a log line its words, not its template, and of a counter its rate."""
    events, words = verdicts.events, parts.fields[: parts.shape.fields]
    came: dict[str, str | float | None] = {f: column[record] for f, column in zip(words, events.tokens, strict=True)}
    if events.messages is not None:
        said = events.messages[record]
        came[words[-1]] = None if said is None else said[:SHOWN_CHARACTERS]
    return came | _numbers(parts, verdicts.measures[record])


def _numbers(parts: Parts, measures: NDArray[np.float32]) -> dict[str, float | None]:
    """Numbers by their fields, as JSON can hold them: none where there is none, and none infinite."""
    largest = float(np.finfo(np.float32).max)
    shown = (None if math.isnan(x) else min(max(x, -largest), largest) for x in measures.tolist())
    return dict(zip(parts.number_fields, shown, strict=True))


def _names(events: Events, record: int, parts: Parts) -> list[str | None]:
    """What each number of the record is called; None where its column says so."""
    names = parts.measures.names(events)
    return [None if column is None else column[record] for column in names or [None] * len(parts.number_fields)]


def _expected(parts: Parts, state: NDArray[np.float32], names: Sequence[str | None] | None = None) -> dict[str, Any]:
    """The likeliest tokens, and of numbers where they should lie; of named ones those of `names`, if they are known.

    Nothing while warming up: counts are kept by hashes, which cannot be turned back.
    """
    if (learned := parts.learned) is None:
        return {field: [] for field in parts.fields}
    if isinstance(learned.runtime, LinearRuntime):
        forecasts = zip(parts.number_fields, learned.runtime.intervals(state), strict=True)
        return {field: [] for field in parts.fields} | {field: _interval(where) for field, where in forecasts}
    expected: dict[str, Any] = {}
    for f, (field, log_p) in enumerate(zip(parts.fields, learned.runtime.log_probabilities(state[None]), strict=False)):
        p = log_p[0]
        if f < parts.shape.fields:
            top = np.argsort(-p, kind="stable")[:TOP].tolist()
            expected[field] = [{"token": _text(learned, f, t), "probability": float(np.exp(p[t]))} for t in top]
            continue
        column = f - parts.shape.fields
        binning = learned.numbers.of(column, None if names is None else names[column])
        expected[field] = _interval(None if binning is None else binning.interval(np.exp(p)))
    if parts.measures.gaps:  # a tail may reach below 0, where no gap is
        expected[GAP] = [{where: max(gap, 0.0) for where, gap in interval.items()} for interval in expected[GAP]]
    if parts.model.values and isinstance(learned.runtime, ForecastRuntime | Ensemble):
        forecasts = zip(parts.number_fields, learned.runtime.intervals(state), strict=True)
        expected |= {field: _interval(where) for field, where in forecasts}
    return expected


def _interval(where: tuple[float, float, float] | None) -> list[dict[str, float]]:
    """Where a number should lie; nothing where nobody knows."""
    return [] if where is None else [dict(zip(("low", "median", "high"), where, strict=True))]


def _text(learned: Learned, field: int, token: int) -> str:
    """A head's column in words; the first field's last column is the session's end."""
    return END if token == learned.vocabulary.sizes[field] else learned.vocabulary.text(field, token)


def _context(verdicts: Verdicts, operation: int, rows: SessionRows, parts: Parts) -> list[dict[str, Any]]:
    """The session's last events before an operation, oldest first, the same however the stream was sliced.

    Tokens are read back from their hashes, also those of this slice, so an unknown one is `<oov>` in either case.
    """
    window = Window.before(verdicts, operation, rows).last(min(SHOWN, parts.shape.context))
    vocabulary = None if parts.learned is None else parts.learned.vocabulary
    return in_words(window.time_ms, window.hashes, window.measures, parts, vocabulary)


def in_words(
    times: NDArray[np.int64], hashes: NDArray[np.uint64], measures: NDArray[np.float32], parts: Parts,
    vocabulary: Vocabulary | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Events that a row has kept, (k,), (k, F) and (k, N), as they can still be told: hashes cannot be turned back."""
    ids, words = parts.encoder.ids_of_hashes(hashes), parts.fields[: parts.shape.fields]

    def word(field: int, token: int) -> str:
        return RESERVED[token] if vocabulary is None else vocabulary.text(field, token)

    return [
        {"time_ms": int(t)}
        | {field: word(f, int(ids[k, f])) for f, field in enumerate(words)}
        | _numbers(parts, measures[k])
        for k, t in enumerate(times)
    ]
