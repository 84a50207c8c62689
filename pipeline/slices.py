"""One slice through the row store and `process_batch`: the same few lines for worker and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detectors.absolution import Absolved, absolve
from detectors.decided import Numbers, count_decisions
from detectors.drift_watch import NAME as DRIFT
from detectors.drift_watch import Drifted, DriftState, Scored
from detectors.input_watch import groups_of
from detectors.intake import without_duplicates
from detectors.occlusion import Occluded, occlude
from detectors.parts import Parts
from detectors.process import Verdicts, process_batch
from detectors.rate_watch import NAME as RATE
from detectors.rate_watch import Rated, RateState
from detectors.rescoring import Rescored, rescore
from detectors.rows import PartitionState, SessionRows
from detectors.schema_watch import Watched
from features.events import Events
from pipeline.store import RowStore

NOTHING_WATCHED, NOTHING_RATED = Watched(), Rated()


@dataclass(frozen=True)
class Processed:
    """A slice's events, the sessions and rows it began with, verdicts, the partition after it, and what may be due.

    `duplicates` are positions of records that were dropped, `watched` is what the slice's fields looked like,
    `rescored` what the second stage says of anomalies, `occluded` what earlier events have to do with them, `absolved`
    their patterns, and which of them people have called normal; `numbers` are how many decisions these stand for, and
    `drifted` is what changed for good. `rated` is what is said of how many records came. `left` are events
    that were not scored yet, for more sessions have to end before them than fit into one go.
    """

    came: Events
    names: list[str]
    rows: SessionRows
    verdicts: Verdicts
    state: PartitionState
    more_due: bool
    duplicates: NDArray[np.int32]
    watched: Watched
    rescored: Rescored
    occluded: Occluded
    absolved: Absolved
    numbers: Numbers
    drifted: Drifted
    rated: Rated = NOTHING_RATED
    left: Events | None = None


def process_slice(
    store: RowStore, events: Events, state: PartitionState, parts: Parts, *,
    limit: int | None = None, closing: Sequence[str] | None = None,
) -> Processed | None:  # fmt: skip
    """Score events and end the sessions they make due.

    Parameters
    ----------
    limit
        Due sessions ended at most; the others stay due. Ending them later changes no verdict, but where profiles are
        absorbed they have to end before later events are scored.
    closing
        Sessions to end in any case, because their input is over.

    Returns
    -------
    processed
        None where the store has no room before a checkpoint; nothing has changed then.
    """
    came, until_ms, left = _as_far_as_ends_allow(store, events, state, parts, limit)
    events, duplicates, state = without_duplicates(came, state, parts)
    watermark_ms = int(events.time_ms.max(initial=state.watermark_ms)) if until_ms is None else until_ms
    timers = store.due(watermark_ms - parts.rules.reorder_ms, limit)
    names = list(dict.fromkeys([*events.sessions, *(name for _, name in timers), *(closing or ())]))
    if not store.make_room(names):
        store.postpone(timers)
        return None
    rows = store.take(names)
    is_touched = np.arange(len(names)) < len(events.sessions)
    events = replace(events, sessions=names)
    state, rated = _watch_rates(state, events, parts)
    verdicts, after, state = process_batch(
        events, rows, state, parts, close_all=closing is not None, until_ms=until_ms
    )  # fmt: skip
    # Sessions that were only looked at, because a timer was set before they went on, are as they were.
    is_touched |= (after.events != rows.events) | (after.held != rows.held) | (after.windows != rows.windows)
    if is_touched.all():
        store.put(names, after)
    else:
        touched = np.flatnonzero(is_touched)
        store.put([names[i] for i in touched.tolist()], after.take(touched))
    place = {name: i for i, name in enumerate(names)} if timers else {}
    store.rearm(timers, after.take(np.array([place[name] for _, name in timers], np.intp)))
    verdicts, absolved = absolve(verdicts, rows, state.absolved, parts)
    state, watched, drifted = _watch(state, came, verdicts, parts)
    rescored, state = rescore(verdicts, rows, state, parts)
    occluded, state = occlude(verdicts, rows, state, parts)
    decided, numbers = count_decisions(state.decided, verdicts)
    state, more_due = replace(state, decided=decided), len(timers) == limit
    return Processed(
        came, names, rows, verdicts, state, more_due, duplicates, watched, rescored, occluded, absolved, numbers,
        drifted, rated, left,
    )  # fmt: skip


def _as_far_as_ends_allow(
    store: RowStore, events: Events, state: PartitionState, parts: Parts, limit: int | None
) -> tuple[Events, int | None, Events | None]:
    """As many of the events as may be scored before further sessions end, and what is left of them.

    Where profiles are absorbed, sessions end in the order in which they are over, for each is held against those
    before it. A timer is never set later than its session is over. So where more are due than the limit, those taken
    now may go as far as the last of them, `until_ms`, and events only until the watermark reaches it.
    """
    if not (parts.absorbs and limit) or _last_due(store, state, events, limit) is None:
        return events, None, None
    new, _, _ = without_duplicates(events, state, parts)
    if (last_ms := _last_due(store, state, new, limit)) is None:
        return events, None, None
    newest = np.maximum.accumulate(np.append(state.watermark_ms, new.time_ms))
    at = int(np.searchsorted(newest[1:], last_ms, side="right"))
    if at == len(new):  # there are none
        return events, last_ms + 1, None
    now, left = events.cut(int(np.searchsorted(events.index, new.index[at])))
    return now, None if at else last_ms + 1, left


def _last_due(store: RowStore, state: PartitionState, events: Events, limit: int) -> int | None:
    """When the last of so many timers is due that the events bring; None where they bring fewer."""
    timers = store.due(max([state.watermark_ms, *events.time_ms.tolist()]), limit)
    store.postpone(timers)
    return timers[-1][0] if len(timers) == limit else None


def _watch_rates(state: PartitionState, events: Events, parts: Parts) -> tuple[PartitionState, Rated]:
    """How many records came, by the watermark before the slice; the idle clock may have moved that."""
    if parts.rates is None or parts.learned is None:
        return state, Rated()
    before = state.kept.get(RATE)
    before = before if isinstance(before, RateState) else None
    after, rated = parts.rates.update_many(
        before, parts.learned.number, state.watermark_ms, events.time_ms, events.segments, events.offsets,
        state.next_offset - 1,
    )  # fmt: skip
    return state if after is None or after is before else replace(state, kept={**state.kept, RATE: after}), rated


def _watch(
    state: PartitionState, came: Events, verdicts: Verdicts, parts: Parts
) -> tuple[PartitionState, Watched, Drifted]:
    """What the records looked like, as they came and as they were scored."""
    watched, drifted = NOTHING_WATCHED, Drifted()
    if parts.watch is None and parts.drift is None:
        return state, watched, drifted
    is_same = verdicts.events.tokens is came.tokens  # nothing waited, and nothing was gathered
    ids = verdicts.ids[:, : parts.shape.fields].copy() if is_same else parts.encoder.ids(came.tokens, len(came))
    if parts.watch is not None and (len(came) or came.rejects):
        schema, watched = parts.watch.update_many(state.schema, came, ids)
        state = replace(state, schema=schema)
    if parts.drift is not None and parts.learned is not None:
        before = state.kept.get(DRIFT)
        before = before if isinstance(before, DriftState) else DriftState()
        after, drifted = parts.drift.update_many(before, came, ids, _scored(verdicts))
        if after is not before:
            state = replace(state, kept={**state.kept, DRIFT: after})
    return state, watched, drifted


def _scored(verdicts: Verdicts) -> Scored:
    # As calibrated: adapted ones would hide what drifts.
    events, counted = verdicts.events, ~(verdicts.late | np.isnan(verdicts.calibrated))
    return Scored(
        verdicts.calibrated[counted], events.time_ms[counted], groups_of(events)[counted], events.offsets[counted]
    )  # fmt: skip
