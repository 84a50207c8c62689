"""The sequential part of judging each number by its own series: what tells of it, and what that is held against."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from models.kernels import LATE, STEP

# What a row keeps of a number, one float32 each. Values are kept less ORIGIN: of their differences float32 has digits.
COUNT, ORIGIN, LAST, SLOW = 0, 1, 2, 3  # values seen, SPAN at most; the one before; mean of the last LONG
PACE, WAITED = 4, 5  # mean logarithm of the seconds between values; seconds since the last one
SLOT, BLOCK = 6, 7  # 1 + part of the day, 1 + half day of the last value
WORST, OBSERVED = 8, 9  # most nats in that half day so far; days before it, fading
PEAK, AGE = 10, 11  # the score that others must exceed, and for how many seconds it has stood
RECENT = 12  # the SHORT - 1 values before, the latest first
SHORT, LONG, SPAN = 6, 300, 6_400  # values
SIGNALS, MOMENTS = 4, RECENT + SHORT - 1  # each signal's mean and deviation
SLOTS, REACH, PARTS = 48, 2, MOMENTS + 2 * SIGNALS  # half hours of the day: weight, mean, deviation
DAY_S, BLOCK_MS = 86_400.0, 43_200_000
WORSTS, STEP_NATS, LEAST_NATS = 100, 0.25, -8.0  # a histogram of the half days' worst
HISTORY = PARTS + 3 * SLOTS
NUMBERS = HISTORY + WORSTS

CAP = 18.0  # nats of one signal: a normal tail beyond 5.7 deviations says no more
MEMORY_DAYS = 14.0  # that a part of the day remembers
WEIGHT_DAYS = 28.0  # of counting, which what the signals say is believed like
FADE_DAYS = 60.0  # over which half days are forgotten
_FEWEST = 10  # values before which signals say nothing
_FIRST_DAYS = 1.25  # fading half days, so three of them, in which no value has a score
_LEAST_WEIGHT = 3.0  # values around this time of day, before which there is no season
_SMOOTH = 0.05  # of the values' deviation: a part of the day that never moved is not held to be that still
_RESOLUTION = 1e-6  # float32 holds seven digits
_LARGEST = 1e30
_WITHIN = 1.645  # deviations of a normal distribution that hold nine tenths of it


@njit(cache=True, error_model="numpy")
def judge_series(kind, row, record, first, values, time_ms, gap_s, rest_s, state, scores, bands):
    """Score n records of S sessions by each number's own past, then learn them.

    Parameters
    ----------
    kind, row, record, first
        Operations, as `models.kernels` has them, and which of n records open a session.
    values
        (n, C) float32; what is not finite is missing.
    time_ms, gap_s
        (n,) int64, and float64 seconds since the session's record before.
    rest_s
        Seconds in which a score counts only if none before was as large; 0: all count.
    state
        (S, C, NUMBERS) float32, advanced in place.
    scores
        Out: (n, C) float32; 0 of a missing value.
    bands
        Out: (m, 2, C) float32, between what the value should have been by the signal that finds it strangest; NaN where
        nobody knows.
    """
    mine, told = np.empty(NUMBERS), np.empty((SIGNALS, 2))
    for o in range(len(kind)):
        s, i = row[o], record[o]
        for c in range(state.shape[1]):
            bands[o, 0, c] = bands[o, 1, c] = np.nan
            if kind[o] != STEP and kind[o] != LATE:
                continue
            for k in range(NUMBERS):
                mine[k] = 0.0 if first[i] else state[s, c, k]
            gap = 0.0 if first[i] else gap_s[i]
            mine[WAITED] += gap
            mine[AGE] += gap
            scores[i, c] = 0.0
            if np.isfinite(values[i, c]):
                value = min(max(np.float64(values[i, c]), -_LARGEST), _LARGEST)
                scores[i, c], low, high = _judge(mine, value, time_ms[i], rest_s, told)
                bands[o, 0, c], bands[o, 1, c] = low, high
            if kind[o] == STEP:
                for k in range(NUMBERS):
                    state[s, c, k] = mine[k]


@njit(cache=True, error_model="numpy")
def _judge(mine, value, time_ms, rest_s, told):
    """The score of one value and where it should have been, after which it is learned."""
    count = mine[COUNT]
    if count == 0:
        mine[ORIGIN] = value
    else:
        pace = math.log(max(mine[WAITED], 1e-3))
        mine[PACE] += (pace - mine[PACE]) / min(count, np.float64(LONG))
    block = np.float64(1 + time_ms // BLOCK_MS)
    if block != mine[BLOCK]:
        _close(mine)
        mine[BLOCK] = block
        _move_origin(mine)
    elif count == _FEWEST:
        _move_origin(mine)
    x, floor = value - mine[ORIGIN], _RESOLUTION * max(abs(value), abs(mine[ORIGIN])) + 1e-30
    slot = np.int64(time_ms % 86_400_000 // (86_400_000 // SLOTS))
    _signals(mine, x, slot, floor, told)
    nats, low, high = _weigh(mine, value, floor, told)
    nats += mine[PACE] - math.log(DAY_S)
    # What a day looks like is not known in the first: most there seems strange, which is counted and not told.
    score = _days_between(mine, nats) if mine[OBSERVED] > _FIRST_DAYS else 0.0
    mine[WORST] = max(mine[WORST], nats)
    if rest_s > 0:
        if score > mine[PEAK] or mine[AGE] > rest_s:
            mine[PEAK], mine[AGE] = score, 0.0
        else:
            score = 0.0
    _learn(mine, x, slot)
    return score, low, high


@njit(cache=True, error_model="numpy")
def _signals(mine, x, slot, floor, told):
    """Each signal, and by how much it grows with the value."""
    usual, spread = _season(mine, slot, floor)
    short = x
    for k in range(SHORT - 1):
        short += mine[RECENT + k]
    told[0] = 0.0
    if spread > 0:
        told[0, 0], told[0, 1] = (x - usual) / spread, 1 / spread
    told[1, 0], told[1, 1] = x - mine[LAST], 1.0
    told[2, 0], told[2, 1] = short / SHORT - mine[SLOW], 1.0 / SHORT
    told[3, 0], told[3, 1] = x, 1.0


@njit(cache=True, error_model="numpy")
def _weigh(mine, value, floor, told):
    """Nats of the signals together, and where the strangest of them would have the value; then they are learned."""
    count = mine[COUNT]
    nats, loudest, low, high = 0.0, -1.0, np.nan, np.nan
    for signal in range(SIGNALS):
        y, slope, at = told[signal, 0], told[signal, 1], MOMENTS + 2 * signal
        mean, deviation = mine[at], max(mine[at + 1], _RESOLUTION if signal == 0 else floor)
        if count >= _FEWEST:
            off = (y - mean) / deviation
            nats += _tail(abs(off)) ** 2
            if abs(off) > loudest and slope > 0:
                loudest, middle, reach = abs(off), value - (y - mean) / slope, _WITHIN * deviation / slope
                low, high = middle - reach, middle + reach
        _follow(mine, at, y, 1.0 / (count + 1.0))
    return math.sqrt(nats / SIGNALS), low, high


@njit(cache=True, error_model="numpy")
def _tail(off):
    """Nats of being as far off as so many deviations of a normal distribution, either way; CAP at most."""
    return CAP if off > 6 else min(CAP, -math.log(math.erfc(off / math.sqrt(2.0))))


@njit(cache=True, error_model="numpy")
def _follow(mine, at, y, weight):
    """Let a mean and a deviation take in one more, which has this weight among all."""
    off = y - mine[at]
    mine[at] += weight * off
    mine[at + 1] = math.sqrt((1 - weight) * (mine[at + 1] * mine[at + 1] + weight * off * off))


@njit(cache=True, error_model="numpy")
def _season(mine, slot, floor):
    """Mean and deviation of the values within an hour or so of this time of day; a deviation of 0: not known."""
    weight, total, squares = 0.0, 0.0, 0.0
    for near in range(-REACH, REACH + 1):
        at = PARTS + 3 * ((slot + near) % SLOTS)
        weight += mine[at]
        total += mine[at] * mine[at + 1]
    if weight < _LEAST_WEIGHT:
        return 0.0, 0.0
    mean = total / weight
    for near in range(-REACH, REACH + 1):
        at = PARTS + 3 * ((slot + near) % SLOTS)
        squares += mine[at] * (mine[at + 2] ** 2 + (mine[at + 1] - mean) ** 2)
    least = max(_SMOOTH * mine[MOMENTS + 2 * (SIGNALS - 1) + 1], floor)
    return mean, max(math.sqrt(squares / weight), least)


@njit(cache=True, error_model="numpy")
def _days_between(mine, nats):
    """Log (1 + days): how many lie between values as strange as this, by what signals say and what was counted.

    By the signals exp(-nats) come a day, and that is believed like what WEIGHT_DAYS of counting had found (the mean of
    a gamma distribution, which half days as bad as this one bring up to date).
    """
    bad = 0.0
    for k in range(_bin(nats), WORSTS):
        bad += mine[HISTORY + k]
    return math.log1p((mine[OBSERVED] + WEIGHT_DAYS) / (bad + WEIGHT_DAYS * math.exp(-nats)))


@njit(cache=True, error_model="numpy")
def _bin(nats):
    return np.int64(min(max((nats - LEAST_NATS) / STEP_NATS, 0.0), WORSTS - 1.0))


@njit(cache=True, error_model="numpy")
def _close(mine):
    """Count the half day that is over, and begin the next."""
    if mine[COUNT] > 0:
        days = BLOCK_MS / 1_000.0 / DAY_S
        kept = math.exp(-days / FADE_DAYS)
        for k in range(WORSTS):
            mine[HISTORY + k] *= kept
        mine[HISTORY + _bin(mine[WORST])] += 1.0
        mine[OBSERVED] = kept * mine[OBSERVED] + days
    mine[WORST] = LEAST_NATS


@njit(cache=True, error_model="numpy")
def _move_origin(mine):
    """Keep values less what they are on average by now."""
    value = MOMENTS + 2 * (SIGNALS - 1)
    moved = np.float64(np.float32(mine[ORIGIN] + mine[value])) - mine[ORIGIN]
    mine[ORIGIN] += moved
    mine[LAST] -= moved
    mine[SLOW] -= moved
    mine[value] -= moved
    for k in range(SHORT - 1):
        mine[RECENT + k] -= moved
    for k in range(SLOTS):
        if mine[PARTS + 3 * k] > 0:
            mine[PARTS + 3 * k + 1] -= moved


@njit(cache=True, error_model="numpy")
def _learn(mine, x, slot):
    count, at = mine[COUNT], PARTS + 3 * slot
    if mine[SLOT] != slot + 1:  # another day, or the same time of one
        mine[at] *= 1 - 1 / MEMORY_DAYS
        mine[SLOT] = slot + 1
    mine[at] += 1.0
    _follow(mine, at + 1, x, 1.0 / mine[at])
    mine[SLOW] += (x - mine[SLOW]) / min(count + 1, np.float64(LONG))
    for k in range(SHORT - 2, 0, -1):
        mine[RECENT + k] = mine[RECENT + k - 1]
    mine[RECENT] = mine[LAST] = x
    mine[COUNT] = min(count + 1, SPAN - 1.0)
    mine[WAITED] = 0.0
