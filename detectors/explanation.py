"""Why: what was expected, what came, which field counted how much, and what the session did before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.contexts import Window
from detectors.counterfactual import change_of_record
from detectors.expectations import expected_after, heads_of
from detectors.occlusion import NOT_REPLAYED, OF_RECORD, Occlusion, Worst
from detectors.parts import Parts
from detectors.process import Verdicts
from detectors.profile_explanation import explain_profile
from detectors.rows import SessionRows
from features.events import Events
from features.sessions import ENDED
from features.time_gaps import GAP
from features.tokens import RESERVED, Vocabulary

SHOWN = OF_RECORD  # last events shown; fewer where the config keeps a shorter context
SHOWN_CHARACTERS = 1_024  # of a log line
_LARGEST = float(np.finfo(np.float32).max)


def explain_record(
    verdicts: Verdicts, operation: int, rows: SessionRows, parts: Parts, occlusion: Occlusion = NOT_REPLAYED
) -> dict[str, Any]:
    """Explain the step `operation` of the walk. `rows` are those before the slice. Work: two heads, SHOWN lookups."""
    record = int(verdicts.walk.record[operation])
    came, names = observed(verdicts, record, parts), _names(verdicts.events, record, parts)
    heads = heads_of(parts, verdicts.states[operation])
    expected = expected_after(parts, verdicts.states[operation], names, heads)
    ids = parts.encoder.ids_of_hashes(verdicts.hashes[record : record + 1])[0]
    change = occlusion.change or change_of_record(verdicts, operation, names, ids, heads, parts)
    if GAP in expected and came[GAP] is None:
        expected[GAP] = []  # a session's first event has none
    return {
        "observed": came,
        "expected": expected,
        "contributions": {
            field: float(nats) for field, nats in zip(parts.fields, verdicts.surprise[record], strict=True)
        },
        "unit": parts.unit,
        "context": _context(occlusion.before or Window.before(verdicts, operation, rows), parts),
        "would_be_normal": None if change is None else change.told(),
        **_earlier(occlusion),
    }


def explain_end(verdicts: Verdicts, end: int, rows: SessionRows, parts: Parts, occlusion: Occlusion) -> dict[str, Any]:
    """Explain the session verdict number `end` of the slice: its worst record, and whether it should have ended."""
    operation = int(verdicts.ends.operation[end])
    worst, offset = float(verdicts.ends.worst[end]), int(verdicts.ends.worst_offset[end])
    end_surprise = float(verdicts.ends.end_surprise[end])
    return {
        "observed": {"end": ENDED[int(verdicts.walk.kind[operation])]},
        "expected": expected_after(parts, verdicts.states[operation]),
        "contributions": {
            "worst_record": worst if math.isfinite(worst) else None,
            "end": end_surprise if math.isfinite(end_surprise) else None,
        },
        "unit": parts.unit,
        "worst_offset": offset if offset >= 0 else None,
        "profile": explain_profile(verdicts.ends, end, parts),
        "worst": None if occlusion.worst is None else _worst(occlusion.worst, parts),
        "context": _context(Window.before(verdicts, operation, rows), parts),
        "would_be_normal": None if occlusion.change is None else occlusion.change.told(),
        **_earlier(occlusion),
    }


def _earlier(occlusion: Occlusion) -> dict[str, Any]:
    earlier = None if occlusion.earlier is None else [event.told() for event in occlusion.earlier]
    return {"earlier": earlier, "explained": occlusion.outcome}


def _worst(worst: Worst, parts: Parts) -> dict[str, Any]:
    """A session's strangest record, as far as its row still tells, and the surprise of its fields."""
    event = worst.event
    vocabulary = None if parts.learned is None else parts.learned.vocabulary
    (shown,) = in_words(event.time_ms, event.hashes, event.measures, parts, vocabulary)
    return {"event": shown, "contributions": dict(zip(parts.fields, worst.surprise.tolist(), strict=True))}


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
    shown = (None if math.isnan(x) else min(max(x, -_LARGEST), _LARGEST) for x in measures.tolist())
    return dict(zip(parts.number_fields, shown, strict=True))


def _names(events: Events, record: int, parts: Parts) -> list[str | None]:
    """What each number of the record is called; None where its column says so."""
    names = parts.measures.names(events)
    return [None if column is None else column[record] for column in names or [None] * len(parts.number_fields)]


def _context(before: Window, parts: Parts) -> list[dict[str, Any]]:
    """The session's last events, oldest first, the same however the stream was sliced.

    Tokens are read back from their hashes, also those of this slice, so an unknown one is `<oov>` in either case.
    """
    window = before.last(min(SHOWN, parts.shape.context))
    vocabulary = None if parts.learned is None else parts.learned.vocabulary
    return in_words(window.time_ms, window.hashes, window.measures, parts, vocabulary)


def in_words(
    times: NDArray[np.int64], hashes: NDArray[np.uint64], measures: NDArray[np.float32], parts: Parts,
    vocabulary: Vocabulary | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Events that a row has kept, (k,), (k, F) and (k, N), as they can still be told: hashes cannot be turned back."""
    ids, words = parts.encoder.ids_of_hashes(hashes).tolist(), parts.fields[: parts.shape.fields]

    def word(field: int, token: int) -> str:
        return RESERVED[token] if vocabulary is None else vocabulary.text(field, token)

    told = [
        {"time_ms": t, **{field: word(f, token) for f, (field, token) in enumerate(zip(words, tokens, strict=True))}}
        for t, tokens in zip(times.tolist(), ids, strict=True)
    ]
    if not parts.number_fields:
        return told
    return [event | _numbers(parts, numbers) for event, numbers in zip(told, measures, strict=True)]
