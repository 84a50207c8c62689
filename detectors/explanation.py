"""Why: what was expected, what came, which field counted how much, and what the session did before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.parts import Learned, Parts
from detectors.process import Verdicts
from detectors.rows import SessionRows
from features.events import Events
from features.sessions import ENDED, STEP
from features.tokens import Vocabulary

TOP = 3  # expected tokens shown per field
SHOWN = 10  # last events shown; fewer where the config keeps a shorter context
SHOWN_CHARACTERS = 1_024  # of a log line
END = "<end>"


def explain_record(verdicts: Verdicts, operation: int, rows: SessionRows, parts: Parts) -> dict[str, Any]:
    """Explain the step `operation` of the walk. `rows` are those before the slice. Work: one head, SHOWN lookups."""
    assert parts.learned is not None, "a record is an anomaly only under a bundle"
    record = int(verdicts.walk.record[operation])
    return {
        "observed": observed(verdicts.events, record, parts),
        "expected": _expected(parts.learned, parts.fields, verdicts.states[operation]),
        "contributions": {
            field: float(nats) for field, nats in zip(parts.fields, verdicts.surprise[record], strict=True)
        },
        "context": _context(verdicts, operation, rows, parts, parts.learned.vocabulary),
    }


def explain_end(verdicts: Verdicts, end: int, rows: SessionRows, parts: Parts) -> dict[str, Any]:
    """Explain the session verdict number `end` of the slice: its worst record, and whether it should have ended."""
    assert parts.learned is not None, "a session is an anomaly only under a bundle"
    operation = int(verdicts.ends.operation[end])
    worst, offset = float(verdicts.ends.worst[end]), int(verdicts.ends.worst_offset[end])
    return {
        "observed": {"end": ENDED[int(verdicts.walk.kind[operation])]},
        "expected": _expected(parts.learned, parts.fields, verdicts.states[operation]),
        "contributions": {
            "worst_record": worst if math.isfinite(worst) else None,
            "end": float(verdicts.ends.end_surprise[end]),
        },
        "worst_offset": offset if offset >= 0 else None,
        "context": _context(verdicts, operation, rows, parts, parts.learned.vocabulary),
    }


def observed(events: Events, record: int, parts: Parts) -> dict[str, str | None]:
    """What came; of a log line its words, not its template."""
    came = {field: column[record] for field, column in zip(parts.fields, events.tokens, strict=True)}
    if events.messages is not None:
        said = events.messages[record]
        came[parts.fields[-1]] = None if said is None else said[:SHOWN_CHARACTERS]
    return came


def _expected(learned: Learned, fields: Sequence[str], state: NDArray[np.float32]) -> dict[str, Any]:
    expected = {}
    for f, (field, log_p) in enumerate(zip(fields, learned.model.log_probabilities(state[None]), strict=True)):
        p = log_p[0]
        top = np.argsort(-p, kind="stable")[:TOP].tolist()
        expected[field] = [{"token": _text(learned, f, token), "probability": float(np.exp(p[token]))} for token in top]
    return expected


def _text(learned: Learned, field: int, token: int) -> str:
    """A head's column in words; the first field's last column is the session's end."""
    return END if token == learned.vocabulary.sizes[field] else learned.vocabulary.text(field, token)


def _context(
    verdicts: Verdicts, operation: int, rows: SessionRows, parts: Parts, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """The session's last events before an operation, oldest first, the same however the stream was sliced.

    Tokens are read back from their hashes, also those of this slice, so an unknown one is `<oov>` in either case.
    """
    walk = verdicts.walk
    row = walk.row[operation]
    mine = np.flatnonzero((walk.row[:operation] == row) & (walk.kind[:operation] == STEP))
    records = walk.record[mine]
    opened = np.flatnonzero(walk.first[records])
    if walk.kind[operation] == STEP and walk.first[walk.record[operation]]:
        return []
    times, hashes = verdicts.events.time_ms[records], verdicts.hashes[records]
    if len(opened):
        times, hashes = times[opened[-1] :], hashes[opened[-1] :]
    elif rows.events[row] > 0:
        earlier_times, earlier_hashes = rows.recent(int(row))
        times, hashes = np.concatenate([earlier_times, times]), np.concatenate([earlier_hashes, hashes])
    shown = min(SHOWN, parts.shape.context)
    times, hashes = times[-shown:], hashes[-shown:]
    ids = parts.encoder.ids_of_hashes(hashes)
    return [
        {"time_ms": int(t), **{field: vocabulary.text(f, int(ids[k, f])) for f, field in enumerate(parts.fields)}}
        for k, t in enumerate(times)
    ]
