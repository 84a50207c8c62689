"""A window's last score, and what it would be with each of its events left out.

What comes before an event that is left out is the same in all variants. So a model that can be resumed between two
events begins each variant there, and scores no event but the last.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.contexts import END, Window, replay
from detectors.ensemble import sum_fields
from detectors.parts import Parts
from features.sessions import LATE, log_gaps
from models.kernels import ADVANCE
from models.runtime import F32, Runtime


def scores_without(
    window: Window, left_out: range, model: Runtime, width: int, parts: Parts, *, is_end: bool
) -> tuple[float, F32]:  # fmt: skip
    """The score of a window's last event, or of its end, and (k,) scores with each of `left_out` left out.

    Parameters
    ----------
    width
        Of a row's state.
    """
    if not model.resumes or not left_out:
        replayed = replay([window, *(window.without(k) for k in left_out)], model, width, parts)
        last = np.append(replayed.starts[1:], len(replayed.score)) - 1
        scores = replayed.end_surprise if is_end else replayed.score[last]
        return float(scores[0]), scores[1:]
    whole = replay([window], model, width, parts)
    score = whole.end_surprise[0] if is_end else whole.score[-1]
    return float(score), _resumed(window, left_out, whole.states, model, width, parts, is_end=is_end)


def _resumed(
    window: Window, left_out: range, states: F32, model: Runtime, width: int, parts: Parts, *, is_end: bool
) -> F32:  # fmt: skip
    """The same scores from the (n, H) states before each event."""
    n, variants = len(window.time_ms), len(left_out)
    after = [np.arange(k + 1, n) for k in left_out]
    lengths = np.array([len(events) for events in after])
    event, row = np.concatenate(after), np.repeat(np.arange(variants, dtype=np.int32), lengths)
    last = np.cumsum(lengths) - 1
    kind = np.full(len(event), ADVANCE, np.int8)
    first = np.zeros(len(event), np.bool_)
    first[: left_out.start == 0] = True
    hidden = np.zeros((variants, width), np.float32)
    hidden[:, : states.shape[1]] = states[left_out.start : left_out.stop]
    ids = parts.ids_of_context(window.hashes, window.measures, window.time_ms)
    among = parts.among_of_context(window.hashes, ids)
    tails = parts.tails_of_context(window.hashes, window.measures, ids)
    record = np.arange(len(event), dtype=np.int32)
    if is_end:
        ends = np.arange(variants, dtype=np.int32)
        kind, row = np.append(kind, np.full(variants, END, np.int8)), np.append(row, ends)
        record = np.append(record, np.zeros(variants, np.int32))
    else:
        kind[last] = LATE
    scores = model.score_and_step(
        kind, row, record, first, ids[event], log_gaps(_gaps(window.time_ms, left_out)), hidden,
        among[event], window.measures[event], tails[event], window.time_ms[event],
    )  # fmt: skip
    if is_end:
        return scores.end_surprise[len(event) :]
    found: F32 = sum_fields(scores.surprise[last])
    if first[0] and lengths[0] == 1 and not window.is_whole:  # as of any event that seems to open a session
        found[0] = -np.inf
    return found


def _gaps(time_ms: NDArray[np.int64], left_out: range) -> NDArray[np.int64]:
    """Of each variant's events the time since the latest before; nothing is before the first of all."""
    latest, gaps = np.maximum.accumulate(time_ms), []
    for k in left_out:
        times = time_ms[k + 1 :]
        before = latest[k - 1 : k] if k else times[:1]
        gaps.append(times - np.maximum.accumulate(np.concatenate([before, times]))[:-1])
    return np.maximum(np.concatenate(gaps), 0)
