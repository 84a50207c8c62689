"""The first rung of the ladder: a slice scored by what its partition has learned online, until a bundle serves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.online import OnlineScores, OnlineState, score_online
from detectors.parts import Parts
from detectors.rows import NO_BUNDLE, NO_OFFSET, PartitionState, SessionRows
from detectors.tags import NO_TAG
from features.sessions import Walk

F32 = NDArray[np.float32]


def score_warming_up(
    walk: Walk, hashes: NDArray[np.uint64], measures: F32, rows: SessionRows, partition: PartitionState, parts: Parts
) -> tuple[OnlineScores, OnlineState]:
    """Score and learn the (n, F) tokens and (n, N) numbers of a slice, given the rows before it."""
    state = partition.online
    if state is None:
        state = OnlineState.empty(parts.online, measures.shape[1])
    return score_online(
        state, parts.online, parts.trees, parts.rate, walk,
        hashes, measures, _names(hashes, measures.shape[1], parts), *_last(rows), rows.hidden,
    )  # fmt: skip


def _names(hashes: NDArray[np.uint64], columns: int, parts: Parts) -> NDArray[np.uint64]:
    names = np.zeros((len(hashes), columns), np.uint64)
    for column, by in enumerate(parts.measures.named_by):
        if by is not None:
            names[:, column] = hashes[:, by]
    return names


def _last(rows: SessionRows) -> tuple[NDArray[np.uint64], F32]:
    """Each session's last tokens and numbers; 0 and NaN where none is open."""
    place = np.arange(len(rows)), (rows.events - 1) % max(1, rows.context_ms.shape[1])
    tokens, numbers = rows.context_tokens[place], rows.context_numbers[place]
    tokens[rows.events == 0], numbers[rows.events == 0] = 0, np.nan
    return tokens, numbers


def without_bundle(rows: SessionRows) -> SessionRows:
    """Rows that a bundle wrote which serves no more, without its state and its scores; the others as they are."""
    stale = np.flatnonzero(rows.bundle != NO_BUNDLE)
    if len(stale) == 0:
        return rows
    rows = rows.copy()
    rows.hidden[stale], rows.worst[stale], rows.worst_offset[stale], rows.tag[stale] = 0.0, -np.inf, NO_OFFSET, NO_TAG
    return rows
