"""One slice through the row store and `process_batch`: the same few lines for worker and files."""

from __future__ import annotations

from dataclasses import dataclass

from detectors.parts import Parts
from detectors.process import Verdicts, process_batch
from detectors.rows import PartitionState, SessionRows
from features.decode import Events
from pipeline.store import RowStore


@dataclass(frozen=True)
class Processed:
    """Verdicts on a slice, the sessions and rows it began with, the partition after it, and whether more may be due."""

    names: list[str]
    rows: SessionRows
    verdicts: Verdicts
    state: PartitionState
    more_due: bool


def process_slice(
    store: RowStore, events: Events, state: PartitionState, parts: Parts, *,
    limit: int | None = None, close_all: bool = False,
) -> Processed | None:  # fmt: skip
    """Score events and end the sessions they make due.

    Parameters
    ----------
    limit
        Due sessions ended at most; the others stay due. Ending them later changes no verdict.

    Returns
    -------
    processed
        None where the store has no room before a checkpoint; nothing has changed then.
    """
    watermark_ms = max([state.watermark_ms, *events.time_ms.tolist()])
    looked_at = store.due(watermark_ms, limit)
    known = set(events.sessions)
    others = store.open_names() if close_all else looked_at
    names = events.sessions + [name for name in others if name not in known]
    if not store.make_room(names):
        store.postpone(looked_at)
        return None
    rows = store.take(names)
    verdicts, after, state = process_batch(events, rows, state, parts, close_all=close_all)
    store.put(names, after)
    place = {name: i for i, name in enumerate(names)}
    store.rearm(looked_at, after.last_ms[[place[name] for name in looked_at]].tolist())
    return Processed(names, rows, verdicts, state, len(looked_at) == limit)
