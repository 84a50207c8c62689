"""The last scores of windows, and what they would be with each of their events left out.

What comes before an event that is left out is the same in all variants. So a model that can be resumed between two
events begins each variant there, and scores no event but the last; all variants of all windows are rows of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.contexts import END, Joined, Window, replay, replay_joined
from detectors.ensemble import sum_fields
from detectors.parts import Parts
from features.sessions import LATE, log_gaps
from models.kernels import ADVANCE
from models.runtime import F32, Runtime


@dataclass(frozen=True)
class WithoutOne:
    """The score of a window's last event, or of its end, and (k,) scores with each of k events left out."""

    score: float
    scores: F32


def scores_without(
    windows: Sequence[Window], left_out: Sequence[range], model: Runtime, width: int, parts: Parts, *, is_end: bool
) -> list[WithoutOne]:  # fmt: skip
    """Of each window the score of its last event, or of its end, and those with each of `left_out` left out.

    A model that gives a row the same bits whatever stands beside it reads all windows at once; another one reads each
    on its own, so that what is said of one does not depend on the others.

    Parameters
    ----------
    left_out
        Events of each window that follow one another; the last one of a window only with `is_end`.
    width
        Of a row's state.
    """
    if not model.resumes:
        return [
            _replayed(window, events, model, width, parts, is_end=is_end)
            for window, events in zip(windows, left_out, strict=True)
        ]
    if not windows:
        return []
    joined = Joined.of(windows, parts)
    whole = replay_joined(joined, model, width)
    last = joined.starts + joined.lengths - 1
    scores = (whole.end_surprise if is_end else whole.score[last]).tolist()
    found = _resumed(joined, left_out, whole.states, model, width, is_end=is_end)
    return [WithoutOne(score, of_window) for score, of_window in zip(scores, found, strict=True)]


def _replayed(
    window: Window, left_out: range, model: Runtime, width: int, parts: Parts, *, is_end: bool
) -> WithoutOne:  # fmt: skip
    replayed = replay([window, *(window.without(k) for k in left_out)], model, width, parts)
    last = np.append(replayed.starts[1:], len(replayed.score)) - 1
    scores = replayed.end_surprise if is_end else replayed.score[last]
    return WithoutOne(float(scores[0]), scores[1:])


def _resumed(
    joined: Joined, left_out: Sequence[range], states: F32, model: Runtime, width: int, *, is_end: bool
) -> list[F32]:  # fmt: skip
    """The same scores, window by window, from the (n, H) states before each event."""
    counts = np.array([len(events) for events in left_out])
    ends = np.cumsum(counts)
    if not ends[-1]:
        return [np.empty(0, np.float32) for _ in left_out]
    window = np.repeat(np.arange(len(counts)), counts)
    k = np.arange(ends[-1]) + np.repeat([events.start for events in left_out] - (ends - counts), counts)
    out = joined.starts[window] + k  # where the event that is left out stands
    lengths = joined.lengths[window] - k - 1
    row = np.repeat(np.arange(len(k), dtype=np.int32), lengths)
    stops = np.cumsum(lengths)
    event = np.arange(stops[-1]) + np.repeat(out + 1 - (stops - lengths), lengths)
    kind, first = np.full(len(event), ADVANCE, np.int8), np.zeros(len(event), np.bool_)
    first[(stops - lengths)[(k == 0) & (lengths > 0)]] = True
    record = np.arange(len(event), dtype=np.int32)
    hidden = np.zeros((len(k), width), np.float32)
    hidden[:, : states.shape[1]] = states[out]
    gaps = log_gaps(_gaps(joined, k, out, lengths))
    if is_end:
        kind = np.append(kind, np.full(len(k), END, np.int8))
        row, record = np.append(row, np.arange(len(k), dtype=np.int32)), np.append(record, np.zeros(len(k), np.int32))
    else:
        kind[stops - 1] = LATE
    scores = model.score_and_step(
        kind, row, record, first, joined.ids[event], gaps, hidden,
        joined.among[event], joined.measures[event], joined.tails[event], joined.time_ms[event],
    )  # fmt: skip
    if is_end:
        return np.split(scores.end_surprise[len(event) :], ends[:-1])
    found: F32 = sum_fields(scores.surprise[stops - 1])
    # As of any event that seems to open a session.
    found[(k == 0) & (lengths == 1) & ~joined.is_whole[window]] = -np.inf
    return np.split(found, ends[:-1])


def _gaps(
    joined: Joined, k: NDArray[np.intp], out: NDArray[np.intp], lengths: NDArray[np.intp]
) -> NDArray[np.int64]:  # fmt: skip
    """Of each variant's events the time since the latest before; nothing is before the first of all.

    Ranks stand for times, a variant's above all those of the variants before: so one running maximum does for all.
    """
    moments, rank = np.unique(joined.time_ms, return_inverse=True)
    own = rank[np.minimum(out + 1, len(rank) - 1)]  # of the first event that is left, where none was before
    before = np.where(k > 0, rank[joined.latest[out - 1]], own)
    stops = np.cumsum(lengths + 1)  # with what was before, which stands where the event that is left out stood
    opens = stops - lengths - 1
    place = np.arange(stops[-1]) + np.repeat(out - opens, lengths + 1)
    ranks = rank[place]
    ranks[opens] = before
    above = np.repeat(np.arange(len(k)) * len(moments), lengths + 1)
    latest = np.maximum.accumulate(ranks + above) - above
    is_event = np.ones(len(place), np.bool_)
    is_event[opens] = False
    gaps: NDArray[np.int64] = moments[ranks[is_event]] - moments[np.append(0, latest[:-1])[is_event]]
    return np.maximum(gaps, 0)
