"""Whether records still surprise a model as they did when it was calibrated: surprise, and p-values' uniformity.

Surprise is minus the logarithm of the p-value, capped: 1 nat on average while records are as calibration had them,
whatever the model and its unit of scores. The p-values are counted in bins, so all sums are of whole numbers, and the
same however a stream is cut.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detectors.adwin import Adwin
from detectors.drift_events import DriftEvent, DriftType
from detectors.drift_tests import Kswin, PageHinkley
from detectors.intervals import (
    BINS,
    BLOCK,
    GROUPS,
    HOURS,
    KINDS,
    WINDOW,
    Binned,
    Change,
    Counts,
    Floats,
    IntervalState,
    IntervalWatch,
    Reference,
    hours_of,
)
from detectors.usual_intervals import learn as learn_usual

CAP = 10.0  # nats: no single record says more than one in 22,000 does
_EDGES = np.array([0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])  # of p-values
_SURPRISE = KINDS.index("surprise")
_TYPES: dict[int, DriftType] = {KINDS.index("distribution"): "calibration_drift", _SURPRISE: "surprise_drift"}
_REMEMBERED = 4 * WINDOW  # intervals for which what a test of the series says holds
_TESTS = 3
_AGREE = 2  # of the tests
_SPREADS = 4.0  # of block means, to which the series is cut
_LEAST_SPREAD = 0.5 / np.sqrt(BLOCK)  # half that of independent records: a constant series must not divide by 0
# In spreads of block means. A sum of 20 with half a spread of slack is reached by chance once in more blocks than a
# stream has.
_PAGE_HINKLEY = PageHinkley(slack=0.5, threshold=20.0)
_KSWIN = Kswin(alpha=0.001)
_ADWIN = Adwin()


@dataclass(frozen=True, eq=False)
class UsualScores:
    """What calibration had: p-values by bin and hour, and the spread of the mean surprise of blocks, in nats."""

    reference: Reference
    spread: float

    def to_json(self) -> dict[str, Any]:
        """As a bundle holds it."""
        return {"spread": self.spread} | self.reference.to_json()

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """What `to_json` gave. KeyError, ValueError: it is none."""
        return cls(Reference.from_json(saved), float(saved["spread"]))


@dataclass(frozen=True, eq=False)
class ScoreState:
    """What a partition remembers of its scores.

    Attributes
    ----------
    intervals
        Of the p-values' histogram.
    block, hours
        (BINS,) and (24,): the block under way by p-value and by hour of the day.
    adwin, page_hinkley, kswin
        Of the series of block means less what is usual at their hours, in spreads.
    judged
        Intervals so far.
    flagged
        Of these three the interval in which each last saw a change; far in the past where none did.
    told
        Whether a surprise drift was told and has not ended.
    """

    intervals: IntervalState
    block: Counts
    hours: Counts
    adwin: Adwin = _ADWIN
    page_hinkley: PageHinkley = _PAGE_HINKLEY
    kswin: Kswin = _KSWIN
    judged: int = 0
    flagged: tuple[int, ...] = (-_REMEMBERED,) * _TESTS
    told: bool = False

    @classmethod
    def empty(cls, mark: int) -> ScoreState:
        """Before the first record."""
        return cls(IntervalState.empty(1, mark), np.zeros(BINS, np.int64), np.zeros(HOURS, np.int64))

    def pack(self) -> bytes:
        """As it is saved."""
        arrays = [test.to_array() for test in (self.adwin, self.page_hinkley, self.kswin)]
        own = np.array([*self.block, *self.hours, self.judged, *self.flagged, self.told], np.int64).tobytes()
        intervals = self.intervals.pack()
        sizes = struct.pack("<4I", *map(len, arrays), len(intervals))
        return b"".join([sizes, own, *(array.astype("<f8").tobytes() for array in arrays), intervals])

    @classmethod
    def unpack(cls, packed: bytes) -> ScoreState:
        """What `pack` gave. ValueError: it is none."""
        if len(packed) < 16:
            message = "it cannot be unpacked: it is too short"
            raise ValueError(message)
        *lengths, of_intervals = struct.unpack_from("<4I", packed)
        own = np.frombuffer(packed, np.int64, BINS + HOURS + _TESTS + 2, 16)
        at, arrays = 16 + own.nbytes, []
        for length in lengths:
            arrays.append(np.frombuffer(packed, "<f8", length, at))
            at += 8 * length
        judged, *flagged, told = own[BINS + HOURS :].tolist()
        return cls(
            IntervalState.unpack(packed[at : at + of_intervals]), own[:BINS], own[BINS : BINS + HOURS],
            _ADWIN.restored(arrays[0]), _PAGE_HINKLEY.restored(arrays[1]), _KSWIN.restored(arrays[2]),
            judged, tuple(flagged), bool(told),
        )  # fmt: skip

    def after_block(self, value: float) -> ScoreState:
        """The series with one more block, `value` spreads from what is usual."""
        cut = min(max(value, -_SPREADS), _SPREADS)
        adwin = self.adwin.update_one((cut + _SPREADS) / (2 * _SPREADS))
        page_hinkley, kswin = self.page_hinkley.update_one(cut), self.kswin.update_one(cut)
        tests = (adwin.has_changed, page_hinkley.has_changed, kswin.has_changed)
        flagged = tuple(self.judged if now else at for now, at in zip(tests, self.flagged, strict=True))
        return replace(
            self, block=np.zeros_like(self.block), hours=np.zeros_like(self.hours), adwin=adwin,
            page_hinkley=page_hinkley, kswin=kswin, flagged=flagged,
        )  # fmt: skip

    @property
    def sees_a_change(self) -> bool:
        """Whether two of the three tests saw one lately."""
        return sum(self.judged - at < _REMEMBERED for at in self.flagged) >= _AGREE


@dataclass(frozen=True)
class ScoreWatch:
    """Counts and judges the p-values of records that a bundle scored.

    A calibration drift is one of their histogram, judged as `IntervalWatch` has it: also where scores have become
    too mild, for then a promise is kept by missing anomalies. A surprise drift is one of their mean, and
    two of ADWIN, Page-Hinkley and KSWIN, on the means of blocks, must have seen it change too. So a bundle that is off
    from its first record on is a calibration drift alone. Less what is usual at the hour of the day, the series has no
    daily cycle but where calibration saw less than two days; there it is the intervals that keep quiet.
    """

    usual: UsualScores | None = None

    def update_many(
        self, state: ScoreState | None, p_values: Floats, time_ms: NDArray[np.int64], group: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> tuple[ScoreState | None, list[DriftEvent]]:  # fmt: skip
        """Count (n,) p-values in their order, and judge each interval that they end; `group` as `Binned` has it."""
        if self.usual is None or not len(p_values):
            return state, []
        mark = self._watch.reference.mark
        if state is None:
            state = ScoreState.empty(mark)
        elif state.intervals.mark != mark:  # another bundle
            state = replace(ScoreState.empty(mark), intervals=state.intervals.under(mark), told=state.told)
        events, bins = list[DriftEvent](), bins_of(p_values)
        records, at = Binned(bins[:, None], group, time_ms, offsets), 0
        while at < len(records):
            high = min(len(records), at + BLOCK - int(state.block.sum()))
            piece = Binned(records.bins[at:high], group[at:high], time_ms[at:high], offsets[at:high])
            state, found = self._step(state, piece)
            events, at = events + found, high
        return state, events

    @cached_property
    def _watch(self) -> IntervalWatch:
        assert self.usual is not None, "asked for only where there is one"
        return IntervalWatch(self.usual.reference)

    def _step(self, state: ScoreState, piece: Binned) -> tuple[ScoreState, list[DriftEvent]]:
        """Some more records of a block."""
        block = state.block + np.bincount(piece.bins[:, 0], minlength=BINS)
        state = replace(state, block=block, hours=state.hours + np.bincount(hours_of(piece.time_ms), minlength=HOURS))
        if block.sum() == BLOCK:
            state = state.after_block(self._spreads(state))
        intervals, changes = self._watch.update_many(state.intervals, piece)
        is_judged = intervals.is_later_than(state.intervals)
        state = replace(state, intervals=intervals, judged=state.judged + is_judged)
        if not is_judged:
            return state, []
        events = [_event(change) for change in changes if change.kind != _SURPRISE]
        is_open = bool(intervals.records[0, _SURPRISE] >= 0)
        ended = [change for change in changes if change.kind == _SURPRISE and not change.has_begun]
        if is_open and not state.told and state.sees_a_change:
            return replace(state, told=True), [
                *events,
                _event(self._watch.change(intervals, 0, _SURPRISE, int(piece.offsets[-1]))),
            ]
        if ended and state.told:
            return replace(state, told=False), [*events, *map(_event, ended)]
        return state, events

    def _spreads(self, state: ScoreState) -> float:
        """Of a whole block: how far its mean is from what is usual at its hours."""
        assert self.usual is not None, "asked for only where there is one"
        reference = self.usual.reference
        expected = reference.expected(state.hours)[0]
        mean = float((state.block / BLOCK - expected) @ reference.worth[0])
        return mean / self.usual.spread

    def learn(
        self, p_values: Sequence[Floats], time_ms: Sequence[NDArray[np.int64]], group: Sequence[NDArray[np.int64]],
        after_ms: int | None = None,
    ) -> UsualScores:  # fmt: skip
        """What is usual, from the p-values that calibration data has under its own calibration.

        Parameters
        ----------
        p_values, time_ms, group
            Of each partition (n,), in the order of time.
        """
        every = np.concatenate(p_values)
        bins, surprise = bins_of(every), np.minimum(-np.log(every), CAP)
        counts = np.bincount(bins, minlength=BINS)
        means = np.bincount(bins, surprise, minlength=BINS) / np.maximum(1, counts)
        worth = np.where(counts > 0, means, _middles())
        parts = [
            Binned(bins_of(p)[:, None], g, t, np.arange(len(p)))
            for p, t, g in zip(p_values, time_ms, group, strict=True)
        ]
        nothing = [np.zeros(len(part), np.bool_) for part in parts]
        reference = learn_usual(parts, nothing, worth[None], after_ms)
        blocks = [worth[b[: len(b) // BLOCK * BLOCK]].reshape(-1, BLOCK).mean(axis=1) for b in map(bins_of, p_values)]
        spread = float(np.std(np.concatenate(blocks))) if sum(map(len, blocks)) else 0.0
        return UsualScores(reference, max(spread, _LEAST_SPREAD))


def bins_of(p_values: Floats) -> NDArray[np.uint8]:
    """(n,) bins of (n,) p-values."""
    return np.searchsorted(_EDGES, p_values, side="left").astype(np.uint8)


def groups_of_numbers(sessions: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) groups of sessions that have numbers instead of names."""
    return sessions.astype(np.int64) % GROUPS


def _middles() -> Floats:
    """(BINS,) surprise in the middle of each bin, for those that calibration left empty; the last bin is never used."""
    edges = np.concatenate([[np.exp(-CAP)], _EDGES, [1.0, 1.0]])
    middles: Floats = -np.log((edges[:-1] + edges[1:]) / 2)
    return middles


def _event(change: Change) -> DriftEvent:
    return DriftEvent(
        _TYPES[change.kind], None, change.has_begun, change.offset, change.since_ms, change.records, change.statistic,
        change.amount, change.usual, change.limit, change.p_value,
    )  # fmt: skip
