"""One slice through the row store and `process_batch`: the same few lines for worker and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detectors.intake import without_duplicates
from detectors.parts import Parts
from detectors.process import Verdicts, process_batch
from detectors.rescoring import Rescored, rescore
from detectors.rows import PartitionState, SessionRows
from detectors.schema_watch import Watched
from features.events import Events
from pipeline.store import RowStore

NOTHING_WATCHED = Watched()


@dataclass(frozen=True)
class Processed:
    """Verdicts on a slice, the sessions and rows it began with, the partition after it, and whether more may be due.

    `duplicates` are positions of records that were dropped, `watched` is what the slice's fields looked like, and
    `rescored` what the second stage says of anomalies.
    """

    names: list[str]
    rows: SessionRows
    verdicts: Verdicts
    state: PartitionState
    more_due: bool
    duplicates: NDArray[np.int32]
    watched: Watched
    rescored: Rescored


def process_slice(
    store: RowStore, events: Events, state: PartitionState, parts: Parts, *,
    limit: int | None = None, closing: Sequence[str] | None = None,
) -> Processed | None:  # fmt: skip
    """Score events and end the sessions they make due.

    Parameters
    ----------
    limit
        Due sessions ended at most; the others stay due. Ending them later changes no verdict.
    closing
        Sessions to end in any case, because their input is over.

    Returns
    -------
    processed
        None where the store has no room before a checkpoint; nothing has changed then.
    """
    came = events
    events, duplicates, state = without_duplicates(events, state, parts)
    watermark_ms = max([state.watermark_ms, *events.time_ms.tolist()])
    timers = store.due(watermark_ms - parts.rules.reorder_ms, limit)
    names = list(dict.fromkeys([*events.sessions, *(name for _, name in timers), *(closing or ())]))
    if not store.make_room(names):
        store.postpone(timers)
        return None
    rows = store.take(names)
    is_touched = np.arange(len(names)) < len(events.sessions)
    events = replace(events, sessions=names)
    verdicts, after, state = process_batch(events, rows, state, parts, close_all=closing is not None)
    # Sessions that were only looked at, because a timer was set before they went on, are as they were.
    is_touched |= (after.events != rows.events) | (after.held != rows.held) | (after.windows != rows.windows)
    touched = np.flatnonzero(is_touched)
    store.put([names[i] for i in touched.tolist()], after.take(touched))
    place = {name: i for i, name in enumerate(names)}
    store.rearm(timers, after.take(np.array([place[name] for _, name in timers], np.intp)))
    state, watched = _watch(state, came, parts)
    rescored, state = rescore(verdicts, rows, state, parts)
    return Processed(names, rows, verdicts, state, len(timers) == limit, duplicates, watched, rescored)


def _watch(state: PartitionState, events: Events, parts: Parts) -> tuple[PartitionState, Watched]:
    if parts.watch is None or not (len(events) or events.rejects):
        return state, NOTHING_WATCHED
    schema, watched = parts.watch.update_many(state.schema, events, parts.encoder.ids(events.tokens, len(events)))
    return replace(state, schema=schema), watched
