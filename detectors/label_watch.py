"""Whether what a model says is right as often as it was, told by labels as they come back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from detectors.adwin import Adwin
from detectors.drift_events import DriftEvent
from detectors.drift_tests import Ddm, at_least

RECENT = 64  # labels that are held against those before
_FLOOR = 0.1  # more errors than before, as a share of the labels, to concern anybody; it ends halfway back
_MARKS, _BETWEEN = 64, 32  # times that are remembered, and labels between two of them
_HEADER = struct.Struct("<qdqqIIII")
_NEVER = -1


class Labelled(NamedTuple):
    """A record or a session that somebody judged: what the model said, what it was, when, and where."""

    predicted: bool
    label: bool
    time_ms: int
    offset: int


@dataclass(frozen=True)
class LabelState:
    """What is remembered of labels: less than 8 KB.

    Attributes
    ----------
    adwin, ddm
        Over errors: 1 where the model was wrong.
    seen
        Labels so far.
    recent
        The last `RECENT` errors, the newest last.
    marks
        Times of every 32nd label, the newest last.
    before
        Share of errors before the drift that is open.
    since_ms, records
        Of that drift; -1 while none is open.
    """

    adwin: Adwin = field(default_factory=Adwin)
    ddm: Ddm = field(default_factory=Ddm)
    seen: int = 0
    recent: tuple[bool, ...] = ()
    marks: tuple[int, ...] = ()
    before: float = 0.0
    since_ms: int = _NEVER
    records: int = _NEVER

    def pack(self) -> bytes:
        """As it is saved."""
        arrays = [
            self.adwin.to_array(), self.ddm.to_array(), np.array(self.recent, np.float64),
            np.array(self.marks, np.float64),
        ]  # fmt: skip
        lengths = map(len, arrays)
        header = _HEADER.pack(self.seen, self.before, self.since_ms, self.records, *lengths)
        return header + b"".join(array.astype("<f8").tobytes() for array in arrays)

    @classmethod
    def unpack(cls, packed: bytes) -> LabelState:
        """What `pack` gave. ValueError: it is none."""
        try:
            seen, before, since_ms, records, *lengths = _HEADER.unpack_from(packed)
        except struct.error as error:
            message = f"it cannot be unpacked: {error}"
            raise ValueError(message) from None
        numbers = np.frombuffer(packed, "<f8", sum(lengths), _HEADER.size)
        adwin, ddm, recent, marks = np.split(numbers, np.cumsum(lengths)[:-1])
        return cls(
            Adwin().restored(adwin), Ddm().restored(ddm), seen, tuple(recent.astype(bool).tolist()),
            tuple(marks.astype(np.int64).tolist()), before, since_ms, records,
        )  # fmt: skip

    @property
    def share(self) -> float:
        """Of errors among the recent labels."""
        return sum(self.recent) / max(1, len(self.recent))


def update_many(state: LabelState, labels: Sequence[Labelled]) -> tuple[LabelState, list[DriftEvent]]:
    """Take in labels in the order given; one after another or all at once, it says the same.

    A concept drift begins where ADWIN or DDM sees errors become more frequent and a tenth more of the last 64 labels
    are errors than before; it ends once these and ADWIN's window are halfway back. It fails where people choose what
    they label by what the model says: if they begin to look at other records, that is told as a drift, too.
    """
    events = list[DriftEvent]()
    for label in labels:
        state, event = _update_one(state, label)
        events += [] if event is None else [event]
    return state, events


def _update_one(state: LabelState, label: Labelled) -> tuple[LabelState, DriftEvent | None]:
    is_wrong, is_open = label.predicted != label.label, state.records != _NEVER
    before = state.adwin.mean
    marks = (*state.marks, label.time_ms)[-_MARKS:] if state.seen % _BETWEEN == 0 else state.marks
    after = replace(
        state, adwin=state.adwin.update_one(float(is_wrong)), ddm=state.ddm.update_one(is_wrong), seen=state.seen + 1,
        recent=(*state.recent, is_wrong)[-RECENT:], marks=marks, records=state.records + is_open,
    )  # fmt: skip
    if len(after.recent) < RECENT:
        return after, None
    if is_open:
        if max(after.share, after.adwin.mean) > state.before + _FLOOR / 2:
            return after, None
        return replace(after, before=0.0, since_ms=_NEVER, records=_NEVER), _event(after, label, has_begun=False)
    if not (after.adwin.has_changed or after.ddm.has_changed) or after.share < before + _FLOOR:
        return after, None
    # A first cut may leave much of what was before, and the last labels are what differs.
    width = min(after.adwin.width, 2 * RECENT) if after.adwin.has_changed else RECENT
    back = (after.seen - 1) // _BETWEEN - max(0, after.seen - width) // _BETWEEN
    after = replace(after, before=before, since_ms=marks[max(0, len(marks) - 1 - back)], records=width)
    return after, _event(after, label, has_begun=True)


def _event(state: LabelState, label: Labelled, *, has_begun: bool) -> DriftEvent:
    chance = at_least(sum(state.recent), RECENT, max(state.before, 1 / RECENT))
    return DriftEvent(
        "concept_drift", None, has_begun, label.offset, state.since_ms, state.records, "errors", state.share,
        state.before, state.before + _FLOOR, chance,
    )  # fmt: skip
