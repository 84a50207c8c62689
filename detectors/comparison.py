"""Whether a bundle is better than the one that serves, by records that neither has learned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.first_checks import LEAST_SESSIONS, most_by_chance
from detectors.intake import without_duplicates
from detectors.parts import Parts
from detectors.replay import replay
from detectors.rows import PartitionState
from features.events import Events
from features.sessions import END_INPUT
from features.tokens import OOV, RARE

LEAST_RECORDS = 200  # fewer say nothing of a rate
FEWER = 2  # times fewer alarms are better even where the promise is still broken

# Whether what a label names is an anomaly: of a partition's history, an offset and "record" or "session".
Labels = Mapping[tuple[int, int, str], bool]


@dataclass(frozen=True)
class Figures:
    """What a bundle makes of the records held back.

    Attributes
    ----------
    unknown
        Share of the tokens that it does not know.
    nats
        Mean surprise of the tokens of records that both bundles know and find normal; None where bundles cannot be
        compared so.
    f1
        Of its alarms against labels; None without any that says anomaly.
    """

    records: int
    alarms_of_records: int
    sessions: int
    alarms_of_sessions: int
    unknown: float
    nats: float | None = None
    f1: float | None = None

    def keeps(self, rate: float) -> bool:
        """Whether no more alarms came than chance explains where the promise is kept."""
        kept = self.alarms_of_records <= most_by_chance(self.records, rate)
        few = self.sessions < LEAST_SESSIONS
        return kept and (few or self.alarms_of_sessions <= most_by_chance(self.sessions, rate))

    @property
    def alarm_rate(self) -> float:
        """Of records."""
        return self.alarms_of_records / self.records if self.records else 0.0


@dataclass(frozen=True)
class Judged:
    """Whether the new one is better, why in a sentence, and the figures of both."""

    better: bool
    why: str
    new: Figures
    serving: Figures | None

    def to_json(self) -> dict[str, Any]:
        """The figures, for messages."""
        return {"new": asdict(self.new), "serving": None if self.serving is None else asdict(self.serving)}


@dataclass(frozen=True)
class Seen:
    """Verdicts of one bundle on (n,) records held back and on (e,) sessions that began among them and ended.

    Attributes
    ----------
    place, offset
        (n,) which record: partition of the history, and offset.
    unknown, vague, surprise
        (n, F) of the tokens: whether the bundle does not know it, or only that it is rare; and nats.
    end_place, end_offset
        (e,) partition, and offset of the session's last record.
    """

    place: NDArray[np.int64]
    offset: NDArray[np.int64]
    anomaly: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    vague: NDArray[np.bool_]
    surprise: NDArray[np.float32]
    end_place: NDArray[np.int64]
    end_offset: NDArray[np.int64]
    end_anomaly: NDArray[np.bool_]


def look(history: Sequence[Events], cuts: Sequence[int], parts: Parts, after_ms: int) -> Seen:
    """Score a history as a worker with the bundle would, and keep what is said of its end.

    Parameters
    ----------
    history
        All events of each partition, as a worker with the bundle reads them.
    cuts
        Of each partition the offset from which on nothing was trained on.
    after_ms
        Event time up to which the bundle that serves has learned: only what is newer counts.
    """
    found = [
        piece
        for place, (events, cut) in enumerate(zip(history, cuts, strict=True))
        if len(events)
        for piece in _of_partition(events, place, cut, parts, after_ms)
    ]
    if not found:
        found = [_nothing(parts)]
    return Seen(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


_Piece = tuple[NDArray[Any], ...]


def _nothing(parts: Parts) -> _Piece:
    fields = (0, parts.shape.fields)
    empty, none, of_fields = np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(fields, np.bool_)
    return empty, empty, none, of_fields, of_fields, np.empty(fields, np.float32), empty, empty, none


def _of_partition(events: Events, place: int, cut: int, parts: Parts, after_ms: int) -> Iterator[_Piece]:
    held_back = events.time_ms[events.offsets >= cut]
    newer_ms = max(after_ms + 1, int(held_back.min()) if len(held_back) else 0)
    fields = parts.shape.fields
    for piece in replay(without_duplicates(events, PartitionState(0), parts)[0], parts):
        verdicts, ends = piece.verdicts, piece.verdicts.ends
        came, walk = verdicts.events, verdicts.walk
        chosen = (came.offsets >= cut) & (came.time_ms > after_ms) & ~walk.is_late
        ended = (walk.ended_first_ms[ends.operation] >= newer_ms) & (walk.kind[ends.operation] != END_INPUT)
        tokens = parts.ids(came, verdicts.measures)[chosen, :fields]
        yield (
            np.full(int(chosen.sum()), place, np.int64), came.offsets[chosen], verdicts.anomaly[chosen],
            tokens == OOV, (tokens == OOV) | (tokens == RARE), verdicts.surprise[chosen, :fields],
            np.full(int(ended.sum()), place, np.int64), ends.last_offset[ended], ends.anomaly[ended],
        )  # fmt: skip


def compare(
    new: Seen, serving: Seen | None, rate: float, labels: Labels, comparable: Sequence[bool] = ()
) -> Judged | None:  # fmt: skip
    """Judge the new bundle; None where too little is held back to say anything.

    Parameters
    ----------
    comparable
        (F,) of which token fields the surprises of both bundles are of the same outcomes; none: of no field.
    """
    if len(new.offset) < LEAST_RECORDS:
        return None
    nats = (None, None) if serving is None else _nats(new, serving, comparable)
    of_new = _figures(new, nats[0], labels)
    of_serving = None if serving is None else _figures(serving, nats[1], labels)
    better, why = judge(of_new, of_serving, rate)
    return Judged(better, why, of_new, of_serving)


def judge(new: Figures, serving: Figures | None, rate: float) -> tuple[bool, str]:
    """Whether the new bundle is better, and why.

    The first of these rules that applies decides:

    1. Where none serves, the new one is better if it keeps the promise.
    2. One that finds less of what is labelled is not better.
    3. One that keeps the promise is better than one that breaks it, and the other way round.
    4. Where both break it, half as many alarms are better.
    5. Where both keep it, the new one is better if it knows no fewer tokens and is no more surprised by normal records;
       where surprises cannot be compared, if it knows more of them, or alarms no more often.
    """
    keeps = new.keeps(rate)
    if serving is None:
        return keeps, f"no bundle serves, and this one {'keeps' if keeps else 'breaks'} the promise"
    if new.f1 is not None and serving.f1 is not None and new.f1 < serving.f1:
        return False, f"it finds less of what is labelled (F1 {new.f1:.3f} against {serving.f1:.3f})"
    if keeps and serving.keeps(rate):
        return _of_two_that_keep(new, serving, rate)
    if not keeps and not serving.keeps(rate):
        better = new.alarms_of_records * FEWER <= serving.alarms_of_records
        better = better and new.alarms_of_sessions <= serving.alarms_of_sessions
        return better, f"both break the promise: {_rates(new, serving, rate)}"
    said = "keeps the promise, which the serving one breaks" if keeps else "breaks the promise, which that one keeps"
    return keeps, f"it {said}: {_rates(new, serving, rate)}"


def _of_two_that_keep(new: Figures, serving: Figures, rate: float) -> tuple[bool, str]:
    if new.unknown > serving.unknown:
        return False, f"more tokens are unknown to it ({_unknown(new, serving)})"
    if new.nats is None or serving.nats is None:
        if new.unknown < serving.unknown:
            return True, f"both keep the promise; fewer tokens are unknown to it ({_unknown(new, serving)})"
        better = new.alarms_of_records <= serving.alarms_of_records
        return better, f"both keep the promise: {_rates(new, serving, rate)}"
    surprises = f"{new.nats:.3f} against {serving.nats:.3f} nats a normal record"
    return new.nats <= serving.nats, f"both keep the promise; {surprises}"


def _unknown(new: Figures, serving: Figures) -> str:
    return f"{new.unknown:.2%} against {serving.unknown:.2%}"


def _rates(new: Figures, serving: Figures, rate: float) -> str:
    of_records = f"{new.alarm_rate:.2%} of the records alarmed against {serving.alarm_rate:.2%}"
    return f"{of_records}, {new.alarms_of_sessions} sessions against {serving.alarms_of_sessions}, promised {rate:.2%}"


def _nats(new: Seen, serving: Seen, comparable: Sequence[bool]) -> tuple[float | None, float | None]:
    """Mean surprise of both on what both know and find normal; None unless that is most of the records."""
    if not any(comparable):
        return None, None
    columns = np.flatnonzero(comparable)
    vague = new.vague.any(axis=1) | serving.vague.any(axis=1)
    usual = ~(new.anomaly | serving.anomaly | vague)
    if 2 * int(usual.sum()) < len(usual):
        return None, None
    a, b = (float(s.surprise[usual][:, columns].astype(np.float64).sum(axis=1).mean()) for s in (new, serving))
    return a, b


def _figures(seen: Seen, nats: float | None, labels: Labels) -> Figures:
    """Counts, less what is labelled as an anomaly: alarms there are right."""
    of_records = _labelled(seen.place, seen.offset, "record", labels)
    of_ends = _labelled(seen.end_place, seen.end_offset, "session", labels)
    records, ends = of_records != 1, of_ends != 1
    return Figures(
        int(records.sum()), int(seen.anomaly[records].sum()), int(ends.sum()), int(seen.end_anomaly[ends].sum()),
        float(seen.unknown.mean()) if seen.unknown.size else 0.0, nats,
        _f1(np.concatenate([of_records, of_ends]), np.concatenate([seen.anomaly, seen.end_anomaly])),
    )  # fmt: skip


def _labelled(place: NDArray[np.int64], offset: NDArray[np.int64], what: str, labels: Labels) -> NDArray[np.int8]:
    """1: labelled as an anomaly, 0: as normal, -1: not labelled."""
    found = np.full(len(offset), -1, np.int8)
    if labels:
        for i, key in enumerate(zip(place.tolist(), offset.tolist(), strict=True)):
            found[i] = labels.get((*key, what), -1)
    return found


def _f1(labels: NDArray[np.int8], alarms: NDArray[np.bool_]) -> float | None:
    right = int((alarms & (labels == 1)).sum())
    wrong, missed = int((alarms & (labels == 0)).sum()), int((~alarms & (labels == 1)).sum())
    return 2 * right / (2 * right + wrong + missed) if right + missed else None
