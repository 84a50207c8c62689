"""Intake: from records as they came to the events that count, in the order in which they do. The same for training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.parts import Parts
from detectors.rows import PartitionState, SessionRows
from features.duplicates import find_duplicates
from features.event_order import Ordered, put_in_order
from features.events import Events
from features.windows import close_windows


@dataclass(frozen=True)
class Intake:
    """What becomes of a slice's records before anything is scored.

    Attributes
    ----------
    ordered
        Events that count, and what waits on.
    windows
        (S,) samples of windows that stay open, by row.
    dropped, too_late
        How many samples no window took in: their session had too many, or their windows had closed.
    """

    ordered: Ordered
    windows: NDArray[Any]
    dropped: int = 0
    too_late: int = 0


def without_duplicates(
    events: Events, partition: PartitionState, parts: Parts
) -> tuple[Events, NDArray[np.int32], PartitionState]:
    """The events that are new, the index of each that is not, and the partition that remembers their ids.

    Before anything else looks at their times: a duplicate moves no watermark.
    """
    if events.ids is None:
        return events, np.empty(0, np.int32), partition
    recent = np.frombuffer(partition.recent_ids, "<u8")
    is_duplicate, recent = find_duplicates(events.ids, recent, parts.remembered)
    partition = replace(partition, recent_ids=recent.astype("<u8").tobytes())
    return events.take(np.flatnonzero(~is_duplicate)), events.index[is_duplicate], partition


def take_in(
    events: Events, rows: SessionRows, partition: PartitionState, parts: Parts, *, close_all: bool = False,
    until_ms: int | None = None,
) -> Intake:  # fmt: skip
    """Put events in order, and gather samples into windows, as far as the stream asks for it.

    Parameters, `close_all` and `until_ms` as in `detectors.process.process_batch`.
    """
    ordered = put_in_order(events, rows.held, partition.watermark_ms, parts.rules, close_all=close_all)
    if until_ms is not None:
        ordered = replace(ordered, release_ms=until_ms)
    if parts.windows is None:
        return Intake(ordered, rows.windows)
    closed = close_windows(ordered, rows.windows, parts.windows, close_all=close_all)
    return Intake(closed.ordered, closed.open_windows, closed.dropped, len(closed.too_late))
