"""The promise kept online: thresholds that follow what normal data does, slowly, and forget no anomaly for it.

Calibration says how rare a score was in held-back data. Under slow drift that is no longer how rare it is, and the
share of alarms leaves the promise. So a partition keeps two thresholds of its own, for records and for sessions, in
nats of -log p: each begins at L = -log(rate) and moves with the alarms there were. A p-value is reported as
p ** (L / threshold), so that an anomaly still is what has one of at most `rate`.

What is learned, is learned from whole blocks of records in the order of offsets, never from slices, so a partition's
state and verdicts are the same however its stream was cut.

References
----------
Gibbs and Candes 2021, arXiv:2106.00170: the level of a conformal test moved by its errors. Angelopoulos, Candes and
Tibshirani 2023, arXiv:2307.16895: the same for the quantile itself, which is what `learn` does, in nats. Both need to
know what was an error. Nobody says here which alarms were false, so `learn` has reservations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

from detectors.calibration import Calibration
from features.events import Events
from features.sessions import END_EVENT, END_INPUT, END_LIMIT, NEVER_MS, SessionRules, Walk

if TYPE_CHECKING:
    from detectors.parts import Parts
    from detectors.rows import PartitionState

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
# A threshold moves with the last 20 alarms: then chance moves it by 0.16 nats (the root of 1 / 40). But not with fewer
# than 5,000 decisions, so that an anomaly of an hour or two is short beside it.
_ALARMS, _DECISIONS = 20.0, 5_000.0
_SPAN = math.log(10.0)  # how far it goes
_NEAR, _FAR = 10.0, 0.01  # how far near misses go from the threshold, and from where on an alarm is far beyond it
_FEW, _TAIL = (
    3.0,
    1.5,
)  # alarms that prove nothing; how much longer than the calibration's a tail that drifts may become
_MOST_PACE = 10.0  # times as many alarms due, or as few, as the rate says; thresholds go no further either
_SEEN_ALARMS = 100.0  # due in what the kept rate is measured over


@dataclass(frozen=True)
class KeepingRules:
    """How a promise is kept.

    Attributes
    ----------
    block
        Records that are learned from at once. More would follow later; fewer would cost more.
    lag
        Blocks that may still have sessions to be ended; what is older is learned from. Sessions that are due are ended
        after each slice, so one would do for slices of any size; the others are a reserve.
    frozen
        Blocks of a burst from which nothing is learned; a burst that goes on is the new normal.
    usual_ms
        Where alarms a day are promised: event time that a block took when the rate was found. As much more or less as
        blocks take of it later, so many more or fewer alarms are due in each.
    """

    block: int = 256
    lag: int = 8
    frozen: int = 64
    usual_ms: float | None = None


@dataclass(frozen=True)
class Tally:
    """Decisions of a block: all, alarms, those of them that count, and near misses."""

    decided: int = 0
    alarmed: int = 0
    counted: int = 0
    near: int = 0

    def plus(self, more: Sequence[int]) -> Tally:
        """With those of `more`, in the same order."""
        return Tally(
            *(a + int(b) for a, b in zip((self.decided, self.alarmed, self.counted, self.near), more, strict=True))
        )


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it is moved by.

    Attributes
    ----------
    nats
        Of -log p, from which on there is an alarm.
    lowest, highest
        How far that may go.
    backlog
        Alarms that are still to move it.
    recent
        What came lately; nothing of bursts.
    frozen
        Blocks of the present burst that were not learned from.
    decided, alarmed
        Over about the last hundred alarms that were due: the kept rate is one by the other.
    """

    nats: float
    lowest: float
    highest: float
    backlog: float = 0.0
    recent: Tally = Tally()
    frozen: int = 0
    decided: int = 0
    alarmed: int = 0

    @classmethod
    def begin(cls, calibration: Calibration, rate: float) -> Threshold:
        """As the calibration has it; it goes a tenth and ten times the alarms far, or half as far as it is from none.

        Without a tail it goes no higher than counting still tells scores apart.
        """
        nats = -math.log(rate)
        span = min(_SPAN, nats / 2.0)
        counted = math.inf if calibration.tail is not None else -math.log(calibration.smallest_p_value)
        return cls(nats, nats - span, min(nats + span, max(nats, counted)))

    @property
    def kept(self) -> float | None:
        """The share of alarms there was; None before the first block."""
        return self.alarmed / self.decided if self.decided else None


@dataclass(frozen=True)
class Block:
    """A block of records, as sessions see it: under which threshold those are judged that end in it, and how many were.

    A session ends in the block of its last record, or where time ends it in the first whose watermark has passed that
    time, if that comes later. So it does not matter when somebody looks.

    Attributes
    ----------
    watermark_ms, last_offset
        At its end; while it goes on nothing is beyond these.
    """

    nats: float
    watermark_ms: int = NEVER_MS
    last_offset: int = NEVER_MS
    tally: Tally = Tally()


@dataclass(frozen=True)
class KeeperState:
    """What a partition keeps of its promise: about fifty numbers, less than 4 KB.

    Attributes
    ----------
    bundle, rate
        For which this is; under others it begins anew.
    filled
        Records in the block that goes on.
    records, tally
        Their threshold, and what came in that block.
    sessions, blocks
        Theirs, and the last blocks, oldest first.
    """

    bundle: int
    rate: float
    filled: int
    records: Threshold
    tally: Tally
    sessions: Threshold
    blocks: tuple[Block, ...]

    @classmethod
    def begin(cls, bundle: int, rate: float, records: Calibration, sessions: Calibration) -> KeeperState:
        """As the calibrations have it."""
        ended = Threshold.begin(sessions, rate)
        return cls(bundle, rate, 0, Threshold.begin(records, rate), Tally(), ended, (Block(ended.nats),))


@dataclass(frozen=True)
class Kept:
    """(n,) p-values of records and (E,) of ended sessions as the thresholds in force make them, and what is kept."""

    p_value: Floats
    end_p_value: Floats
    state: KeeperState | None


def keep(
    p_value: Floats, end_p_value: Floats, walk: Walk, last_offset: Whole, events: Events, partition: PartitionState,
    parts: Parts,
) -> Kept:  # fmt: skip
    """Judge a slice under the thresholds in force, and learn from each block that it completes.

    Where nothing is adapted, or no bundle serves, p-values stay as they are.

    Parameters
    ----------
    p_value
        (n,) of the records in the order of offsets, as the calibration has them; NaN is no decision.
    end_p_value
        (E,) of the sessions that ended, as `walk.of_ends`.
    last_offset
        (E,) of their last records.
    partition
        Before the slice.
    """
    learned, rules = parts.learned, parts.keeping
    if learned is None or rules is None:
        return Kept(p_value, end_p_value, None)
    state = partition.keeper
    if state is None or (state.bundle, state.rate) != (learned.number, parts.rate):
        state = KeeperState.begin(learned.number, parts.rate, learned.records, learned.sessions)
    completes = np.arange(rules.block - state.filled - 1, len(p_value), rules.block)
    watermarks = np.maximum.accumulate(np.maximum(events.time_ms, partition.watermark_ms))[completes]
    ends = list(zip(watermarks.tolist(), events.offsets[completes].tolist(), strict=True))
    due = _due_rates(state, ends, rules)
    adapted, records, tally = _keep_records(p_value, walk.is_late, completes, due, state, rules)
    block_of = _blocks_of_ends(walk, last_offset, ends, parts.rules, state)
    ended, threshold, blocks = _keep_sessions(end_p_value, block_of, ends, due, state, rules)
    filled = (state.filled + len(p_value)) % rules.block
    after = replace(state, filled=filled, records=records, tally=tally, sessions=threshold, blocks=blocks)
    return Kept(adapted, ended, after)


def _due_rates(state: KeeperState, ends: Sequence[tuple[int, int]], rules: KeepingRules) -> list[float]:
    """The share of alarms due in each new block: the rate, or where a budget of a day is kept, by the time it took.

    That is the mean of the last blocks', as many as are kept, so that it does not matter how the stream is cut. A
    pause is not made up for: it counts as ten usual blocks at most.
    """
    if rules.usual_ms is None:
        return [state.rate] * len(ends)
    known = [block.watermark_ms for block in state.blocks[:-1]]
    marks, due = known + [watermark_ms for watermark_ms, _ in ends], []
    for last in range(len(known), len(marks)):
        recent = marks[max(0, last - rules.lag + 1) : last + 1]
        took = [min((after - before) / rules.usual_ms, _MOST_PACE) for before, after in pairwise(recent)] or [1.0]
        due.append(min(state.rate * max(math.fsum(took) / len(took), 1.0 / _MOST_PACE), 0.5))
    return due


def _keep_records(
    p_value: Floats, is_late: NDArray[np.bool_], completes: NDArray[np.intp], due: Sequence[float], state: KeeperState,
    rules: KeepingRules,
) -> tuple[Floats, Threshold, Tally]:  # fmt: skip
    adapted, threshold, tally, low = np.empty_like(p_value), state.records, state.tally, 0
    for high, due_rate in zip((completes + 1).tolist(), due, strict=True):
        found = adapt(p_value[low:high], is_late[low:high], state.rate, threshold.nats, adapted[low:high])
        threshold = learn(threshold, tally.plus(found), state.rate, rules.frozen, due_rate)
        tally, low = Tally(), high
    found = adapt(p_value[low:], is_late[low:], state.rate, threshold.nats, adapted[low:])
    return adapted, threshold, tally.plus(found)


def _blocks_of_ends(
    walk: Walk, last_offset: Whole, ends: Sequence[tuple[int, int]], sessions: SessionRules, state: KeeperState
) -> NDArray[np.intp]:
    """(E,) in which block each session ended, counted from the oldest that is kept; `ends` are those of new blocks."""
    ended = walk.of_ends
    if not len(ended):
        return np.empty(0, np.intp)
    marks = [(block.watermark_ms, block.last_offset) for block in state.blocks[:-1]] + list(ends)
    watermarks, offsets = np.array(marks, np.int64).reshape(-1, 2).T
    by_record = np.searchsorted(offsets, last_offset, side="left")
    over = sessions.over_ms(walk.ended_first_ms[ended], walk.ended_last_ms[ended])
    by_time = np.maximum(by_record, np.searchsorted(watermarks, over, side="right"))
    kind, is_full = walk.kind[ended], walk.ended_events[ended] >= sessions.max_events
    is_by_record = (kind == END_EVENT) | ((kind == END_LIMIT) & is_full)
    return np.where(kind == END_INPUT, len(marks), np.where(is_by_record, by_record, by_time))


def _keep_sessions(
    p_value: Floats, block_of: NDArray[np.intp], ends: Sequence[tuple[int, int]], due: Sequence[float],
    state: KeeperState, rules: KeepingRules,
) -> tuple[Floats, Threshold, tuple[Block, ...]]:  # fmt: skip
    """Judge each session under its block's threshold, which comes from blocks that no session can end in any more."""
    adapted, threshold, blocks, known = np.empty_like(p_value), state.sessions, list(state.blocks), len(state.blocks)
    for number in range(known + len(ends)):
        if number >= known:
            watermark_ms, last = ends[number - known]
            blocks[-1] = replace(blocks[-1], watermark_ms=watermark_ms, last_offset=last)
            if len(blocks) == rules.lag:
                threshold = learn(threshold, blocks.pop(0).tally, state.rate, rules.frozen, due[number - known])
            blocks.append(Block(threshold.nats))
        at = np.flatnonzero(block_of == number)
        if len(at):
            place = min(number - known, -1)  # the new ones come last, one by one
            mine, made = blocks[place], np.empty(len(at))
            found = adapt(p_value[at], np.zeros(len(at), np.bool_), state.rate, mine.nats, made)
            adapted[at] = made
            blocks[place] = replace(mine, tally=mine.tally.plus(found))
    return adapted, threshold, tuple(blocks)


@njit(cache=True)
def adapt(p_value, is_late, rate, nats, adapted):  # fmt: skip
    """Write p-values under a threshold to `adapted`, and count: decided, alarmed, those that count, near misses.

    One scalar power each, so no value depends on another. What is rarer among alarms than alarms are among records, or
    than one in a hundred, is an anomaly and not drift, under which false alarms lie just above the threshold: it does
    not count. What came too late is no decision.
    """
    exponent = -math.log(rate) / nats
    wide = max(1.0, exponent)  # limits are as far apart as in calibrated p-values, where these are the wider
    near_miss, far = rate * _NEAR**wide, rate * min(rate, _FAR) ** wide
    decided, alarmed, counted, near = 0, 0, 0, 0
    for i in range(len(p_value)):
        p = p_value[i] ** exponent
        adapted[i] = p
        if is_late[i] or np.isnan(p):
            continue
        decided += 1
        if p <= rate:
            alarmed += 1
            counted += p > far
        else:
            near += p <= near_miss
    return decided, alarmed, counted, near


def learn(
    threshold: Threshold, tally: Tally, rate: float, frozen: int, due_rate: float | None = None
) -> Threshold:  # fmt: skip
    """Move a threshold by what came of it in a block: up with each alarm, down with each that was due.

    So over time as many alarms count as are due (Angelopoulos et al. 2023, proposition 1), with these reservations,
    that an anomaly is not learned away:

    - alarms move it a few at a time, the others wait; where more wait than chance or slow drift explains, there is a
      burst, of which nothing is learned but what would be due in four blocks, for so many blocks at most as `frozen`
      says;
    - drift lifts near misses too, anomalies only themselves: where there are more alarms than near misses bear out,
      near misses move it alone, by as many alarms as they stand for;
    - it stays between a tenth and ten times the alarms that the calibration would give: beyond that the model needs
      training, and no other threshold.

    `due_rate` is the share of alarms that is due, where that is not `rate`.
    """
    if not tally.decided:
        return threshold
    due = (rate if due_rate is None else due_rate) * (1.0 - min(rate, _FAR)) * tally.decided  # those that count
    most, at_once = 3.0 + 3.0 * due, max(1.0, 4.0 * due)
    waiting, measured = threshold.backlog + tally.counted, _measure(threshold, tally, rate)
    if waiting > most and threshold.frozen < frozen:
        return replace(measured, backlog=min(most, 4.0 * due), frozen=threshold.frozen + 1)
    recent = _recent(threshold, tally, rate)
    width = min(_NEAR, 1.0 / rate)
    if recent.counted <= _FEW + recent.near / (width ** (1.0 / _TAIL) - 1.0):
        moved = min(waiting, at_once * (4.0 if threshold.frozen >= frozen else 1.0))
        left = min(most, waiting - moved)
    else:
        moved, left = min(tally.near / (width - 1.0), at_once), 0.0
    step = min(1.0 / _ALARMS, 1.0 / (_DECISIONS * rate))
    nats = min(max(threshold.nats + step * (moved - due), threshold.lowest), threshold.highest)
    return replace(measured, nats=nats, backlog=left, recent=recent, frozen=0 if left < 1.0 else threshold.frozen)


def _recent(threshold: Threshold, tally: Tally, rate: float) -> Tally:
    """What came in about the last 40 alarms that were due."""
    found = threshold.recent.plus((tally.decided, tally.alarmed, tally.counted, tally.near))
    if found.decided * rate <= 2.0 * _ALARMS:
        return found
    return Tally(found.decided // 2, found.alarmed // 2, found.counted // 2, found.near // 2)


def _measure(threshold: Threshold, tally: Tally, rate: float) -> Threshold:
    """The kept rate; older blocks count for ever less."""
    decided, alarmed = threshold.decided + tally.decided, threshold.alarmed + tally.alarmed
    if decided * rate > 2.0 * _SEEN_ALARMS:
        decided, alarmed = decided // 2, (alarmed + 1) // 2
    return replace(threshold, decided=decided, alarmed=alarmed)
